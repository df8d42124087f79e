# SPDX-License-Identifier: Apache-2.0
"""How far the project's integer definitions are from the float operators, in steps of the output.

Measured in a run, layer by layer: the float operator gets the layer's own integer inputs as real
numbers; its real result, in steps and clipped to the output's range, is compared with the integers.
A float operator whose result is rounded once, as well as can be, is up to 0.5 away.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.layers import AttentionLayer, Layer, Network, NormLayer, SoftmaxLayer

_NAMES: dict[type, str] = {
    NormLayer: "layer normalisation", SoftmaxLayer: "softmax", AttentionLayer: "attention",
}


def _softmax(real: NDArray[np.float64]) -> NDArray[np.float64]:
    grown = np.exp(real - real.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


def _norm(layer: NormLayer, x: NDArray) -> NDArray[np.float64]:
    rows = np.moveaxis((x.astype(np.float64) - layer.source.zero) * layer.x_scale, 1, -1)
    centred = rows - rows.mean(axis=-1, keepdims=True)
    spread = np.sqrt(rows.var(axis=-1, keepdims=True) + layer.epsilon)
    real = centred / spread * layer.gamma.astype(np.float64) + layer.beta.astype(np.float64)
    return np.moveaxis(real, -1, 1) / layer.y_scale


def _soft(layer: SoftmaxLayer, x: NDArray) -> NDArray[np.float64]:
    rows = np.moveaxis(x.astype(np.float64) * layer.x_scale, 1, -1)
    return np.moveaxis(_softmax(rows), -1, 1) / layer.y_scale


def _attention(layer: AttentionLayer, *values: NDArray) -> NDArray[np.float64]:
    heads = layer.heads
    q, k, v = (
        (value[0, :, 0].astype(np.float64) - end.zero).reshape(heads, -1, value.shape[3])
        for value, end in zip(values, layer.sources, strict=True)
    )
    step = float(layer.score_scale) * layer.scores_scale
    weights = _softmax(q.transpose(0, 2, 1) @ k * step)
    mixed = weights @ v.transpose(0, 2, 1) * (float(layer.value_scale) / layer.probability_scale)
    return mixed.transpose(0, 2, 1).reshape(layer.target.shape)


_FLOAT: dict[type, Any] = {NormLayer: _norm, SoftmaxLayer: _soft, AttentionLayer: _attention}


def _own(network: Network, layer: Layer) -> bool:
    """Whether ONNX Runtime has no integer operator for the layer."""
    return isinstance(layer, NormLayer) or (network.model is None and type(layer) in _FLOAT)


def distances(network: Network, tensors: Mapping[str, NDArray]) -> dict[str, dict[str, Any]]:
    """By operator: layers, values, mean and largest distance in steps, and how many values differ
    from the float result rounded once. ``tensors``: all layer tensors of one run."""
    found: dict[str, list[NDArray]] = {}
    counts: dict[str, int] = {}
    for layer in network.layers:
        if not _own(network, layer):
            continue
        kind, target = _NAMES[type(layer)], layer.target
        low = -128 if target.is_signed else 0
        real = _FLOAT[type(layer)](layer, *(tensors[s.name] for s in layer.sources)) + target.zero
        real = np.clip(real, low, low + 255)
        integers = tensors[target.name].astype(np.float64)
        found.setdefault(kind, []).append(np.stack(
            [np.abs(integers - real), integers != np.rint(real)]).reshape(2, -1))
        counts[kind] = counts.get(kind, 0) + 1
    result = {}
    for kind, parts in found.items():
        apart, other = np.concatenate(parts, axis=1)
        result[kind] = {
            "layers": counts[kind], "values": apart.size, "mean_steps": float(apart.mean()),
            "largest_steps": float(apart.max()), "rounded_otherwise": int(other.sum()),
        }
    return result


__all__ = ["distances"]
