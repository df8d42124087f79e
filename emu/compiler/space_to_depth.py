# SPDX-License-Identifier: Apache-2.0
"""Strided convolutions of few channels as unstrided ones of more: space to depth, exactly.

A first layer of 3 channels fills 3 of 16 lanes. Where all pixels of a stride x stride block fit the
lanes together, a block becomes one pixel whose channels are (row in block, column in block,
channel), and the kernel a smaller one over blocks; taps that it did not have weigh nothing. The
same products are summed, so the outputs are the same bits. Only for tensors that the host writes:
`emu.compiler.images.Tensor.pack` then packs blocks.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from emu.network.layers import ConvLayer

LANES = 16


def block_of(layer: ConvLayer) -> tuple[int, int]:
    """The block that ``layer`` gains from, (1, 1) if none."""
    _, channels, _, _ = layer.input_shape
    sy, sx = layer.strides
    _, _, kh, kw = layer.weights.shape
    plain = layer.groups == 1 and layer.dilations == (1, 1) and kh * kw > 1
    return (sy, sx) if plain and sy * sx > 1 and channels * sy * sx <= LANES else (1, 1)


def to_blocks(values: NDArray, block: tuple[int, int], zero: int) -> NDArray:
    """(N, C, H, W) as (N, C * by * bx, ceil(H / by), ceil(W / bx)), filled up with ``zero``."""
    n, c, h, w = values.shape
    by, bx = block
    rows, columns = -(-h // by), -(-w // bx)
    full = np.full((n, c, rows * by, columns * bx), zero, values.dtype)
    full[:, :, :h, :w] = values
    parts = full.reshape(n, c, rows, by, columns, bx).transpose(0, 3, 5, 1, 2, 4)
    return np.ascontiguousarray(parts).reshape(n, by * bx * c, rows, columns)


def from_blocks(values: NDArray, block: tuple[int, int], size: tuple[int, int]) -> NDArray:
    """Inverse of `to_blocks` for images of ``size``."""
    by, bx = block
    n, channels, rows, columns = values.shape
    parts = values.reshape(n, by, bx, channels // (by * bx), rows, columns)
    full = parts.transpose(0, 3, 4, 1, 5, 2).reshape(n, -1, rows * by, columns * bx)
    return np.ascontiguousarray(full[:, :, : size[0], : size[1]])


def over_blocks(layer: ConvLayer, block: tuple[int, int]) -> ConvLayer:
    """``layer`` as a convolution of stride 1 over blocks of its stride."""
    (by, bx), (top, left) = block, layer.pads[:2]
    n, channels, height, width = layer.input_shape
    outputs, _, kh, kw = layer.weights.shape
    _, _, out_height, out_width = layer.output_shape
    # Tap k reads row by*y + k - top = by*(y + q) + phase.
    (qy, py), (qx, px) = (
        np.divmod(np.arange(k) - pad, b) for k, pad, b in ((kh, top, by), (kw, left, bx))
    )
    low_y, low_x = int(qy.min()), int(qx.min())
    size = int(qy.max()) - low_y + 1, int(qx.max()) - low_x + 1
    weights = np.full(
        (outputs, by, bx, channels, *size), layer.weight_zero, layer.weights.dtype
    )
    for ky in range(kh):
        for kx in range(kw):
            weights[:, py[ky], px[kx], :, qy[ky] - low_y, qx[kx] - low_x] = (
                layer.weights[:, :, ky, kx]
            )
    rows, columns = -(-height // by), -(-width // bx)
    return replace(
        layer, input_shape=(n, by * bx * channels, rows, columns),
        weights=weights.reshape(outputs, -1, *size), strides=(1, 1),
        pads=(-low_y, -low_x, max(0, out_height - 1 + size[0] + low_y - rows),
              max(0, out_width - 1 + size[1] + low_x - columns)),
    )
