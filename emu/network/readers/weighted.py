# SPDX-License-Identifier: Apache-2.0
"""Convolutions and products with constant weights."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emu.network.drafts import View, in_order, moved, rows_of
from emu.network.graph import Node
from emu.network.layers import ConvLayer, Shape4
from emu.network.operators import MAX_K, Arithmetic, arithmetic_of, conv_window, gemm_operands

if TYPE_CHECKING:
    from emu.network.importer import Importer


def image_of(view: View) -> Shape4:
    """(N, C, H, W) of a view as an operator on images reads it: 1-D ones get H = 1."""
    n, c, *size = view.shape
    return (n, c, size[0], size[1]) if len(size) == 2 else (n, c, 1, size[0])


def settle_image(node: Node, view: View) -> None:
    """Let the view's buffer lie as an image, or refuse."""
    shape = image_of(view)
    view.settle(shape)
    if view.buffer.layer_shape != shape or not in_order(view.positions):
        raise moved(node, node.input(0))


def _source(net: "Importer", node: Node, arithmetic: Arithmetic) -> View:
    return net.source(node, 0, arithmetic.x_scale, arithmetic.x_zero, arithmetic.x_signed)


def _append(
    net: "Importer", node: Node, view: View, layer_shape: Shape4, shape: tuple[int, ...],
    index: NDArray[np.int64] | None, arithmetic: Arithmetic, **window: Any,
) -> None:
    """Append one layer with weights, and its output as a view of ``shape``."""
    low, high = (-128, 127) if arithmetic.y_signed else (0, 255)
    draft = net.layer(
        node, ConvLayer, [(view.buffer, arithmetic.x_zero)], weight_zero=arithmetic.weight_zero,
        x_zero=arithmetic.x_zero, x_signed=arithmetic.x_signed, bias=arithmetic.bias,
        scale=arithmetic.scale, y_zero=arithmetic.y_zero, y_signed=arithmetic.y_signed,
        clip_low=low, clip_high=high, **window,
    )
    net.output(
        node, draft, shape, layer_shape=layer_shape, index=index, signed=arithmetic.y_signed,
        scale=arithmetic.y_scale, zero=arithmetic.y_zero,
    )


def conv(net: "Importer", node: Node) -> None:
    """QLinearConv."""
    arithmetic = arithmetic_of(node, net.constants)
    view = _source(net, node, arithmetic)
    rank = len(view.shape)
    if rank not in (3, 4) or arithmetic.weights.ndim != rank:
        raise node.error(
            f"input {list(view.shape)} and weights {list(arithmetic.weights.shape)}: only 1-D "
            "and 2-D convolutions are supported"
        )
    window = conv_window(node, arithmetic.weights, image_of(view))
    settle_image(node, view)
    layer_shape = window.pop("output_shape")
    shape = layer_shape if rank == 4 else (*layer_shape[:2], layer_shape[3])
    _append(net, node, view, layer_shape, shape, None, arithmetic, **window)


def product(net: "Importer", node: Node) -> None:
    """QGemm, or QLinearMatMul with a constant right side."""
    arithmetic = arithmetic_of(node, net.constants)
    view = _source(net, node, arithmetic)
    matrix, transposed = gemm_operands(node, arithmetic, view.shape)
    outputs, k = matrix.shape
    if k > MAX_K:
        raise node.error(f"sums of {k} products can leave 32 bits: at most {MAX_K}")
    rows = view.shape[1:] if transposed else view.shape[:-1]
    if not view.settled:
        count = math.prod(rows)
        columns = rows_of((1, k, 1, count))
        view.settle((1, k, 1, count), columns.T if transposed else columns)
    block = _blocks(view, k, transposed)
    if block is None:
        raise moved(node, node.input(0))
    (channels, ys, xs), kernel, (n, height, width) = block
    channel_count = view.buffer.layer_shape[1]  # type: ignore[index]
    weights = np.full(
        (outputs, channel_count, *kernel), arithmetic.weight_zero, arithmetic.weights.dtype
    )
    weights[:, channels, ys, xs] = matrix
    layer_shape = (n, outputs, height, width)
    _append(
        net, node, view, layer_shape, (*rows, outputs),
        rows_of(layer_shape).reshape(*rows, outputs), arithmetic, strides=kernel,
        dilations=(1, 1), pads=(0, 0, 0, 0), groups=1, weights=weights,
    )


def _blocks(view: View, k: int, transposed: bool):
    """How a matrix lies in its buffer, if each row is a block of pixels, or None.

    ((channel, y, x) of each of the K elements, (height, width) of a block, (N, OH, OW)). Channels
    may be missing: their weights are zero.
    """
    positions = view.positions
    if positions is None:
        positions = np.arange(math.prod(view.shape)).reshape(view.shape)
    table = positions.T if transposed else positions.reshape(-1, k)
    n, c, height, width = view.buffer.layer_shape  # type: ignore[misc]
    channels, ys, xs = np.unravel_index(table[0] % (c * height * width), (c, height, width))
    kh, kw = int(ys.max()) + 1, int(xs.max()) + 1
    if table[0].max() >= c * height * width or height % kh or width % kw:
        return None
    out = n, height // kh, width // kw
    image, row, column = np.meshgrid(*(np.arange(size) for size in out), indexing="ij")
    starts = image * c * height * width + row * kh * width + column * kw
    if len(table) != starts.size or not np.array_equal(table, starts.reshape(-1, 1) + table[0]):
        return None
    return (channels, ys, xs), (kh, kw), out


READERS = {"QLinearConv": conv, "QGemm": product}
