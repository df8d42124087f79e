# SPDX-License-Identifier: Apache-2.0
"""QDQ models (floats between DequantizeLinear and QuantizeLinear) as QLinear models.

Each operator between a DequantizeLinear on every operand and a QuantizeLinear on its result becomes
the integer operator of ONNX Runtime that has these scales and zero points. Relu and Clip before the
QuantizeLinear become a Clip of the integers, a change of scale alone a QLinearLeakyRelu of slope 1.
Quantisers of graph inputs and dequantisers of graph outputs stay on the host: the new model's
inputs and outputs have the old names and are integers (`Boundary`).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.builder import IR_VERSION, MICROSOFT_OPSET, OPSET
from emu.network.graph import MICROSOFT, SUPPORTED, Node

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
VIEWS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice")
"""Operators that move values and change none."""
_CODES = (2, 3)
"""ONNX's numbers of uint8 and int8."""
_BYTES = {np.dtype(np.int8): "int8", np.dtype(np.uint8): "uint8"}


@dataclass(frozen=True)
class Scale:
    """A quantised tensor: its name in the new model, scale and zero point."""

    name: str
    scale: np.float32
    zero: NDArray

    def same(self, other: "Scale") -> bool:
        return (self.scale == other.scale and self.zero == other.zero
                and self.zero.dtype == other.zero.dtype)


@dataclass(frozen=True)
class Weights:
    """A constant as DequantizeLinear reads it; ``scale`` along ``axis`` if it has several."""

    values: NDArray
    scale: NDArray[np.float32]
    zero: NDArray
    axis: int

    @property
    def real(self) -> NDArray[np.float64]:
        shape = [1] * self.values.ndim
        if self.scale.size > 1:
            shape[self.axis] = -1
        return ((self.values.astype(np.float64) - self.zero.astype(np.float64).reshape(shape))
                * self.scale.astype(np.float64).reshape(shape))


@dataclass(frozen=True)
class Boundary:
    """What the host does: graph name to how its float values become integers, or were made."""

    original: Any = field(repr=False)
    inputs: Mapping[str, Scale] = field(default_factory=dict)
    outputs: Mapping[str, Scale] = field(default_factory=dict)

    def host_operators(self) -> dict[str, str]:
        """What the host computes: operator and tensor, to what it is."""
        return {
            **{f"{QUANTISE} {name}": f"input, {scale.zero.dtype}, scale {scale.scale:.6g}, zero "
               f"point {scale.zero}" for name, scale in self.inputs.items()},
            **{f"{DEQUANTISE} {name}": f"output, {scale.zero.dtype}, scale {scale.scale:.6g}, zero "
               f"point {scale.zero}" for name, scale in self.outputs.items()},
        }

    def quantise(self, name: str, values: NDArray) -> NDArray:
        """``values`` of graph input ``name`` as QuantizeLinear makes them."""
        return to_integers(values, self.inputs[name])

    def reals(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The original model's inputs for integer ones."""
        return {
            name: ((value.astype(np.float32) - np.float32(self.inputs[name].zero))
                   * self.inputs[name].scale).astype(np.float32) if name in self.inputs else value
            for name, value in inputs.items()
        }


def to_integers(values: NDArray, scale: Scale) -> NDArray:
    """QuantizeLinear: round to even, add the zero point, saturate."""
    info = np.iinfo(scale.zero.dtype)
    steps = np.rint(np.asarray(values, np.float32) / scale.scale)
    return np.clip(steps + np.float32(scale.zero), info.min, info.max).astype(scale.zero.dtype)


def is_qdq(model: Any) -> bool:
    """Whether ``model`` has quantisers or dequantisers."""
    return any(node.op_type in (QUANTISE, DEQUANTISE) for node in model.graph.node)


@dataclass
class _Pending:
    """An operator whose result waits for its QuantizeLinear; ``low``, ``high``: clips so far."""

    emit: Callable[[Scale], None]
    like: Scale | None = None         # a view: the result has the operand's scale
    low: float = -np.inf
    high: float = np.inf


class Converter:
    """One model's conversion; `run` returns the new model and its boundary."""

    def __init__(self, model: Any, constants: Mapping[str, NDArray], name: str):
        self.model, self.name = model, name
        self.constants = dict(constants)
        self.nodes: list[Any] = []
        self.new: dict[str, NDArray] = {}
        self.real: dict[str, Scale] = {}          # float tensor -> its integers
        self.weights: dict[str, Weights] = {}
        self.pending: dict[str, _Pending] = {}
        self.inputs: dict[str, Scale] = {}
        self.integers: set[str] = set()
        self.unsupported: list[str] = []
        graph = model.graph
        self.graph_inputs = {v.name: v for v in graph.input if v.name not in self.constants}
        self.graph_outputs = [v.name for v in graph.output]
        self.uses = Counter(i for node in graph.node for i in node.input)
        self.uses.update(self.graph_outputs)

    def run(self) -> tuple[Any, Boundary]:
        """Convert.

        Raises
        ------
        UserError
            Naming all nodes that have no integer form.
        """
        for proto in self.model.graph.node:
            if proto.op_type != "Constant":
                self._node(Node(proto, self.name), proto)
        outputs, integers = {}, []
        for name in self.graph_outputs:
            scale = self.real.get(name)
            if name in self.integers or f"{name}\0" in self.real:
                integers.append(name)
                continue
            if scale is None:
                self.unsupported.append(f"output {name} is computed in float (no {QUANTISE} and "
                                        f"{DEQUANTISE} behind it)")
                continue
            outputs[name] = scale
        if self.unsupported:
            raise UserError(f"{self.name}: not all of it is quantised: "
                            f"{'; '.join(self.unsupported)}: see headrace quantize")
        return self._model(outputs, integers), Boundary(self.model, self.inputs, outputs)

    # Nodes

    def _node(self, node: Node, proto: Any) -> None:
        if node.op == QUANTISE:
            self._quantise(node)
        elif node.op == DEQUANTISE:
            self._dequantise(node)
        elif node.op in ("Relu", "Clip") and not self._is_integer(node):
            self._clip(node)
        elif node.op in VIEWS and not self._is_integer(node):
            self._view(node, proto)
        elif node.op in _OPERATORS and not self._is_integer(node):
            self._operator(node, proto)
        elif (node.domain, node.op) in SUPPORTED and self._is_integer(node):
            self._keep(node, proto)
        elif all(name in self.constants or not name for name in node.inputs):
            self._refuse(node, "it computes constants: fold them first (headrace quantize does)")
        else:
            self._refuse(node, "")

    def _is_integer(self, node: Node) -> bool:
        """Whether a node reads integers: graph inputs and results of others that do."""
        source = node.inputs[0]
        return source in self.integers or (
            source in self.graph_inputs and source not in self.inputs
            and self.graph_inputs[source].type.tensor_type.elem_type in _CODES)

    def _keep(self, node: Node, proto: Any) -> None:
        """An integer operator as it is."""
        for name in node.inputs:
            if name in self.constants:
                self._add(name, self.constants[name])
        self.nodes.append(proto)
        self.integers.update(node.outputs)

    def _refuse(self, node: Node, why: str) -> None:
        inputs = ", ".join(name for name in node.inputs if name)
        self.unsupported.append(f"{node.op} {node.name} ({inputs}){': ' + why if why else ''}")

    def _constant(self, node: Node, index: int) -> NDArray | None:
        return self.constants.get(node.input(index))

    def _scale(self, node: Node, name: str) -> Scale | None:
        """Of a Q or DQ node on an activation, or None if it is not one scalar scale."""
        scale, given = self._constant(node, 1), self._constant(node, 2)
        if scale is None or scale.size != 1:
            self._refuse(node, "an activation needs one constant scale")
            return None
        zero = np.asarray(np.uint8(0) if given is None else given.reshape(-1)[0])
        if zero.dtype not in _BYTES:
            self._refuse(node, f"{zero.dtype} activations are not supported")
            return None
        return Scale(name, np.float32(scale.reshape(-1)[0]), zero)

    def _quantise(self, node: Node) -> None:
        source, target = node.inputs[0], node.outputs[0]
        scale = self._scale(node, target)
        if scale is None:
            return
        if source in self.graph_inputs:
            if source in self.inputs:
                self._refuse(node, f"input {source} is quantised twice")
                return
            scale = Scale(source, scale.scale, scale.zero)
            self.inputs[source] = scale
            self._alias(target, source)
        elif source in self.pending:
            self._finish(self.pending[source], scale)
        elif source in self.real:
            self._requantise(self.real[source], scale)
        elif source in self.constants:
            self.constants[target] = to_integers(self.constants[source], scale)
        else:
            self._refuse(node, f"{source} is not computed from quantised tensors")
        self.real[f"{target}\0"] = scale  # what a dequantiser of it finds
        self.integers.add(target)

    def _alias(self, target: str, source: str) -> None:
        self._emit("Identity", [source], target)

    def _dequantise(self, node: Node) -> None:
        source, target = node.inputs[0], node.outputs[0]
        if source in self.constants:
            scale, zero = self._constant(node, 1), self._constant(node, 2)
            if scale is None or node.get("block_size", 0):
                self._refuse(node, "its scale must be constant, and not by blocks")
                return
            values = self.constants[source]
            zeros = np.zeros(scale.shape, np.int32) if zero is None else zero
            self.weights[target] = Weights(
                values.astype(np.int32) if values.dtype == np.int32
                else values.astype(np.uint8 if values.dtype in (np.uint8,) else np.int8),
                scale.astype(np.float32), np.asarray(zeros).astype(np.int32),
                int(node.get("axis", 1)) % max(1, values.ndim))
            return
        scale_here = self._scale(node, source)
        if scale_here is None:
            return
        if not (f"{source}\0" in self.real or source in self.integers
                or source in self.graph_inputs):
            self._refuse(node, f"{source} is not made by a {QUANTISE}")
            return
        self.real[target] = scale_here

    def _clip(self, node: Node) -> None:
        source, target = node.inputs[0], node.outputs[0]
        low, high = 0.0, np.inf
        if node.op == "Clip":
            bounds = []
            for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
                value = self._constant(node, index)
                bounds.append(float(node.get(name, default)) if value is None else float(value))
            low, high = bounds
        before = self.pending.get(source)
        if before is None and source in self.real:
            scale = self.real[source]
            before = _Pending(partial(self._requantise, scale))
        if before is None or (self.uses[source] > 1 and source in self.pending):
            self._refuse(node, "its input is not one operator's result alone")
            return
        self.pending[target] = _Pending(before.emit, before.like, max(before.low, low),
                                        min(before.high, high))

    def _finish(self, pending: _Pending, scale: Scale) -> None:
        """Emit an operator into ``scale``, and the clip that its integers still need."""
        info = np.iinfo(scale.zero.dtype)
        low, high = (
            float(np.clip(np.rint(np.float32(bound) / scale.scale) + int(scale.zero),
                          info.min, info.max))
            if np.isfinite(bound) else limit
            for bound, limit in ((pending.low, info.min), (pending.high, info.max))
        )
        if (low, high) == (info.min, info.max):
            pending.emit(scale)
            return
        inner = Scale(f"{scale.name}.linear", scale.scale, scale.zero)
        pending.emit(inner)
        bounds = [self._add(f"{scale.name}.{what}", np.asarray(value, scale.zero.dtype))
                  for what, value in (("low", low), ("high", high))]
        self._emit("Clip", [inner.name, *bounds], scale.name)

    def _requantise(self, source: Scale, to: Scale) -> None:
        if source.same(to):
            self._alias(to.name, source.name)
            return
        if source.zero.dtype != to.zero.dtype:
            self.unsupported.append(f"{source.name} is {source.zero.dtype}, quantised again as "
                                    f"{to.zero.dtype}")
            return
        self._emit("QLinearLeakyRelu", [source.name, *self._of(source, to.name, "x"),
                                        *self._of(to, to.name, "y")], to.name, MICROSOFT, alpha=1.0)

    def _view(self, node: Node, proto: Any) -> None:
        scale = self.real.get(node.inputs[0])
        if scale is None:
            self._refuse(node, "its input is not a quantised tensor")
            return

        def emit(to: Scale) -> None:
            inner = to if scale.same(to) else Scale(f"{to.name}.moved", scale.scale, scale.zero)
            for name in node.inputs[1:]:
                if name in self.constants:
                    self._add(name, self.constants[name])
            self._copy(proto, [scale.name, *node.inputs[1:]], inner.name)
            if inner is not to:
                self._requantise(inner, to)

        self.pending[node.outputs[0]] = _Pending(emit, scale)
        # Read without a quantiser behind it, the result has its operand's scale.
        direct = Scale(f"{node.outputs[0]}.int", scale.scale, scale.zero)
        if not self._quantised_next(node.outputs[0]):
            emit(direct)
            self.real[node.outputs[0]] = direct

    def _quantised_next(self, name: str) -> bool:
        readers = [n for n in self.model.graph.node if name in n.input]
        return (bool(readers) and all(n.op_type in (QUANTISE, "Relu", "Clip") for n in readers)
                and name not in self.graph_outputs)

    def _operator(self, node: Node, proto: Any) -> None:
        operands: list[Scale | Weights | NDArray] = []
        for name in node.inputs:
            found: Any = self.real.get(name) or self.weights.get(name)
            if found is None and name in self.constants:
                found = self.constants[name]
            if found is None and name:
                self._refuse(node, f"{name} is not a quantised tensor")
                return
            if found is not None:
                operands.append(found)
        if not operands or not isinstance(operands[0], Scale):
            self._refuse(node, "its first input is no activation")
            return
        handler = _OPERATORS[node.op]
        self.pending[node.outputs[0]] = _Pending(
            lambda to: handler(self, node, proto, operands, to))
        if node.op == "MaxPool" and not self._quantised_next(node.outputs[0]):
            direct = Scale(f"{node.outputs[0]}.int", operands[0].scale, operands[0].zero)
            self.pending[node.outputs[0]].emit(direct)
            self.real[node.outputs[0]] = direct

    # The new model

    def _add(self, name: str, value: NDArray) -> str:
        self.new[name] = np.asarray(value)
        return name

    def _of(self, scale: Scale, owner: str, role: str) -> list[str]:
        return [self._add(f"{owner}.{role}_scale", np.asarray(scale.scale, np.float32)),
                self._add(f"{owner}.{role}_zero", np.asarray(scale.zero))]

    def _emit(self, op: str, inputs: list[str], target: str, domain: str = "", **more: Any) -> None:
        from onnx import helper

        name = f"{target}.{op}"  # apart from the names of the model's own nodes
        self.nodes.append(helper.make_node(op, inputs, [target], name, domain=domain, **more))

    def _copy(self, proto: Any, inputs: list[str], target: str, op: str = "", domain: str = "",
              drop: tuple[str, ...] = ()) -> None:
        """``proto``'s attributes on other operands."""
        from onnx import helper

        made = helper.make_node(op or proto.op_type, inputs, [target], proto.name or target,
                                domain=domain)
        made.attribute.extend(a for a in proto.attribute if a.name not in drop)
        self.nodes.append(made)

    def _model(self, outputs: Mapping[str, Scale], integers: list[str]) -> Any:
        from onnx import helper, numpy_helper

        codes = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name))
                 for name in _BYTES.values()}
        shapes = {v.name: v.type.tensor_type for v in
                  (*self.model.graph.input, *self.model.graph.output, *self.model.graph.value_info)}

        def info(name: str, dtype: np.dtype, as_name: str) -> Any:
            known = shapes.get(name)
            dims = None if known is None or not known.HasField("shape") else [
                d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in known.shape.dim]
            return helper.make_tensor_value_info(as_name, codes[_BYTES[dtype]], dims)

        for name, scale in outputs.items():
            self._alias(name, scale.name)
        inputs = [
            info(name, self.inputs[name].zero.dtype, name) if name in self.inputs
            else self.graph_inputs[name] for name in self.graph_inputs
        ]
        graph = helper.make_graph(
            self.nodes, self.model.graph.name or "qlinear", inputs,
            [v for v in self.model.graph.output if v.name in integers]
            + [info(name, scale.zero.dtype, name) for name, scale in outputs.items()],
            [numpy_helper.from_array(np.asarray(value), key) for key, value in self.new.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION,
                                 producer_name="headrace")


# Operators: (converter, node, its protobuf, operands, quantisation of the result)

def _bias(converter: Converter, x: Scale, weight_scale: NDArray, bias: Any, name: str) -> list[str]:
    """int32 in steps of x_scale * weight_scale, as the integer operator wants it."""
    if bias is None:
        return []
    steps = (np.float64(x.scale) * weight_scale.astype(np.float64)).reshape(-1)
    if isinstance(bias, Weights):
        same = np.allclose(bias.scale.astype(np.float64).reshape(-1), steps, rtol=1e-5)
        values = bias.values if same and not bias.zero.any() else np.rint(bias.real / steps)
    else:
        values = np.rint(np.asarray(bias, np.float64) / steps)
    info = np.iinfo(np.int32)
    return [converter._add(f"{name}.bias", np.clip(values, info.min, info.max).astype(np.int32))]


def _weight_operands(converter: Converter, weights: Weights, name: str) -> list[str]:
    scale = weights.scale.reshape(-1) if weights.scale.size > 1 else weights.scale.reshape(())
    zero = np.broadcast_to(weights.zero.reshape(-1) if weights.zero.size > 1
                           else weights.zero.reshape(()), scale.shape)
    return [converter._add(f"{name}.w", weights.values),
            converter._add(f"{name}.w_scale", scale.astype(np.float32)),
            converter._add(f"{name}.w_zero", zero.astype(weights.values.dtype))]


def _needs_weights(converter: Converter, node: Node, operands: list) -> bool:
    if len(operands) > 1 and isinstance(operands[1], Weights):
        return True
    converter._refuse(node, "its weights must be a constant behind a DequantizeLinear")
    return False


def _conv(converter: Converter, node: Node, proto: Any, operands: list, to: Scale) -> None:
    if not _needs_weights(converter, node, operands):
        return
    x, weights = operands[:2]
    bias = operands[2] if len(operands) > 2 else None
    converter._copy(
        proto, [x.name, *converter._of(x, to.name, "x"),
                *_weight_operands(converter, weights, to.name), *converter._of(to, to.name, "y"),
                *_bias(converter, x, weights.scale, bias, to.name)], to.name, "QLinearConv")


def _gemm(converter: Converter, node: Node, proto: Any, operands: list, to: Scale) -> None:
    if not _needs_weights(converter, node, operands):
        return
    if node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0 or node.get("transA", 0):
        converter._refuse(node, "alpha, beta and transA are not supported")
        return
    x, weights = operands[:2]
    bias = operands[2] if len(operands) > 2 else None
    names = _bias(converter, x, weights.scale, bias, to.name) or [""]
    converter._copy(
        proto, [x.name, *converter._of(x, to.name, "x"),
                *_weight_operands(converter, weights, to.name), *names,
                *converter._of(to, to.name, "y")],
        to.name, "QGemm", MICROSOFT, drop=("beta",))


def _matmul(converter: Converter, node: Node, proto: Any, operands: list, to: Scale) -> None:
    a, b = operands
    right = (_weight_operands(converter, b, to.name) if isinstance(b, Weights)
             else [b.name, *converter._of(b, to.name, "b")])
    converter._copy(proto, [a.name, *converter._of(a, to.name, "a"), *right,
                            *converter._of(to, to.name, "y")], to.name, "QLinearMatMul")


def _binary(op: str) -> Callable[..., None]:
    def emit(converter: Converter, node: Node, proto: Any, operands: list, to: Scale) -> None:
        if not all(isinstance(each, Scale) for each in operands):
            converter._refuse(node, "both operands must be activations")
            return
        a, b = operands
        converter._copy(proto, [a.name, *converter._of(a, to.name, "a"), b.name,
                                *converter._of(b, to.name, "b"), *converter._of(to, to.name, "y")],
                        to.name, op, MICROSOFT)
    return emit


def _unary(op: str, **more: Any) -> Callable[..., None]:
    def emit(converter: Converter, node: Node, proto: Any, operands: list, to: Scale) -> None:
        from onnx import helper

        x = operands[0]
        converter._copy(proto, [x.name, *converter._of(x, to.name, "x"),
                                *converter._of(to, to.name, "y")], to.name, op, MICROSOFT)
        for name, value in more.items():
            converter.nodes[-1].attribute.append(helper.make_attribute(name, value))
    return emit


def _softmax(converter: Converter, node: Node, proto: Any, operands: list, to: Scale) -> None:
    from onnx import helper

    opset = next((o.version for o in converter.model.opset_import if o.domain == ""), OPSET)
    _unary("QLinearSoftmax")(converter, node, proto, operands, to)
    converter.nodes[-1].attribute.append(helper.make_attribute("opset", opset))


def _max_pool(converter: Converter, node: Node, proto: Any, operands: list, to: Scale) -> None:
    x = operands[0]
    inner = to if x.same(to) else Scale(f"{to.name}.pooled", x.scale, x.zero)
    converter._copy(proto, [x.name], inner.name)
    if inner is not to:
        converter._requantise(inner, to)


_OPERATORS: dict[str, Callable[..., None]] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "Add": _binary("QLinearAdd"),
    "Mul": _binary("QLinearMul"), "Sigmoid": _unary("QLinearSigmoid"),
    "LeakyRelu": _unary("QLinearLeakyRelu"), "Softmax": _softmax, "MaxPool": _max_pool,
    "AveragePool": _unary("QLinearAveragePool"),
    "GlobalAveragePool": _unary("QLinearGlobalAveragePool", channels_last=0),
}


def convert(model: Any, constants: Mapping[str, NDArray], name: str) -> tuple[Any, Boundary]:
    """The QLinear form of a QDQ ``model`` and what stays on the host.

    Raises
    ------
    UserError
        Naming every node that has no integer form.
    """
    return Converter(model, constants, name).run()
