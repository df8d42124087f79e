# SPDX-License-Identifier: Apache-2.0
"""Weights that stay in the scratchpads for a whole program.

A layer's weights are *pinned* if every tile that computes with them holds its part in the area
behind the frames, loaded once at the program's start; the array takes them from there in every step
that uses them. It pays where steps repeat layers, as a decoder's do. In the order of the program,
every layer that fits is pinned; a layer whose pixels are dealt to several tiles is not, because its
weights would lie in the chip several times. Groups of tiles (`mapping.mode`) are filled apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from emu.compiler.mapping import Area
from emu.compiler.stream import Step, Tile
from emu.config import BLOCK_TILES, Config


@dataclass(frozen=True)
class Load:
    """``count`` runs of ``run`` words from HBM word ``far`` on, ``stride`` apart, to ``near``."""

    near: int
    far: int
    run: int
    count: int
    stride: int


@dataclass
class Pins:
    """What is pinned.

    bases: Step to the scratchpad word of its first tile, the same in every scratchpad.
    first: Steps that use pinned weights first: the initial load is theirs.
    loads: What each tile loads at the start.
    parameters: Biases, scales and tables are among that.
    """

    bases: dict[int, int] = field(default_factory=dict)
    first: set[int] = field(default_factory=set)
    loads: dict[Tile, list[Load]] = field(default_factory=dict)
    parameters: bool = False

    def words(self, tile: Tile) -> int:
        """That a tile loads at the start."""
        return sum(load.run * load.count for load in self.loads.get(tile, ()))

    @property
    def initial_words(self) -> int:
        return sum(map(self.words, self.loads))


def pin(config: Config, steps: Mapping[int, Step]) -> Pins:
    """Pins for the steps with weights, by their number in the program."""
    pins = Pins()
    uses: dict[int, list[int]] = {}
    for index, step in steps.items():
        uses.setdefault(id(step.weight_base), []).append(index)
    used: dict[Area | None, int] = {}  # each group of tiles has pins of its own
    for indexes in uses.values():
        step = steps[indexes[0]]
        size = max(size_of(step, c) for c in step.weights)
        area = step.plan.shape.area
        room = config.scratchpad.pinned_words - used.get(area, 0)
        if step.plan.split.pixel_parts > 1 or size > room:
            continue
        base = config.scratchpad.words - room
        used[area] = used.get(area, 0) + size
        pins.first.add(indexes[0])
        pins.bases |= dict.fromkeys(indexes, base)
        for c in step.weights:
            pins.loads.setdefault(step.plan.split.tile(0, c), []).extend(loads_of(step, c, base))
    return pins


def size_of(step: Step, c: int) -> int:
    """Words of a part, holes between its descriptors included."""
    block, tiles = step.weights[c].descriptors[-1]
    return (block * BLOCK_TILES + tiles) * step.plan.shape.tile_words


def loads_of(step: Step, c: int, base: int) -> Sequence[Load]:
    """That bring part ``c`` to ``base``."""
    size = step.plan.shape.tile_words
    found = []
    for block, tiles in step.weights[c].descriptors:
        whole, rest = divmod(tiles, BLOCK_TILES)
        near = base + block * BLOCK_TILES * size
        far = step.weight_base[c] + block * step.block_stride
        if whole:
            found.append(Load(near, far, BLOCK_TILES * size, whole, step.block_stride))
        if rest:
            found.append(Load(near + whole * BLOCK_TILES * size, far + whole * step.block_stride,
                              rest * size, 1, 0))
    return found


__all__ = ["Load", "Pins", "loads_of", "pin", "size_of"]
