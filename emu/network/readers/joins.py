# SPDX-License-Identifier: Apache-2.0
"""Tensors made of parts of others: concatenations, and rows of tables by number."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emu.network.drafts import View, in_order, moved, rows_of
from emu.network.graph import Node
from emu.network.layers import ConcatLayer, GatherLayer
from emu.network.operators import Quantised, quantised
from emu.network.readers import elements
from emu.network.tables import operator_table

if TYPE_CHECKING:
    from emu.network.importer import Importer

NUMBERS = 4
"""Row numbers in a pixel of 16 bytes."""


def embedding(net: "Importer", node: Node) -> None:
    """Gather of a constant table's rows by the numbers of a graph input."""
    table, name = net.constants[node.input(0)], node.input(1)
    if table.ndim != 2 or table.dtype not in (np.int8, np.uint8) or node.get("axis", 0) != 0:
        raise node.error(f"rows of {table.dtype}{list(table.shape)} along axis "
                         f"{node.get('axis', 0)}: those of an 8-bit matrix are supported")
    numbers = net.views.get(name)
    if numbers is None or numbers.buffer.dtype not in ("int32", "int64"):
        raise node.error(f"{name} must be an input of int32 or int64")
    count, channels = math.prod(numbers.shape), table.shape[1]
    buffer = numbers.buffer
    buffer.layer_shape = (1, 16, 1, -(-count // NUMBERS))
    buffer.limit = min(buffer.limit or len(table), len(table))
    draft = net.layer(node, GatherLayer, [(buffer, 0)], table=table)
    shape, layer_shape = (*numbers.shape, channels), (1, channels, 1, count)
    net.output(node, draft, shape, layer_shape=layer_shape,
               index=rows_of(layer_shape).reshape(shape), signed=table.dtype == np.int8,
               scale=None, zero=None)


def concat(net: "Importer", node: Node) -> None:
    """Concat of equally quantised tensors."""
    found = [net.view(node, i) for i in range(len(node.inputs))]
    first = found[0].buffer
    if any(view.buffer.dtype != first.dtype for view in found):
        raise node.error("its operands differ in type")
    target = _join(net, node, found)
    target.scale, target.zero_point, target.like = first.scale, first.zero_point, first


def quantised_concat(net: "Importer", node: Node) -> None:
    """QLinearConcat: operands of other scales go through a table first."""
    if (len(node.inputs) - 2) % 3 or len(node.inputs) < 5:
        raise node.error("its operands are no triples of tensor, scale and zero point")
    out = quantised(node, 0, "output", net.constants)
    found = []
    for index in range(2, len(node.inputs), 3):
        given = quantised(node, index + 1, "input", net.constants)
        if given.signed != out.signed:
            raise node.error("its operands and its output differ in type")
        view = net.source(node, index, given.scale, given.zero, given.signed)
        if (np.float32(given.scale), given.zero) != (np.float32(out.scale), out.zero):
            view = _rescaled(net, node, index, view, out)
        found.append(view)
    target = _join(net, node, found)
    target.scale, target.zero_point = out.scale, out.zero


def _part(net: "Importer", node: Node, index: int, inputs: list[str]) -> Node:
    """A node of its own for one operand."""
    from onnx import helper

    name = f"{node.outputs[0]}.{index}"
    net.graph.uses[name] = 1
    return Node(helper.make_node(node.op, inputs, [name], name, domain=node.domain, axis=0),
                node.where)


def _rescaled(net: "Importer", node: Node, index: int, view: View, out: Quantised) -> View:
    part = _part(net, node, index, [*node.inputs[:2], *node.inputs[index : index + 3]])
    table = operator_table(part, 2, net.constants, out.signed, out.signed)
    target = elements.byte_table(net, part, view, table, out.signed)
    target.scale, target.zero_point = out.scale, out.zero
    return net.views[part.outputs[0]]


def _copied(net: "Importer", node: Node, index: int, view: View) -> View:
    """A copy of a tensor that already lies in another one."""
    part = _part(net, node, index, [node.input(0)])
    target = elements.byte_table(net, part, View(view.buffer, view.shape, False, view.index),
                                 np.arange(256, dtype=np.uint8), view.buffer.signed)
    target.scale, target.zero_point = view.buffer.scale, view.buffer.zero_point
    return net.views[part.outputs[0]]


def _join(net: "Importer", node: Node, found: list[View]):
    """A ConcatLayer of ``found``; returns the buffer that it makes."""
    rank, axis = len(found[0].shape), node.get("axis", 0)
    if not -rank <= axis < rank or any(
            len(v.shape) != rank or _without(v.shape, axis) != _without(found[0].shape, axis)
            for v in found):
        raise node.error(f"{', '.join(str(list(v.shape)) for v in found)} along axis {axis}")
    for index, view in enumerate(found):
        view.settle_plainly()
        if math.prod(view.shape) != math.prod(view.buffer.layer_shape or ()):
            raise moved(node, node.inputs[index])
        if view.buffer in net.joined:
            found[index] = view = _copied(net, node, index, view)
        net.joined.add(view.buffer)
    shape = list(found[0].shape)
    shape[axis] = sum(view.shape[axis] for view in found)
    for kind, along in (("channels", 1), ("tokens", 3)):
        order, layer_shape = _placed(found, axis, along)
        if order is None or (kind == "tokens" and layer_shape[2] != 1):
            continue
        natural = np.arange(order.size) if rank == 4 else rows_of(layer_shape)
        if rank != 4 and layer_shape[1] != shape[-1]:
            continue
        if np.array_equal(order.reshape(-1), natural.reshape(-1)):
            draft = net.layer(node, ConcatLayer, [(view.buffer, None) for view in found],
                              axis=kind)
            return net.output(
                node, draft, tuple(shape), layer_shape=layer_shape,
                index=None if in_order(order) else order, signed=found[0].buffer.signed,
                scale=None, zero=None)
    raise moved(node, node.inputs[0])


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(n for a, n in enumerate(shape) if a != axis % len(shape))


def _placed(
    found: list[View], axis: int, along: int
) -> tuple[NDArray[np.int64] | None, tuple[int, int, int, int]]:
    """Where each element of the result would lie if the layer tensors were joined ``along``."""
    shapes = [view.buffer.layer_shape or (0, 0, 0, 0) for view in found]
    if len({_without(shape, along) for shape in shapes}) != 1:
        return None, shapes[0]
    sizes = [math.prod(shape) for shape in shapes]
    starts = np.cumsum([0, *sizes])
    whole = np.concatenate([start + np.arange(size).reshape(shape) for start, size, shape
                            in zip(starts, sizes, shapes, strict=False)], axis=along)
    place = np.empty(whole.size, np.int64)
    place[whole.reshape(-1)] = np.arange(whole.size)
    parts = []
    for start, view in zip(starts, found, strict=False):
        positions = view.positions
        if positions is None:
            positions = np.arange(math.prod(view.shape)).reshape(view.shape)
        parts.append(place[start + positions.reshape(view.shape)])
    return np.concatenate(parts, axis=axis), whole.shape  # type: ignore[return-value]


READERS = {"Concat": concat, "QLinearConcat": quantised_concat}
