# SPDX-License-Identifier: Apache-2.0
"""Float models rewritten before they are quantised, so that fewer tensors need a scale.

Products take the bias behind them; a factor behind a product of activations goes before it; and
functions of one tensor, however many nodes they have, are found: nothing inside is quantised.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.qdq.functions import ELEMENTWISE

_SIMPLE = {"Relu", "Clip", "Sigmoid", "LeakyRelu"}
"""Functions with an integer operator of their own, or a clip of the one before."""


def name_nodes(model: Any) -> None:
    """Give every node a name of its own: that of its first output if it has none or not alone."""
    counts = Counter(node.name for node in model.graph.node)
    for node in model.graph.node:
        if not node.name or counts[node.name] > 1:
            node.name = next(name for name in node.output if name)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    found = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            found[value.name] = tuple(d.dim_value for d in dims)
    return found


def _readers(model: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {value.name: [None] for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def take_biases(model: Any, constants: Mapping[str, NDArray]) -> None:
    """MatMul by a constant matrix and Add of a constant row, as Gemm between two Reshapes."""
    from onnx import helper, numpy_helper

    shapes, readers = _shapes(model), _readers(model)
    nodes: list[Any] = []
    dropped: set[int] = set()
    for node in model.graph.node:
        if id(node) in dropped:
            continue
        adds = readers.get(node.output[0], []) if node.op_type == "MatMul" else []
        weights = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if (weights is None or weights.ndim != 2 or len(adds) != 1 or adds[0] is None
                or adds[0].op_type != "Add"):
            nodes.append(node)
            continue
        (add,) = adds
        other = next((name for name in add.input if name in constants), "")
        shape, outputs = shapes.get(node.output[0]), weights.shape[1]
        if not other or shape is None or constants[other].shape not in ((outputs,), (1, outputs)):
            nodes.append(node)
            continue
        dropped.add(id(add))
        flat, result = node.input[0], add.output[0]
        product = result if len(shape) == 2 else f"{result}/product"
        if len(shape) != 2:
            flat = f"{result}/rows"
            for name, value in ((f"{flat}/shape", [-1, weights.shape[0]]),
                                (f"{result}/shape", shape)):
                model.graph.initializer.append(
                    numpy_helper.from_array(np.array(value, np.int64), name))
            nodes.append(helper.make_node("Reshape", [node.input[0], f"{flat}/shape"], [flat],
                                          flat))
        nodes.append(helper.make_node("Gemm", [flat, node.input[1], other], [product], node.name))
        if len(shape) != 2:
            nodes.append(helper.make_node("Reshape", [product, f"{result}/shape"], [result],
                                          f"{result}/back"))
    _replace(model, nodes)


def scale_first(model: Any, constants: Mapping[str, NDArray]) -> None:
    """``(A B) / c`` as ``(A / c) B`` where both A and B are activations."""
    from onnx import helper

    readers = _readers(model)
    nodes: list[Any] = []
    dropped: set[int] = set()
    for node in model.graph.node:
        if id(node) in dropped:
            continue
        after = readers.get(node.output[0], [])
        if (node.op_type == "MatMul" and not set(node.input) & constants.keys()
                and len(after) == 1 and after[0] is not None
                and after[0].op_type in ("Mul", "Div")):
            scale = after[0]
            factor = next((name for name in scale.input if name in constants), "")
            if factor and constants[factor].size == 1 and scale.input[0] == node.output[0]:
                dropped.add(id(scale))
                scaled = f"{scale.output[0]}/scaled"
                nodes.append(helper.make_node(scale.op_type, [node.input[0], factor], [scaled],
                                              scale.name))
                nodes.append(helper.make_node("MatMul", [scaled, node.input[1]], scale.output,
                                              node.name))
                continue
        nodes.append(node)
    _replace(model, nodes)


def _replace(model: Any, nodes: list[Any]) -> None:
    import copy

    kept = [copy.deepcopy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def inside_functions(model: Any, constants: Mapping[str, NDArray]) -> list[str]:
    """Names of the nodes of functions of one tensor that must stay in float.

    A node whose result is a graph output is not among them, nor is a lone Relu, Clip, Sigmoid or
    LeakyRelu.
    """
    outputs = {value.name for value in model.graph.output}
    root: dict[str, str] = {}
    groups: dict[str, list[Any]] = {}
    for node in model.graph.node:
        if node.op_type not in ELEMENTWISE:
            continue
        sources = [name for name in node.input if name and name not in constants]
        numbers = [name for name in node.input if name in constants]
        roots = {root.get(name, name) for name in sources}
        if len(roots) == 1 and all(math.prod(constants[name].shape) == 1 for name in numbers):
            (source,) = roots
            root[node.output[0]] = source
            groups.setdefault(source, []).append(node)
    found = []
    for nodes in groups.values():
        lone = len(nodes) == 1 and nodes[0].op_type in _SIMPLE
        if lone or all(node.op_type in ("Relu", "Clip") for node in nodes):
            continue
        found += [node.name for node in nodes if not outputs & set(node.output)]
    return found
