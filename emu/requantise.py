# SPDX-License-Identifier: Apache-2.0
"""Bit-exact arithmetic of the drain and of element-wise operators: that of ONNX Runtime's MLAS.

Everything is float32 with one rounding per operation, round to nearest even. Quantised values are
held in int32 arrays in their own domain (-128..127 or 0..255); `to_bytes` packs them.
"""

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError

SCALE_MIN = float(np.finfo(np.float32).tiny)
"""Scales are positive and normal."""
ADD_SCALE_LIMIT, ADD_TERM_LIMIT = 2.0**20, 2.0**29
"""Bounds of a quantised addition's ``ra`` and table: the adder keeps 32 bits behind the point."""
Ints = NDArray[np.integer]
Floats = NDArray[np.float32]


def to_bytes(values: Ints) -> NDArray[np.uint8]:
    """Quantised values (int8 or uint8 domain) as they lie in memory."""
    return (np.asarray(values).astype(np.int64) & 0xFF).astype(np.uint8)


def from_bytes(data: NDArray[np.uint8], is_signed: bool) -> NDArray[np.int32]:
    """Inverse of `to_bytes` for a known signedness."""
    raw = np.ascontiguousarray(data, np.uint8)
    return (raw.view(np.int8) if is_signed else raw).astype(np.int32)


def wrap_int32(values: Ints) -> NDArray[np.int32]:
    """Two's complement wrap of wide integers, as the accumulators do."""
    low = np.asarray(values).astype(np.int64) & 0xFFFFFFFF
    return low.astype(np.uint32).view(np.int32)


def scale_of(input_scale, weight_scale, output_scale) -> Floats:
    """``f32(f32(sx * sw) / sy)``: the requantisation scale of `QLinearConv` and `QLinearMatMul`."""
    product = np.float32(input_scale) * np.asarray(weight_scale, np.float32)
    return (product / np.float32(output_scale)).astype(np.float32)


def pool_scale(input_scale, output_scale, count: int) -> np.float32:
    """``f32(sx / f32(sy * n))``: the requantisation scale of an average over ``count`` values."""
    return np.float32(input_scale) / (np.float32(output_scale) * np.float32(count))


def requantise(
    accumulator: Ints, scale, *, bias: Ints | int = 0, zero: int = 0, low: int = -128,
    high: int = 127,
) -> NDArray[np.int32]:
    """``clamp(rne(f32(acc + bias) * scale), low - zero, high - zero) + zero``.

    Parameters
    ----------
    accumulator: int32 of any shape; ``bias`` and ``scale`` broadcast along its last axis.
    scale: float32, positive and normal.
    zero, low, high: Zero point and clip in the output's domain.
    """
    total = wrap_int32(np.asarray(accumulator, np.int64) + np.asarray(bias, np.int64))
    with np.errstate(over="ignore", under="ignore"):
        product = total.astype(np.float32) * np.asarray(scale, np.float32)
    clamped = np.clip(np.rint(product), low - zero, high - zero)
    return clamped.astype(np.int32) + np.int32(zero)


def fma32(a, b, c) -> Floats:
    """Fused multiply-add of float32 arrays: one rounding.

    The product is exact in float64; the sum is rounded to odd there (its error by two-sum), which
    makes the final rounding to float32 the only one (Boldo and Melquiond, 2008).
    """
    x = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32).astype(np.float64)
    y = np.broadcast_to(np.asarray(c, np.float32).astype(np.float64), np.broadcast(x, c).shape)
    total = x + y
    other = total - x
    error = (x - (total - other)) + (y - other)
    bits = np.atleast_1d(total).view(np.int64)
    odd = bits & 1
    toward = np.where((np.atleast_1d(error) > 0) == (bits >= 0), 1, -1)
    fixed = np.where((np.atleast_1d(error) != 0) & (odd == 0), bits + toward, bits)
    return fixed.view(np.float64).reshape(np.shape(total)).astype(np.float32)


def add_scales(a_scale, c_scale, out_scale) -> tuple[np.float32, np.float32]:
    """``(ra, rc)`` of a quantised addition."""
    out = np.float32(out_scale)
    return np.float32(np.float32(a_scale) / out), np.float32(np.float32(c_scale) / out)


def add_table(ra, rc, *, a_zero: int, c_zero: int, out_zero: int, c_signed: bool) -> Floats:
    """``T[c] = fma(C, rc, zo - fma(ra, za, rc*zc))``, indexed by the byte ``c``: float32[256].

    With it ``rne(fma(A, ra, T[c]))`` is `QLinearAdd` as ONNX Runtime computes it on x86-64.

    Raises
    ------
    UserError
        If ``ra`` or a sum is beyond what the hardware's adder is exact for.
    """
    scaled = np.float32(np.float32(rc) * np.float32(c_zero))
    fixed = np.float32(np.float32(out_zero) - fma32(np.float32(ra), np.float32(a_zero), scaled))
    values = from_bytes(np.arange(256, dtype=np.uint8), c_signed).astype(np.float32)
    table = fma32(values, np.float32(rc), fixed)
    if not (SCALE_MIN <= ra < ADD_SCALE_LIMIT and np.abs(table).max() < ADD_TERM_LIMIT):
        raise UserError(
            f"quantised addition: scale ratios {float(ra):g} and {float(rc):g} must be positive, "
            f"below {ADD_SCALE_LIMIT:g} and give sums below {ADD_TERM_LIMIT:g}"
        )
    return table


def add_by_table(
    a: Ints, c: Ints, scale, table: Floats, *, offset: int = 0, low: int = -128, high: int = 127
) -> NDArray[np.int32]:
    """``clamp(rne(f32((a - offset) * scale + table[byte of c])), low, high)``, one rounding.

    ``offset`` is 0 for values held in their own domain, -128 for uint8 held as int8.
    """
    addend = np.asarray(table, np.float32)[to_bytes(c)]
    total = fma32((np.asarray(a) - offset).astype(np.float32), np.float32(scale), addend)
    return np.clip(np.rint(total), low, high).astype(np.int32)


def lookup(values: Ints, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Byte table: ``table[byte of value]``."""
    return np.asarray(table, np.uint8)[to_bytes(values)]


def multiply(
    a: Ints, b: Ints, scale, *, a_zero: int, b_zero: int, zero: int, low: int, high: int
) -> NDArray[np.int32]:
    """``requantise((a - a_zero) * (b - b_zero))``."""
    product = (np.asarray(a, np.int64) - a_zero) * (np.asarray(b, np.int64) - b_zero)
    return requantise(product, scale, zero=zero, low=low, high=high)


def windows(
    height: int, width: int, *, kernel: tuple[int, int], stride: tuple[int, int],
    origin: tuple[int, int], out: tuple[int, int],
):
    """``(row, column, [(y, x) of the taps inside the image])`` of every output pixel, row-major."""
    for row in range(out[0]):
        for column in range(out[1]):
            y0, x0 = origin[0] + row * stride[0], origin[1] + column * stride[1]
            yield row, column, [
                (y, x)
                for y in range(y0, y0 + kernel[0])
                for x in range(x0, x0 + kernel[1])
                if 0 <= y < height and 0 <= x < width
            ]


def max_pool(image: Ints, **window) -> NDArray[np.int32]:
    """Window maximum of ``image[c, y, x]``; taps outside are skipped (`windows` names the rest).

    Raises
    ------
    ValueError
        If a window has no tap inside: its maximum is undefined.
    """
    return _pool(image, lambda taps: taps.max(axis=-1), **window)


def sum_pool(
    image: Ints, scale, *, in_zero: int = 0, zero: int = 0, low: int = -128, high: int = 127,
    **window,
) -> NDArray[np.int32]:
    """Sum of ``value - in_zero`` over the window, requantised; taps outside add nothing."""
    total = _pool(image, lambda taps: (taps - in_zero).sum(axis=-1), **window)
    return requantise(total, scale, zero=zero, low=low, high=high)


def _pool(image: Ints, reduce, *, out: tuple[int, int], **window) -> NDArray[np.int32]:
    wide = np.asarray(image, np.int64)  # bytes less a zero point would wrap
    result = np.zeros((len(wide), *out), np.int64)
    for row, column, taps in windows(image.shape[1], image.shape[2], out=out, **window):
        if not taps:
            raise ValueError("a pooling window lies wholly outside its image")
        ys, xs = zip(*taps, strict=True)
        result[:, row, column] = reduce(wide[:, list(ys), list(xs)])
    return result.astype(np.int32)
