# SPDX-License-Identifier: Apache-2.0
"""Which tiles work on which layers of a pipeline.

A *stage* is a layer, or some neighbouring ones, on a rectangle of tiles. The mesh is cut in two
again and again, the chain of layers with it; a part that is not cut is a stage. Wanted is what
takes all items through all stages soonest: many stages are slower to fill, few have more tiles for
each layer than it can use evenly. Output groups are dealt to a stage's tiles; a rectangle that has
more tiles than the smallest of its layers has groups is not used whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from emu.compiler.geometry import Geometry
from emu.compiler.mapping import Area, Axis, Split, part, tile_groups
from emu.compiler.stream import PIPELINE_SLOTS
from emu.compiler.tiling import Plan, bands_of, chunks, plan_weights
from emu.config import BLOCK_TILES, Config

ITEM_CYCLES = 12
"""From a COMPUTE to the next one beside its passes, measured with passes of one pixel."""
ARRIVAL_CYCLES, WORD_CYCLES = 150, 4 / 3
"""Until the next layer begins if nothing else is to be done: and for each word of its input."""
OUT_SLOTS = 4
CUTS = 3
"""Cuts of the chain that are tried for each cut of the tiles: those nearest to its share."""


@dataclass(frozen=True)
class Stage:
    """Layers ``first`` .. ``end - 1`` of the chain on the tiles of ``area``."""

    first: int
    end: int
    area: Area


@dataclass(frozen=True)
class Dealt:
    """Stages, the cycles that the slowest one takes for an item, and those that an item takes to
    pass through all."""

    slowest: int
    total: int
    stages: tuple[Stage, ...]

    def cycles(self, items: int) -> int:
        """That ``items`` take."""
        return (items - 1) * self.slowest + self.total


def split_of(area: Area) -> Split:
    """Output channels over all tiles of ``area``."""
    x, y, width, height = area
    return Split(Axis(1, height, False, y), Axis(1, width, False, x))


def stage_plan(config: Config, shape: Geometry, area: Area, bands: int) -> Plan:
    """One layer on ``area``, its areas from word 0 on: two input slots, then output slots."""
    split, limit = split_of(area), config.core.accumulator_rows
    regions = bands_of(shape, split, 0, bands, "keep", limit)
    plane = max(sum(region.words for region in band) for band in regions)
    most = max(b - a for band in regions for region in band
               for a, b in chunks(region.last - region.first, limit, bands == 1))
    ranges = [part(shape.out_groups, split.channel_parts, c) for c in range(split.channel_parts)]
    needs = [shape.range_needs(a, b) for a, b in ranges]
    out_groups = max(b - a for a, b in ranges)
    batch = out_groups if most * out_groups <= 64 else -(-out_groups // 4)
    slot_words = plane * max(b - a for a, b in needs)
    return Plan(
        shape=shape, split=split, groups=range(shape.out_groups), mode="keep", bands=bands,
        chunk_pixels=limit, batch=min(batch, 1023), parts=1, frames=0, slots=PIPELINE_SLOTS,
        plane=plane, slot_words=slot_words, out_slot_words=batch * most, params=0, inputs=0,
        outputs=PIPELINE_SLOTS * slot_words, out_slots=OUT_SLOTS, frames_base=0, tail=False,
        share_weights=False,
        share_inputs=config.mesh.multicast and split.channel_parts > 1 and shape.is_dense,
    )


def weight_words(plan: Plan) -> int:
    """Of the tile that holds most."""
    most = 0
    for c in range(plan.split.channel_parts):
        block, tiles = plan_weights(plan, c, ()).descriptors[-1]
        most = max(most, (block * BLOCK_TILES + tiles) * plan.shape.tile_words)
    return most


def parameter_words(plan: Plan) -> int:
    """Of the tile that holds most: biases, scales and tables."""
    groups = max(b - a for a, b in map(plan.channel_range, range(plan.split.channel_parts)))
    return 8 * groups + plan.shape.table_words


def activation_words(plan: Plan) -> int:
    """Input and output slots."""
    return plan.outputs + plan.out_slots * plan.out_slot_words


def deal(config: Config, shapes: Sequence[Geometry], bands: int, steps: int) -> Dealt | None:
    """The stages of a chain of ``shapes``, as `mapping.groups` wants them; None if none fit."""
    dealer = _Dealer(config, shapes, bands)
    if config.mapping.groups == "balanced":
        front = dealer.front(config.mesh.cols, config.mesh.rows, 0, len(shapes))
        return min(front, key=lambda each: each.cycles(steps * bands), default=None)
    groups = tile_groups(config, len(shapes))
    found: list[Dealt] = []
    for k, (x, y, width, height) in enumerate(groups):
        first, end = (-(-len(shapes) * n // len(groups)) for n in (k, k + 1))
        one = dealer.alone(width, height, first, end)
        if one is None:
            return None
        found.append(_moved(one, x, y))
    return Dealt(max(one.slowest for one in found), sum(one.total for one in found),
                 tuple(stage for one in found for stage in one.stages))


def _moved(dealt: Dealt, dx: int, dy: int) -> Dealt:
    stages = (replace(s, area=(s.area[0] + dx, s.area[1] + dy, *s.area[2:])) for s in dealt.stages)
    return replace(dealt, stages=tuple(stages))


class _Dealer:
    """A search over cuts of the mesh and of the chain."""

    def __init__(self, config: Config, shapes: Sequence[Geometry], bands: int):
        self.config, self.shapes, self.bands = config, shapes, bands
        self.work = [sum(map(shape.passes, range(shape.out_groups))) for shape in shapes]
        self.front = cache(self._front)
        self.alone = cache(self._alone)
        self._layer = cache(self._on_tiles)

    def _on_tiles(self, layer: int, width: int, height: int) -> tuple[int, int, int]:
        """(cycles of an item, until its input is there, words) of one layer."""
        shape = self.shapes[layer]
        plan = stage_plan(self.config, shape, (0, 0, width, height), self.bands)
        passes = max(sum(map(shape.passes, range(*plan.channel_range(c))))
                     for c in range(plan.split.channel_parts))
        pixels = -(-shape.pixels // self.bands)
        rows = self.config.core.accumulator_rows
        cycles = passes * max(shape.pass_cycles(pixels), -(-pixels // rows) * shape.pass_cycles(1))
        return (cycles + ITEM_CYCLES, round(ARRIVAL_CYCLES + WORD_CYCLES * plan.slot_words),
                weight_words(plan) + parameter_words(plan) + activation_words(plan))

    def _alone(self, width: int, height: int, first: int, end: int) -> Dealt | None:
        """One stage within ``width`` x ``height`` tiles."""
        layers = range(first, end)
        most = min(self.shapes[k].out_groups for k in layers)
        ways = [(w, h) for w in range(1, width + 1) for h in range(1, height + 1) if w * h <= most]
        found = []
        for w, h in ways:
            cycles, arrival, words = map(sum, zip(*(self._layer(k, w, h) for k in layers),
                                                  strict=True))
            if words <= self.config.scratchpad.words:
                found.append((cycles, w * h, arrival, w, h))
        if not found:
            return None
        cycles, _, arrival, w, h = min(found)
        return Dealt(cycles, cycles + arrival, (Stage(first, end, (0, 0, w, h)),))

    def _front(self, width: int, height: int, first: int, end: int) -> list[Dealt]:
        """Stages of layers ``first`` .. ``end - 1`` on ``width`` x ``height`` tiles: of those with
        one slowest stage that with the least total, if no other has both less."""
        one = self.alone(width, height, first, end)
        found = [one] if one else []
        for low, high, dx, dy in _halves(width, height):
            share = low[0] * low[1] / (width * height)
            for k in self._cuts(first, end, share):
                found += [
                    Dealt(max(a.slowest, b.slowest), a.total + b.total,
                          a.stages + _moved(b, dx, dy).stages)
                    for a in self.front(*low, first, k) for b in self.front(*high, k, end)
                ]
        found.sort(key=lambda each: (each.slowest, each.total))
        kept: list[Dealt] = []
        for each in found:
            if not kept or each.total < kept[-1].total:
                kept.append(each)
        return kept

    def _cuts(self, first: int, end: int, share: float) -> list[int]:
        """Where layers may be cut in two: nearest to ``share`` of their work first."""
        whole = sum(self.work[first:end])
        return sorted(range(first + 1, end),
                      key=lambda k: abs(sum(self.work[first:k]) - share * whole))[:CUTS]


def _halves(width: int, height: int) -> Iterator[tuple]:
    """Both parts of every cut of a rectangle, and how far the second lies from the first."""
    for w in range(1, width):
        yield (w, height), (width - w, height), w, 0
    for h in range(1, height):
        yield (width, h), (width, height - h), 0, h
