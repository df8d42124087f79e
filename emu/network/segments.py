# SPDX-License-Identifier: Apache-2.0
"""Models with operators of our own domain: ONNX Runtime runs all others, in segments.

A segment is every node whose operands come from equally many of our own operators in a row; so a
model of n such rows needs n + 1 sessions. Our own operators are computed by their definitions
(`emu.network.exact` has the same).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu import requantise as rq
from emu.errors import UserError
from emu.network.graph import OWN, Node, constants_of, one_line
from emu.network.sessions import open_session
from emu.normalise import layer_norm

Values = dict[str, NDArray]


def has_own(model: Any) -> bool:
    """Whether a model has operators that ONNX Runtime does not know."""
    return any(node.domain == OWN for node in model.graph.node)


def run_segments(model: Any, inputs: Mapping[str, NDArray], name: str) -> Values:
    """Graph outputs of a model with operators of our own.

    Raises
    ------
    UserError
        If ONNX Runtime refuses a segment or fails.
    """
    constants = constants_of(model.graph, name)
    outputs = [value.name for value in model.graph.output]
    level: dict[str, int] = {}
    segments: dict[int, tuple[list[Any], list[Any]]] = {}
    for node in model.graph.node:
        here = max((level.get(each, 0) for each in node.input), default=0)
        own = node.domain == OWN
        segments.setdefault(here, ([], []))[own].append(node)
        level |= dict.fromkeys(node.output, here + own)
    values: Values = dict(inputs)
    for here in sorted(segments):
        theirs, ours = segments[here]
        if theirs:
            later = {each for k in segments if k >= here for node in segments[k][1]
                     for each in node.input}
            later |= {each for k in segments if k > here for node in segments[k][0]
                      for each in node.input}
            _run(model, theirs, values, constants, later | set(outputs), name)
        for node in ours:
            found = _OWN[node.op_type](Node(node, name), values, constants)
            several = found if isinstance(found, tuple) else (found,)
            values |= {to: each for to, each in zip(node.output, several, strict=True) if to}
    return {each: values[each] for each in outputs}


def _run(
    model: Any, nodes: list[Any], values: Values, constants: Values, later: set[str], name: str
) -> None:
    """Run ``nodes``; what ``later`` ones read is added to ``values``."""
    from onnx import helper, numpy_helper

    made = [each for node in nodes for each in node.output if each]
    read = list(dict.fromkeys(each for node in nodes for each in node.input if each))
    given = [each for each in read if each in values and each not in made]
    wanted = [each for each in made if each in later]
    graph = helper.make_graph(
        nodes, "segment",
        [helper.make_tensor_value_info(
            each, helper.np_dtype_to_tensor_dtype(values[each].dtype), values[each].shape)
         for each in given],
        [helper.make_empty_tensor_value_info(each) for each in wanted],
        [numpy_helper.from_array(constants[each], each) for each in read if each in constants],
    )
    part = helper.make_model(graph, opset_imports=[o for o in model.opset_import
                                                   if o.domain != OWN],
                             ir_version=model.ir_version)
    session = open_session(part, name)
    try:
        found = session.run(wanted, {each: values[each] for each in given})
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"{name}: ONNX Runtime fails: {one_line(error)}") from None
    values |= dict(zip(wanted, found, strict=True))


def _table(node: Node, values: Values, constants: Values) -> NDArray:
    x, table, zero = values[node.inputs[0]], constants[node.inputs[1]], constants[node.inputs[3]]
    return table[rq.to_bytes(x)].view(zero.dtype)


def _norm(node: Node, values: Values, constants: Values) -> NDArray:
    x = values[node.inputs[0]]
    x_scale, x_zero, gamma, beta, y_scale, y_zero = (constants[each] for each in node.inputs[1:])
    info = np.iinfo(y_zero.dtype)
    return layer_norm(
        x, gamma, beta, in_scale=float(x_scale), in_zero=int(x_zero), out_scale=float(y_scale),
        zero=int(y_zero), epsilon=float(node.get("epsilon", 1e-5)), low=info.min, high=info.max,
    ).astype(y_zero.dtype)


def _top(node: Node, values: Values, constants: Values) -> tuple[NDArray, NDArray]:
    """(values, numbers) of the largest along the last axis; of equals the first."""
    x = values[node.inputs[0]]
    best = np.argsort(-x.astype(np.int32), axis=-1, kind="stable")[..., : node.get("k", 1)]
    return np.take_along_axis(x, best, axis=-1), best.astype(np.int64)


_OWN: Mapping[str, Callable[[Node, Values, Values], NDArray | tuple[NDArray, ...]]] = {
    "Table": _table, "LayerNorm": _norm, "TopK": _top,
}
