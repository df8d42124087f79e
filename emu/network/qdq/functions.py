# SPDX-License-Identifier: Apache-2.0
"""Functions of one quantised tensor, element by element: tables of 256 bytes.

However a model spells Gelu, Tanh, HardSwish or x * sigmoid(x): between the dequantiser of one
tensor and the quantiser of the result there are at most 256 different values, for which ONNX
Runtime computes the model's own float nodes once. So a table is what the QDQ model says, exactly.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.builder import IR_VERSION, MICROSOFT_OPSET
from emu.network.graph import MICROSOFT, one_line
from emu.network.qdq.scales import Scale, to_integers, to_reals
from emu.network.sessions import open_session

ELEMENTWISE = {
    "Abs", "Add", "Ceil", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "FastGelu", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Pow",
    "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign",
    "Sqrt", "Sub", "Tanh", "ThresholdedRelu",
}
"""Operators whose every result depends on one element of each operand."""


@dataclass(frozen=True)
class Function:
    """A float tensor that depends on one quantised tensor alone.

    leaves: Float names of that tensor (a model may dequantise it several times).
    nodes: The float nodes from there, in order.
    """

    source: Scale
    leaves: frozenset[str]
    nodes: tuple[Any, ...] = ()

    def same_source(self, other: "Function") -> bool:
        return self.source.name == other.source.name and self.source.same(other.source)


def joined(parts: list[Function], node: Any) -> Function:
    """``node`` behind functions of one source."""
    nodes: list[Any] = []
    for part in parts:
        nodes += [each for each in part.nodes if not any(each is known for known in nodes)]
    leaves = frozenset().union(*(part.leaves for part in parts))
    return Function(parts[0].source, leaves, (*nodes, node))


def table_of(
    function: Function, result: str, to: Scale, constants: dict[str, NDArray], opset: int,
) -> NDArray[np.uint8]:
    """Byte of the source to byte of ``to``, for float tensor ``result``: uint8[256].

    Raises
    ------
    UserError
        If ONNX Runtime refuses the nodes, or a value is no number.
    """
    from onnx import TensorProto, helper, numpy_helper

    source = function.source
    values = np.arange(256, dtype=np.uint8).view(source.zero.dtype)
    used = {name for node in function.nodes for name in node.input}
    leaves = sorted(function.leaves & used)
    graph = helper.make_graph(
        list(function.nodes), "function",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [256]) for name in leaves],
        [helper.make_empty_tensor_value_info(result)],
        [numpy_helper.from_array(np.asarray(constants[name]), name)
         for name in sorted(used & constants.keys())],
    )
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[
        helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET)])
    session = open_session(model, result)
    try:
        (real,) = session.run([result], dict.fromkeys(leaves, to_reals(values, source)))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"ONNX Runtime fails: {one_line(error)}") from None
    real = np.asarray(real).reshape(-1)
    if real.size != 256 or np.isnan(real).any():
        raise UserError("it is no function element by element, or not a number somewhere")
    return to_integers(real, to).view(np.uint8)
