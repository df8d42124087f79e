# SPDX-License-Identifier: Apache-2.0
"""Quantised ONNX models in, layers out.

Nodes are read in order; each appends a layer (`emu.network.drafts.Draft`), is fused with the one
before, or only looks at a tensor in another way. A clip is fused with the layer before it, an
addition with the convolution that makes one of its operands, a byte table with a convolution,
where nothing else reads what that makes; if not, they are layers of their own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.drafts import Buffer, Draft, Source, View, in_order
from emu.network.graph import MAX_ELEMENTS, Graph, Node, constants_of, load_model
from emu.network.layers import IndexTensor, Network, Shape4, Tensor
from emu.network.qdq import convert, is_qdq
from emu.network.readers import elements, joins, pools, routing, rows, views, weighted


class Importer:
    """Drafts and views of one graph, for the functions that read its nodes."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.constants = graph.constants
        self.drafts: list[Draft] = []
        self.views = {
            value.name: View(Buffer(value.name, value.dtype), value.shape or (),
                             graph.uses[value.name] == 1)
            for value in graph.inputs
        }
        self.roots = dict(self.views)
        self.scores: dict[str, rows.Scores] = {}
        self.given: dict[str, NDArray] = {}
        self.tops: dict[str, routing.Top] = {}
        self.experts: dict[str, routing.Experts] = {}
        self.joined: set[Buffer] = set()

    def run(self) -> Network:
        """The network; every node is read."""
        for node in self.graph.nodes:
            READERS[node.op](self, node)
        self._check_outputs()
        return Network(
            name=self.graph.name,
            layers=tuple(draft.finish() for draft in self.drafts),
            inputs=tuple(
                self._tensor(v.name, View(self.roots[v.name].buffer, v.shape or (), False))
                for v in self.graph.inputs
            ),
            outputs=tuple(self._output(v.name) for v in self.graph.outputs),
            model=self.graph.model, constants=self.given,
        )

    def _output(self, name: str) -> Tensor:
        top = self.tops.get(name)
        return top.tensor(name) if top else self._tensor(name, self.views[name])

    def _tensor(self, name: str, view: View) -> Tensor:
        buffer = view.buffer
        if buffer.layer_shape is None:
            raise UserError(f"{self.graph.name}: no layer reads input {name}")
        order = view.positions
        if buffer.limit is not None:
            return IndexTensor(
                name=name, shape=view.shape, dtype=buffer.dtype,  # type: ignore[arg-type]
                scale=1.0, zero_point=0, layer_name=buffer.layer_name,
                layer_shape=buffer.layer_shape, limit=buffer.limit,
            )
        return Tensor(
            name=name,
            shape=view.shape,
            dtype=buffer.dtype,  # type: ignore[arg-type]
            scale=1.0 if buffer.scale is None else buffer.scale,
            zero_point=buffer.zero_point or 0,
            layer_name=buffer.layer_name,
            layer_shape=buffer.layer_shape,
            order=None if order is None or _whole(order, buffer) else order.reshape(-1),
        )

    def view(self, node: Node, index: int = 0) -> View:
        """The activation that an input of ``node`` is."""
        name = node.input(index)
        if name in self.constants:
            raise node.error(f"its input {name} is a constant: nothing to compute")
        if name in self.tops:
            return self.tops[name].view(self, node, name)
        if name in self.experts:
            raise node.error(f"{name} holds chosen weights, supported in a QLinearMatMul only")
        if name in self.scores:
            raise node.error(f"{name} is a product of activations, supported in attention only")
        if self.views[name].buffer.dtype not in ("int8", "uint8"):
            raise node.error(f"{name} numbers rows of tables: nothing else may read it")
        return self.views[name]

    def source(self, node: Node, index: int, scale: float, zero: int, signed: bool) -> View:
        """An input of a layer, whose buffer takes over scale and zero point of its reader."""
        view = self.view(node, index)
        if view.buffer.signed != signed:
            raise node.error(
                f"{node.input(index)} is {view.buffer.dtype}, its zero point "
                f"{'int8' if signed else 'uint8'}"
            )
        view.buffer.learn(float(scale), zero)
        return view

    def layer(self, node: Node, kind: type, sources: list[Source], /, **fields: Any) -> Draft:
        """Append a layer; `output` gives it its target."""
        draft = Draft(kind, node.name, sources, Buffer("", "int8"), fields)
        self.drafts.append(draft)
        return draft

    def output(
        self, node: Node, draft: Draft, shape: tuple[int, ...], *, layer_shape: Shape4,
        index: NDArray[np.int64] | None = None, signed: bool, scale: float | None,
        zero: int | None,
    ) -> Buffer:
        """What ``draft`` writes from now on: the node's output of ``shape``."""
        if math.prod(shape) > MAX_ELEMENTS:
            raise node.error(f"its output {list(shape)} has more than {MAX_ELEMENTS:,} elements")
        output = node.outputs[0]
        draft.target = Buffer(
            layer_name=output, dtype="int8" if signed else "uint8", layer_shape=layer_shape,
            scale=None if scale is None else float(scale), zero_point=zero, producer=draft,
        )
        self.views[output] = View(draft.target, shape, self.graph.uses[output] == 1, index)
        return draft.target

    def alias(
        self, node: Node, view: View, shape: tuple[int, ...],
        index: NDArray[np.int64] | None = None, output: int = 0,
    ) -> None:
        """The node's output is the buffer of ``view``, looked at in another way."""
        name = node.outputs[output]
        whole = index is None or index.size == view.elements.size
        sole = view.sole and whole and len(node.outputs) == 1
        if sole and view.buffer.producer:
            view.buffer.layer_name = name
        self.views[name] = View(view.buffer, shape, sole and self.graph.uses[name] == 1, index)

    def _check_outputs(self) -> None:
        graph = self.graph
        if not self.drafts:
            raise UserError(f"{graph.name}: it has no layer: nothing to compute")
        for value in graph.outputs:
            if value.name in self.scores:
                raise UserError(f"{graph.name}: output {value.name} is a product of activations, "
                                "supported in attention only")
            if value.name in self.tops:
                continue
            if value.name not in self.views:
                raise UserError(f"{graph.name}: output {value.name} holds chosen weights, not a "
                                "result")
            view = self.views[value.name]
            if view.buffer.producer is None:
                raise UserError(f"{graph.name}: output {value.name} is only a reshaped input")
            if value.dtype != view.buffer.dtype or value.shape not in (None, view.shape):
                raise UserError(
                    f"{graph.name}: output {value.name} is declared {value.dtype}"
                    f"{list(value.shape or ())}, computed {view.buffer.dtype}{list(view.shape)}"
                )


def _whole(order: NDArray[np.int64], buffer: Buffer) -> bool:
    return order.size == math.prod(buffer.layer_shape or ()) and in_order(order)


READERS: Mapping[str, Callable[[Importer, Node], None]] = {
    **weighted.READERS, **pools.READERS, **elements.READERS, **rows.READERS, **views.READERS,
    **joins.READERS, **routing.READERS,
}


def import_onnx(source: str | Path | bytes, name: str | None = None) -> Network:
    """The network of an ONNX file, given as its path or its bytes.

    Raises
    ------
    UserError
        If the file is not ONNX, damaged or invalid, holds a node or an attribute that is not
        supported, or has dynamic shapes. One line; unsupported nodes are all named.
    """
    if name is None:
        name = "model" if isinstance(source, bytes) else str(source)
    model, boundary = load_model(source, name), None
    if is_qdq(model):
        model, boundary = convert(model, constants_of(model.graph, name), name)
        model = load_model(model.SerializeToString(), name)
    return replace(Importer(Graph(model, name)).run(), boundary=boundary)


__all__ = ["Importer", "import_onnx"]
