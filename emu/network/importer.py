# SPDX-License-Identifier: Apache-2.0
"""Quantised ONNX models in, layers out.

Every activation is a `Buffer`: row-major data, of which reshapes are other views. Reshapes that
keep the order cost nothing, all others are refused. A clip is fused with the layer before it, an
addition with the convolution that makes one of its operands, where nothing else reads that; if
not, they are layers of their own.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.drafts import Buffer, Draft, Source, View
from emu.network.graph import Graph, Node, load_model
from emu.network.layers import (
    AddLayer,
    ConvLayer,
    Layout,
    Network,
    PoolLayer,
    Shape4,
    TableLayer,
    Tensor,
)
from emu.network.operators import (
    MAX_K,
    Arithmetic,
    arithmetic_of,
    conv_window,
    gemm_operands,
    pool_window,
    quantised,
    reshaped,
    scalar_bounds,
)
from emu.requantise import add_scales, add_table, pool_scale

_OPERANDS = ("first operand's", "second operand's")


class _Importer:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.drafts: list[Draft] = []
        self.views = {
            value.name: View(Buffer(value.name, value.dtype), value.shape or (),
                             graph.uses[value.name] == 1)
            for value in graph.inputs
        }
        self.roots = {name: view.buffer for name, view in self.views.items()}

    def run(self) -> Network:
        handlers: dict[str, Callable[[Node], None]] = {
            "QLinearConv": self._conv,
            "QLinearMatMul": self._matrix,
            "QGemm": self._matrix,
            "QLinearAdd": self._add,
            "MaxPool": self._max_pool,
            "QLinearAveragePool": self._average_pool,
            "QLinearGlobalAveragePool": self._average_pool,
            "Relu": self._clip,
            "Clip": self._clip,
            "Max": self._clip,
            "Min": self._clip,
        }
        for node in self.graph.nodes:
            handlers.get(node.op, self._reshape)(node)
        self._check_outputs()
        return Network(
            name=self.graph.name,
            layers=tuple(draft.finish() for draft in self.drafts),
            inputs=tuple(
                self._tensor(v.name, v.shape or (), self.roots[v.name]) for v in self.graph.inputs
            ),
            outputs=tuple(
                self._tensor(v.name, self.views[v.name].shape, self.views[v.name].buffer)
                for v in self.graph.outputs
            ),
            model=self.graph.model,
        )

    def _tensor(self, name: str, shape: tuple[int, ...], buffer: Buffer) -> Tensor:
        if buffer.layer_shape is None:
            raise UserError(f"{self.graph.name}: no layer reads input {name}")
        return Tensor(
            name=name,
            shape=shape,
            dtype=buffer.dtype,  # type: ignore[arg-type]
            scale=1.0 if buffer.scale is None else buffer.scale,
            zero_point=buffer.zero_point or 0,
            layer_name=buffer.layer_name,
            layer_shape=buffer.layer_shape,
            layout=buffer.layout,
        )

    def _view(self, node: Node, index: int = 0) -> View:
        name = node.input(index)
        if name in self.graph.constants:
            raise node.error(f"its input {name} is a constant: nothing to compute")
        return self.views[name]

    def _source(self, node: Node, index: int, scale: float, zero: int, signed: bool) -> View:
        """An input of a layer, whose buffer takes over scale and zero point of its reader."""
        view = self._view(node, index)
        if view.buffer.signed != signed:
            raise node.error(
                f"{node.input(index)} is {view.buffer.dtype}, its zero point "
                f"{'int8' if signed else 'uint8'}"
            )
        view.buffer.learn(float(scale), zero)
        return view

    def _output(
        self, node: Node, draft: Draft, shape: tuple[int, ...], *, layer_shape: Shape4,
        layout: Layout, signed: bool, scale: float | None, zero: int | None,
    ) -> Buffer:
        """What ``draft`` writes from now on: the node's output, a view of ``shape``."""
        output = node.outputs[0]
        target = Buffer(
            layer_name=output, dtype="int8" if signed else "uint8", layer_shape=layer_shape,
            layout=layout, scale=None if scale is None else float(scale), zero_point=zero,
            producer=draft,
        )
        draft.target = target
        self.views[output] = View(target, shape, self.graph.uses[output] == 1)
        return target

    def _layer(
        self, node: Node, kind: type, sources: list[Source], /, **fields: Any
    ) -> Draft:
        """Append a layer; `_output` gives it its target."""
        draft = Draft(kind, node.name, sources, Buffer("", "int8"), fields)
        self.drafts.append(draft)
        return draft

    # Convolutions and products

    def _weighted(
        self, node: Node, source: Buffer, layer_shape: Shape4, layout: Layout,
        shape: tuple[int, ...], arithmetic: Arithmetic, **window: Any,
    ) -> None:
        """Append one layer with weights, and its output as a view of ``shape``."""
        low, high = (-128, 127) if arithmetic.y_signed else (0, 255)
        draft = self._layer(
            node, ConvLayer, [(source, arithmetic.x_zero)], weight_zero=arithmetic.weight_zero,
            x_zero=arithmetic.x_zero, x_signed=arithmetic.x_signed, bias=arithmetic.bias,
            scale=arithmetic.scale, y_zero=arithmetic.y_zero, y_signed=arithmetic.y_signed,
            clip_low=low, clip_high=high, **window,
        )
        self._output(
            node, draft, shape, layer_shape=layer_shape, layout=layout, signed=arithmetic.y_signed,
            scale=arithmetic.y_scale, zero=arithmetic.y_zero,
        )

    def _conv(self, node: Node) -> None:
        arithmetic = arithmetic_of(node, self.graph.constants)
        view = self._weighted_source(node, arithmetic)
        rank = len(view.shape)
        if rank not in (3, 4) or arithmetic.weights.ndim != rank:
            raise node.error(
                f"input {list(view.shape)} and weights {list(arithmetic.weights.shape)}: only 1-D "
                "and 2-D convolutions are supported"
            )
        n, c, height, width = self._image(view)
        window = conv_window(node, arithmetic.weights, (n, c, height, width))
        self._settle_image(node, view)
        layer_shape = window.pop("output_shape")
        shape = layer_shape if rank == 4 else (*layer_shape[:2], layer_shape[3])
        self._weighted(node, view.buffer, layer_shape, "nchw", shape, arithmetic, **window)

    def _weighted_source(self, node: Node, arithmetic: Arithmetic) -> View:
        return self._source(
            node, 0, arithmetic.x_scale, arithmetic.x_zero, arithmetic.x_signed
        )

    @staticmethod
    def _image(view: View) -> Shape4:
        """(N, C, H, W) of a view as an operator on images reads it: 1-D ones get H = 1."""
        n, c, *size = view.shape
        return (n, c, size[0], size[1]) if len(size) == 2 else (n, c, 1, size[0])

    def _settle_image(self, node: Node, view: View) -> None:
        """Let the view's buffer lie as an image, or refuse."""
        buffer, shape = view.buffer, self._image(view)
        if buffer.layer_shape is None:
            buffer.layer_shape = shape
        elif buffer.layer_shape != shape or (buffer.layout == "rows" and shape[3] > 1):
            raise node.error(f"{node.input(0)} would have to be moved in memory, not only reshaped")

    def _matrix(self, node: Node) -> None:
        arithmetic = arithmetic_of(node, self.graph.constants)
        view = self._weighted_source(node, arithmetic)
        matrix, transposed = gemm_operands(node, arithmetic, view.shape)
        outputs, k = matrix.shape
        if k > MAX_K:
            raise node.error(f"sums of {k} products can leave 32 bits: at most {MAX_K}")
        kernel, stride, layer_shape, layout = self._window(node, view, k, transposed)
        if kernel[0] == 1 and layout == "rows":  # K of a row: (pixel, channel)
            weights = matrix.reshape(outputs, kernel[1], -1).transpose(0, 2, 1)
        else:  # K of an image: (channel, y, x)
            weights = matrix.reshape(outputs, -1, kernel[0] * kernel[1])
        rows = view.shape[1:] if transposed else view.shape[:-1]
        self._weighted(
            node, view.buffer, (layer_shape[0], outputs, *layer_shape[2:]), layout,
            (*rows, outputs), arithmetic, strides=stride, dilations=(1, 1), pads=(0, 0, 0, 0),
            groups=1, weights=np.ascontiguousarray(weights.reshape(outputs, -1, *kernel)),
        )

    def _window(self, node: Node, view: View, k: int, transposed: bool):
        """(kernel, stride, output (N, _, OH, OW), output layout) of a product over ``k``."""
        buffer = view.buffer
        rows = math.prod(view.shape) // k
        if buffer.layer_shape is None:
            buffer.layer_shape = (1, k, 1, rows)
            buffer.layout = "nchw" if transposed else "rows"
        n, c, height, width = buffer.layer_shape
        if transposed and rows > 1:
            if buffer.layout == "nchw" and buffer.layer_shape == (1, k, 1, rows):
                return (1, 1), (1, 1), (1, 0, 1, rows), "rows"
        elif buffer.layout == "rows" and k % c == 0 and width % (k // c) == 0:
            step = k // c
            return (1, step), (1, step), (1, 0, 1, rows), "rows"
        elif buffer.layout == "nchw" and c * height * width == k:
            return (height, width), (1, 1), (n, 0, 1, 1), "nchw"
        raise node.error(f"{node.input(0)} would have to be moved in memory, not only reshaped")

    # Pooling

    def _pool(self, node: Node, view: View, kind: str, zero: int | None, whole: bool) -> Draft:
        """Append a pooling layer without its target."""
        rank = len(view.shape) - 2
        if rank not in (1, 2):
            raise node.error(f"its input is {list(view.shape)}: only 1-D and 2-D is supported")
        window = pool_window(node, self._image(view), rank, whole)
        self._settle_image(node, view)
        low, high = view.buffer.range
        draft = self._layer(
            node, PoolLayer, [(view.buffer, zero)], kind=kind, scale=np.float32(1), clip_low=low,
            clip_high=high, **window,
        )
        layer_shape = draft.fields.pop("output_shape")
        shape = layer_shape if rank == 2 else (*layer_shape[:2], layer_shape[3])
        self._output(node, draft, shape, layer_shape=layer_shape, layout="nchw",
                     signed=view.buffer.signed, scale=view.buffer.scale,
                     zero=view.buffer.zero_point)
        return draft

    def _max_pool(self, node: Node) -> None:
        if len(node.outputs) > 1 and node.outputs[1]:
            raise node.error("its second output (Indices) is not supported")
        view = self._view(node)
        self._pool(node, view, "max", None, False).target.like = view.buffer

    def _average_pool(self, node: Node) -> None:
        constants = self.graph.constants
        x = quantised(node, 1, "input", constants)
        y = quantised(node, 3, "output", constants)
        view = self._source(node, 0, x.scale, x.zero, x.signed)
        if y.signed != x.signed:
            raise node.error("its input and output differ in type")
        whole = node.op == "QLinearGlobalAveragePool"
        draft = self._pool(node, view, "average", x.zero, whole)
        if any(draft.fields["pads"]) and not node.get("count_include_pad", 0):
            raise node.error("windows over the border are supported with count_include_pad only")
        count = math.prod(draft.fields["kernel"])
        draft.fields["scale"] = pool_scale(x.scale, y.scale, count)
        draft.target.scale, draft.target.zero_point = float(y.scale), y.zero

    # Element by element

    def _together(self, node: Node, first: View, second: View) -> Buffer:
        """A buffer that lies as both operands of an element-wise node do, or a refusal."""
        if first.shape != second.shape:
            raise node.error(
                f"{list(first.shape)} and {list(second.shape)}: only operands of one shape are "
                "supported"
            )
        for one, other in ((first, second), (second, first)):
            buffer, like = one.buffer, other.buffer
            if buffer.layer_shape is None and like.layer_shape is not None:
                buffer.layer_shape, buffer.layout = like.layer_shape, like.layout
        for view in (first, second):
            view.buffer.settle(view.shape)
        a, b = first.buffer, second.buffer
        assert a.layer_shape is not None
        one_pixel = math.prod(a.layer_shape) == a.layer_shape[1]
        if a.layer_shape != b.layer_shape or (a.layout != b.layout and not one_pixel):
            raise node.error(
                f"{node.input(0)} and {node.input(3)} lie differently: one would have to be moved "
                "in memory"
            )
        return a

    def _add(self, node: Node) -> None:
        constants = self.graph.constants
        given = [quantised(node, 3 * i + 1, name, constants) for i, name in enumerate(_OPERANDS)]
        out = quantised(node, 6, "output", constants)
        if any(q.signed != out.signed for q in given):
            raise node.error("its operands and its output differ in type")
        a, b = given
        try:
            ra, rb = add_scales(a.scale, b.scale, out.scale)
            table = add_table(
                ra, rb, a_zero=a.zero, c_zero=b.zero, out_zero=out.zero, c_signed=b.signed
            )
        except UserError as error:
            raise node.error(str(error)) from None
        views = [
            self._source(node, 3 * i, q.scale, q.zero, q.signed) for i, q in enumerate(given)
        ]
        like = self._together(node, *views)
        low, high = like.range
        fields = {"scale": ra, "table": table, "clip_low": low, "clip_high": high}
        index = self._fusable(views)
        if index is None:
            draft = self._layer(
                node, AddLayer, [(views[0].buffer, a.zero), (views[1].buffer, b.zero)], **fields
            )
        else:
            draft = self._behind(views[index], views[1 - index])
            draft.convolved = views[index].buffer
            draft.residual = fields | {"source_first": index == 1}
            draft.extra["residual"] = views[1 - index].buffer, given[1 - index].zero
        assert like.layer_shape is not None
        target = self._output(
            node, draft, views[0].shape, layer_shape=like.layer_shape, layout=like.layout,
            signed=out.signed, scale=out.scale, zero=out.zero,
        )
        if draft.residual is not None:
            draft.residual["summed"] = target

    def _fusable(self, views: list[View]) -> int | None:
        """The operand whose convolution takes the addition: the one that runs last."""
        found = [
            (self.drafts.index(view.buffer.producer), index)
            for index, view in enumerate(views)
            if view.buffer.producer and view.sole and view.buffer.producer.takes_residual
        ]
        return max(found)[1] if found else None

    def _behind(self, view: View, other: View) -> Draft:
        """The layer that makes ``view``, which runs behind the one that makes ``other``."""
        draft, before = view.buffer.producer, other.buffer.producer
        assert draft is not None
        if before and self.drafts.index(before) > self.drafts.index(draft):
            self.drafts.remove(draft)  # nothing has read it yet
            self.drafts.append(draft)
        return draft

    def _clip(self, node: Node) -> None:
        index = next((i for i, n in enumerate(node.inputs) if n in self.views), 0)
        view = self._view(node, index)
        buffer = view.buffer
        low, high = scalar_bounds(node, index, buffer.dtype, self.graph.constants)
        if buffer.producer and view.sole and buffer.producer.takes_clip:
            buffer.producer.clip(low, high)
            self._alias(node, view, view.shape)
            return
        kind = np.int8 if buffer.signed else np.uint8
        values = np.arange(256, dtype=np.uint8).view(kind)
        table = np.minimum(np.maximum(values, low), high).astype(kind).view(np.uint8)
        self._table(node, view, table).like = buffer

    def _table(self, node: Node, view: View, table: NDArray[np.uint8]) -> Buffer:
        """A byte table of the same type, fused or a layer of its own; returns what it writes."""
        buffer = view.buffer
        buffer.settle(view.shape)
        draft = buffer.producer
        if draft and view.sole and draft.takes_table:
            if draft.residual is None:
                draft.convolved = buffer
            draft.table = table
        else:
            draft = self._layer(node, TableLayer, [(buffer, None)], table=table)
        assert buffer.layer_shape is not None
        return self._output(
            node, draft, view.shape, layer_shape=buffer.layer_shape, layout=buffer.layout,
            signed=buffer.signed, scale=buffer.scale, zero=buffer.zero_point,
        )

    # Views

    def _reshape(self, node: Node) -> None:
        view = self._view(node)
        self._alias(node, view, reshaped(node, view.shape, self.graph.constants))

    def _alias(self, node: Node, view: View, shape: tuple[int, ...]) -> None:
        output = node.outputs[0]
        if view.sole and view.buffer.producer:
            view.buffer.layer_name = output
        self.views[output] = View(
            view.buffer, shape, view.sole and self.graph.uses[output] == 1
        )

    def _check_outputs(self) -> None:
        graph = self.graph
        if not self.drafts:
            raise UserError(f"{graph.name}: it has no layer: nothing to compute")
        for value in graph.outputs:
            view = self.views[value.name]
            if view.buffer.producer is None:
                raise UserError(f"{graph.name}: output {value.name} is only a reshaped input")
            if value.dtype != view.buffer.dtype or value.shape not in (None, view.shape):
                raise UserError(
                    f"{graph.name}: output {value.name} is declared {value.dtype}"
                    f"{list(value.shape or ())}, computed {view.buffer.dtype}{list(view.shape)}"
                )


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
    return _Importer(Graph(load_model(source, name), name)).run()


__all__ = ["import_onnx"]
