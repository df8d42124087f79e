# SPDX-License-Identifier: Apache-2.0
"""Operators over the channels of each pixel: softmax, layer normalisation, attention.

Attention is a product of two activations, a softmax over it and a product of that with a third.
Scores and probabilities are no tensors of their own, so nothing else may read them.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.drafts import View, moved, rows_of
from emu.network.graph import Node
from emu.network.layers import AttentionLayer, NormLayer, Operand, Shape4, SoftmaxLayer
from emu.network.operators import Quantised, quantised
from emu.network.readers import weighted
from emu.normalise import norm_parameters
from emu.requantise import scale_of
from emu.softmax import softmax_factor

if TYPE_CHECKING:
    from emu.network.importer import Importer


@dataclass(frozen=True)
class Scores:
    """A product Q K^T whose softmax is still to come, or (``probability``) has come."""

    query: View
    key: View
    heads: int
    zeros: tuple[int, int]
    scale: np.float32
    shape: tuple[int, ...]
    quantised: Quantised
    probability: Quantised | None = None


def last_axis(node: Node, view: View) -> None:
    """Settle a view whose last axis is the channels of its pixels, or refuse."""
    count, channels = math.prod(view.shape[:-1]), view.shape[-1]
    plain = rows_of((1, channels, 1, count))
    view.settle((1, channels, 1, count), plain)
    shape = view.buffer.layer_shape
    assert shape is not None
    if shape[1] != channels or math.prod(shape) != plain.size or not np.array_equal(
        _positions(view).reshape(-1, channels), rows_of(shape)
    ):
        raise moved(node, node.input(0))


def _positions(view: View) -> NDArray[np.int64]:
    positions = view.positions
    if positions is None:
        positions = np.arange(math.prod(view.shape)).reshape(view.shape)
    return positions


def _axis_last(node: Node, view: View, axis: int) -> View:
    """``view`` with ``axis`` moved to the end."""
    rank = len(view.shape)
    if not -rank <= axis < rank:
        raise node.error(f"axis {axis} of {list(view.shape)}")
    if axis % rank == rank - 1:
        return view
    index = np.moveaxis(view.elements, axis, -1)
    return View(view.buffer, index.shape, view.sole, index)


def softmax(net: "Importer", node: Node) -> None:
    """QLinearSoftmax."""
    x = quantised(node, 1, "input", net.constants)
    y = quantised(node, 3, "output", net.constants)
    try:
        softmax_factor(y.scale)
    except UserError as error:
        raise node.error(str(error)) from None
    if x.signed != y.signed:
        raise node.error("its input and output differ in type")
    given, axis = net.scores.get(node.input(0)), node.get("axis", -1)
    if given is not None:
        last = len(given.shape) - 1
        if axis not in (-1, last) or (x.zero, x.signed) != (given.quantised.zero,
                                                            given.quantised.signed):
            raise node.error("attention needs the softmax of its scores, as quantised, over keys")
        if given.probability is not None or net.graph.uses[node.input(0)] > 1:
            raise node.error(f"{node.input(0)} is read by others too: not supported in attention")
        net.scores[node.outputs[0]] = Scores(**(vars(given) | {"quantised": x, "probability": y}))
        return
    view = net.source(node, 0, x.scale, x.zero, x.signed)
    if node.get("opset", 13) < 13 and axis % len(view.shape) != len(view.shape) - 1:
        raise node.error("before opset 13 only its last axis is supported")
    turned = _axis_last(node, view, axis)
    last_axis(node, turned)
    draft = net.layer(node, SoftmaxLayer, [(view.buffer, x.zero)], x_scale=x.scale, y_scale=y.scale)
    _output(net, node, draft, view, y)


def norm(net: "Importer", node: Node) -> None:
    """Our own operator: layer normalisation over the last axis of a quantised tensor."""
    x = quantised(node, 1, "input", net.constants)
    y = quantised(node, 5, "output", net.constants)
    gamma, beta = (net.constants[node.input(i)].reshape(-1) for i in (3, 4))
    view = net.source(node, 0, x.scale, x.zero, x.signed)
    epsilon = float(node.get("epsilon", 1e-5))
    try:
        norm_parameters(gamma, beta, in_scale=x.scale, out_scale=y.scale, epsilon=epsilon)
    except UserError as error:
        raise node.error(str(error)) from None
    last_axis(node, view)
    draft = net.layer(
        node, NormLayer, [(view.buffer, x.zero)], gamma=gamma.astype(np.float32),
        beta=beta.astype(np.float32), epsilon=epsilon, x_scale=x.scale, y_scale=y.scale,
    )
    _output(net, node, draft, view, y)


def _output(net: "Importer", node: Node, draft, view: View, out: Quantised) -> None:
    assert view.buffer.layer_shape is not None
    net.output(
        node, draft, view.shape, layer_shape=view.buffer.layer_shape, index=view.positions,
        signed=out.signed, scale=out.scale, zero=out.zero,
    )


def matmul(net: "Importer", node: Node) -> None:
    """QLinearMatMul: with constants a layer of its own, of activations a part of attention."""
    if node.input(3) in net.constants:
        weighted.product(net, node)
    elif node.input(0) in net.scores:
        _mix(net, node)
    else:
        _score(net, node)


def _heads(node: Node, view: View, index: int, shape: Shape4, order: NDArray) -> None:
    """Settle an operand of attention of ``heads`` times (rows, columns), or refuse."""
    view.settle(shape, order.reshape(view.shape))
    if view.buffer.layer_shape != shape or not np.array_equal(
        _positions(view).reshape(-1), order.reshape(-1)
    ):
        raise moved(node, node.input(index))


def _ends(node: Node, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) < 2 or (len(shape) == 4 and shape[0] != 1):
        raise node.error(f"a product of activations {list(shape)}: one image of heads x rows x "
                         "columns expected")
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def _score(net: "Importer", node: Node) -> None:
    given = [quantised(node, 3 * i + 1, name, net.constants)
             for i, name in enumerate(("first operand's", "second operand's"))]
    out = quantised(node, 6, "output", net.constants)
    query, key = (net.source(node, 3 * i, q.scale, q.zero, q.signed) for i, q in enumerate(given))
    heads, count, depth = _ends(node, query.shape)
    key_heads, key_depth, keys = _ends(node, key.shape)
    if (heads, depth) != (key_heads, key_depth):
        raise node.error(f"{list(query.shape)} and {list(key.shape)} do not fit")
    order = np.arange(heads * depth * count).reshape(heads, depth, count).transpose(0, 2, 1)
    _heads(node, query, 0, (1, heads * depth, 1, count), order)
    _heads(node, key, 3, (1, heads * depth, 1, keys), np.arange(heads * depth * keys))
    net.scores[node.outputs[0]] = Scores(
        query, key, heads, (given[0].zero, given[1].zero),
        np.float32(scale_of(given[0].scale, given[1].scale, out.scale)),
        (*query.shape[:-1], keys), out,
    )


def _mix(net: "Importer", node: Node) -> None:
    scores = net.scores[node.input(0)]
    p, v = (quantised(node, 3 * i + 1, name, net.constants)
            for i, name in enumerate(("first operand's", "second operand's")))
    out = quantised(node, 6, "output", net.constants)
    known = scores.probability
    if known is None or net.graph.uses[node.input(0)] > 1:
        raise node.error("attention is a product of activations, its softmax, and a product of "
                         "that with values, read by nothing else")
    if (p.zero, p.signed) != (known.zero, known.signed):
        raise node.error("it reads the probabilities with another zero point than they have")
    value = net.source(node, 3, v.scale, v.zero, v.signed)
    heads, count, depth = _ends(node, value.shape)
    if heads != scores.heads or count != scores.shape[-1]:
        raise node.error(f"{list(scores.shape)} and {list(value.shape)} do not fit")
    order = np.arange(heads * depth * count).reshape(heads, depth, count).transpose(0, 2, 1)
    _heads(node, value, 3, (1, heads * depth, 1, count), order)
    rows = scores.shape[-2]
    layer_shape = (1, heads * depth, 1, rows)
    draft = net.layer(
        node, AttentionLayer,
        [(scores.query.buffer, scores.zeros[0]), (scores.key.buffer, scores.zeros[1]),
         (value.buffer, v.zero)],
        heads=heads, scores=_inner(node.input(0) + ".scores", scores, scores.quantised),
        probabilities=_inner(node.input(0), scores, known), score_scale=scores.scale,
        scores_scale=scores.quantised.scale, probability_scale=known.scale,
        value_scale=np.float32(scale_of(p.scale, v.scale, out.scale)),
    )
    shape = (*scores.shape[:-1], depth)
    index = np.arange(heads * depth * rows).reshape(heads, depth, rows).transpose(0, 2, 1)
    net.output(node, draft, shape, layer_shape=layer_shape, index=index.reshape(shape),
               signed=out.signed, scale=out.scale, zero=out.zero)


def _inner(name: str, scores: Scores, given: Quantised) -> Operand:
    """Scores of one head after another: (heads, keys, 1, rows)."""
    rows, keys = scores.shape[-2:]
    return Operand(name, (scores.heads, keys, 1, rows), given.signed, given.zero)



READERS = {"QLinearSoftmax": softmax, "QLinearMatMul": matmul, "LayerNorm": norm}
