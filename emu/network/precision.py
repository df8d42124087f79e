# SPDX-License-Identifier: Apache-2.0
"""Fewer or more bits a weight: layers with 4-bit weights, plans that mix them, weights of 4 bytes.

A plan is made as mixed-precision quantisers do it (B. Wu et al., "Mixed Precision Quantization of
ConvNets via Differentiable Neural Architecture Search", 2018, measure layers one by one; so does
this, without the search): the error with one layer alone in 4 bits; then, in order of error per
byte saved, each layer that keeps all chosen ones together within the error budget.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.graph import MICROSOFT
from emu.network.layers import ConvLayer, Network

CLIPS = np.linspace(1.0, 0.5, 11)
"""Fractions of the largest weight tried as the largest value of 4 bits."""
_OPERANDS = {("", "QLinearConv"): (3, 4, 8), ("", "QLinearMatMul"): (3, 4, None),
             (MICROSOFT, "QGemm"): (3, 4, 6)}
"""Inputs that are weights, their scale and the bias."""


def nibbles(
    weights: NDArray, zero: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """(-8 .. 7, steps of the given weights in one of the new): rows of (outputs, ...) in 4 bits.

    Every output has the step, of `CLIPS`, with the least squared error.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64) - zero
    largest = np.maximum(np.abs(rows).max(axis=1), 1e-9)
    best, error = np.zeros_like(rows), np.full(len(rows), np.inf)
    steps = np.ones(len(rows))
    for clip in CLIPS:
        step = largest * clip / 7
        found = np.clip(np.rint(rows / step[:, None]), -8, 7)
        here = ((found * step[:, None] - rows) ** 2).sum(axis=1)
        better = here < error
        best[better], error[better], steps[better] = found[better], here[better], step[better]
    return best.astype(np.int8).reshape(weights.shape), steps


def in_nibbles(layer: ConvLayer) -> ConvLayer:
    """``layer`` with weights of 4 bits, as near as `nibbles` comes."""
    weights, steps = nibbles(layer.weights, layer.weight_zero)
    return replace(
        layer, weights=weights, weight_zero=0, scale=(layer.scale * steps).astype(np.float32),
        bias=np.clip(np.rint(layer.bias / steps), -2**31, 2**31 - 1).astype(np.int32),
    )


def with_nibbles(network: Network, names: Sequence[str]) -> Network:
    """``network`` with the layers called ``names`` in 4 bits.

    A network with a model gets a new model, which is then golden as ever: the same graph with the
    4-bit values in int8 containers.
    """
    chosen = set(names)
    if network.model is not None:
        from emu.network.importer import import_onnx

        model = _patched(network.model, chosen)
        return replace(import_onnx(model.SerializeToString(), network.name),
                       boundary=network.boundary, given=network.given)
    layers = tuple(in_nibbles(layer) if isinstance(layer, ConvLayer) and layer.name in chosen
                   else layer for layer in network.layers)
    return replace(network, layers=layers)


def _patched(model: Any, chosen: set[str]) -> Any:
    """``model`` with the weights of its nodes called ``chosen`` in 4 bits."""
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}

    def value(name: str) -> NDArray:
        return numpy_helper.to_array(tensors[name])

    for node in made.graph.node:
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if key not in _OPERANDS or (node.name or node.output[0]) not in chosen:
            continue
        at, scale_at, bias_at = _OPERANDS[key]
        weights, zero = value(node.input[at]), value(node.input[scale_at + 1])
        rows = weights
        turned = key[1] != "QLinearConv" and not any(
            a.name == "transB" and a.i for a in node.attribute)
        rows = weights.T if turned else weights
        packed, steps = nibbles(rows, int(zero.reshape(-1)[0]))
        packed = packed.astype(np.int8)
        scale = np.broadcast_to(value(node.input[scale_at]).reshape(-1), (len(rows),))
        new: dict[int, NDArray] = {
            at: np.ascontiguousarray(packed.T if turned else packed),
            scale_at: (scale * steps).astype(np.float32),
            scale_at + 1: np.zeros(len(rows), np.int8),
        }
        if bias_at is not None and len(node.input) > bias_at and node.input[bias_at]:
            new[bias_at] = np.rint(value(node.input[bias_at]) / steps).astype(np.int32)
        for index, array in new.items():
            name = f"{node.input[index]}.nibbles.{node.output[0]}"
            made.graph.initializer.append(numpy_helper.from_array(array, name))
            node.input[index] = name
    return made


def with_copies(network: Network, copies: int) -> Network:
    """``network`` whose weights are moved ``copies`` times: movement only.

    Every layer with weights runs ``copies - 1`` times more on weights of its own, behind it; nobody
    reads what that makes. So 4 copies move what weights of 4 bytes would, and compute, too, 4
    times: cycles are comparable only where weights, not arithmetic, bound the layer.
    """
    layers: list[Any] = []
    for layer in network.layers:
        layers.append(layer)
        if not isinstance(layer, ConvLayer):
            continue
        for copy in range(1, copies):
            name = f"{layer.name}.copy{copy}"
            layers.append(replace(
                layer, name=name, output_name=name, residual=None, table=None, table_target=None,
                weights=layer.weights.copy(),
            ))
    return replace(network, layers=tuple(layers))


def weighted(network: Network) -> dict[str, int]:
    """Name to weight bytes of the layers that 4 bits make smaller: not depthwise ones."""
    return {
        layer.name: layer.weight_bytes for layer in network.layers
        if isinstance(layer, ConvLayer)
        and not (layer.groups > 1 and layer.groups == layer.input_shape[1])
    }


def plan(
    sizes: Mapping[str, int], error: Callable[[Sequence[str]], float], budget: float
) -> list[str]:
    """Layers to have in 4 bits so that ``error`` of them together is at most ``budget``.

    As many evaluations as twice the layers; an empty list if no layer is within the budget.
    """
    alone = {name: error([name]) for name in sizes}
    order = sorted(sizes, key=lambda name: (alone[name] / sizes[name], -sizes[name]))
    chosen: list[str] = []
    for name in order:  # errors do not just add up
        if error([*chosen, name]) <= budget:
            chosen.append(name)
    return chosen


__all__ = ["in_nibbles", "nibbles", "plan", "weighted", "with_copies", "with_nibbles"]
