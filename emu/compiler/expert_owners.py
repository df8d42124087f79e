# SPDX-License-Identifier: Apache-2.0
"""Whose experts are: of one group of tiles each, those most used also of others (copies).

Which expert is popular the compiler knows from a trace of routing (`ExpertLayer.frequency`), not
from the tokens of the run. A copy has every so-manyth block of an expert's tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from emu.compiler.expert_step import Slice
from emu.compiler.images import LANES
from emu.compiler.mapping import part, rect_tiles, tile_groups
from emu.compiler.stream import Tile
from emu.config import Config
from emu.errors import UserError
from emu.network.layers import ExpertLayer

BLOCK = LANES
"""Tokens that a copy takes before it is the next one's turn: a pass of the array is no shorter."""


def rows(tokens: int, copy: int, copies: int) -> int:
    """Of an expert's ``tokens``, those of copy ``copy`` of ``copies``."""
    turn = BLOCK * copies
    return tokens // turn * BLOCK + min(max(tokens % turn - BLOCK * copy, 0), BLOCK)


@dataclass(frozen=True)
class Share:
    """An expert in a group of tiles: copy ``copy`` of ``copies``."""

    expert: int
    copy: int = 0
    copies: int = 1

    def most(self, tokens: int) -> int:
        """Rows, if all ``tokens`` choose the expert; at least one, for a list must have room."""
        return max(rows(tokens, self.copy, self.copies), 1)

    def cost(self, tokens: Mapping[int, int]) -> int:
        """Rows that a pass takes, if the experts have ``tokens``: `BLOCK` at least, unless none."""
        found = rows(tokens[self.expert], self.copy, self.copies)
        return max(found, BLOCK) if found else 0


@dataclass(frozen=True)
class Owner:
    """A tile's shares and output groups: of each share the same."""

    shares: tuple[Share, ...]
    first: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.first


def copies(tokens: Mapping[int, int], extra: int, most: int) -> dict[int, int]:
    """How many of each expert there are, at most ``most``, by the ``tokens`` that they expect: one,
    and up to ``extra`` more in all. Every copy goes to the expert whose first one has most rows, as
    long as it gets some."""
    found = dict.fromkeys(tokens, 1)
    for _ in range(extra):
        able = [expert for expert, count in found.items()
                if count < most and rows(tokens[expert], count, count + 1)]
        if not able:
            break
        found[max(able, key=lambda e: (rows(tokens[e], 0, found[e]), -e))] += 1
    return found


def shares(tokens: Mapping[int, int], extra: int, groups: int) -> list[tuple[Share, ...]]:
    """Of each of ``groups`` groups of tiles, by the ``tokens`` that the experts expect: the busiest
    shares first, each to the group that has least to do, then to the one with fewest shares; never
    two copies of one expert."""
    every = [Share(expert, copy, count)
             for expert, count in copies(tokens, extra, groups).items() for copy in range(count)]
    load, found = [0] * groups, [list[Share]() for _ in range(groups)]
    for share in sorted(every, key=lambda each: (-each.cost(tokens), each.expert, each.copy)):
        free = [k for k, have in enumerate(found) if all(s.expert != share.expert for s in have)]
        group = min(free, key=lambda k: (load[k], len(found[k]), k))
        load[group] += share.cost(tokens)
        found[group].append(share)
    return [tuple(each) for each in found]


def owners(config: Config, layer: ExpertLayer) -> dict[Tile, Owner]:
    """What every tile has that has anything.

    Raises
    ------
    UserError
        If the mesh has no such groups of tiles, or frequencies are not of these experts.
    """
    experts = len(layer.weights)
    wanted = min(experts, config.mesh.tiles)
    if size := config.mapping.expert_tiles:
        wanted = max(config.mesh.tiles // size, 1)
    areas = tile_groups(config, wanted)
    if size and size * len(areas) != config.mesh.tiles:
        raise UserError(f"mapping.expert_tiles: {config.mesh.cols}x{config.mesh.rows} tiles have "
                        f"no {wanted} equal groups of {size}")
    frequency = layer.frequency or (1,) * experts
    if len(frequency) != experts:
        raise UserError(f"layer {layer.name}: frequencies of {len(frequency)} experts, there are "
                        f"{experts}")
    groups = -(-layer.weights.shape[1] // LANES)
    found = {}
    chosen, total = layer.target.shape[3], max(sum(frequency), 1)
    expected = {e: -(-chosen * count // total) for e, count in enumerate(frequency)}
    dealt = shares(expected, config.mapping.expert_copies, len(areas))
    for (x, y, width, height), mine in zip(areas, dealt, strict=True):
        tiles = rect_tiles((x, x + width - 1, y, y + height - 1, 0, 0))
        for number, tile in enumerate(tiles):
            first, end = part(groups, len(tiles), number)
            if mine and first < end:
                found[tile] = Owner(mine, first, end)
    return found


def slices(work: Mapping[Tile, Owner]) -> dict[Tile, list[Slice]]:
    """What lies in HBM for every tile, in order."""
    return {tile: [(share.expert, owner.first, owner.end) for share in owner.shares]
            for tile, owner in work.items()}


__all__ = ["BLOCK", "Owner", "Share", "copies", "owners", "rows", "shares", "slices"]
