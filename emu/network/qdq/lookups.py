# SPDX-License-Identifier: Apache-2.0
"""Integer sums, embeddings and routing: operators whose result no QuantizeLinear need follow."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emu.network.graph import OWN, Node
from emu.network.qdq.conversion import BYTES, Pending, Product
from emu.network.qdq.operators import OPERATORS, operator_sums
from emu.network.qdq.scales import QUANTISE, Scale, to_integers

if TYPE_CHECKING:
    from emu.network.qdq.converter import Converter

_FLOAT = 1
"""ONNX's number of float32."""
_INDICES = (6, 7)
"""Of int32 and int64."""


def sums(converter: "Converter", node: Node, proto: Any) -> None:
    """int32 sums: a product whose operands have the scale 1 until a factor comes."""
    operands = operator_sums(converter, node)
    if operands is None:
        return
    handler = OPERATORS["MatMul" if node.op == "MatMulInteger" else "Conv"]
    converter.take_product(Product(handler, node, proto, operands))
    converter.sums.add(node.outputs[0])
    if node.outputs[0] in converter.graph_outputs:
        converter.refuse(node, "its int32 sums cannot leave the chip: a Cast, a Mul by constants "
                           f"and a {QUANTISE} must follow")


def real_sums(converter: "Converter", node: Node) -> None:
    """Sums as real numbers: the same product."""
    if node.get("to", 0) != _FLOAT:
        converter.refuse(node, "int32 sums can only become float32")
        return
    converter.pending[node.outputs[0]] = converter.pending[node.inputs[0]]


def top(converter: "Converter", node: Node) -> None:
    """The largest of each row: values in the operand's scale, and their numbers."""
    from onnx import helper

    k, scale = converter.constant(node, 1), converter.real[node.inputs[0]]
    rank = len(converter.shape(node.inputs[0]) or ())
    if k is None or k.size != 1 or not node.get("largest", 1) or (
            node.get("axis", -1) not in (-1, rank - 1)):
        converter.refuse(node, "only the constant k largest along the last axis are supported")
        return
    values = Scale(f"{node.outputs[0]}.int", scale.scale, scale.zero)
    made = helper.make_node("TopK", [scale.name], [values.name, node.outputs[1]], node.name,
                            domain=OWN, k=int(k.reshape(-1)[0]))
    converter.nodes.append(made)
    converter.real[node.outputs[0]] = values
    converter.integers.add(node.outputs[1])
    converter.numbers.add(node.outputs[1])


def chosen(converter: "Converter", node: Node, proto: Any) -> None:
    """Matrices of a constant stack by number, for a product."""
    weights = converter.weights.get(node.inputs[0])
    if weights is None or weights.values.ndim != 3 or weights.scale.size != 1 or (
            node.get("axis", 0) != 0) or weights.values.dtype not in BYTES:
        converter.refuse(node, "by TopK's numbers only 8-bit matrices of one scale are supported: "
                           "[experts, inputs, outputs], along axis 0")
        return
    name = f"{node.outputs[0]}.int"
    converter.copy(proto, [converter.add(f"{name}.stack", weights.values), node.inputs[1]], name)
    zero = np.asarray(weights.zero.reshape(-1)[0], weights.values.dtype)
    converter.real[node.outputs[0]] = Scale(name, np.float32(weights.scale.reshape(-1)[0]), zero)


def embedding(converter: "Converter", node: Node, proto: Any) -> None:
    """Rows of a constant table by a graph input's numbers."""
    table, numbers = node.inputs[0], node.inputs[1]
    if converter.graph_inputs[numbers].type.tensor_type.elem_type not in _INDICES:
        converter.refuse(node, f"its indices {numbers} must be int32 or int64")
        return
    if node.get("axis", 0) != 0:
        converter.refuse(node, "only rows (axis 0) of a table are supported")
        return
    target = node.outputs[0]

    def emit(to: Scale, values: NDArray) -> None:
        converter.copy(proto, [converter.add(f"{to.name}.rows", values), numbers], to.name)

    weights = converter.weights.get(table)
    if weights is None and table in converter.constants:
        real = converter.constants[table]
        converter.pending[target] = Pending(lambda to: emit(to, to_integers(real, to)))
    elif weights is None or weights.scale.size != 1 or weights.values.dtype not in BYTES:
        converter.refuse(node, "its table must be constant, of 8 bits, with one scale")
    else:
        zero = np.asarray(weights.zero.reshape(-1)[0], weights.values.dtype)
        direct = Scale(f"{target}.int", np.float32(weights.scale.reshape(-1)[0]), zero)
        emit(direct, weights.values)
        converter.real[target] = direct
