# SPDX-License-Identifier: Apache-2.0
"""Weights that stay in the scratchpads for a whole program.

A layer's weights are *pinned* if every tile that computes with them holds its part in the area
behind the frames, loaded once at the program's start; the array takes them from there in every step
that uses them. It pays where steps repeat layers, as a decoder's do. In the order of the program,
every layer that fits is pinned; a layer whose pixels are dealt to several tiles is not, because its
weights would lie in the chip several times. Groups of tiles (`mapping.mode`) are filled apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from emu.compiler.mapping import Area
from emu.compiler.stream import PINNED, Step, Tile, Wait
from emu.config import BLOCK_TILES, Config


@dataclass(frozen=True)
class Load:
    """``count`` runs of ``run`` words from HBM word ``far`` on, ``stride`` apart, to ``near``;
    ``sem`` counts them."""

    near: int
    far: int
    run: int
    count: int
    stride: int
    sem: int = PINNED

    @property
    def words(self) -> int:
        return self.run * self.count


@dataclass
class Pins:
    """What is pinned.

    bases: Step to the scratchpad word of its first tile, the same in every scratchpad.
    first: Steps that use pinned weights first: the initial load is theirs.
    loads: What each tile loads at the start.
    parameters: Biases, scales and tables are among that.
    parts: What a tile awaits of it before its first op of a step with weights from some tile on; if
        this is empty, a tile's first op of all awaits the whole.
    """

    bases: dict[int, int] = field(default_factory=dict)
    first: set[int] = field(default_factory=set)
    loads: dict[Tile, list[Load]] = field(default_factory=dict)
    parameters: bool = False
    parts: dict[tuple[Tile, int, int], Wait] = field(default_factory=dict)

    def words(self, tile: Tile) -> int:
        """That a tile loads at the start."""
        return sum(load.words for load in self.loads.get(tile, ()))

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
        size = max(_size(step, c) for c in step.weights)
        area = step.plan.shape.area
        room = config.scratchpad.pinned_words - used.get(area, 0)
        if step.plan.split.pixel_parts > 1 or size > room:
            continue
        base = config.scratchpad.words - room
        used[area] = used.get(area, 0) + size
        pins.first.add(indexes[0])
        pins.bases |= dict.fromkeys(indexes, base)
        for c in step.weights:
            pins.loads.setdefault(step.plan.split.tile(0, c), []).extend(_loads(step, c, base))
    return pins


def _size(step: Step, c: int) -> int:
    """Words of a part, holes between its descriptors included."""
    block, tiles = step.weights[c].descriptors[-1]
    return (block * BLOCK_TILES + tiles) * step.plan.shape.tile_words


def _loads(step: Step, c: int, base: int) -> list[Load]:
    """That bring part ``c`` to ``base``."""
    found = []
    for block, tiles in step.weights[c].descriptors:
        first = block * BLOCK_TILES
        found += tile_loads(step, c, base, first, first + tiles)
    return found


def tile_loads(
    step: Step, c: int, base: int, first: int, end: int, sem: int = PINNED
) -> list[Load]:
    """That bring weight tiles ``first`` .. ``end - 1`` of part ``c`` to where they lie behind
    ``base``: up to a block's end, whole blocks, the rest."""
    size = step.plan.shape.tile_words

    def load(tile: int, run: int, count: int) -> Load:
        far = step.weight_base[c] + tile // BLOCK_TILES * step.block_stride
        return Load(base + tile * size, far + tile % BLOCK_TILES * size, run * size, count,
                    step.block_stride, sem)

    found = []
    head = min(end, -(-first // BLOCK_TILES) * BLOCK_TILES) - first
    if head:
        found.append(load(first, head, 1))
    whole, rest = divmod(end - first - head, BLOCK_TILES)
    if whole:
        found.append(load(first + head, BLOCK_TILES, whole))
    if rest:
        found.append(load(end - rest, rest, 1))
    return found


__all__ = ["Load", "Pins", "pin", "tile_loads"]
