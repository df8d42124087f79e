# SPDX-License-Identifier: Apache-2.0
"""A convolution as the compute engine sees it: images of words, output pixels in one flat order.

Output pixels are numbered ``image * out_height * out_width + row * out_width + column``, which is
also their order in a plane of the output tensor. Three views keep that order and simplify the rest:
a pointwise layer is one image of one row; images that each give one pixel are rows of one tall
image; a strided kernel of one row sees every ``row_step``-th row only.
"""

from dataclasses import dataclass
from typing import Any

from emu.config import TILE_WORDS
from emu.errors import UserError
from emu.network.layers import ConvLayer

LANES = 16
ROW_TAPS, MIN_PASS = 3, 4
"""Kernel columns of a pass in mode ROW_TAP; least cycles from pass to pass."""
RESIDUAL_WORDS, BYTE_WORDS = 64, 16
"""Words of a residual's float32 table and of a byte table."""


@dataclass(frozen=True)
class Region:
    """Input words that output pixels ``first .. last - 1`` of one image need, per input group."""

    image: int
    first: int
    last: int
    y0: int
    rows: int
    x0: int
    cols: int

    @property
    def words(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True)
class Geometry:
    """Shape of one layer. ``needs[g]`` is the (first, count) of input groups of output group g."""

    name: str
    images: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    origin: tuple[int, int]          # input coordinate of tap (0, 0) of output (0, 0)
    row_step: int                    # memory rows per row of this view
    image_words: int                 # memory words of one image of one input group
    row_words: int                   # memory words from one row of this view to the next
    in_groups: int
    out_groups: int
    in_plane: int                    # memory words of one input group: all images
    diagonal: bool
    needs: tuple[tuple[int, int], ...]
    has_residual: bool = False
    table_words: int = 0             # residual's table, byte table
    packed: bool = False             # weights as nibbles
    tapped: bool = False             # diagonal, and three columns of the kernel in one pass
    area: tuple[int, int, int, int] | None = None  # x, y, columns, rows of its tiles; None: all

    @property
    def pixels(self) -> int:
        return self.images * self.out_height * self.out_width

    @property
    def columns(self) -> int:
        """Passes that a row of the kernel takes."""
        return -(-self.kernel[1] // ROW_TAPS) if self.tapped else self.kernel[1]

    @property
    def taps(self) -> int:
        """Passes that the kernel takes, of one input group."""
        return self.kernel[0] * self.columns

    def pass_cycles(self, pixels: int) -> int:
        """Cycles of a pass over ``pixels``."""
        if not self.tapped:
            return max(pixels, self.tile_words, MIN_PASS)
        left = min(2, max(0, -self.origin[1]))
        rows = -(-pixels // self.out_width)
        more = MIN_PASS - 1 if self.columns > 1 else 0
        words = self.stride[1] * pixels + rows * (ROW_TAPS - self.stride[1] - left)
        return max(words, MIN_PASS) + more

    @property
    def tile_words(self) -> int:
        if self.tapped:
            return ROW_TAPS
        if self.diagonal:
            return 1
        return TILE_WORDS // 2 if self.packed else TILE_WORDS

    @property
    def is_dense(self) -> bool:
        """Every output group needs every input group."""
        return all(need == (0, self.in_groups) for need in self.needs)

    def passes(self, group: int) -> int:
        """Passes (weight tiles) of output group ``group``."""
        return self.taps * self.needs[group][1]

    def range_needs(self, first: int, last: int) -> tuple[int, int]:
        """(first, end) of the input groups that output groups ``first .. last - 1`` need."""
        needs = self.needs[first:last]
        return min(a for a, _ in needs), max(a + n for a, n in needs)

    def regions(self, first: int, last: int) -> list[Region]:
        """The input regions of output pixels ``first .. last - 1``, one per image touched."""
        per_image = self.out_height * self.out_width
        found = []
        while first < last:
            image, inside = divmod(first, per_image)
            count = min(last - first, per_image - inside)
            found.append(self._region(image, inside, inside + count))
            first += count
        return found

    def _region(self, image: int, first: int, last: int) -> Region:
        row0, col0 = divmod(first, self.out_width)
        row1, col1 = divmod(last - 1, self.out_width)
        top = self.origin[0] + row0 * self.stride[0]
        bottom = self.origin[0] + row1 * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0]
        y0, y1 = max(0, top), min(self.height - 1, bottom)
        x0, x1 = 0, self.width - 1
        if row0 == row1:
            x0 = max(0, self.origin[1] + col0 * self.stride[1])
            right = self.origin[1] + col1 * self.stride[1]
            x1 = min(x1, right + (self.kernel[1] - 1) * self.dilation[1])
        if y1 < y0 or x1 < x0:  # only padding: one word, so that nothing has to be empty
            y0, x0 = min(max(y0, 0), self.height - 1), min(max(x0, 0), self.width - 1)
            y1, x1 = y0, x0
        base = image * self.out_height * self.out_width
        return Region(image, base + first, base + last, y0, y1 - y0 + 1, x0, x1 - x0 + 1)


def geometry_of(layer: ConvLayer) -> Geometry:
    """`Geometry` of ``layer``.

    Raises
    ------
    UserError
        If a size exceeds its command field or a sum could leave the accumulators.
    """
    batch, channels, height, width = layer.input_shape
    outputs, group_inputs, kh, kw = layer.weights.shape
    _, _, out_height, out_width = layer.output_shape
    (sy, sx), (dy, dx), (pt, pl) = layer.strides, layer.dilations, layer.pads[:2]
    _check_window(layer, kh, kw, sy, sx, dy, dx, pt, pl)
    in_groups, out_groups = -(-channels // LANES), -(-outputs // LANES)
    diagonal = layer.groups > 1 and layer.groups == channels == outputs
    common: dict[str, Any] = dict(
        name=layer.name, kernel=(kh, kw), dilation=(dy, dx), in_groups=in_groups,
        out_groups=out_groups, in_plane=batch * height * width, diagonal=diagonal,
        needs=_needs(layer.groups, group_inputs, outputs, out_groups, diagonal),
        packed=layer.packed and not diagonal, tapped=diagonal and _takes_taps(layer),
        has_residual=layer.residual is not None,
        table_words=RESIDUAL_WORDS * (layer.residual is not None)
        + BYTE_WORDS * (layer.table is not None),
    )
    unpadded = pt == 0 and pl == 0 and tuple(layer.pads) == (0, 0, 0, 0)
    if kh == kw == sy == sx == 1 and unpadded:
        pixels = batch * height * width
        return Geometry(
            images=1, height=1, width=pixels, out_height=1, out_width=pixels, stride=(1, 1),
            origin=(0, 0), row_step=1, image_words=pixels, row_words=pixels, **common,
        )
    if batch > 1 and out_height == out_width == 1 and unpadded and height < 64:
        return Geometry(
            images=1, height=batch * height, width=width, out_height=batch, out_width=1,
            stride=(height, 1), origin=(0, 0), row_step=1, image_words=batch * height * width,
            row_words=width, **common,
        )
    step = sy if kh == 1 and pt == 0 else 1
    return Geometry(
        images=batch, height=-(-height // step), width=width, out_height=out_height,
        out_width=out_width, stride=(sy // step, sx), origin=(-pt, -pl), row_step=step,
        image_words=height * width, row_words=step * width, **common,
    )


def _takes_taps(layer: ConvLayer) -> bool:
    """Whether a depthwise kernel has fewer cycles by three columns at a time."""
    width, columns, stride = layer.output_shape[3], layer.weights.shape[3], layer.strides[1]
    row = stride * width + ROW_TAPS - stride
    return (layer.dilations[1] == 1 and stride <= ROW_TAPS
            and -(-columns // ROW_TAPS) * row < columns * width)


def _needs(groups, group_inputs, outputs, out_groups, diagonal):
    if diagonal:
        return tuple((g, 1) for g in range(out_groups))
    group_outputs = outputs // groups
    needs = []
    for g in range(out_groups):
        first = g * LANES // group_outputs
        last = (min((g + 1) * LANES, outputs) - 1) // group_outputs
        a, b = first * group_inputs // LANES, -(-(last + 1) * group_inputs // LANES)
        needs.append((a, b - a))
    return tuple(needs)


def _check_window(layer, kh, kw, sy, sx, dy, dx, pt, pl) -> None:
    for what, value, limit in (
        ("kernel", max(kh, kw), 63), ("stride", max(sy, sx), 63), ("dilation", max(dy, dx), 63),
        ("padding", max(pt, pl), 16384), ("input size", max(layer.input_shape[2:]), 16383),
        ("output size", max(layer.output_shape[2:]), 16383),
        ("input channels", layer.input_shape[1], 4095 * LANES),
    ):
        if value > limit:
            raise UserError(f"layer {layer.name}: {what} {value} exceeds the limit of {limit}")
