# SPDX-License-Identifier: Apache-2.0
"""Activations that stay in the scratchpads between layers.

An *edge* leads a tensor from the layer that produces it to one that reads it. A resident edge owns
an area of every scratchpad, at one address, from its producer's first store to the end of its
reader's last COMPUTE; the producer's tiles store each drained word to all tiles whose part of the
reader needs it. All other edges lead through HBM. Which are resident is decided here: all that fit
beside the temporaries (parameters, output slots, inputs from HBM) of every layer; if they do not
fit, the largest that is alive at the worst layer goes to HBM, until they do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from emu.compiler.fit import plan_step
from emu.compiler.geometry import Geometry
from emu.compiler.layer_cost import modelled_cycles
from emu.compiler.mapping import Rect, Split, choose, cost, part, single
from emu.compiler.plan_layer import plan_layer
from emu.compiler.schedule import Item
from emu.compiler.stream import FIRST_EDGE, Flow
from emu.compiler.tiling import PIECES, Plan
from emu.config import BLOCK_WORDS, WORD_BYTES, Config
from emu.errors import UserError
from emu.planner import Item as Area
from emu.planner import place

FRAMES = (32, 24, 16, 12, 8, 4, 2)
"""Frames to try, as many as leave room for all edges;"""
ENOUGH_FRAMES = 8
"""with this few, edges are given up before more frames are."""
ATTEMPTS = 24
"""Rounds of giving up edges before all of them go through HBM."""
MOST_EDGES = 0.85
"""Of what frames leave of a scratchpad: temporaries need the rest."""
MOST_CYCLES = 1.25
"""Of a layer's modelled cycles with all activations in HBM: with fewer frames, or in bands, its
weights are fetched again and again."""
MOST_IN_ALL = 1.05
"""The same of all layers together."""
INBOUND_SHARE = 0.7
"""Words a cycle that a tile takes in beside its computing, measured on ResNet-50's last stage."""
SLACK = 1.03
"""A layer keeps its predecessor's split if that costs less than this much more time: weights are
then prefetched across the layers, and words travel less."""


@dataclass(frozen=True)
class Need:
    """A layer with weights as this module sees it; ``index`` counts all layers of the program.

    source, residual: Index of the layer that produces what it reads, or None: not on the chip.
    """

    index: int
    shape: Geometry
    source: int | None
    residual: int | None


@dataclass(frozen=True)
class Edge:
    """An area of every scratchpad, filled by layer ``producer`` and read by layer ``reader``.

    plane: Words of one group. sem: First of `pieces` semaphores that count arriving words.
    """

    producer: int
    reader: int
    is_residual: bool
    plane: int
    words: int
    pieces: int
    base: int = 0
    sem: int = 0


@dataclass
class Choice:
    """A layer's plans, the resident edges that it reads and those that it fills."""

    plans: list[Plan]
    source: Edge | None = None
    residual: Edge | None = None
    filled: list[Edge] = field(default_factory=list)
    flow: Flow = field(default_factory=Flow)


@dataclass(frozen=True)
class Landing:
    """Words ``start .. end - 1`` of planes ``groups`` go to ``offset`` of the edge's planes, the
    first of which is that of group ``low``."""

    rect: Rect
    low: int
    groups: tuple[int, int]
    start: int
    end: int
    offset: int
    piece: int


def input_landings(shape: Geometry, rect: Rect, item: Item) -> list[Landing]:
    """Where the words of a resident input go in the tiles of ``rect``, whose item it is."""
    found = []
    for number, piece in enumerate(item.pieces):
        for region, offset, begin, end in piece.stretches:
            start = region.image * shape.image_words + region.y0 * shape.row_words + region.x0
            if region.rows == 1:
                runs = [(start + begin, end - begin, offset + begin)]
            elif region.cols == shape.row_words:
                words = region.cols
                runs = [(start + begin * words, (end - begin) * words, offset + begin * words)]
            else:
                runs = [(start + row * shape.row_words, region.cols, offset + row * region.cols)
                        for row in range(begin, end)]
            found += [
                Landing(rect, item.inputs[0], piece.inputs, first, first + count, to, number)
                for first, count, to in runs
            ]
    return found


def residual_landing(plan: Plan, p: int, c: int) -> Landing:
    """Where the words go that tile (p, c) adds to its own outputs."""
    first, last = part(plan.shape.pixels, plan.split.pixel_parts, p)
    groups = plan.channel_range(c)
    return Landing(single(*plan.split.tile(p, c)), groups[0], groups, first, last, 0, 0)


def plan_resident(
    config: Config, needs: Sequence[Need], cap: int, apart: Mapping[int, float], semaphores: int
) -> dict[int, Choice] | None:
    """Choices by layer index, with as many resident edges as fit beside at most ``cap`` frames
    and leave every layer enough room to stay near its modelled cycles ``apart``, those with all
    activations in HBM; None if none does. ``semaphores``: as many as edges share."""
    wanted = {
        (producer, need.index, kind)
        for need in needs
        for producer, kind in ((need.source, False), (need.residual, True))
        if producer is not None
    }
    half = config.scratchpad.free_words // 2 // BLOCK_WORDS  # what fails takes long to fail
    search = _Search(config, semaphores)
    tried = [frames for frames in FRAMES if frames <= min(cap, half)] or [FRAMES[-1]]
    for frames in tried:
        evict = frames <= ENOUGH_FRAMES or frames == tried[-1]
        found = _attempt(search, needs, set(wanted), frames, evict, apart)
        if not found:
            continue
        cycles = sum(modelled_cycles(config, choice) for choice in found.values())
        if cycles <= MOST_IN_ALL * sum(apart.values()):
            return found if any(choice.filled for choice in found.values()) else None
    return None


class _Search:
    """What the rounds of one search have in common: splits and their costs."""

    def __init__(self, config: Config, semaphores: int):
        self.config, self.semaphores = config, semaphores
        self._splits: dict[int, list[Split]] = {}
        self._keys: dict[tuple[int, Split], tuple[float, float]] = {}

    def splits(self, need: Need) -> list[Split]:
        """All, best first, with inputs from HBM."""
        if need.index not in self._splits:
            self._splits[need.index] = choose(self.config, need.shape,
                                              range(need.shape.out_groups))
        return self._splits[need.index]

    def on_chip_keys(self, need: Need) -> dict[Split, tuple[float, float]]:
        """Splits whose inputs fit half the scratchpad, and their cost with these on the chip."""
        found = {}
        for split in self.splits(need):
            key = need.index, split
            if key not in self._keys:
                room = _area(need.shape, split)[1] <= self.config.scratchpad.free_words // 2
                self._keys[key] = (_on_chip_key(self.config, need.shape, split) if room
                                   else (math.inf, math.inf))
            if self._keys[key][0] < math.inf:
                found[split] = self._keys[key]
        return found


def _attempt(
    search: _Search, needs, wanted, frames: int, evict: bool, apart: Mapping[int, float]
) -> dict[int, Choice] | None:
    """Choices with exactly the edges ``wanted``, or with fewer if ``evict``."""
    config = search.config
    limit = config.scratchpad.free_words - frames * BLOCK_WORDS
    budget = config.scratchpad.resident_kib * 1024 // WORD_BYTES
    for _ in range(ATTEMPTS):
        if not wanted:
            return None
        splits = _splits(search, needs, wanted)
        edges = _edges(config, needs, wanted, splits)
        if budget and _crowded(edges, budget, wanted):
            continue
        if evict and _crowded(edges, MOST_EDGES * limit, wanted):
            continue
        choices, full = _temporaries(config, needs, edges, splits, frames, apart, evict)
        if not full:
            placed, worst_layer = _place(edges, choices, limit)
            full = [] if worst_layer is None else [worst_layer]
            if not full:
                try:
                    return _joined(choices, placed, search.semaphores)
                except _NoSemaphoreError as error:
                    edge = error.edge
                    wanted.discard((edge.producer, edge.reader, edge.is_residual))
                    continue
        if not evict:
            return None
        for layer in full:
            alive = [e for e in edges if e.producer <= layer <= e.reader
                     and (e.producer, e.reader, e.is_residual) in wanted]
            if not alive and len(full) == 1:
                return None
            if alive:
                worst = max(alive, key=lambda e: (e.words * (e.reader - e.producer), e.reader))
                wanted.discard((worst.producer, worst.reader, worst.is_residual))
    return None


def _crowded(edges: Sequence[Edge], limit: float, wanted: set) -> bool:
    """Give up the largest edges of layers whose edges alone take more than ``limit``; whether there
    were."""
    kept, given_up = list(edges), False
    for layer in sorted({edge.reader for edge in edges}):
        alive = [e for e in kept if e.producer <= layer <= e.reader]
        while alive and sum(e.words for e in alive) > limit:
            worst = max(alive, key=lambda e: (e.words, e.reader))
            alive.remove(worst)
            kept.remove(worst)
            wanted.discard((worst.producer, worst.reader, worst.is_residual))
            given_up = True
    return given_up


def _splits(search: _Search, needs, wanted) -> dict[int, list[Split]]:
    """Per layer its splits, best first."""
    found: dict[int, list[Split]] = {}
    before: Split | None = None
    for need in needs:
        splits = search.splits(need)
        is_resident = (need.source, need.index, False) in wanted
        if is_resident:
            keys = search.on_chip_keys(need)
            splits = sorted(keys, key=lambda split: keys[split])
            if before in keys and keys[before][0] <= SLACK * keys[splits[0]][0]:
                splits = [before, *splits]
        found[need.index] = splits
        before = splits[0] if splits else None
    return found


def _on_chip_key(config: Config, shape: Geometry, split: Split) -> tuple[float, float]:
    """Cycles of a layer whose inputs are on the chip. HBM carries only weights: it is seldom the
    bound. Weights and inputs meet at a tile's one inbound port, which is not filled to the last
    cycle; and what takes much of the scratchpad drives others out of it."""
    found = cost(config, shape, range(shape.out_groups), split)
    share = _area(shape, split)[1] / config.scratchpad.free_words
    cycles = max(found.compute, found.inbound / INBOUND_SHARE) * (1 + share / 4)
    return cycles, found.inbound


def _area(shape: Geometry, split: Split) -> tuple[int, int]:
    """(words of one input group, of all) of the worst tile."""
    plane = 0
    for p in range(split.pixel_parts):
        first, last = part(shape.pixels, split.pixel_parts, p)
        plane = max(plane, sum(region.words for region in shape.regions(first, last)))
    most = 0
    for c in range(split.channel_parts):
        first, last = part(shape.out_groups, split.channel_parts, c)
        if first < last:
            low, high = shape.range_needs(first, last)
            most = max(most, high - low)
    return plane, plane * most


def _edges(config, needs, wanted, splits) -> list[Edge]:
    found = []
    for need in needs:
        if not splits[need.index]:
            continue
        split, shape = splits[need.index][0], need.shape
        if (need.source, need.index, False) in wanted:
            plane, words = _area(shape, split)
            found.append(Edge(need.source, need.index, False, plane, words, PIECES))
        if (need.residual, need.index, True) in wanted:
            plane = -(-shape.pixels // split.pixel_parts)
            groups = -(-shape.out_groups // split.channel_parts)
            found.append(Edge(need.residual, need.index, True, plane, plane * groups, 1))
    return found


def _temporaries(config, needs, edges, splits, frames, apart, evict):
    """(choices without addresses, layers that have too little room)."""
    choices: dict[int, Choice] = {}
    full: list[int] = []
    for need in needs:
        own = {e.is_residual: e for e in edges if e.reader == need.index}
        alive = sum(e.words for e in edges if e.producer <= need.index <= e.reader)
        words = config.scratchpad.free_words - alive
        try:
            if own:
                groups = range(need.shape.out_groups)
                plan = plan_step(config, need.shape, splits[need.index][0], groups, frames,
                                 words=words, resident=False in own, added=True in own)
                plans = [plan] if plan else []
            else:
                plans = plan_layer(config, need.shape, frames, words)
        except UserError:
            plans = []
        choice = Choice(plans, own.get(False), own.get(True))
        if not plans or (alive and modelled_cycles(config, choice) > MOST_CYCLES * apart[need.index]
                         ):
            full.append(need.index)
            if not evict:
                break
        choices[need.index] = choice
    return choices, full


def areas(choices: dict[int, Choice], edges: Sequence[Edge]) -> list[tuple[Area, int]]:
    """What a tile's scratchpad holds beside frames: edges in order, then temporaries by layer; and
    the layer that each is for."""
    found = [
        (Area("residual of" if e.is_residual else "input of", e.words, e.producer, e.reader),
         e.reader)
        for e in edges
    ]
    for index, choice in choices.items():
        words = max(map(_own_words, choice.plans))
        found.append((Area("temporaries of", words, index, index), index))
    return found


def _place(edges, choices, limit: int):
    """(addresses of edges and of temporaries by layer, None), or (None, the fullest layer)."""
    items = [item for item, _ in areas(choices, edges)]
    placement = place(items, "greedy_by_size")
    if placement.high_water > limit:
        highest = max(range(len(items)), key=lambda k: placement.offsets[k] + items[k].size)
        steps = range(items[highest].first, items[highest].last + 1)
        return None, max(steps, key=lambda step: sum(
            item.size for item in items if item.first <= step <= item.last))
    owners = [*edges, *choices]
    return dict(zip(owners, placement.offsets, strict=True)), None


def _own_words(plan: Plan) -> int:
    """Parameters, input slots that are not an edge's, output slots."""
    return plan.outputs + plan.out_slots * plan.out_slot_words - plan.params


def _joined(choices: dict[int, Choice], bases, semaphores: int) -> dict[int, Choice]:
    edges = sorted((e for e in bases if isinstance(e, Edge)), key=lambda e: (e.producer, e.reader))
    final = dict(zip(edges, _semaphores(edges, bases, semaphores), strict=True))
    for index, choice in choices.items():
        base = bases[index]
        choice.plans = [
            replace(plan, params=plan.params + base, inputs=plan.inputs + base,
                    outputs=plan.outputs + base)
            for plan in choice.plans
        ]
        if choice.source:
            choice.source = final[choice.source]
            choice.plans = [replace(choice.plans[0], inputs=choice.source.base)]
        if choice.residual:
            choice.residual = final[choice.residual]
        choice.filled = [final[e] for e in edges if e.producer == index]
    return choices


class _NoSemaphoreError(Exception):
    """Too many edges at one time; ``edge`` is one too many."""

    def __init__(self, edge: Edge):
        super().__init__(edge)
        self.edge = edge


def _semaphores(edges: Sequence[Edge], bases, count: int) -> Iterator[Edge]:
    """Edges with address and semaphores, of ``count``. A number returns when its edge's reader is
    over."""
    free_from = [-1] * count
    for edge in edges:
        start = next(
            (k for k in range(count - edge.pieces + 1)
             if all(free_from[k + j] < edge.producer for j in range(edge.pieces))), None,
        )
        if start is None:
            raise _NoSemaphoreError(edge)
        for j in range(edge.pieces):
            free_from[start + j] = edge.reader
        yield replace(edge, base=bases[edge], sem=FIRST_EDGE + start)
