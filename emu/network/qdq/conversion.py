# SPDX-License-Identifier: Apache-2.0
"""A conversion under way: what is known of the old model's tensors, and the new model so far."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.builder import IR_VERSION, MICROSOFT_OPSET, OPSET
from emu.network.graph import MICROSOFT, OWN, Node
from emu.network.qdq.functions import Function
from emu.network.qdq.scales import Scale, Weights

BYTES = {np.dtype(np.int8): "int8", np.dtype(np.uint8): "uint8"}


@dataclass(frozen=True)
class Product:
    """A product with operands that may still take a factor or a bias."""

    handler: Callable[..., None]
    node: Node
    proto: Any
    operands: list[Any]


@dataclass
class Pending:
    """An operator whose result waits for its QuantizeLinear; ``low``, ``high``: clips so far."""

    emit: Callable[[Scale], None]
    like: Scale | None = None         # a view: the result has the operand's scale
    low: float = -np.inf
    high: float = np.inf
    product: Product | None = None


class Conversion:
    """Tensors of the old model by name, nodes and constants of the new one.

    real: Float tensors to their integers; with ``\\0`` behind its name, an integer tensor to its
        own scale.
    weights: Constants behind a DequantizeLinear.
    pending: Results that wait for their quantiser.
    functions: Results that depend on one quantised tensor alone.
    sums: int32 results. ``numbers``: Rows found by TopK. ``integers``: Integer tensors.
    inputs: Graph inputs that the host quantises.
    unsupported: What was refused; ``refused``: its results.
    """

    def __init__(self, model: Any, constants: Mapping[str, NDArray], name: str):
        self.model, self.name = model, name
        self.constants = dict(constants)
        self.nodes: list[Any] = []
        self.new: dict[str, NDArray] = {}
        self.real: dict[str, Scale] = {}          # float tensor -> its integers
        self.weights: dict[str, Weights] = {}
        self.pending: dict[str, Pending] = {}
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

    def refuse(self, node: Node, why: str) -> None:
        """Name a node, unless another refused one makes what it reads."""
        known = self.refused.intersection(node.inputs)
        self.refused.update(node.outputs)
        if known:
            return
        inputs = ", ".join(name for name in node.inputs if name)
        self.unsupported.append(f"{node.op} {node.name} ({inputs}){': ' + why if why else ''}")

    def constant(self, node: Node, index: int) -> NDArray | None:
        """What an input of ``node`` is, if it is a constant."""
        return self.constants.get(node.input(index))

    def activation_scale(self, node: Node, name: str) -> Scale | None:
        """Of a Q or DQ node on an activation, or None if it is not one scalar scale."""
        scale, given = self.constant(node, 1), self.constant(node, 2)
        if scale is None or scale.size != 1:
            self.refuse(node, "an activation needs one constant scale")
            return None
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            self.refuse(node, "its scale must be positive and finite")
            return None
        zero = np.asarray(np.uint8(0) if given is None else given.reshape(-1)[0])
        if zero.dtype not in BYTES:
            self.refuse(node, f"{zero.dtype} activations are not supported")
            return None
        return Scale(name, np.float32(scale.reshape(-1)[0]), zero)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a float tensor, as far as it was inferred."""
        known = self.shapes.get(name)
        if known is None or not known.HasField("shape") or any(
                not d.HasField("dim_value") for d in known.shape.dim):
            return None
        return tuple(d.dim_value for d in known.shape.dim)

    def add(self, name: str, value: NDArray) -> str:
        """A constant of the new model; returns its name."""
        self.new[name] = np.asarray(value)
        return name

    def scales(self, scale: Scale, owner: str, role: str) -> list[str]:
        """Names of constants with scale and zero point, for operand ``role`` of ``owner``."""
        return [self.add(f"{owner}.{role}_scale", np.asarray(scale.scale, np.float32)),
                self.add(f"{owner}.{role}_zero", np.asarray(scale.zero))]

    def alias(self, target: str, source: str) -> None:
        """``target`` is ``source``."""
        self.emit("Identity", [source], target)

    def emit(self, op: str, inputs: list[str], target: str, domain: str = "", **more: Any) -> None:
        """A node of the new model's own."""
        from onnx import helper

        name = f"{target}.{op}"  # apart from the names of the model's own nodes
        self.nodes.append(helper.make_node(op, inputs, [target], name, domain=domain, **more))

    def copy(self, proto: Any, inputs: list[str], *targets: str, op: str = "", domain: str = "",
              drop: tuple[str, ...] = ()) -> None:
        """``proto``'s attributes on other operands."""
        from onnx import helper

        made = helper.make_node(op or proto.op_type, inputs, targets, proto.name or targets[0],
                                domain=domain)
        made.attribute.extend(a for a in proto.attribute if a.name not in drop)
        self.nodes.append(made)

    def new_model(self, outputs: Mapping[str, Scale], integers: list[str]) -> Any:
        """The ``ModelProto`` of all nodes so far; ``integers``: outputs that always were."""
        from onnx import helper, numpy_helper

        codes = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name))
                 for name in BYTES.values()}

        def info(name: str, dtype: np.dtype, as_name: str) -> Any:
            known = self.shapes.get(name)
            dims = None if known is None or not known.HasField("shape") else [
                d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in known.shape.dim]
            return helper.make_tensor_value_info(as_name, codes[BYTES[dtype]], dims)

        for name, scale in outputs.items():
            self.alias(name, scale.name)
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
