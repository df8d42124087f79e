# SPDX-License-Identifier: Apache-2.0
"""The conversion of one QDQ model, node by node in the model's order."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.builder import IR_VERSION, MICROSOFT_OPSET, OPSET
from emu.network.graph import MICROSOFT, OWN, SUPPORTED, Node
from emu.network.qdq.functions import ELEMENTWISE, Function, joined, table_of
from emu.network.qdq.operators import OPERATORS, Handler, fold, operator_sums
from emu.network.qdq.scales import (
    DEQUANTISE,
    QUANTISE,
    Boundary,
    Scale,
    Weights,
    to_integers,
)

VIEWS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split",
         "Gather")
"""Operators that move values and change none."""
SUMS = ("MatMulInteger", "ConvInteger")
"""Operators whose results are int32 sums, which a scale must follow."""
_CODES = (2, 3)
"""ONNX's numbers of uint8 and int8."""
_FLOAT = 1
"""Of float32."""
_INDICES = (6, 7)
"""Of int32 and int64."""
_BYTES = {np.dtype(np.int8): "int8", np.dtype(np.uint8): "uint8"}
_WHY = {
    "DynamicQuantizeLinear": "its scale is only known at run time: quantise statically",
    "Where": "no mask is supported: export the model for full sequences, without one",
}


@dataclass(frozen=True)
class Product:
    """A product with operands that may still take a factor or a bias."""

    handler: Handler
    node: Node
    proto: Any
    operands: list[Any]


@dataclass
class _Pending:
    """An operator whose result waits for its QuantizeLinear; ``low``, ``high``: clips so far."""

    emit: Callable[[Scale], None]
    like: Scale | None = None         # a view: the result has the operand's scale
    low: float = -np.inf
    high: float = np.inf
    product: Product | None = None


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
        self.functions: dict[str, Function] = {}
        self.inputs: dict[str, Scale] = {}
        self.integers: set[str] = set()
        self.sums: set[str] = set()
        self.numbers: set[str] = set()            # of rows, found by TopK
        self.unsupported: list[str] = []
        self.refused: set[str] = set()
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
                          OPSET)
        graph = model.graph
        self.shapes = {v.name: v.type.tensor_type for v in
                       (*graph.input, *graph.output, *graph.value_info)}
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
            if name in self.refused:
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
        elif node.op in SUMS:
            self._sums(node, proto)
        elif node.op == "Cast" and node.inputs[0] in self.sums:
            self._real_sums(node)
        elif node.op == "TopK" and node.inputs[0] in self.real:
            self._top(node)
        elif node.op == "Gather" and node.inputs[1] in self.numbers:
            self._chosen(node, proto)
        elif node.op == "Gather" and node.inputs[1] in self.graph_inputs:
            self._embedding(node, proto)
        elif self._is_integer(node):
            if (node.domain, node.op) in SUPPORTED:
                self._keep(node, proto)
            else:
                self._refuse(node, "")
        elif node.op in ("Relu", "Clip") and node.inputs[0] not in self.functions:
            self._clip(node)
            if node.inputs[0] in self.real:
                self._function(node, proto)  # what follows may be one, too
        elif node.op in VIEWS:
            self._view(node, proto)
        elif not (node.op in ("Add", "Mul", "Div") and self._fold(node)):
            function = node.op in ELEMENTWISE and self._function(node, proto)
            if node.op in OPERATORS:
                self._operator(node, proto, quiet=function)
            elif not function:
                self._refuse(node, _WHY.get(node.op, "") or self._constants_only(node))

    def _constants_only(self, node: Node) -> str:
        if all(name in self.constants or name in self.weights or not name for name in node.inputs):
            return "it computes constants: fold them first (headrace quantize does)"
        return ""

    def _is_integer(self, node: Node) -> bool:
        """Whether a node reads integers: graph inputs and results of others that do."""
        source = node.inputs[0] if node.inputs else ""
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
        """Name a node, unless another refused one makes what it reads."""
        known = self.refused.intersection(node.inputs)
        self.refused.update(node.outputs)
        if known:
            return
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
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            self._refuse(node, "its scale must be positive and finite")
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
            if not self._input(node, source, scale):
                return
            scale = self.inputs[source]
            self._alias(target, source)
        elif source in self.pending:
            self._finish(self.pending[source], scale)
        elif source in self.functions:
            self._table(node, self.functions[source], scale)
        elif source in self.real:
            self._requantise(self.real[source], scale)
        elif source in self.constants:
            self.constants[target] = to_integers(self.constants[source], scale)
            return
        else:
            self._refuse(node, f"{source} is not computed from quantised tensors")
        self.real[f"{target}\0"] = scale  # what a dequantiser of it finds
        self.integers.add(target)

    def _input(self, node: Node, name: str, to: Scale) -> bool:
        """Quantise a graph input; whether it was not already done otherwise."""
        scale = self.inputs.setdefault(name, Scale(name, to.scale, to.zero))
        if not scale.same(to):
            self._refuse(node, f"input {name} is quantised twice, differently")
        return scale.same(to)

    def _alias(self, target: str, source: str) -> None:
        self._emit("Identity", [source], target)

    def _dequantise(self, node: Node) -> None:
        source, target = node.inputs[0], node.outputs[0]
        if source in self.constants:
            scale, zero = self._constant(node, 1), self._constant(node, 2)
            if scale is None or node.get("block_size", 0):
                self._refuse(node, "its scale must be constant, and not by blocks")
                return
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                self._refuse(node, "its scale must be positive and finite")
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

    def _sums(self, node: Node, proto: Any) -> None:
        """int32 sums: a product whose operands have the scale 1 until a factor comes."""
        operands = operator_sums(self, node)
        if operands is None:
            return
        handler = OPERATORS["MatMul" if node.op == "MatMulInteger" else "Conv"]
        self._product(Product(handler, node, proto, operands))
        self.sums.add(node.outputs[0])
        if node.outputs[0] in self.graph_outputs:
            self._refuse(node, "its int32 sums cannot leave the chip: a Cast, a Mul by constants "
                               f"and a {QUANTISE} must follow")

    def _real_sums(self, node: Node) -> None:
        """Sums as real numbers: the same product."""
        if node.get("to", 0) != _FLOAT:
            self._refuse(node, "int32 sums can only become float32")
            return
        self.pending[node.outputs[0]] = self.pending[node.inputs[0]]

    def _product(self, product: Product, name: str = "", before: _Pending | None = None) -> None:
        """Result ``name`` is ``product``, for now."""
        handler, node, proto, operands = (
            product.handler, product.node, product.proto, product.operands)
        self.pending[name or node.outputs[0]] = _Pending(
            lambda to: handler(self, node, proto, operands, to), product=product)

    def _fold(self, node: Node) -> bool:
        """Take a factor or a bias into the product before; whether that was possible."""
        for index in (0, 1):
            before = self.pending.get(node.inputs[index])
            if before is None or before.product is None or (node.op == "Div" and index):
                continue
            other = node.inputs[1 - index]
            value = self.weights[other].real if other in self.weights else self.constants.get(other)
            if value is None or self.uses[node.inputs[index]] > 1 or np.isfinite(
                    [before.low, before.high]).any():
                continue
            operands = fold(node, before.product.operands, np.asarray(value, np.float64),
                            before.product.node.op)
            if operands is not None:
                self._product(Product(before.product.handler, before.product.node,
                                      before.product.proto, operands), node.outputs[0])
                return True
        return False

    def _function(self, node: Node, proto: Any) -> bool:
        """Whether the node's result depends, element by element, on one quantised tensor."""
        parts = []
        for name in node.inputs:
            if name in self.functions:
                parts.append(self.functions[name])
            elif name in self.real:
                parts.append(Function(self.real[name], frozenset({name})))
            elif name in self.weights and self.weights[name].values.size == 1:
                self.constants[name] = self.weights[name].real.astype(np.float32)
            elif name and (name not in self.constants or self.constants[name].size != 1):
                return False
        if not parts or not all(part.same_source(parts[0]) for part in parts):
            return False
        shapes = {self.shape(name) for name in (*sorted(parts[0].leaves), node.outputs[0])}
        if len(shapes - {None}) > 1:  # a constant of more dimensions adds some
            return False
        self.functions[node.outputs[0]] = joined(parts, proto)
        return True

    def _table(self, node: Node, function: Function, to: Scale) -> None:
        """Emit a function into ``to``."""
        try:
            table = table_of(function, node.inputs[0], to, self.constants, self.opset)
        except UserError as error:
            self._refuse(node, f"{node.inputs[0]}: {error}")
            return
        source = function.source
        if np.array_equal(table, np.arange(256)) and source.zero.dtype == to.zero.dtype:
            self._alias(to.name, source.name)
            return
        self._emit("Table", [source.name, self._add(f"{to.name}.table", table),
                             *self._of(to, to.name, "y")], to.name, OWN)

    def _top(self, node: Node) -> None:
        """The largest of each row: values in the operand's scale, and their numbers."""
        from onnx import helper

        k, scale = self._constant(node, 1), self.real[node.inputs[0]]
        rank = len(self.shape(node.inputs[0]) or ())
        if k is None or k.size != 1 or not node.get("largest", 1) or (
                node.get("axis", -1) not in (-1, rank - 1)):
            self._refuse(node, "only the constant k largest along the last axis are supported")
            return
        values = Scale(f"{node.outputs[0]}.int", scale.scale, scale.zero)
        made = helper.make_node("TopK", [scale.name], [values.name, node.outputs[1]], node.name,
                                domain=OWN, k=int(k.reshape(-1)[0]))
        self.nodes.append(made)
        self.real[node.outputs[0]] = values
        self.integers.add(node.outputs[1])
        self.numbers.add(node.outputs[1])

    def _chosen(self, node: Node, proto: Any) -> None:
        """Matrices of a constant stack by number, for a product."""
        weights = self.weights.get(node.inputs[0])
        if weights is None or weights.values.ndim != 3 or weights.scale.size != 1 or (
                node.get("axis", 0) != 0) or weights.values.dtype not in _BYTES:
            self._refuse(node, "by TopK's numbers only 8-bit matrices of one scale are supported: "
                               "[experts, inputs, outputs], along axis 0")
            return
        name = f"{node.outputs[0]}.int"
        self._copy(proto, [self._add(f"{name}.stack", weights.values), node.inputs[1]], name)
        zero = np.asarray(weights.zero.reshape(-1)[0], weights.values.dtype)
        self.real[node.outputs[0]] = Scale(name, np.float32(weights.scale.reshape(-1)[0]), zero)

    def _embedding(self, node: Node, proto: Any) -> None:
        """Rows of a constant table by a graph input's numbers."""
        table, numbers = node.inputs[0], node.inputs[1]
        if self.graph_inputs[numbers].type.tensor_type.elem_type not in _INDICES:
            self._refuse(node, f"its indices {numbers} must be int32 or int64")
            return
        if node.get("axis", 0) != 0:
            self._refuse(node, "only rows (axis 0) of a table are supported")
            return
        target = node.outputs[0]

        def emit(to: Scale, values: NDArray) -> None:
            self._copy(proto, [self._add(f"{to.name}.rows", values), numbers], to.name)

        weights = self.weights.get(table)
        if weights is None and table in self.constants:
            real = self.constants[table]
            self.pending[target] = _Pending(lambda to: emit(to, to_integers(real, to)))
        elif weights is None or weights.scale.size != 1 or weights.values.dtype not in _BYTES:
            self._refuse(node, "its table must be constant, of 8 bits, with one scale")
        else:
            zero = np.asarray(weights.zero.reshape(-1)[0], weights.values.dtype)
            direct = Scale(f"{target}.int", np.float32(weights.scale.reshape(-1)[0]), zero)
            emit(direct, weights.values)
            self.real[target] = direct

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
            self._late_view(node, proto)
            return

        def emit(to: Scale) -> None:
            inner = to if scale.same(to) else Scale(f"{to.name}.moved", scale.scale, scale.zero)
            for name in node.inputs[1:]:
                if name in self.constants:
                    self._add(name, self.constants[name])
            self._copy(proto, [scale.name, *node.inputs[1:]], inner.name)
            if inner is not to:
                self._requantise(inner, to)

        if node.op == "Split":
            self._split(node, proto, scale)
            return
        self.pending[node.outputs[0]] = _Pending(emit, scale)
        # Read without a quantiser behind it, the result has its operand's scale.
        direct = Scale(f"{node.outputs[0]}.int", scale.scale, scale.zero)
        if not self._quantised_next(node.outputs[0]):
            emit(direct)
            self.real[node.outputs[0]] = direct

    def _late_view(self, node: Node, proto: Any) -> None:
        """A view of a result that is quantised behind it: the operator takes that scale."""
        source = node.inputs[0]
        before, function = self.pending.get(source), self.functions.get(source)
        given = source in self.graph_inputs
        late = before is not None and self.uses[source] == 1
        if node.op == "Split" or not (function or late or given):
            self._refuse(node, "its input is not a quantised tensor")
            return

        def emit(to: Scale) -> None:
            inner = Scale(source if given else f"{to.name}.whole", to.scale, to.zero)
            if given:
                self._input(node, source, to)
            elif function is not None:
                self._table(node, function, inner)
            elif before is not None:
                self._finish(before, inner)
            for name in node.inputs[1:]:
                if name in self.constants:
                    self._add(name, self.constants[name])
            self._copy(proto, [inner.name, *node.inputs[1:]], to.name)

        self.pending[node.outputs[0]] = _Pending(emit)

    def _split(self, node: Node, proto: Any, scale: Scale) -> None:
        names = [f"{name}.int" for name in node.outputs]
        for name in node.inputs[1:]:
            if name in self.constants:
                self._add(name, self.constants[name])
        self._copy(proto, [scale.name, *node.inputs[1:]], *names)
        for name, inner in zip(node.outputs, names, strict=True):
            self.real[name] = Scale(inner, scale.scale, scale.zero)

    def _quantised_next(self, name: str) -> bool:
        readers = [n for n in self.model.graph.node if name in n.input]
        return (bool(readers) and all(n.op_type in (QUANTISE, "Relu", "Clip") for n in readers)
                and name not in self.graph_outputs)

    def _operator(self, node: Node, proto: Any, quiet: bool = False) -> None:
        """An operator that waits for its quantiser; with ``quiet`` only if it can be one."""
        operands: list[Scale | Weights | NDArray] = []
        for name in node.inputs:
            found: Any = self.real.get(name) or self.weights.get(name)
            if found is None and name in self.constants:
                found = self.constants[name]
            if found is None and name:
                if not quiet:
                    self._refuse(node, f"{name} is not a quantised tensor")
                return
            if found is not None:
                operands.append(found)
        if not any(isinstance(each, Scale) for each in operands) or (
                node.op not in ("Add", "Mul") and not isinstance(operands[0], Scale)):
            self._refuse(node, self._constants_only(node) or "its first input is no activation")
            return
        if quiet and len(operands) > 1:
            return  # of one tensor and a number: a table
        handler = OPERATORS[node.op]
        self._product(Product(handler, node, proto, operands))
        if node.op not in ("Conv", "Gemm", "MatMul"):
            self.pending[node.outputs[0]].product = None
        if node.op == "MaxPool" and not self._quantised_next(node.outputs[0]):
            assert isinstance(operands[0], Scale)
            direct = Scale(f"{node.outputs[0]}.int", operands[0].scale, operands[0].zero)
            self.pending[node.outputs[0]].emit(direct)
            self.real[node.outputs[0]] = direct

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a float tensor, as far as it was inferred."""
        known = self.shapes.get(name)
        if known is None or not known.HasField("shape") or any(
                not d.HasField("dim_value") for d in known.shape.dim):
            return None
        return tuple(d.dim_value for d in known.shape.dim)

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

    def _copy(self, proto: Any, inputs: list[str], *targets: str, op: str = "", domain: str = "",
              drop: tuple[str, ...] = ()) -> None:
        """``proto``'s attributes on other operands."""
        from onnx import helper

        made = helper.make_node(op or proto.op_type, inputs, targets, proto.name or targets[0],
                                domain=domain)
        made.attribute.extend(a for a in proto.attribute if a.name not in drop)
        self.nodes.append(made)

    def _model(self, outputs: Mapping[str, Scale], integers: list[str]) -> Any:
        from onnx import helper, numpy_helper

        codes = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name))
                 for name in _BYTES.values()}

        def info(name: str, dtype: np.dtype, as_name: str) -> Any:
            known = self.shapes.get(name)
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
        if any(node.domain == OWN for node in self.nodes):
            opsets.append(helper.make_opsetid(OWN, 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION,
                                 producer_name="headrace")


def convert(model: Any, constants: Mapping[str, NDArray], name: str) -> tuple[Any, Boundary]:
    """The QLinear form of a QDQ ``model`` and what stays on the host.

    Raises
    ------
    UserError
        Naming every node that has no integer form.
    """
    return Converter(model, constants, name).run()
