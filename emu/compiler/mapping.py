# SPDX-License-Identifier: Apache-2.0
"""How a layer is split over the tiles: Tp pixel ranges by Tc output-channel ranges.

Rows hold ``Rp x Rc`` and columns ``Cp x Cc`` parts, so that the tiles that share activations (one
pixel range) and those that share weights (one channel range) are each one multicast rectangle with
power-of-two strides.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from emu.compiler.geometry import Geometry
from emu.config import Config

MAX_STRIDE = 8
"""A rectangle's stride field holds 2 bits of exponent."""

Rect = tuple[int, int, int, int, int, int]
"""x0, x1, y0, y1, xs, ys as in `emu.isa.RECT`."""
Area = tuple[int, int, int, int]
"""x, y of the first tile, columns, rows."""


def encode_rect(rect: Rect) -> int:
    """The 20-bit field of ``rect``."""
    x0, x1, y0, y1, xs, ys = rect
    return x0 | x1 << 4 | y0 << 8 | y1 << 12 | xs << 16 | ys << 18


def rect_tiles(rect: Rect) -> list[tuple[int, int]]:
    """Coordinates (x, y) of the tiles of ``rect``."""
    x0, x1, y0, y1, xs, ys = rect
    return [(x, y) for y in range(y0, y1 + 1, 1 << ys) for x in range(x0, x1 + 1, 1 << xs)]


def single(x: int, y: int) -> Rect:
    return (x, x, y, y, 0, 0)


@dataclass(frozen=True)
class Axis:
    """One mesh direction cut in ``pixel_parts x channel_parts``, from coordinate ``first`` on."""

    pixel_parts: int
    channel_parts: int
    pixels_inner: bool
    first: int = 0

    def position(self, p: int, c: int) -> int:
        inside = c * self.pixel_parts + p if self.pixels_inner else p * self.channel_parts + c
        return self.first + inside

    def over_channels(self, p: int) -> tuple[int, int, int]:
        """(first, last, log2 stride) of pixel part ``p``."""
        return self._run(self.position(p, 0), self.channel_parts,
                         self.pixel_parts if self.pixels_inner else 1)

    def over_pixels(self, c: int) -> tuple[int, int, int]:
        return self._run(self.position(0, c), self.pixel_parts,
                         1 if self.pixels_inner else self.channel_parts)

    @staticmethod
    def _run(first: int, count: int, stride: int) -> tuple[int, int, int]:
        if count == 1:
            return first, first, 0
        return first, first + (count - 1) * stride, stride.bit_length() - 1


def _axes(size: int, fill: bool) -> Iterator[Axis]:
    """All expressible cuts of ``size`` rows or columns; ``fill``: only those that use all."""
    for p in range(1, size + 1):
        for c in range(1, size // p + 1):
            if fill and c != size // p:
                continue
            for inner in (False, True):
                stride, count = (p, c) if inner else (c, p)
                if count == 1 or (stride & (stride - 1) == 0 and stride <= MAX_STRIDE):
                    yield Axis(p, c, inner)
                    break


@dataclass(frozen=True)
class Split:
    """Tiles as pixel parts x channel parts; part numbers to coordinates and rectangles."""

    rows: Axis
    cols: Axis

    @cached_property
    def pixel_parts(self) -> int:
        return self.rows.pixel_parts * self.cols.pixel_parts

    @cached_property
    def channel_parts(self) -> int:
        return self.rows.channel_parts * self.cols.channel_parts

    def tile(self, p: int, c: int) -> tuple[int, int]:
        """(x, y) of pixel part ``p`` and channel part ``c``."""
        py, px = divmod(p, self.cols.pixel_parts)
        cy, cx = divmod(c, self.cols.channel_parts)
        return self.cols.position(px, cx), self.rows.position(py, cy)

    def activation_rect(self, p: int) -> Rect:
        """The tiles of pixel part ``p``: they share activations."""
        py, px = divmod(p, self.cols.pixel_parts)
        x0, x1, xs = self.cols.over_channels(px)
        y0, y1, ys = self.rows.over_channels(py)
        return x0, x1, y0, y1, xs, ys

    def weight_rect(self, c: int) -> Rect:
        """The tiles of channel part ``c``: they share weights."""
        cy, cx = divmod(c, self.cols.channel_parts)
        x0, x1, xs = self.cols.over_pixels(cx)
        y0, y1, ys = self.rows.over_pixels(cy)
        return x0, x1, y0, y1, xs, ys


def part(total: int, parts: int, index: int) -> tuple[int, int]:
    """(first, end) of part ``index`` of ``parts`` nearly equal ones."""
    return total * index // parts, total * (index + 1) // parts


@dataclass(frozen=True)
class Cost:
    """Cycles of the worst tile or channel, before any overlap is lost."""

    compute: float
    hbm: float
    inbound: float

    @property
    def key(self) -> tuple[float, float]:
        return max(self.compute, self.hbm / 0.9, self.inbound), self.inbound


def tile_groups(config: Config, wanted: int) -> list[Area]:
    """At most ``wanted`` equal rectangles of tiles, as many as halving the mesh again and again
    gives; they follow one another as a snake, so that neighbours in order are neighbours."""
    width, height = config.mesh.cols, config.mesh.rows
    while 2 * config.mesh.tiles // (width * height) <= wanted:
        if height >= width and height % 2 == 0:
            height //= 2
        elif width % 2 == 0:
            width //= 2
        else:
            break
    found = []
    for y in range(0, config.mesh.rows, height):
        row = [(x, y, width, height) for x in range(0, config.mesh.cols, width)]
        found += row if y // height % 2 == 0 else row[::-1]
    return found


def candidates(
    config: Config, pixels: int, groups: int, area: Area | None = None
) -> list[Split]:
    """Splits worth costing, in ``area`` or the whole mesh: no empty pixel part, at most one channel
    part per output group unless that is the only way to use a whole row or column. Of those that
    ``mapping.mode`` leaves: one pixel part, or the most that there are."""
    found = {}
    x, y, width, height = area or (0, 0, config.mesh.cols, config.mesh.rows)
    for rows in _axes(height, fill=True):
        for cols in _axes(width, fill=True):
            split = Split(replace(rows, first=y), replace(cols, first=x))
            if split.pixel_parts <= pixels:
                key = (rows.pixel_parts, rows.channel_parts, cols.pixel_parts, cols.channel_parts)
                found[key] = split
    splits = list(found.values())
    if config.mapping.mode == "auto":
        return splits
    parts = [split.pixel_parts for split in splits]
    kept = max(parts) if config.mapping.mode == "weight_streaming" else 1
    return [split for split in splits if split.pixel_parts == kept]


def cost(config: Config, shape: Geometry, groups: range, split: Split) -> Cost:
    """The three terms for output groups ``groups`` of ``shape`` under ``split``."""
    tp, tc = split.pixel_parts, split.channel_parts
    ranges = [part(shape.pixels, tp, p) for p in range(tp)]
    regions = [sum(r.words for r in shape.regions(a, b)) for a, b in ranges]
    worst_pixels = max(b - a for a, b in ranges)
    chunks = -(-worst_pixels // config.core.accumulator_rows)
    words = shape.tile_words
    per_pass = max(shape.pass_cycles(worst_pixels), chunks * shape.pass_cycles(1))
    compute = inbound = hbm = weights = 0
    for c in range(tc):
        first, last = (groups.start + k for k in part(len(groups), tc, c))
        if first == last:
            continue
        passes = sum(shape.passes(g) for g in range(first, last))
        low, high = shape.range_needs(first, last)
        compute = max(compute, passes * per_pass)
        extra = worst_pixels if shape.has_residual else 0
        inbound = max(inbound, passes * words + (high - low) * max(regions)
                      + (8 + extra) * (last - first) + shape.table_words)
        weights += passes * words
        if not shape.is_dense or c == 0:
            hbm += (high - low) * sum(regions)
    hbm += weights + len(groups) * ((2 if shape.has_residual else 1) * shape.pixels + 8)
    return Cost(compute, hbm / config.hbm.channels, inbound)


def choose(config: Config, shape: Geometry, groups: range) -> list[Split]:
    """All candidates, best first."""
    found = candidates(config, shape.pixels, len(groups), shape.area)
    return sorted(found, key=lambda split: cost(config, shape, groups, split).key)
