# SPDX-License-Identifier: Apache-2.0
"""One tile's work in one step: which inputs arrive when, and which COMPUTE needs what.

An *item* is one filling of an input slot, cut into pieces that are awaited one by one; an *op* is
one COMPUTE command. Items of all tiles that share activations are equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from emu.compiler.geometry import Region
from emu.compiler.mapping import part
from emu.compiler.tiling import PIECES, TAIL_PIXELS, Plan, Segment, Weights
from emu.config import BLOCK_TILES


@dataclass(frozen=True)
class Piece:
    """Input groups ``inputs`` of stretches ``(region, offset in the slot's plane, first, end)``.

    A stretch counts rows of its region, or words if the region has one row.
    """

    inputs: tuple[int, int]
    stretches: tuple[tuple[Region, int, int, int], ...]

    @property
    def words(self) -> int:
        per_group = sum(
            (b - a) * (1 if region.rows == 1 else region.cols) for region, _, a, b in self.stretches
        )
        return per_group * (self.inputs[1] - self.inputs[0])


@dataclass(frozen=True)
class Item:
    number: int
    inputs: tuple[int, int]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Op:
    """One COMPUTE: ``segment`` over output pixels ``pixels`` (flat) of ``region``."""

    item: int
    needs: tuple[int, ...]        # pieces of the item
    region: Region
    offset: int                   # of the region in a slot's plane
    pixels: tuple[int, int]
    segment: Segment
    generation: int
    keep: bool
    first: bool
    last: bool

    @property
    def drained_words(self) -> int:
        """Output words of the command, if it drains."""
        (a, b), (low, high) = self.pixels, self.segment.groups
        return (b - a) * (high - low)


@dataclass(frozen=True)
class Work:
    """Items and ops of a tile; `generations` is how often its blocks are fetched."""

    items: tuple[Item, ...]
    ops: tuple[Op, ...]
    generations: int


@dataclass(frozen=True)
class _Chunk:
    region: Region
    offset: int
    pixels: tuple[int, int]


def _chunks_of(plan: Plan, regions: list[Region]) -> list[_Chunk]:
    found, offset = [], 0
    for region in regions:
        for a, b in plan.cut(region):
            found.append(_Chunk(region, offset, (region.first + a, region.first + b)))
        offset += region.words
    return found


def _stretch_end(plan: Plan, chunk: _Chunk) -> int:
    """End, in its region, of the rows (or words of a single row) that ``chunk`` needs."""
    region = chunk.region
    need = plan.shape.regions(*chunk.pixels)[-1]
    if region.rows == 1:
        return need.x0 + need.cols - region.x0
    return need.y0 + need.rows - region.y0


def _pieces(plan: Plan, cut: list[_Chunk], inputs: tuple[int, int], cuts: tuple[int, ...]):
    """(pieces, needs of chunk k) of a band: cut along input groups or along chunks."""
    regions: list[Region] = []
    offsets: list[int] = []
    for chunk in cut:
        if not regions or regions[-1] is not chunk.region:
            regions.append(chunk.region)
            offsets.append(chunk.offset)
    if len(cut) == 1 or plan.tail or not plan.shape.is_dense:
        whole = tuple(
            (r, o, 0, r.cols if r.rows == 1 else r.rows)
            for r, o in zip(regions, offsets, strict=True)
        )
        count = inputs[1] - inputs[0]
        edges = cuts or tuple(
            inputs[0] + part(count, min(4, count), k)[0] for k in range(min(4, count))
        ) + (inputs[1],)
        if plan.shape.is_dense and not cuts:
            edges = inputs
        pieces = [Piece((a, b), whole) for a, b in pairwise(edges)]
        return pieces, None
    stretches, needed, done = [], [], 0
    for k, chunk in enumerate(cut):
        if k == 0 or cut[k - 1].region is not chunk.region:
            done = 0
        end = _stretch_end(plan, chunk)
        if end > done:
            stretches.append((chunk.region, chunk.offset, done, end))
            done = end
        needed.append(len(stretches))
    single: list[tuple] = [(s,) for s in stretches[: PIECES - 1]]
    if len(stretches) >= PIECES:
        single.append(tuple(stretches[PIECES - 1 :]))
    pieces = [Piece(inputs, each) for each in single]
    return pieces, [tuple(range(min(n, len(pieces)))) for n in needed]


def schedule(plan: Plan, weights: Weights, p: int, c: int, cuts: tuple[int, ...]) -> Work:
    """All items and ops of the tile of pixel part ``p`` and channel part ``c``."""
    bands = [_chunks_of(plan, regions) for regions in plan.band_regions(p)]
    if plan.mode == "part":
        return _schedule_parts(plan, weights, bands)
    inputs = plan.shape.range_needs(*plan.channel_range(c))
    items, ops, generation = [], [], 0
    for number, cut in enumerate(bands):
        pieces, needed = _pieces(plan, cut, inputs, cuts if number == 0 else ())
        items.append(Item(number, inputs, tuple(pieces)))
        start = generation
        for batch, k, generation in _order(plan, weights, cut, start):
            last_use = _is_last_use(plan, number, len(bands), k, len(cut))
            if k and not plan.share_weights:
                batch = (_merged(batch),)
            for index, segment in enumerate(batch):
                needs = needed[k] if needed else _overlapping(plan, pieces, segment)
                ops.append(
                    Op(
                        item=number, needs=needs, region=cut[k].region, offset=cut[k].offset,
                        pixels=cut[k].pixels, segment=segment, generation=generation,
                        keep=not last_use, first=index == 0, last=index == len(batch) - 1,
                    )
                )
        if plan.mode in ("batch", "chunk"):
            generation += 1
    _cut_last(plan, ops)
    return Work(tuple(items), tuple(ops), 1 + max(op.generation for op in ops))


def _cut_last(plan: Plan, ops: list[Op]) -> None:
    """Cut the last pixels off the last op: most of it is drained and stored behind their passes."""
    if plan.shape.tapped:
        ops[-1:] = _last_group_alone(plan, ops[-1])
    op = ops[-1]
    first, last = op.pixels
    held = -(-op.segment.tiles // BLOCK_TILES) + 1
    single = op.first and op.segment.groups[1] - op.segment.groups[0] == 1
    kept = plan.mode == "chunk" or (plan.mode == "keep" and plan.shape.tapped)
    if not kept or not single or held > plan.frames - 2:
        return
    if last - first < 3 * TAIL_PIXELS:
        return
    ops[-1:] = [
        replace(op, pixels=(first, last - TAIL_PIXELS), keep=True),
        replace(op, pixels=(last - TAIL_PIXELS, last)),
    ]


def _last_group_alone(plan: Plan, op: Op) -> list[Op]:
    """A depthwise op whose weights lie in one block, as one of all its output groups but the last,
    and one of that."""
    segment, shape = op.segment, plan.shape
    low, high = segment.groups
    last_tile = segment.first_tile + segment.tiles - 1
    together = segment.first_tile // BLOCK_TILES == last_tile // BLOCK_TILES
    if high - low < 2 or not (op.first and op.last and together):
        return [op]
    before = sum(shape.passes(g) for g in range(low, high - 1))
    start, count = shape.needs[high - 1]
    single = Segment((high - 1, high), (start, start + count), segment.tiles - before,
                     segment.descriptor, segment.first_tile + before)
    rest = replace(segment, groups=(low, high - 1), tiles=before)
    return [replace(op, segment=rest, keep=True), replace(op, segment=single)]


def _merged(batch: tuple[Segment, ...]) -> Segment:
    """A batch that was cut for an early start, whole again for its later chunks."""
    first, last = batch[0], batch[-1]
    tiles = sum(segment.tiles for segment in batch)
    inputs = (first.inputs[0], last.inputs[1])
    return Segment(first.groups, inputs, tiles, first.descriptor, first.first_tile)


def _order(plan: Plan, weights: Weights, cut: list[_Chunk], generation: int) -> Iterator:
    """(batch, chunk number, generation) in order."""
    if plan.mode == "batch":
        for batch in weights.segments:
            for k in range(len(cut)):
                yield batch, k, generation
        return
    for k in range(len(cut)):
        for batch in weights.segments:
            yield batch, k, generation
        generation += plan.mode == "chunk" and k < len(cut) - 1


def _is_last_use(plan: Plan, band: int, bands: int, k: int, count: int) -> bool:
    if plan.mode == "keep":
        return band == bands - 1 and k == count - 1
    return plan.mode != "batch" or k == count - 1


def _overlapping(plan: Plan, pieces: list[Piece], segment: Segment) -> tuple[int, ...]:
    """Pieces that hold input groups of ``segment``."""
    low, high = segment.inputs
    if segment.groups[1] - segment.groups[0] > 1:
        low, high = plan.shape.range_needs(*segment.groups)
    return tuple(
        k for k, piece in enumerate(pieces) if piece.inputs[0] < high and low < piece.inputs[1]
    )


def _schedule_parts(plan: Plan, weights: Weights, bands) -> Work:
    items: list[Item] = []
    ops: list[Op] = []
    for generation, (chunk,) in enumerate(bands):
        region = chunk.region
        whole = ((region, 0, 0, region.cols if region.rows == 1 else region.rows),)
        for batch in weights.segments:
            for index, segment in enumerate(batch):
                number = len(items)
                items.append(Item(number, segment.inputs, (Piece(segment.inputs, whole),)))
                ops.append(
                    Op(
                        item=number, needs=(0,), region=region, offset=0, pixels=chunk.pixels,
                        segment=segment, generation=generation, keep=False, first=index == 0,
                        last=index == len(batch) - 1,
                    )
                )
    return Work(tuple(items), tuple(ops), len(bands))
