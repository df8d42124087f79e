# SPDX-License-Identifier: Apache-2.0
"""Element by element: additions, products, clips and every function of one byte."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.drafts import Buffer, Draft, View, in_order
from emu.network.graph import Node
from emu.network.layers import AddLayer, MultiplyLayer, TableLayer
from emu.network.operators import Quantised, quantised, scalar_bounds
from emu.network.tables import operator_table
from emu.requantise import add_scales, add_table, from_bytes, scale_of

if TYPE_CHECKING:
    from emu.network.importer import Importer

_OPERANDS = ("first operand's", "second operand's")


def _same_place(a: View, b: View) -> bool:
    """Whether the elements of two settled views lie equally."""
    if a.buffer.layer_shape != b.buffer.layer_shape:
        return False
    one, other = a.positions, b.positions
    if one is None or other is None:
        return in_order(one) and in_order(other)
    return bool(np.array_equal(one, other))


def _together(node: Node, first: View, second: View) -> None:
    """Settle both operands of a node alike, or refuse."""
    if first.shape != second.shape:
        raise node.error(
            f"{list(first.shape)} and {list(second.shape)}: only operands of one shape are "
            "supported"
        )
    for view, like in ((first, second), (second, first)):
        if not view.settled and like.buffer.layer_shape is not None:
            view.settle(like.buffer.layer_shape, like.positions)
    first.settle_plainly()
    if not second.settled:
        assert first.buffer.layer_shape is not None
        second.settle(first.buffer.layer_shape, first.positions)
    if not _same_place(first, second) or not _complete(first) or not _complete(second):
        raise node.error(
            f"{node.input(0)} and {node.input(3)} lie differently: one would have to be moved "
            "in memory"
        )


def _complete(view: View) -> bool:
    return math.prod(view.shape) == math.prod(view.buffer.layer_shape or ())


def _output(net: "Importer", node: Node, draft: Draft, like: View, out: Quantised) -> Buffer:
    assert like.buffer.layer_shape is not None
    return net.output(
        node, draft, like.shape, layer_shape=like.buffer.layer_shape, index=like.positions,
        signed=out.signed, scale=out.scale, zero=out.zero,
    )


def _operands(net: "Importer", node: Node) -> tuple[list[Quantised], Quantised]:
    given = [quantised(node, 3 * i + 1, name, net.constants) for i, name in enumerate(_OPERANDS)]
    out = quantised(node, 6, "output", net.constants)
    if any(q.signed != out.signed for q in given):
        raise node.error("its operands and its output differ in type")
    return given, out


def _constant(net: "Importer", node: Node) -> bool:
    """Whether an operand is one constant number: then the node is a function of one byte."""
    for index in (0, 3):
        name = node.input(index)
        if name in net.constants:
            if node.input(3 - index) in net.constants:
                raise node.error("both its operands are constants: fold them first")
            rank = len(net.view(node, 3 - index).shape)
            if net.constants[name].ndim > rank:
                raise node.error(f"its operand {name} has more dimensions than the other, {rank}")
            return net.constants[name].size == 1
    return False


def _views(net: "Importer", node: Node, given: list[Quantised]) -> list[View]:
    for i, j in ((0, 3), (3, 0)):
        if node.input(i) in net.constants:
            q = given[j // 3]
            other = net.source(node, j, q.scale, q.zero, q.signed)
            other.settle_plainly()
            view = _given(net, node, i, other, given[i // 3])
            return [view, other] if i == 0 else [other, view]
    views = [net.source(node, 3 * i, q.scale, q.zero, q.signed) for i, q in enumerate(given)]
    _together(node, *views)
    return views


def _given(net: "Importer", node: Node, index: int, like: View, q: Quantised) -> View:
    """A constant operand, spread over ``like``'s shape: it lies in HBM from the start."""
    values = net.constants[node.input(index)]
    if values.dtype != (np.int8 if q.signed else np.uint8) or not _complete(like):
        raise node.error(f"its operand {node.input(index)} is {values.dtype}: the other operand's "
                         "type expected, and all of it")
    try:
        full = np.broadcast_to(values, like.shape)
    except ValueError:
        raise node.error(f"its operand {node.input(index)} {list(values.shape)} does not spread "
                         f"over {list(like.shape)}") from None
    assert like.buffer.layer_shape is not None
    buffer = Buffer(f"{node.outputs[0]}.constant", str(values.dtype), like.buffer.layer_shape,
                    like.buffer.order, q.scale, q.zero)
    placed = np.zeros(full.size, values.dtype)
    positions = like.positions
    placed[slice(None) if positions is None else positions.reshape(-1)] = full.reshape(-1)
    net.given[buffer.layer_name] = placed.reshape(like.buffer.layer_shape)
    return View(buffer, like.shape, True, like.index)


def add(net: "Importer", node: Node) -> None:
    """QLinearAdd."""
    given, out = _operands(net, node)
    if _constant(net, node):
        function(net, node, 0 if node.input(3) in net.constants else 3)
        return
    a, b = given
    try:
        ra, rb = add_scales(a.scale, b.scale, out.scale)
        table = add_table(ra, rb, a_zero=a.zero, c_zero=b.zero, out_zero=out.zero,
                          c_signed=b.signed)
    except UserError as error:
        raise node.error(str(error)) from None
    views = _views(net, node, given)
    low, high = views[0].buffer.range
    fields: dict[str, Any] = {"scale": ra, "table": table, "clip_low": low, "clip_high": high}
    index = _fusable(net, views)
    if index is None:
        draft = net.layer(
            node, AddLayer, [(views[0].buffer, a.zero), (views[1].buffer, b.zero)], **fields
        )
    else:
        draft = _behind(net, views[index], views[1 - index])
        draft.convolved = views[index].buffer
        draft.residual = fields | {"source_first": index == 1}
        draft.extra["residual"] = views[1 - index].buffer, given[1 - index].zero
    target = _output(net, node, draft, views[0], out)
    if draft.residual is not None:
        draft.residual["summed"] = target


def _fusable(net: "Importer", views: list[View]) -> int | None:
    """The operand whose convolution takes the addition: the one that runs last."""
    found = [
        (net.drafts.index(view.buffer.producer), index)
        for index, view in enumerate(views)
        if view.buffer.producer and view.sole and view.buffer.producer.takes_residual
    ]
    return max(found)[1] if found else None


def _behind(net: "Importer", view: View, other: View) -> Draft:
    """The layer that makes ``view``, which runs behind the one that makes ``other``."""
    draft, before = view.buffer.producer, other.buffer.producer
    assert draft is not None
    if before and net.drafts.index(before) > net.drafts.index(draft):
        net.drafts.remove(draft)  # nothing has read it yet
        net.drafts.append(draft)
    return draft


def multiply(net: "Importer", node: Node) -> None:
    """QLinearMul."""
    given, out = _operands(net, node)
    if _constant(net, node):
        function(net, node, 0 if node.input(3) in net.constants else 3)
        return
    a, b = given
    views = _views(net, node, given)
    low, high = (-128, 127) if out.signed else (0, 255)
    draft = net.layer(
        node, MultiplyLayer, [(views[0].buffer, a.zero), (views[1].buffer, b.zero)],
        scale=np.float32(scale_of(a.scale, b.scale, out.scale)), clip_low=low, clip_high=high,
    )
    _output(net, node, draft, views[0], out)


def clip(net: "Importer", node: Node) -> None:
    """Relu, Clip, Max and Min with constants."""
    index = next((i for i, n in enumerate(node.inputs) if n in net.views), 0)
    view = net.view(node, index)
    buffer = view.buffer
    low, high = scalar_bounds(node, index, buffer.dtype, net.constants)
    if buffer.producer and view.sole and buffer.producer.takes_clip:
        buffer.producer.clip(low, high)
        net.alias(node, view, view.shape, view.index)
        return
    kind = np.int8 if buffer.signed else np.uint8
    values = from_bytes(np.arange(256, dtype=np.uint8), buffer.signed)
    table = np.clip(values, low, high).astype(kind).view(np.uint8)
    target = byte_table(net, node, view, table, buffer.signed)
    target.scale, target.zero_point, target.like = buffer.scale, buffer.zero_point, buffer


def function(net: "Importer", node: Node, index: int = 0) -> None:
    """Any operator that makes one byte of one: its table is what ONNX Runtime says of 256 bytes."""
    out_index = {"QLinearAdd": 6, "QLinearMul": 6}.get(node.op, 3)
    out = quantised(node, out_index, "output", net.constants)
    given = quantised(node, index + 1, "input", net.constants)
    view = net.source(node, index, given.scale, given.zero, given.signed)
    table = operator_table(node, index, net.constants, given.signed, out.signed)
    target = byte_table(net, node, view, table, out.signed)
    target.scale, target.zero_point = out.scale, out.zero


def byte_table(
    net: "Importer", node: Node, view: View, table: NDArray[np.uint8], signed: bool
) -> Buffer:
    """A byte table, fused or a layer of its own; returns what it writes."""
    view.settle_plainly()
    buffer, draft = view.buffer, view.buffer.producer
    if draft and view.sole and draft.takes_table:
        if draft.table is None and draft.residual is None:
            draft.convolved = buffer
        draft.table = table if draft.table is None else table[draft.table]
    else:
        draft = net.layer(node, TableLayer, [(buffer, None)])
        draft.table = table
    assert buffer.layer_shape is not None
    return net.output(
        node, draft, view.shape, layer_shape=buffer.layer_shape, index=view.positions,
        signed=signed, scale=None, zero=None,
    )


def given_table(net: "Importer", node: Node) -> None:
    """Our own operator: a table of 256 bytes, indexed by the byte, and the output's type."""
    scale, zero = (net.constants[node.input(i)] for i in (2, 3))
    view = net.view(node)
    target = byte_table(net, node, view, net.constants[node.input(1)], zero.dtype == np.int8)
    target.scale, target.zero_point = float(scale), int(zero)


READERS = {
    "QLinearAdd": add, "QLinearMul": multiply, "Relu": clip, "Clip": clip, "Max": clip,
    "Min": clip, "QLinearSigmoid": function, "QLinearLeakyRelu": function, "Table": given_table,
}
