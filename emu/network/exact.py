# SPDX-License-Identifier: Apache-2.0
"""Layers in exact integer arithmetic, in numpy: im2col, int32 accumulators, float32 requantisation.

The sums are made in float64, where they are exact: |sum| <= 2**16 * K stays far below 2**53.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from emu.network.layers import ConvLayer, Network
from emu.requantise import requantise


def im2col(values: NDArray, layer: ConvLayer) -> NDArray:
    """Patches of one image (C, H, W), already padded: (groups, C/groups * KH * KW, OH * OW)."""
    _, _, kh, kw = layer.weights.shape
    (sy, sx), (dy, dx) = layer.strides, layer.dilations
    _, _, height, width = layer.output_shape
    span = (kh - 1) * dy + 1, (kw - 1) * dx + 1
    windows = np.lib.stride_tricks.sliding_window_view(values, span, axis=(1, 2))
    windows = windows[:, ::sy, ::sx, ::dy, ::dx][:, :height, :width]
    return windows.transpose(0, 3, 4, 1, 2).reshape(layer.groups, -1, height * width)


def accumulate(layer: ConvLayer, x: NDArray) -> NDArray[np.int64]:
    """Sums of products of ``x`` (N, C, H, W) without bias: (N, M, OH, OW)."""
    n, m, height, width = layer.output_shape
    top, left, bottom, right = layer.pads
    values = np.pad(
        x.astype(np.float64) - layer.x_zero, ((0, 0), (0, 0), (top, bottom), (left, right))
    )
    weights = layer.weights.astype(np.float64) - layer.weight_zero
    weights = weights.reshape(layer.groups, m // layer.groups, -1)
    sums = [(weights @ im2col(image, layer)).reshape(m, height, width) for image in values]
    return np.rint(np.stack(sums)).astype(np.int64).reshape(n, m, height, width)


def run_layer(layer: ConvLayer, x: NDArray) -> NDArray:
    """Output (N, M, OH, OW) of ``layer`` on ``x``, int8 or uint8."""
    sums = np.moveaxis(accumulate(layer, x), 1, -1)
    values = requantise(
        sums,
        layer.scale,
        bias=layer.bias,
        zero=layer.y_zero,
        low=layer.clip_low,
        high=layer.clip_high,
    )
    return np.moveaxis(values, -1, 1).astype(np.int8 if layer.y_signed else np.uint8)


def exact(network: Network, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Graph outputs of ``network`` for graph ``inputs``, by name."""
    tensors = network.to_layers(inputs)
    for layer in network.layers:
        if not isinstance(layer, ConvLayer):
            raise NotImplementedError(f"{type(layer).__name__} has no exact evaluation yet")
        tensors[layer.output_name] = run_layer(layer, tensors[layer.input_name])
    return network.from_layers(tensors)
