# SPDX-License-Identifier: Apache-2.0
"""How one step (a layer, or a range of its output groups) fits a tile's scratchpad.

A tile's pixels are cut into *bands*, whose inputs fill one input slot, and bands into *chunks* of at
most the accumulators' rows. Its output groups are cut into *batches*, each one COMPUTE per chunk.
What happens to weights when they are needed by several chunks is the plan's `mode`:

``keep``    all blocks fit the frames: chunks outside, batches inside, fetched once;
``batch``   one batch's blocks fit: batches outside, chunks inside, fetched once per band;
``chunk``   chunks outside, weights fetched again for every chunk (once, if there is one chunk);
``part``    not even one band's inputs fit: the input groups are cut too and inputs are loaded again
            for every output group.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from emu.compiler.geometry import Geometry, Region
from emu.compiler.mapping import Split, part
from emu.config import BLOCK_TILES, BLOCK_WORDS, Config

PIECES = 8
"""Most parts of a band's inputs that are awaited one by one."""
MAX_FRAMES = 63


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
    share_weights: bool
    share_inputs: bool

    def describe(self) -> str:
        """As in ``8x2 keep, 1 band, weights shared``."""
        shared = [n for n, s in (("weights", self.share_weights), ("inputs", self.share_inputs)) if s]
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
        return _bands(self.shape, self.split, p, self.bands, self.mode, self.chunk_pixels)


def _bands(shape, split, p, bands, mode, chunk_pixels) -> list[list[Region]]:
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


def chunks(pixels: int, limit: int, early: bool) -> list[tuple[int, int]]:
    """(first, end) of the chunks of ``pixels``; ``early``: small ones at both ends, so that work
    starts before all inputs are there and little is left to drain after the last pass."""
    count = -(-pixels // limit)
    end = min(limit, max(32, pixels // 8))
    if early and count > 1 and pixels > 5 * end:
        middle = pixels - 4 * end
        first = [0, end, 3 * end] if 2 * end <= limit else [0, end, 2 * end, 3 * end]
        inner = [3 * end + part(middle, -(-middle // limit), k)[1] for k in range(-(-middle // limit))]
        edges = [*first, *inner, pixels]
        return list(zip(edges[:-1], edges[1:], strict=True))
    return [part(pixels, count, k) for k in range(count)]


def _counts(limit: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12 ... up to ``limit``."""
    value = 1
    while value < limit:
        yield value
        value = max(value + 1, value * 4 // 3)
    yield limit


@dataclass(frozen=True)
class _Bounds:
    """What does not depend on the number of bands."""

    config: Config
    shape: Geometry
    split: Split
    groups: range
    out_groups: int           # worst tile's
    in_groups: int
    tiles: int                # weight tiles of the worst tile
    group_tiles: int          # of its largest output group
    pixels: int
    chunk_limit: int
    params: int

    @property
    def words(self) -> int:
        return self.config.scratchpad.words

    @property
    def blocks(self) -> int:
        return -(-self.tiles // BLOCK_TILES) + 1


def _bounds(config: Config, shape: Geometry, split: Split, groups: range) -> _Bounds:
    ranges = [part(len(groups), split.channel_parts, c) for c in range(split.channel_parts)]
    ranges = [(groups.start + a, groups.start + b) for a, b in ranges if a < b]
    needs = [shape.range_needs(a, b) for a, b in ranges]
    pixel_ranges = [part(shape.pixels, split.pixel_parts, p) for p in range(split.pixel_parts)]
    out_groups = max(b - a for a, b in ranges)
    return _Bounds(
        config=config, shape=shape, split=split, groups=groups, out_groups=out_groups,
        in_groups=max(b - a for a, b in needs),
        tiles=max(sum(shape.passes(g) for g in range(a, b)) for a, b in ranges),
        group_tiles=max(shape.passes(g) for g in groups),
        pixels=max(b - a for a, b in pixel_ranges),
        chunk_limit=min(config.core.accumulator_rows, max(16, config.scratchpad.words // 8)),
        params=8 * out_groups,
    )


def plan_step(
    config: Config, shape: Geometry, split: Split, groups: range, frames: int | None = None
) -> Plan | None:
    """The plan with the fewest bands that leaves enough frames, or None if nothing fits.

    ``frames`` fixes the number of frames (all steps of a program share one frame area).
    """
    bounds = _bounds(config, shape, split, groups)
    if bounds.params > bounds.words // 4:
        return None
    smallest = min(part_size(shape, split))
    for enough in (8, 4, 2):
        enough = max(2, min(enough, bounds.blocks))
        if frames is not None and frames < enough:
            continue
        for bands in _counts(min(smallest, 4096)):
            plan = _try_bands(bounds, bands, enough, frames)
            if plan:
                return plan
    for bands in _counts(min(smallest, 4096)):
        plan = _try_parts(bounds, bands, frames)
        if plan:
            return plan
    return None


def part_size(shape: Geometry, split: Split) -> list[int]:
    """Pixels of every pixel part."""
    cuts = [part(shape.pixels, split.pixel_parts, p) for p in range(split.pixel_parts)]
    return [b - a for a, b in cuts]


def _all_bands(bounds: _Bounds, bands: int, mode: str) -> list[list[list[Region]]]:
    return [
        _bands(bounds.shape, bounds.split, p, bands, mode, bounds.chunk_limit)
        for p in range(bounds.split.pixel_parts)
    ]


def _band_chunks(bounds: _Bounds, parts: list[list[list[Region]]], early: bool) -> tuple[int, int]:
    """(most pixels of a chunk, most chunks of a tile)."""
    most, count = 1, 1
    for bands in parts:
        total = 0
        for regions in bands:
            for region in regions:
                cut = chunks(region.last - region.first, bounds.chunk_limit, early)
                most = max(most, max(b - a for a, b in cut))
                total += len(cut)
        count = max(count, total)
    return most, count


def _try_bands(bounds: _Bounds, bands: int, enough: int, frames: int | None) -> Plan | None:
    slots = 1 if bands == 1 else 2
    parts = _all_bands(bounds, bands, "")
    plane = max(sum(r.words for r in regions) for each in parts for regions in each)
    slot_words = bounds.in_groups * plane
    if slots * slot_words + bounds.params + enough * BLOCK_WORDS > bounds.words:
        return None
    most, count = _band_chunks(bounds, parts, bands == 1)
    batch = _batch_limit(bounds, most, count)
    while True:
        free = bounds.words - bounds.params - slots * slot_words - 2 * batch * most
        room = min(MAX_FRAMES, free // BLOCK_WORDS)
        if room >= max(enough, frames or 0):
            break
        if batch == 1:
            return None
        batch = batch // 2
    have = frames or _useful_frames(bounds, room)
    for mode in ("keep", "batch") if count > 1 else ():
        within = max(1, (have - 1) * BLOCK_TILES // 2 // bounds.group_tiles)
        plan = _finish(
            bounds, mode=mode, bands=bands, batch=batch if mode == "keep" else min(batch, within),
            parts=1, frames=have, slots=slots, plane=plane, slot_words=slot_words, most=most,
        )
        if _held_blocks(plan) <= have:
            return plan
    return _finish(
        bounds, mode="chunk", bands=bands, batch=batch, parts=1, frames=have, slots=slots,
        plane=plane, slot_words=slot_words, most=most,
    )


def _held_blocks(plan: Plan) -> int:
    """Most blocks that a tile keeps at once: all (mode keep) or one batch's (mode batch)."""
    most = 0
    for c in range(plan.split.channel_parts):
        if plan.channel_range(c)[0] == plan.channel_range(c)[1]:
            continue
        weights = plan_weights(plan, c, ())
        if plan.mode == "keep":
            most = max(most, weights.blocks)
        for batch in weights.segments if plan.mode == "batch" else ():
            tiles = sum(segment.tiles for segment in batch)
            straddled = 0 if plan.share_weights else 1
            most = max(most, -(-tiles // BLOCK_TILES) + straddled)
    return most


def _useful_frames(bounds: _Bounds, room: int) -> int:
    return min(room, max(32, min(bounds.blocks, 48)))


def _batch_limit(bounds: _Bounds, most: int, count: int) -> int:
    """Output groups per COMPUTE: few commands, but outputs leave while the rest is computed."""
    groups = bounds.out_groups
    if count > 1 or most * groups <= 64:
        wanted = groups
    else:
        wanted = -(-groups // 4)
    return max(1, min(wanted, 1023, bounds.words // 8 // most))


def _try_parts(bounds: _Bounds, bands: int, frames: int | None) -> Plan | None:
    parts = _all_bands(bounds, bands, "part")
    plane = max(sum(r.words for r in regions) for each in parts for regions in each)
    most, _ = _band_chunks(bounds, parts, False)
    have = frames or 2
    free = bounds.words - bounds.params - have * BLOCK_WORDS - 2 * most
    held = free // 2 // plane
    if held < 1:
        return None
    return _finish(
        bounds, mode="part", bands=bands, batch=1, parts=-(-bounds.in_groups // held), frames=have,
        slots=2, plane=plane, slot_words=min(held, bounds.in_groups) * plane, most=most,
    )


def _finish(bounds: _Bounds, *, mode, bands, batch, parts, frames, slots, plane, slot_words, most):
    shape, split, config = bounds.shape, bounds.split, bounds.config
    inputs = bounds.params
    outputs = inputs + slots * slot_words
    plan = Plan(
        shape=shape, split=split, groups=bounds.groups, mode=mode, bands=bands,
        chunk_pixels=bounds.chunk_limit, batch=batch, parts=parts, frames=frames, slots=slots,
        plane=plane, slot_words=slot_words, out_slot_words=batch * most, params=0, inputs=inputs,
        outputs=outputs, out_slots=2, frames_base=config.scratchpad.words - frames * BLOCK_WORDS,
        share_weights=False, share_inputs=False,
    )
    return replace(plan, share_weights=_can_share_weights(plan, config),
                   share_inputs=_can_share_inputs(plan, config))


def _can_share_weights(plan: Plan, config: Config) -> bool:
    """Frames are shared if every member uses every residence of a block exactly once."""
    if not config.mesh.multicast or plan.split.pixel_parts == 1:
        return False
    if plan.mode == "keep":
        return True
    if plan.mode == "batch":
        return len({len(plan.band_regions(p)) for p in range(plan.split.pixel_parts)}) == 1
    counts = {
        sum(
            len(chunks(r.last - r.first, plan.chunk_pixels, plan.bands == 1))
            for regions in plan.band_regions(p) for r in regions
        )
        for p in range(plan.split.pixel_parts)
    }
    return len(counts) == 1


def _can_share_inputs(plan: Plan, config: Config) -> bool:
    if not config.mesh.multicast or plan.split.channel_parts == 1 or not plan.shape.is_dense:
        return False
    if plan.mode != "part":
        return True
    sizes = {b - a for a, b in map(plan.channel_range, range(plan.split.channel_parts))}
    return len(sizes) == 1


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

    Unshared blocks form one descriptor, so commands may end inside a block; shared ones have a
    descriptor per command, so that each member releases each block exactly once.
    """
    shape = plan.shape
    batches, descriptors, open_tiles, block = [], [], 0, 0
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
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            tiles = (last - first) * (b - a) * shape.taps
            if plan.share_weights and open_tiles:
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
    edges = []
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

    If computing one input group takes longer than its arrival, parts grow by that ratio; if not,
    arrival is the limit and parts are small and equal.
    """
    shape = plan.shape
    count = shape.in_groups
    pixels = max(part_size(shape, plan.split))
    if plan.mode != "chunk" or plan.bands > 1 or not shape.is_dense or count < 2:
        return ()
    if len(plan.band_regions(0)[0]) > 1 or pixels > plan.chunk_pixels or count * plan.plane < 256:
        return ()
    arrival = plan.plane + shape.taps * shape.tile_words
    compute = shape.taps * max(pixels, shape.tile_words, 4)
    if compute <= 2 * arrival:
        parts = min(PIECES, count)
        return tuple(part(count, parts, k)[0] for k in range(parts)) + (count,)
    cuts, size = [0], max(1, count // 16)
    while cuts[-1] < count and len(cuts) < PIECES:
        cuts.append(min(count, cuts[-1] + size))
        size = max(size, math.floor(size * compute / arrival * 0.6), 1)
    cuts[-1] = count
    return tuple(cuts)
