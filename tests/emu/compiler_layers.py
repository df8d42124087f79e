# SPDX-License-Identifier: Apache-2.0
"""Layers for compiler tests and their golden results in plain numpy."""

from dataclasses import replace

import numpy as np

from emu.network.layers import ConvLayer
from emu.requantise import requantise


def make_layer(
    rng, *, c, m, h=1, w=1, n=1, k=(1, 1), s=(1, 1), d=(1, 1), pads=(0, 0, 0, 0), groups=1,
    x_signed=True, w_signed=True, y_signed=True, x_zero=None, name="layer", source="x", target="y",
):
    """A convolution with random values."""
    out = [
        (size + pads[i] + pads[i + 2] - (k[i] - 1) * d[i] - 1) // s[i] + 1
        for i, size in enumerate((h, w))
    ]
    low_w, high_w = (-128, 128) if w_signed else (0, 256)
    low_y, high_y = (-128, 127) if y_signed else (0, 255)
    chosen = int(rng.integers(-128, 128) if x_signed else rng.integers(0, 256))
    y_zero = int(rng.integers(low_y, high_y + 1))
    clip = sorted(int(v) for v in rng.integers(low_y, high_y + 1, 2))
    if rng.integers(2):
        clip = [low_y, high_y]
    weights = rng.integers(low_w, high_w, (m, c // groups, *k))
    depth = c // groups * k[0] * k[1]
    return ConvLayer(
        name=name, input_name=source, output_name=target, input_shape=(n, c, h, w),
        output_shape=(n, m, *out), weights=weights.astype(np.int8 if w_signed else np.uint8),
        weight_zero=int(rng.integers(low_w, high_w)), x_zero=chosen if x_zero is None else x_zero,
        x_signed=x_signed, strides=s, dilations=d, pads=pads, groups=groups,
        bias=rng.integers(-20000, 20000, m).astype(np.int32),
        scale=(rng.uniform(0.2, 2, m) / (90 * np.sqrt(depth) * 90) * 60).astype(np.float32),
        y_zero=y_zero, y_signed=y_signed, clip_low=clip[0], clip_high=clip[1],
    )


def nibbles(layer):
    """``layer`` with weights of 4 bits."""
    low = 8 if layer.weight_signed else 0
    values = (layer.weights.astype(np.int64) % (8 + low) - low).astype(layer.weights.dtype)
    return replace(layer, weights=values, weight_zero=layer.weight_zero % 8, scale=layer.scale * 16)


def make_input(rng, layer):
    low, high, kind = (-128, 128, np.int8) if layer.x_signed else (0, 256, np.uint8)
    return rng.integers(low, high, layer.input_shape).astype(kind)


def golden(layer, x):
    """The layer's result by definition, NCHW."""
    n, c, _, _ = layer.input_shape
    _, m, oh, ow = layer.output_shape
    pt, pl, pb, pr = layer.pads
    (sy, sx), (dy, dx) = layer.strides, layer.dilations
    values = np.pad(x.astype(np.float64) - layer.x_zero, ((0, 0), (0, 0), (pt, pb), (pl, pr)))
    weights = layer.weights.astype(np.float64) - layer.weight_zero
    result = np.zeros((n, m, oh, ow))
    mg, cg = m // layer.groups, c // layer.groups
    for g in range(layer.groups):
        for ky in range(weights.shape[2]):
            for kx in range(weights.shape[3]):
                taps = values[:, g * cg : (g + 1) * cg, ky * dy :, kx * dx :]
                taps = taps[:, :, : (oh - 1) * sy + 1 : sy, : (ow - 1) * sx + 1 : sx]
                part = np.einsum("nchw,mc->nmhw", taps, weights[g * mg : (g + 1) * mg, :, ky, kx])
                result[:, g * mg : (g + 1) * mg] += part
    total = np.rint(result).astype(np.int64).transpose(0, 2, 3, 1)
    done = requantise(total, layer.scale, bias=layer.bias, zero=layer.y_zero, low=layer.clip_low,
                      high=layer.clip_high)
    return done.transpose(0, 3, 1, 2).astype(np.int8 if layer.y_signed else np.uint8)
