# SPDX-License-Identifier: Apache-2.0
"""Layers in exact integer arithmetic, in numpy: im2col, int32 accumulators, float32 requantisation.

The sums are made in float64, where they are exact: |sum| <= 2**16 * K stays far below 2**53.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from emu import requantise as rq
from emu.network.layers import (
    NUMBERS,
    AddLayer,
    AttentionLayer,
    BagsLayer,
    ConcatLayer,
    ConvLayer,
    ExpertLayer,
    GatherLayer,
    Layer,
    MultiplyLayer,
    Network,
    NormLayer,
    PoolLayer,
    Residual,
    SliceLayer,
    SoftmaxLayer,
    TableLayer,
    TopKLayer,
)
from emu.normalise import layer_norm
from emu.requantise import requantise
from emu.softmax import softmax, softmax_factor, softmax_table

BIAS_LIMIT = 2**31


def im2col(values: NDArray, layer: ConvLayer) -> NDArray:
    """Patches of one image (C, H, W), already padded: (groups, C/groups * KH * KW, OH * OW)."""
    _, _, kh, kw = layer.weights.shape
    (sy, sx), (dy, dx) = layer.strides, layer.dilations
    _, _, height, width = layer.output_shape
    span = (kh - 1) * dy + 1, (kw - 1) * dx + 1
    windows = np.lib.stride_tricks.sliding_window_view(values, span, axis=(1, 2))
    windows = windows[:, ::sy, ::sx, ::dy, ::dx][:, :height, :width]
    return windows.transpose(0, 3, 4, 1, 2).reshape(layer.groups, -1, height * width)


def accumulate(layer: ConvLayer, x: NDArray) -> NDArray[np.float64]:
    """Sums of products of ``x`` (N, C, H, W) without bias, whole numbers: (N, M, OH, OW)."""
    _, m, height, width = layer.output_shape
    top, left, bottom, right = layer.pads
    values = np.pad(
        x.astype(np.float64) - layer.x_zero, ((0, 0), (0, 0), (top, bottom), (left, right))
    )
    weights = layer.weights.astype(np.float64) - layer.weight_zero
    weights = weights.reshape(layer.groups, m // layer.groups, -1)
    sums = [(weights @ im2col(image, layer)).reshape(m, height, width) for image in values]
    return np.stack(sums)


def _convolve(layer: ConvLayer, x: NDArray, *addend: NDArray) -> NDArray:
    sums = accumulate(layer, x)
    y = _requantise_channels(layer, sums)
    if layer.residual is not None:
        fused = layer.residual
        if fused.source_first:
            y = _sum(fused, addend[0], y, fused.source.is_signed)
        else:
            y = _sum(fused, y, addend[0], bool(layer.y_signed))
    return y if layer.table is None else rq.lookup(y, layer.table)


def _requantise_channels(layer: ConvLayer, sums: NDArray[np.float64]) -> NDArray[np.int32]:
    """`emu.requantise.requantise` of (N, M, OH, OW) by channel; quick where nothing can wrap."""
    shape = (1, -1, 1, 1)
    total = sums + layer.bias.astype(np.float64).reshape(shape)
    if np.abs(total).max(initial=0) >= BIAS_LIMIT:
        moved = np.moveaxis(np.rint(sums).astype(np.int64), 1, -1)
        wrapped = requantise(moved, layer.scale, bias=layer.bias, zero=layer.y_zero,
                             low=layer.clip_low, high=layer.clip_high)
        return np.moveaxis(wrapped, -1, 1)
    with np.errstate(over="ignore", under="ignore"):
        product = total.astype(np.float32) * layer.scale.reshape(shape)
    low, high = layer.clip_low - layer.y_zero, layer.clip_high - layer.y_zero
    return np.clip(np.rint(product), low, high).astype(np.int32) + np.int32(layer.y_zero)


def _sum(
    layer: AddLayer | Residual, a: NDArray, c: NDArray, a_signed: bool
) -> NDArray[np.int32]:
    """A quantised addition by a table of all its sums: ``a`` has 256 values, so has ``c``."""
    values = np.arange(256, dtype=np.uint8)
    terms = rq.from_bytes(values, a_signed)
    table = rq.add_by_table(
        terms[:, None], values[None, :], layer.scale, layer.table, low=layer.clip_low,
        high=layer.clip_high,
    )
    return table[rq.to_bytes(a), rq.to_bytes(c)]


def _pool(layer: PoolLayer, x: NDArray) -> NDArray[np.int32]:
    """A window at a time tap by tap: every tap is one strided view of the padded image."""
    height, width = layer.target.shape[2:]
    (kh, kw), (sy, sx) = layer.kernel, layer.strides
    top, left, bottom, right = layer.pads
    most = layer.kind == "max"
    fill = -(1 << 30) if most else 0
    values = x.astype(np.int32) - (0 if most else layer.source.zero)
    values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    taps = (
        values[:, :, j : j + sy * (height - 1) + 1 : sy, i : i + sx * (width - 1) + 1 : sx]
        for j in range(kh) for i in range(kw)
    )
    result = np.full(layer.target.shape, fill, np.int32)
    for tap in taps:
        result = np.maximum(result, tap) if most else result + tap
    if most:
        return np.clip(result, layer.clip_low, layer.clip_high)
    return requantise(result, layer.scale, zero=layer.target.zero, low=layer.clip_low,
                      high=layer.clip_high)


def _multiply(layer: MultiplyLayer, a: NDArray, b: NDArray) -> NDArray[np.int32]:
    return rq.multiply(
        a, b, layer.scale, a_zero=layer.sources[0].zero, b_zero=layer.sources[1].zero,
        zero=layer.target.zero, low=layer.clip_low, high=layer.clip_high,
    )


def _range(signed: bool) -> dict[str, int]:
    return {"low": -128, "high": 127} if signed else {"low": 0, "high": 255}


def _norm(layer: NormLayer, x: NDArray) -> NDArray[np.int32]:
    rows = layer_norm(
        np.moveaxis(x, 1, -1), layer.gamma, layer.beta, in_scale=layer.x_scale,
        in_zero=layer.source.zero, out_scale=layer.y_scale, zero=layer.target.zero,
        epsilon=layer.epsilon, **_range(layer.target.is_signed),
    )
    return np.moveaxis(rows, -1, 1)


def _softmax(layer: SoftmaxLayer, x: NDArray) -> NDArray[np.int32]:
    rows = softmax(
        np.moveaxis(x, 1, -1), softmax_table(x.shape[1], layer.x_scale),
        softmax_factor(layer.y_scale), is_signed=layer.source.is_signed, zero=layer.target.zero,
        **_range(layer.target.is_signed),
    )
    return np.moveaxis(rows, -1, 1)


def _attention(layer: AttentionLayer, q: NDArray, k: NDArray, v: NDArray) -> NDArray[np.int32]:
    """Per head scores (S, T), their softmax, and the mean of V that it weighs."""
    zeros = [operand.zero for operand in layer.sources]
    depth = q.shape[1] // layer.heads
    qs, ks, vs = (
        t[0, :, 0].astype(np.float64).reshape(layer.heads, depth, -1) - zero
        for t, zero in zip((q, k, v), zeros, strict=True)
    )
    scores = requantise(
        np.rint(qs.transpose(0, 2, 1) @ ks).astype(np.int64), layer.score_scale,
        zero=layer.scores.zero, **_range(layer.scores.is_signed),
    )
    p = softmax(
        scores, softmax_table(scores.shape[-1], layer.scores_scale),
        softmax_factor(layer.probability_scale), is_signed=layer.scores.is_signed,
        zero=layer.probabilities.zero, **_range(layer.probabilities.is_signed),
    )
    mixed = np.rint((p - layer.probabilities.zero) @ vs.transpose(0, 2, 1)).astype(np.int64)
    y = requantise(mixed, layer.value_scale, zero=layer.target.zero,
                   **_range(layer.target.is_signed))
    return y.transpose(0, 2, 1).reshape(layer.target.shape)


def _slice(layer: SliceLayer, x: NDArray) -> NDArray:
    _, channels, _, pixels = layer.target.shape
    return x[:, layer.channel : layer.channel + channels, :, layer.pixel : layer.pixel + pixels]


def _numbers(values: NDArray) -> NDArray[np.uint32]:
    """The uint32 whose bytes are the 16 channels of each pixel: (pixels, 4)."""
    return np.ascontiguousarray(values.reshape(16, -1).T).view(np.uint8).view(np.uint32)


def _top(layer: TopKLayer, x: NDArray) -> NDArray:
    rows = x[0, :, 0].T
    best = np.argsort(-rows.astype(np.int32), axis=-1, kind="stable")[:, : layer.k]
    words = np.zeros((len(rows), 2, 16), np.uint8)
    numbers = np.zeros((len(rows), 4), np.uint32)
    numbers[:, : layer.k] = best
    words[:, 0] = numbers.view(np.uint8)
    words[:, 1, : layer.k] = rq.to_bytes(np.take_along_axis(rows, best, axis=-1))
    return words.reshape(-1, 16).T.reshape(layer.target.shape)


def _experts(layer: ExpertLayer, x: NDArray, numbers: NDArray, *_: NDArray) -> NDArray:
    found, lists, pixels = [], _numbers(numbers), layer.target.shape[3]
    stride, share = max(1, layer.k * len(lists) // pixels), pixels // x.shape[3]
    for p in range(pixels):
        token, place = divmod(p, layer.k)
        expert = lists[token * stride, place]
        pixel = x[0, :, 0, p // share].astype(np.float64) - layer.sources[0].zero
        weights = layer.weights[expert].astype(np.float64) - layer.weight_zero
        sums = np.rint(weights @ pixel).astype(np.int64)
        found.append(requantise(sums, layer.scale[expert], bias=layer.bias[expert],
                                zero=layer.y_zero, **_range(layer.y_signed)))
    y = np.stack(found, axis=1).reshape(layer.target.shape)
    return y if layer.table is None else rq.lookup(y, layer.table)


def _gather(layer: GatherLayer, numbers: NDArray) -> NDArray:
    """The source holds the bytes of four uint32 in each pixel."""
    words = _numbers(numbers).reshape(-1)
    _, channels, _, count = layer.target.shape
    return layer.table[words[:count]].T.reshape(1, channels, 1, count)


def _bags(layer: BagsLayer, numbers: NDArray) -> NDArray[np.int32]:
    flat, found = _numbers(numbers).reshape(-1), []
    for k, (table, count, scale) in enumerate(
            zip(layer.tables, layer.lookups, layer.scales, strict=True)):
        chosen = flat[NUMBERS * layer.first(k) :][: layer.batch * count].reshape(layer.batch, count)
        sums = table[chosen].astype(np.int64).sum(axis=1)
        found.append(requantise(sums, scale, zero=layer.target.zero, low=-128, high=127))
    return np.concatenate(found, axis=1).T.reshape(layer.target.shape)


_KINDS: dict[type, Callable[..., NDArray]] = {
    ConvLayer: _convolve,
    PoolLayer: _pool,
    AddLayer: lambda layer, a, c: _sum(layer, a, c, layer.sources[0].is_signed),
    MultiplyLayer: _multiply,
    TableLayer: lambda layer, x: rq.lookup(x, layer.table),
    NormLayer: _norm,
    SoftmaxLayer: _softmax,
    AttentionLayer: _attention,
    ConcatLayer: lambda layer, *values: np.concatenate(
        values, axis=3 if layer.axis == "tokens" else 1),
    ExpertLayer: _experts,
    TopKLayer: _top,
    GatherLayer: _gather,
    BagsLayer: _bags,
    SliceLayer: _slice,
}


def run_layer(layer: Layer, *values: NDArray) -> NDArray:
    """Target (N, C, H, W) of ``layer`` on its sources' ``values``, int8 or uint8."""
    result = rq.to_bytes(_KINDS[type(layer)](layer, *values))
    return result.view(np.int8) if layer.target.is_signed else result


def exact(
    network: Network, inputs: Mapping[str, NDArray], every: bool = False
) -> dict[str, NDArray]:
    """Graph outputs of ``network`` for graph ``inputs``, by name; with ``every``, all tensors of
    the layers by layer tensor name instead."""
    tensors = dict(network.to_layers(inputs))
    for layer in network.layers:
        tensors[layer.target.name] = run_layer(layer, *(tensors[s.name] for s in layer.sources))
    return tensors if every else network.from_layers(tensors)
