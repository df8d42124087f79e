# SPDX-License-Identifier: Apache-2.0
"""ONNX files read and checked: live nodes in order, constants, types; nothing about layers yet."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError

MICROSOFT = "com.microsoft"
OWN = "headrace"
"""Domain of the operators that the importer writes where ONNX Runtime has none in integers."""
SUPPORTED = {
    ("", "QLinearConv"),
    ("", "QLinearMatMul"),
    (MICROSOFT, "QGemm"),
    ("", "Relu"),
    ("", "Clip"),
    ("", "Max"),
    ("", "Min"),
    ("", "MaxPool"),
    (MICROSOFT, "QLinearAdd"),
    (MICROSOFT, "QLinearConcat"),
    ("", "Concat"),
    ("", "Transpose"),
    ("", "Slice"),
    ("", "Split"),
    ("", "Gather"),
    (MICROSOFT, "QLinearMul"),
    (MICROSOFT, "QLinearSigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"),
    (MICROSOFT, "QLinearSoftmax"),
    (OWN, "Table"),
    (OWN, "LayerNorm"),
    (OWN, "TopK"),
    (MICROSOFT, "QLinearAveragePool"),
    (MICROSOFT, "QLinearGlobalAveragePool"),
    ("", "Flatten"),
    ("", "Reshape"),
    ("", "Squeeze"),
    ("", "Unsqueeze"),
    ("", "Identity"),
}
"""(domain, operator) of the nodes that the importer knows; Constant nodes are folded before."""
MAX_ELEMENTS = 1 << 30
"""Of one tensor: far more than the machine's memory holds."""
FLOAT = ("Conv", "Gemm", "MatMul", "Add", "Softmax", "LayerNormalization", "BatchNormalization")
"""Operators that are computed in float."""
_STANDARD = ("", "ai.onnx")
_TYPES = {2: "uint8", 3: "int8"}
_NUMBERS = ("int32", "int64")
"""Types of inputs that number rows of tables."""


@dataclass(frozen=True)
class Value:
    """A graph input or output: name, shape and type (None if the file does not say)."""

    name: str
    shape: tuple[int, ...] | None
    dtype: str


class Node:
    """One ONNX node with its attributes as Python values; errors carry its name."""

    def __init__(self, proto: Any, where: str):
        from onnx import helper

        self.where = where
        self.op: str = proto.op_type
        self.domain: str = "" if proto.domain in _STANDARD else proto.domain
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self.name: str = proto.name or next((name for name in self.outputs if name), "?")
        self.attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}

    def get(self, name: str, default: Any) -> Any:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def input(self, index: int) -> str:
        """Name of an input; empty if absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def error(self, text: str) -> UserError:
        return UserError(f"{self.where}: {self.op} {self.name}: {text}")


class Graph:
    """A checked model: inputs, outputs, live ``nodes`` in order, ``constants``, reader counts.

    uses: How often each tensor is read, being a graph output included.
    """

    def __init__(self, model: Any, name: str):
        self.model, self.name = model, name
        if model.functions:
            raise UserError(f"{name}: model-local functions are not supported: inline them")
        if model.graph.sparse_initializer:
            raise UserError(f"{name}: sparse initialisers are not supported")
        self.constants = constants_of(model.graph, name)
        self.outputs = [_value(v) for v in model.graph.output]
        self.nodes = self._live(
            [Node(n, name) for n in model.graph.node if n.op_type != "Constant"]
        )
        self._check_supported()
        self.inputs = [self._input(v) for v in model.graph.input if v.name not in self.constants]
        self.uses = Counter(i for node in self.nodes for i in node.inputs if i)
        self.uses.update(value.name for value in self.outputs)
        self._check_names()

    def _live(self, nodes: list[Node]) -> list[Node]:
        """Nodes that the outputs depend on; identities of constants become constants."""
        wanted = {value.name for value in self.outputs}
        live = []
        for node in nodes:
            if node.op == "Identity" and node.input(0) in self.constants:
                self.constants[node.outputs[0]] = self.constants[node.inputs[0]]
        for node in reversed(nodes):
            made = wanted.intersection(node.outputs)
            if made and not made <= set(self.constants):
                wanted.update(node.inputs)
                live.append(node)
        return live[::-1]

    def _check_supported(self) -> None:
        bad = [node for node in self.nodes if (node.domain, node.op) not in SUPPORTED]
        if not bad:
            return
        listed = ", ".join(
            f"{node.domain + '.' if node.domain else ''}{node.op} {node.name} "
            f"({', '.join(filter(None, node.inputs))})" for node in bad
        )
        hint = ""
        if any(node.op in FLOAT for node in bad):
            hint = ": a float model? headrace quantize makes a quantised one of it"
        raise UserError(f"{self.name}: unsupported nodes: {listed}{hint}")

    def _input(self, info: Any) -> Value:
        value = _value(info)
        readers = [(node.op, i) for node in self.nodes for i, name in enumerate(node.inputs)
                   if name == value.name]
        numbers = value.dtype in _NUMBERS and set(readers) == {("Gather", 1)}
        if value.dtype not in _TYPES.values() and not numbers:
            raise UserError(
                f"{self.name}: input {value.name} is {value.dtype}: int8 or uint8 expected"
            )
        if value.shape is None:
            raise UserError(
                f"{self.name}: input {value.name} has a dynamic shape {_dims(info)}: give every "
                "dimension a number (onnxruntime.tools.make_dynamic_shape_fixed)"
            )
        if any(size < 1 for size in value.shape) or not value.shape:
            raise UserError(f"{self.name}: input {value.name} has the shape {list(value.shape)}")
        if math.prod(value.shape) > MAX_ELEMENTS:
            raise UserError(f"{self.name}: input {value.name} {list(value.shape)} has more than "
                            f"{MAX_ELEMENTS:,} elements")
        return value

    def _check_names(self) -> None:
        known = set(self.constants) | {value.name for value in self.inputs}
        for node in self.nodes:
            for name in node.inputs:
                if name and name not in known:
                    raise node.error(f"{name} is neither an initialiser nor made by any node")
            known.update(node.outputs)
        for value in self.outputs:
            if value.name in self.constants or value.name not in known:
                raise UserError(f"{self.name}: output {value.name} is not computed by any node")
        for value in self.inputs:
            if not self.uses[value.name]:
                raise UserError(f"{self.name}: input {value.name} is read by no node: remove it")


def _dims(info: Any) -> str:
    if not info.type.tensor_type.HasField("shape"):
        return "(none)"
    sizes = [
        str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
        for d in info.type.tensor_type.shape.dim
    ]
    return f"[{', '.join(sizes)}]"


def _value(info: Any) -> Value:
    from onnx import TensorProto

    tensor = info.type.tensor_type
    code = tensor.elem_type
    known = code in TensorProto.DataType.values()
    dtype = TensorProto.DataType.Name(code).lower() if known else f"of unknown type {code}"
    if not info.type.HasField("tensor_type"):
        dtype = "not a tensor"
    if not tensor.HasField("shape") or any(not d.HasField("dim_value") for d in tensor.shape.dim):
        return Value(info.name, None, dtype)
    return Value(info.name, tuple(d.dim_value for d in tensor.shape.dim), dtype)


def constants_of(graph: Any, name: str) -> dict[str, NDArray]:
    """Initialisers and Constant nodes by name.

    Raises
    ------
    UserError
        If one is damaged.
    """
    from onnx import numpy_helper

    found = {}
    try:
        for proto in graph.initializer:
            found[proto.name] = numpy_helper.to_array(proto)
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                found[node.output[0]] = _constant_node(node)
    except Exception as error:  # a damaged tensor fails in many ways
        raise UserError(f"{name}: an initialiser is damaged: {one_line(error)}") from None
    return found


def _constant_node(node: Any) -> NDArray:
    from onnx import helper, numpy_helper

    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    dtype = np.float32 if "float" in attribute.name else np.int64
    return np.asarray(value, dtype)


def one_line(error: BaseException) -> str:
    """An exception's text in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.replace("[ShapeInferenceError] Inference error(s): ", "")
    return text if len(text) <= 300 else text[:297] + "..."


def load_model(source: str | Path | bytes, name: str) -> Any:
    """A ``ModelProto`` from a file's path or bytes, checked and with inferred shapes.

    Raises
    ------
    UserError
        If the file cannot be read, is not ONNX, is damaged or breaks ONNX's rules.
    """
    import onnx
    from onnx import external_data_helper

    if isinstance(source, bytes):
        data, folder = source, None
    else:
        try:
            data, folder = Path(source).read_bytes(), Path(source).resolve().parent
        except OSError as error:
            raise UserError(f"{source}: cannot be read: {error.strerror or error}") from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's exceptions depend on its implementation
        raise UserError(f"{name}: not an ONNX file, or truncated: {one_line(error)}") from None
    if not model.ir_version or not model.graph.node:
        raise UserError(f"{name}: not an ONNX file: it has no version or no nodes")
    try:
        if folder is not None:
            external_data_helper.load_external_data_for_model(model, str(folder))
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # checker, inference and external data each have their own
        raise UserError(f"{name}: not a valid ONNX model: {one_line(error)}") from None
    return inferred
