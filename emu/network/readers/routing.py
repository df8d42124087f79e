# SPDX-License-Identifier: Apache-2.0
"""Routing: the largest of each row, and products with the matrices that their numbers choose."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.drafts import Buffer, Draft, View, rows_of
from emu.network.graph import Node
from emu.network.layers import ExpertLayer, SliceLayer, TopKLayer, TopTensor
from emu.network.operators import quantised
from emu.network.readers import rows, views
from emu.requantise import scale_of

if TYPE_CHECKING:
    from emu.network.importer import Importer


@dataclass(eq=False)
class Top:
    """An output of TopK: the layer's buffer, rows of ``k`` values (or ``numbers``)."""

    draft: Draft
    buffer: Buffer
    source: Buffer
    shape: tuple[int, ...]
    k: int
    numbers: bool

    def tensor(self, name: str) -> TopTensor:
        """As an output of the graph."""
        scale = 1.0 if self.numbers or self.source.scale is None else self.source.scale
        assert self.buffer.layer_shape is not None
        return TopTensor(
            name=name, shape=self.shape,
            dtype="int64" if self.numbers else self.source.dtype,  # type: ignore[arg-type]
            scale=scale, zero_point=0 if self.numbers else self.source.zero_point or 0,
            layer_name=self.buffer.layer_name, layer_shape=self.buffer.layer_shape, k=self.k,
        )

    def view(self, net: "Importer", node: Node, name: str) -> View:
        """As a layer tensor of its own, for a reader."""
        if self.numbers:
            raise node.error(f"{name} numbers what was found: only a Gather may read it")
        if name not in net.views:
            buffer = self.part(net, name, 1, self.k, self.source.signed)
            buffer.scale, buffer.zero_point = self.source.scale, self.source.zero_point
            net.views[name] = View(buffer, self.shape, net.graph.uses[name] == 1)
        return net.views[name]

    def part(self, net: "Importer", name: str, pixel: int, channels: int, signed: bool) -> Buffer:
        """One of the two pixels of a single row's result."""
        if math.prod(self.shape) != self.k:
            raise UserError(f"{net.graph.name}: {self.draft.name}: what TopK found of several rows "
                            "can be an output of the model only")
        buffer = Buffer(f"{name}.part", "int8" if signed else "uint8", (1, channels, 1, 1))
        draft = Draft(SliceLayer, f"{name}.part", [(self.buffer, 0)], buffer, {"pixel": pixel})
        buffer.producer = draft
        net.drafts.append(draft)
        return buffer


@dataclass(frozen=True)
class Experts:
    """Matrices [experts, inputs, outputs] of which TopK's numbers choose k."""

    stack: NDArray
    top: Top


def top(net: "Importer", node: Node) -> None:
    """Our own operator: TopK of quantised rows."""
    view = net.view(node)
    rows.last_axis(node, view)
    count, channels, k = math.prod(view.shape[:-1]), view.shape[-1], node.get("k", 1)
    if channels > 16 or not 1 <= k <= min(4, channels):
        raise node.error(f"the {k} largest of {channels}: up to 4 of up to 16 are supported")
    draft = net.layer(node, TopKLayer, [(view.buffer, None)], k=k)
    buffer = Buffer(f"{node.outputs[0] or node.name}.found", "uint8", (1, 16, 1, 2 * count),
                    zero_point=0, producer=draft)
    draft.target = buffer
    shape = (*view.shape[:-1], k)
    for name, numbers in zip(node.outputs, (False, True), strict=False):
        if name:
            net.tops[name] = Top(draft, buffer, view.buffer, shape, k, numbers)


def chosen(net: "Importer", node: Node) -> None:
    """Gather of a constant stack of matrices by TopK's numbers."""
    stack, found = net.constants[node.input(0)], net.tops[node.input(1)]
    if stack.ndim != 3 or stack.dtype != np.int8 or not found.numbers or node.get("axis", 0) != 0:
        raise node.error("by TopK's numbers only int8 matrices [experts, inputs, outputs] along "
                         "axis 0 are supported")
    net.experts[node.outputs[0]] = Experts(stack, found)


def experts(net: "Importer", node: Node) -> None:
    """QLinearMatMul of one token, or one for each expert, with chosen matrices."""
    given = net.experts[node.input(3)]
    x = quantised(node, 1, "first operand's", net.constants)
    w = quantised(node, 4, "second operand's", net.constants)
    y = quantised(node, 6, "output", net.constants)
    view = net.source(node, 0, x.scale, x.zero, x.signed)
    count, inputs, outputs = given.stack.shape
    k, tokens = given.top.k, math.prod(view.shape[:-1])
    try:
        lead = np.broadcast_shapes(view.shape[:-2], given.top.shape)
    except ValueError:
        lead = ()
    fits = (view.shape[-2:] == (1, inputs) and tokens in (1, k) and math.prod(lead) == k)
    if not x.signed or not y.signed or not fits:
        raise node.error(f"{list(view.shape)} with {k} of {count} matrices: one token, or one "
                         "each, all int8")
    rows.last_axis(node, view)
    numbers = given.top.part(net, f"{node.outputs[0]}.numbers", 0, 16, False)
    draft = net.layer(
        node, ExpertLayer, [(view.buffer, x.zero), (numbers, 0)], k=k,
        weights=np.ascontiguousarray(given.stack.transpose(0, 2, 1)),
        bias=np.zeros((count, outputs), np.int32), y_zero=y.zero, weight_zero=w.zero,
        scale=np.full((count, outputs), scale_of(x.scale, w.scale, y.scale), np.float32),
    )
    layer_shape = (1, outputs, 1, k)
    shape = (*lead, 1, outputs)
    net.output(node, draft, shape, layer_shape=layer_shape,
               index=rows_of(layer_shape).reshape(shape), signed=True, scale=y.scale, zero=y.zero)


def matmul(net: "Importer", node: Node) -> None:
    """QLinearMatMul: with chosen matrices experts, else as `rows.matmul`."""
    if node.input(3) in net.experts:
        experts(net, node)
    else:
        rows.matmul(net, node)


def gather(net: "Importer", node: Node) -> None:
    """Gather: by TopK's numbers experts, else as `views.gather`."""
    if node.input(0) in net.constants and node.input(1) in net.tops:
        chosen(net, node)
    else:
        views.gather(net, node)


READERS = {"TopK": top, "QLinearMatMul": matmul, "Gather": gather}
