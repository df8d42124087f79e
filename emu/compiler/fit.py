# SPDX-License-Identifier: Apache-2.0
"""The search for a plan that fits the scratchpad: `plan_step`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from emu.compiler.geometry import Geometry, Region
from emu.compiler.mapping import Split, part
from emu.compiler.tiling import TAIL_PIXELS, Plan, bands_of, chunks, part_size, plan_weights
from emu.config import BLOCK_TILES, BLOCK_WORDS, Config

MAX_FRAMES = 63


def counts(limit: int) -> Iterator[int]:
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
    words: int                # of the scratchpad
    resident: bool            # its inputs lie in an area of their own already
    added: bool               # and so does what is added to its outputs

    @property
    def out_slots(self) -> int:
        """A residual lies in its output's slot before it is overwritten: it needs time to come."""
        return 4 if self.shape.has_residual or self.resident else 2

    @property
    def blocks(self) -> int:
        return -(-self.tiles // BLOCK_TILES) + 1


def _bounds(
    config: Config, shape: Geometry, split: Split, groups: range, words: int, resident: bool,
    added: bool,
) -> _Bounds:
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
        chunk_limit=min(config.core.accumulator_rows, max(16, config.scratchpad.free_words // 8)),
        params=8 * out_groups + shape.table_words, words=words, resident=resident, added=added,
    )


def plan_step(
    config: Config, shape: Geometry, split: Split, groups: range, frames: int | None = None, *,
    words: int | None = None, resident: bool = False, added: bool = False,
) -> Plan | None:
    """The plan with the fewest bands that leaves enough frames, or None if nothing fits.

    Parameters
    ----------
    frames: Fixes the number of frames (all steps of a program share one frame area).
    words: Of the scratchpad, if others hold the rest.
    resident, added: The inputs, the residual lie in areas outside of ``words``, whole.
    """
    bounds = _bounds(config, shape, split, groups, words or config.scratchpad.free_words, resident,
                     added)
    if bounds.params > bounds.words // 4:
        return None
    smallest = min(part_size(shape, split))
    if _wants_tail(bounds):
        plan = _try_bands(bounds, 1, 8, frames, tail=True)
        if plan and plan.mode == "keep":
            return plan
    for enough in (8, 4, 2):
        enough = max(2, min(enough, bounds.blocks))
        if frames is not None and frames < enough:
            continue
        for bands in (1,) if resident else counts(min(smallest, 4096)):
            plan = _try_bands(bounds, bands, enough, frames)
            if plan:
                return plan
    if resident:
        return None
    for bands in counts(min(smallest, 4096)):
        plan = _try_parts(bounds, bands, frames)
        if plan:
            return plan
    return None


def _all_bands(bounds: _Bounds, bands: int, mode: str) -> list[list[list[Region]]]:
    return [
        bands_of(bounds.shape, bounds.split, p, bands, mode, bounds.chunk_limit)
        for p in range(bounds.split.pixel_parts)
    ]


def _band_chunks(
    bounds: _Bounds, parts: list[list[list[Region]]], early: bool, tail: bool = False
) -> tuple[int, int]:
    """(most pixels of a chunk, most chunks of a tile)."""
    most, count = 1, 1
    for bands in parts:
        total = 0
        for regions in bands:
            for region in regions:
                cut = chunks(region.last - region.first, bounds.chunk_limit, early, tail)
                most = max(most, max(b - a for a, b in cut))
                total += len(cut)
        count = max(count, total)
    return most, count


def _wants_tail(bounds: _Bounds) -> bool:
    """Few output groups and many pixels: the last drain and store would be long."""
    sizes = part_size(bounds.shape, bounds.split)
    return (
        bounds.out_groups <= 2 and bounds.shape.is_dense and bounds.shape.images == 1
        and min(sizes) >= 4 * TAIL_PIXELS and max(sizes) <= bounds.chunk_limit
    )


def _try_bands(
    bounds: _Bounds, bands: int, enough: int, frames: int | None, tail: bool = False
) -> Plan | None:
    slots = 1 if bands == 1 else 2
    parts = _all_bands(bounds, bands, "")
    plane = max(sum(r.words for r in regions) for each in parts for regions in each)
    slot_words = 0 if bounds.resident else bounds.in_groups * plane
    if slots * slot_words + bounds.params + enough * BLOCK_WORDS > bounds.words:
        return None
    most, count = _band_chunks(bounds, parts, bands == 1, tail)
    batch = _batch_limit(bounds, most, count)
    while True:
        outputs = bounds.out_slots * batch * most
        free = bounds.words - bounds.params - slots * slot_words - outputs
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
            tail=tail,
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
    is_quick = count > 1 or most * groups <= 64
    wanted = groups if is_quick else -(-groups // 4)
    return max(1, min(wanted, 1023, bounds.words // (4 * bounds.out_slots) // most))


def _try_parts(bounds: _Bounds, bands: int, frames: int | None) -> Plan | None:
    parts = _all_bands(bounds, bands, "part")
    plane = max(sum(r.words for r in regions) for each in parts for regions in each)
    most, _ = _band_chunks(bounds, parts, False)
    have = frames or 2
    free = bounds.words - bounds.params - have * BLOCK_WORDS - bounds.out_slots * most
    held = free // 2 // plane
    if held < 1:
        return None
    return _finish(
        bounds, mode="part", bands=bands, batch=1, parts=-(-bounds.in_groups // held), frames=have,
        slots=2, plane=plane, slot_words=min(held, bounds.in_groups) * plane, most=most,
    )


def _finish(bounds: _Bounds, *, mode, bands, batch, parts, frames, slots, plane, slot_words, most,
            tail=False):
    shape, split, config = bounds.shape, bounds.split, bounds.config
    inputs = bounds.params
    outputs = inputs + slots * slot_words
    plan = Plan(
        shape=shape, split=split, groups=bounds.groups, mode=mode, bands=bands,
        chunk_pixels=bounds.chunk_limit, batch=batch, parts=parts, frames=frames, slots=slots,
        plane=plane, slot_words=slot_words, out_slot_words=batch * most, params=0, inputs=inputs,
        outputs=outputs, out_slots=bounds.out_slots,
        frames_base=config.scratchpad.free_words - frames * BLOCK_WORDS,
        tail=tail, share_weights=False, share_inputs=False,
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
            len(plan.cut(r))
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
