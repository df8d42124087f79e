# SPDX-License-Identifier: Apache-2.0
"""How one step (a layer, or a range of its output groups) fits a tile's scratchpad.

A tile's pixels are cut into *bands*, whose inputs fill one input slot, and bands into *chunks* of
at most the accumulators' rows. Its output groups are cut into *batches*, each one COMPUTE per
chunk. What happens to weights when they are needed by several chunks is the plan's `mode`:

``keep``    all blocks fit the frames: chunks outside, batches inside, fetched once;
``batch``   one batch's blocks fit: batches outside, chunks inside, fetched once per band;
``chunk``   chunks outside, weights fetched again for every chunk (once, if there is one chunk);
``part``    not even one band's inputs fit: the input groups are cut too and inputs are loaded again
            for every output group.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from emu.compiler.geometry import Geometry, Region
from emu.compiler.mapping import Split, part
from emu.config import BLOCK_TILES

PIECES = 8
"""Most parts of a band's inputs that are awaited one by one."""
INBOUND_RATE = 0.8
"""Words a cycle in which multicast inputs arrive, measured on bert_base.ffn1."""
TAIL_PIXELS = 32
"""Pixels of a tail chunk: passes still outlast the load of the next weights."""


@dataclass(frozen=True)
class Plan:
    """Scratchpad areas (equal in all tiles) and loop bounds of one step."""

    shape: Geometry
    split: Split
    groups: range
    mode: str
    bands: int
    chunk_pixels: int
    batch: int                # most output groups of one COMPUTE
    parts: int                # cuts of the input groups (mode part)
    frames: int
    slots: int
    plane: int                # words of one input group in a slot
    slot_words: int
    out_slot_words: int
    params: int               # areas' first words
    inputs: int
    outputs: int
    out_slots: int
    frames_base: int
    tail: bool                # pixels end in a small chunk of their own, to be drained quickly
    share_weights: bool
    share_inputs: bool

    def cut(self, region: Region) -> list[tuple[int, int]]:
        """(first, end) of the chunks of ``region``, counted from its first output pixel."""
        early = self.bands == 1 and self.mode != "part"
        return chunks(region.last - region.first, self.chunk_pixels, early, self.tail)

    def describe(self) -> str:
        """As in ``8x2 keep, 1 band, weights shared``."""
        both = (("weights", self.share_weights), ("inputs", self.share_inputs))
        shared = [name for name, is_shared in both if is_shared]
        return (
            f"{self.split.pixel_parts}x{self.split.channel_parts} {self.mode}, {self.bands} band"
            f"{'s' if self.bands > 1 else ''}{', shared ' + ' and '.join(shared) if shared else ''}"
        )

    def channel_range(self, c: int) -> tuple[int, int]:
        """Output groups of channel part ``c``."""
        first, last = part(len(self.groups), self.split.channel_parts, c)
        return self.groups.start + first, self.groups.start + last

    def band_regions(self, p: int) -> list[list[Region]]:
        """Input regions of every band of pixel part ``p``."""
        return bands_of(self.shape, self.split, p, self.bands, self.mode, self.chunk_pixels)


def bands_of(shape, split, p, bands, mode, chunk_pixels) -> list[list[Region]]:
    first, last = part(shape.pixels, split.pixel_parts, p)
    cuts = [part(last - first, bands, b) for b in range(bands)]
    found = [shape.regions(first + a, first + b) for a, b in cuts if a < b]
    if mode != "part":
        return found
    return [
        shape.regions(region.first + a, region.first + b)
        for regions in found
        for region in regions
        for a, b in chunks(region.last - region.first, chunk_pixels, False)
    ]


def chunks(pixels: int, limit: int, early: bool, tail: bool = False) -> list[tuple[int, int]]:
    """(first, end) of the chunks of ``pixels``; ``early``: small ones at both ends, so that work
    starts before all inputs are there and little is left to drain after the last pass; ``tail``:
    a single chunk gives up its last pixels to a second one."""
    count = -(-pixels // limit)
    if tail and count == 1:
        return [(0, pixels - TAIL_PIXELS), (pixels - TAIL_PIXELS, pixels)]
    end = min(limit, max(32, pixels // 8))
    if early and count > 1 and pixels > 5 * end:
        middle = pixels - 4 * end
        first = [0, end, 3 * end] if 2 * end <= limit else [0, end, 2 * end, 3 * end]
        parts = -(-middle // limit)
        inner = [3 * end + part(middle, parts, k)[1] for k in range(parts)]
        edges = [*first, *inner, pixels]
        return list(pairwise(edges))
    return [part(pixels, count, k) for k in range(count)]


def part_size(shape: Geometry, split: Split) -> list[int]:
    """Pixels of every pixel part."""
    cuts = [part(shape.pixels, split.pixel_parts, p) for p in range(split.pixel_parts)]
    return [b - a for a, b in cuts]


@dataclass(frozen=True)
class Segment:
    """Weight tiles that one COMPUTE consumes: output groups ``groups``, input groups ``inputs``."""

    groups: tuple[int, int]
    inputs: tuple[int, int]
    tiles: int
    descriptor: int
    first_tile: int


@dataclass(frozen=True)
class Weights:
    """Blocks of one channel part, in order of consumption."""

    segments: tuple[tuple[Segment, ...], ...]   # per batch
    descriptors: tuple[tuple[int, int], ...]    # (first block, tiles)

    @property
    def blocks(self) -> int:
        first, tiles = self.descriptors[-1]
        return first + -(-tiles // BLOCK_TILES)


def plan_weights(plan: Plan, c: int, cuts: tuple[int, ...]) -> Weights:
    """Batches and segments of channel part ``c``; ``cuts``: input groups where batch 0 is cut.

    Unshared blocks form one descriptor, so commands may end inside a block. A shared block is
    released exactly once by each member, so after a command that ends inside one a new descriptor,
    with a block of its own, begins.
    """
    shape = plan.shape
    batches: list[tuple[Segment, ...]] = []
    descriptors: list[tuple[int, int]] = []
    open_tiles = block = 0
    for first, last in _batches(plan, c, len(cuts) > 2):
        need = shape.needs[first]
        inner = (need[0], need[0] + need[1])
        if plan.mode == "part":
            edges = [inner[0] + k for k in _part_edges(plan, need[1])]
        elif cuts and not batches:
            edges = list(cuts)
        else:
            edges = list(inner)
        segments = []
        for a, b in pairwise(edges):
            tiles = (last - first) * (b - a) * shape.taps
            if plan.share_weights and open_tiles % BLOCK_TILES:
                descriptors.append((block, open_tiles))
                block += -(-open_tiles // BLOCK_TILES)
                open_tiles = 0
            segments.append(Segment((first, last), (a, b), tiles, len(descriptors), open_tiles))
            open_tiles += tiles
        batches.append(tuple(segments))
    descriptors.append((block, open_tiles))
    return Weights(tuple(batches), tuple(descriptors))


def _part_edges(plan: Plan, count: int) -> list[int]:
    parts = min(plan.parts, count)
    return [part(count, parts, k)[0] for k in range(parts)] + [count]


def _batches(plan: Plan, c: int, cut: bool) -> list[tuple[int, int]]:
    """(first, end) output groups of every batch: evenly spaced windows only."""
    first, last = plan.channel_range(c)
    edges: list[tuple[int, int]] = []
    while first < last:
        end = _run_end(plan.shape, first, last)
        size = end - first
        if cut and not edges:
            size = 1
        count = -(-size // plan.batch)
        edges += [(first + a, first + b) for a, b in (part(size, count, k) for k in range(count))]
        first += size
    tail, start = edges[-1][1], edges[-1][0]
    if plan.mode == "chunk" and tail - start > 1 and plan.out_slot_words > 64:
        edges[-1:] = [(start, tail - 1), (tail - 1, tail)]
    return edges


def _run_end(shape: Geometry, first: int, last: int) -> int:
    """End of the longest run from ``first`` whose input windows are equal and evenly spaced."""
    end = first + 1
    while end < last:
        (a0, n0), (a1, n1) = shape.needs[end - 1], shape.needs[end]
        step = shape.needs[first + 1][0] - shape.needs[first][0]
        if n1 != n0 or a1 - a0 != step or step < 0:
            break
        end += 1
    return end


def input_cuts(plan: Plan) -> tuple[int, ...]:
    """Where the first output group is cut along its input groups, so that it starts early.

    If computing one input group takes longer than its arrival, parts grow by that ratio. If not,
    arrival is the limit, all is over soon after the last part is there, and parts shrink by that
    ratio: computing one then hides behind the arrival of the next. Shared blocks are not cut.
    """
    shape = plan.shape
    count = shape.in_groups
    pixels = max(part_size(shape, plan.split))
    if not (plan.mode == "chunk" or plan.tail) or plan.bands > 1 or not shape.is_dense or count < 2:
        return ()
    if len(plan.band_regions(0)[0]) > 1 or pixels > plan.chunk_pixels or count * plan.plane < 256:
        return ()
    arrival = plan.plane + shape.taps * shape.tile_words
    compute = shape.taps * shape.pass_cycles(pixels)
    unit = BLOCK_TILES // math.gcd(shape.taps, BLOCK_TILES) if plan.share_weights else 1
    units = -(-count // unit)
    ratio = INBOUND_RATE * compute / arrival
    if ratio <= 1.4:
        parts = min(PIECES, units)
        sizes = [max(min(ratio, 1), 0.6) ** k for k in range(parts)]
        cuts = sorted({min(round(units * sum(sizes[:k]) / sum(sizes)), units - parts + k)
                       for k in range(parts)})
    else:
        cuts, size = [0], max(1, units // 16)
        while cuts[-1] + size < units and len(cuts) < PIECES:
            cuts.append(cuts[-1] + size)
            size = math.ceil(size * compute / arrival * 0.6)
    return tuple(cut * unit for cut in cuts) + (count,) if len(cuts) > 1 else ()
