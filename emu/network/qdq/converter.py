# SPDX-License-Identifier: Apache-2.0
"""The conversion of one QDQ model, node by node in the model's order."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.graph import MICROSOFT, OWN, SUPPORTED, Node
from emu.network.qdq import lookups
from emu.network.qdq.conversion import Conversion, Pending, Product
from emu.network.qdq.functions import ELEMENTWISE, Function, joined, table_of
from emu.network.qdq.operators import OPERATORS, fold
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
_WHY = {
    "DynamicQuantizeLinear": "its scale is only known at run time: quantise statically",
    "Where": "no mask is supported: export the model for full sequences, without one",
}


class Converter(Conversion):
    """One model's conversion; `run` returns the new model and its boundary."""

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
        return self.new_model(outputs, integers), Boundary(self.model, self.inputs, outputs)

    # Nodes

    def _node(self, node: Node, proto: Any) -> None:
        if node.op == QUANTISE:
            self._quantise(node)
        elif node.op == DEQUANTISE:
            self._dequantise(node)
        elif node.op in SUMS:
            lookups.sums(self, node, proto)
        elif node.op == "Cast" and node.inputs[0] in self.sums:
            lookups.real_sums(self, node)
        elif node.op == "TopK" and node.inputs[0] in self.real:
            lookups.top(self, node)
        elif node.op == "Gather" and node.inputs[1] in self.numbers:
            lookups.chosen(self, node, proto)
        elif node.op == "Gather" and node.inputs[1] in self.graph_inputs:
            lookups.embedding(self, node, proto)
        elif self._is_integer(node):
            if (node.domain, node.op) in SUPPORTED:
                self._keep(node, proto)
            else:
                self.refuse(node, "")
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
                self.refuse(node, _WHY.get(node.op, "") or self._constants_only(node))

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
                self.add(name, self.constants[name])
        self.nodes.append(proto)
        self.integers.update(node.outputs)

    def _quantise(self, node: Node) -> None:
        source, target = node.inputs[0], node.outputs[0]
        scale = self.activation_scale(node, target)
        if scale is None:
            return
        if source in self.graph_inputs:
            if not self._input(node, source, scale):
                return
            scale = self.inputs[source]
            self.alias(target, source)
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
            self.refuse(node, f"{source} is not computed from quantised tensors")
        self.real[f"{target}\0"] = scale  # what a dequantiser of it finds
        self.integers.add(target)

    def _input(self, node: Node, name: str, to: Scale) -> bool:
        """Quantise a graph input; whether it was not already done otherwise."""
        scale = self.inputs.setdefault(name, Scale(name, to.scale, to.zero))
        if not scale.same(to):
            self.refuse(node, f"input {name} is quantised twice, differently")
        return scale.same(to)

    def _dequantise(self, node: Node) -> None:
        source, target = node.inputs[0], node.outputs[0]
        if source in self.constants:
            scale, zero = self.constant(node, 1), self.constant(node, 2)
            if scale is None or node.get("block_size", 0):
                self.refuse(node, "its scale must be constant, and not by blocks")
                return
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                self.refuse(node, "its scale must be positive and finite")
                return
            values = self.constants[source]
            zeros = np.zeros(scale.shape, np.int32) if zero is None else zero
            self.weights[target] = Weights(
                values.astype(np.int32) if values.dtype == np.int32
                else values.astype(np.uint8 if values.dtype in (np.uint8,) else np.int8),
                scale.astype(np.float32), np.asarray(zeros).astype(np.int32),
                int(node.get("axis", 1)) % max(1, values.ndim))
            return
        scale_here = self.activation_scale(node, source)
        if scale_here is None:
            return
        if not (f"{source}\0" in self.real or source in self.integers
                or source in self.graph_inputs):
            self.refuse(node, f"{source} is not made by a {QUANTISE}")
            return
        self.real[target] = scale_here

    def take_product(self, product: Product, name: str = "") -> None:
        """Result ``name`` is ``product``, for now."""
        handler, node, proto, operands = (
            product.handler, product.node, product.proto, product.operands)
        self.pending[name or node.outputs[0]] = Pending(
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
                self.take_product(Product(before.product.handler, before.product.node,
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
            self.refuse(node, f"{node.inputs[0]}: {error}")
            return
        source = function.source
        if np.array_equal(table, np.arange(256)) and source.zero.dtype == to.zero.dtype:
            self.alias(to.name, source.name)
            return
        self.emit("Table", [source.name, self.add(f"{to.name}.table", table),
                             *self.scales(to, to.name, "y")], to.name, OWN)

    def _clip(self, node: Node) -> None:
        source, target = node.inputs[0], node.outputs[0]
        low, high = 0.0, np.inf
        if node.op == "Clip":
            bounds = []
            for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
                value = self.constant(node, index)
                bounds.append(float(node.get(name, default)) if value is None else float(value))
            low, high = bounds
        before = self.pending.get(source)
        if before is None and source in self.real:
            scale = self.real[source]
            before = Pending(partial(self._requantise, scale))
        if before is None or (self.uses[source] > 1 and source in self.pending):
            self.refuse(node, "its input is not one operator's result alone")
            return
        self.pending[target] = Pending(before.emit, before.like, max(before.low, low),
                                        min(before.high, high))

    def _finish(self, pending: Pending, scale: Scale) -> None:
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
        bounds = [self.add(f"{scale.name}.{what}", np.asarray(value, scale.zero.dtype))
                  for what, value in (("low", low), ("high", high))]
        self.emit("Clip", [inner.name, *bounds], scale.name)

    def _requantise(self, source: Scale, to: Scale) -> None:
        if source.same(to):
            self.alias(to.name, source.name)
            return
        if source.zero.dtype != to.zero.dtype:
            self.unsupported.append(f"{source.name} is {source.zero.dtype}, quantised again as "
                                    f"{to.zero.dtype}")
            return
        self.emit("QLinearLeakyRelu", [
            source.name, *self.scales(source, to.name, "x"), *self.scales(to, to.name, "y"),
        ], to.name, MICROSOFT, alpha=1.0)

    def _view(self, node: Node, proto: Any) -> None:
        scale = self.real.get(node.inputs[0])
        if scale is None:
            self._late_view(node, proto)
            return

        def emit(to: Scale) -> None:
            inner = to if scale.same(to) else Scale(f"{to.name}.moved", scale.scale, scale.zero)
            for name in node.inputs[1:]:
                if name in self.constants:
                    self.add(name, self.constants[name])
            self.copy(proto, [scale.name, *node.inputs[1:]], inner.name)
            if inner is not to:
                self._requantise(inner, to)

        if node.op == "Split":
            self._split(node, proto, scale)
            return
        self.pending[node.outputs[0]] = Pending(emit, scale)
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
            self.refuse(node, "its input is not a quantised tensor")
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
                    self.add(name, self.constants[name])
            self.copy(proto, [inner.name, *node.inputs[1:]], to.name)

        self.pending[node.outputs[0]] = Pending(emit)

    def _split(self, node: Node, proto: Any, scale: Scale) -> None:
        names = [f"{name}.int" for name in node.outputs]
        for name in node.inputs[1:]:
            if name in self.constants:
                self.add(name, self.constants[name])
        self.copy(proto, [scale.name, *node.inputs[1:]], *names)
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
                    self.refuse(node, f"{name} is not a quantised tensor")
                return
            if found is not None:
                operands.append(found)
        if not any(isinstance(each, Scale) for each in operands) or (
                node.op not in ("Add", "Mul") and not isinstance(operands[0], Scale)):
            self.refuse(node, self._constants_only(node) or "its first input is no activation")
            return
        if quiet and len(operands) > 1:
            return  # of one tensor and a number: a table
        handler = OPERATORS[node.op]
        self.take_product(Product(handler, node, proto, operands))
        if node.op not in ("Conv", "Gemm", "MatMul"):
            self.pending[node.outputs[0]].product = None
        if node.op == "MaxPool" and not self._quantised_next(node.outputs[0]):
            assert isinstance(operands[0], Scale)
            direct = Scale(f"{node.outputs[0]}.int", operands[0].scale, operands[0].zero)
            self.pending[node.outputs[0]].emit(direct)
            self.real[node.outputs[0]] = direct

def convert(model: Any, constants: Mapping[str, NDArray], name: str) -> tuple[Any, Boundary]:
    """The QLinear form of a QDQ ``model`` and what stays on the host.

    Raises
    ------
    UserError
        Naming every node that has no integer form.
    """
    return Converter(model, constants, name).run()
