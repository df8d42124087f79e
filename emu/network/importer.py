# SPDX-License-Identifier: Apache-2.0
"""Quantised ONNX models in, layers out: QLinearConv, QLinearMatMul, QGemm and what fuses with them.

Every activation is a `_Buffer`: row-major data, of which reshapes are other views. The first node
that reads a graph input settles how its buffer lies in (N, C, H, W); reshapes that keep the order
cost nothing, all others are refused.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emu.errors import UserError
from emu.network.graph import Graph, Node, load_model
from emu.network.layers import ConvLayer, Layout, Network, Shape4, Tensor
from emu.network.operators import (
    MAX_K,
    Arithmetic,
    arithmetic_of,
    conv_window,
    gemm_operands,
    reshaped,
    scalar_bounds,
)


@dataclass
class _Buffer:
    """Data of one layer tensor; ``layer_shape`` is None until its first reader settles it."""

    layer_name: str
    dtype: str
    layer_shape: Shape4 | None = None
    layout: Layout = "nchw"
    scale: float = 1.0
    zero_point: int = 0
    producer: int | None = None


@dataclass(frozen=True)
class _View:
    """A graph tensor: a buffer under a shape; ``sole`` if nothing else reads the buffer."""

    buffer: _Buffer
    shape: tuple[int, ...]
    sole: bool


class _Importer:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.layers: list[dict[str, Any]] = []
        self.views = {
            value.name: _View(_Buffer(value.name, value.dtype), value.shape or (), False)
            for value in graph.inputs
        }
        self.roots = {name: view.buffer for name, view in self.views.items()}

    def run(self) -> Network:
        handlers: dict[str, Callable[[Node], None]] = {
            "QLinearConv": self._conv,
            "QLinearMatMul": self._matrix,
            "QGemm": self._matrix,
            "Relu": self._fuse,
            "Clip": self._fuse,
            "Max": self._fuse,
            "Min": self._fuse,
        }
        for node in self.graph.nodes:
            handlers.get(node.op, self._reshape)(node)
        self._check_outputs()
        return Network(
            name=self.graph.name,
            layers=tuple(self._finish(draft) for draft in self.layers),
            inputs=tuple(
                self._tensor(v.name, v.shape or (), self.roots[v.name]) for v in self.graph.inputs
            ),
            outputs=tuple(
                self._tensor(v.name, self.views[v.name].shape, self.views[v.name].buffer)
                for v in self.graph.outputs
            ),
            model=self.graph.model,
        )

    def _finish(self, draft: dict[str, Any]) -> ConvLayer:
        source, target = draft.pop("source"), draft.pop("target")
        return ConvLayer(
            input_name=source.layer_name,
            output_name=target.layer_name,
            input_shape=source.layer_shape,
            output_shape=target.layer_shape,
            **draft,
        )

    def _tensor(self, name: str, shape: tuple[int, ...], buffer: _Buffer) -> Tensor:
        if buffer.layer_shape is None:
            raise UserError(f"{self.graph.name}: no layer reads input {name}")
        return Tensor(
            name=name,
            shape=shape,
            dtype=buffer.dtype,  # type: ignore[arg-type]
            scale=buffer.scale,
            zero_point=buffer.zero_point,
            layer_name=buffer.layer_name,
            layer_shape=buffer.layer_shape,
            layout=buffer.layout,
        )

    def _view(self, node: Node, index: int = 0) -> _View:
        name = node.input(index)
        if name in self.graph.constants:
            raise node.error(f"its input {name} is a constant: nothing to compute")
        return self.views[name]

    # Layers

    def _source(self, node: Node, arithmetic: Arithmetic) -> _View:
        """The input of a layer, whose buffer takes over scale and zero point of its reader."""
        view = self._view(node)
        buffer = view.buffer
        signed = buffer.dtype == "int8"
        if signed != arithmetic.x_signed:
            raise node.error(
                f"{node.input(0)} is {buffer.dtype}, its zero point "
                f"{'int8' if arithmetic.x_signed else 'uint8'}"
            )
        if buffer.producer is None:
            buffer.scale, buffer.zero_point = arithmetic.x_scale, arithmetic.x_zero
        return view

    def _add(
        self,
        node: Node,
        source: _Buffer,
        layer_shape: Shape4,
        layout: Layout,
        shape: tuple[int, ...],
        arithmetic: Arithmetic,
        **window: Any,
    ) -> None:
        """Append one layer, and its output as a view of ``shape``."""
        low, high = (-128, 127) if arithmetic.y_signed else (0, 255)
        output = node.outputs[0]
        target = _Buffer(
            layer_name=output,
            dtype="int8" if arithmetic.y_signed else "uint8",
            layer_shape=layer_shape,
            layout=layout,
            scale=arithmetic.y_scale,
            zero_point=arithmetic.y_zero,
            producer=len(self.layers),
        )
        self.views[output] = _View(target, shape, self.graph.uses[output] == 1)
        self.layers.append(
            dict(
                name=node.name,
                source=source,
                target=target,
                weight_zero=arithmetic.weight_zero,
                x_zero=arithmetic.x_zero,
                x_signed=arithmetic.x_signed,
                bias=arithmetic.bias,
                scale=arithmetic.scale,
                y_zero=arithmetic.y_zero,
                y_signed=arithmetic.y_signed,
                clip_low=low,
                clip_high=high,
                **window,
            )
        )

    def _conv(self, node: Node) -> None:
        arithmetic = arithmetic_of(node, self.graph.constants)
        view = self._source(node, arithmetic)
        rank = len(view.shape)
        if rank not in (3, 4) or arithmetic.weights.ndim != rank:
            raise node.error(
                f"input {list(view.shape)} and weights {list(arithmetic.weights.shape)}: only 1-D "
                "and 2-D convolutions are supported"
            )
        n, c = view.shape[:2]
        height, width = view.shape[2:] if rank == 4 else (1, view.shape[2])
        window = conv_window(node, arithmetic.weights, (n, c, height, width))
        buffer = view.buffer
        if buffer.layer_shape is None:
            buffer.layer_shape = (n, c, height, width)
        elif buffer.layer_shape != (n, c, height, width) or (
            buffer.layout == "rows" and buffer.layer_shape[3] > 1
        ):
            raise node.error(f"{node.input(0)} would have to be moved in memory, not only reshaped")
        layer_shape = window.pop("output_shape")
        shape = layer_shape if rank == 4 else (*layer_shape[:2], layer_shape[3])
        self._add(node, buffer, layer_shape, "nchw", shape, arithmetic, **window)

    def _matrix(self, node: Node) -> None:
        arithmetic = arithmetic_of(node, self.graph.constants)
        view = self._source(node, arithmetic)
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
        self._add(
            node,
            view.buffer,
            (layer_shape[0], outputs, *layer_shape[2:]),
            layout,
            (*rows, outputs),
            arithmetic,
            strides=stride,
            dilations=(1, 1),
            pads=(0, 0, 0, 0),
            groups=1,
            weights=np.ascontiguousarray(weights.reshape(outputs, -1, *kernel)),
        )

    def _window(self, node: Node, view: _View, k: int, transposed: bool):
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

    # Everything else

    def _fuse(self, node: Node) -> None:
        index = next((i for i, n in enumerate(node.inputs) if n in self.views), 0)
        view = self._view(node, index)
        producer = view.buffer.producer
        if producer is None or not view.sole:
            raise node.error(
                "supported only behind a QLinearConv, QLinearMatMul or QGemm and as its only reader"
            )
        low, high = scalar_bounds(node, index, view.buffer.dtype, self.graph.constants)
        draft = self.layers[producer]
        for name in ("clip_low", "clip_high"):
            draft[name] = min(max(draft[name], low), high)
        self._alias(node, view, view.shape)

    def _reshape(self, node: Node) -> None:
        view = self._view(node)
        self._alias(node, view, reshaped(node, view.shape, self.graph.constants))

    def _alias(self, node: Node, view: _View, shape: tuple[int, ...]) -> None:
        output = node.outputs[0]
        if view.sole:
            view.buffer.layer_name = output
        self.views[output] = replace(
            view, shape=shape, sole=view.sole and self.graph.uses[output] == 1
        )

    def _check_outputs(self) -> None:
        graph = self.graph
        if not self.layers:
            raise UserError(f"{graph.name}: it has no QLinearConv, QLinearMatMul or QGemm")
        read = {draft["source"].layer_name for draft in self.layers}
        for value in graph.outputs:
            view = self.views[value.name]
            if view.buffer.producer is None:
                raise UserError(f"{graph.name}: output {value.name} is only a reshaped input")
            if view.buffer.layer_name in read:
                raise UserError(
                    f"{graph.name}: output {value.name} is also read by another layer: only "
                    "tensors that nothing reads can be outputs"
                )
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
