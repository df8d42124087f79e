# SPDX-License-Identifier: Apache-2.0
"""Byte tables of quantised functions."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from emu.network.graph import Node, one_line
from emu.network.sessions import open_session
from emu.requantise import from_bytes


def function_table(
    function: Callable[[NDArray[np.float32]], NDArray], *, x_scale: float, x_zero: int,
    x_signed: bool, y_scale: float, y_zero: int, y_signed: bool,
) -> NDArray[np.uint8]:
    """``clamp(rne(f(f32((x - zx) * sx)) / sy) + zy)`` of every byte x: uint8[256]."""
    values = from_bytes(np.arange(256, dtype=np.uint8), x_signed)
    real = ((values - x_zero).astype(np.float32) * np.float32(x_scale)).astype(np.float32)
    result = np.asarray(function(real), np.float32) / np.float32(y_scale)
    low, high, kind = (-128, 127, np.int8) if y_signed else (0, 255, np.uint8)
    return np.clip(np.rint(result) + y_zero, low, high).astype(kind).view(np.uint8)


def operator_table(
    node: Node, index: int, constants: Mapping[str, NDArray], signed: bool, out_signed: bool
) -> NDArray[np.uint8]:
    """What ONNX Runtime computes for every byte at input ``index`` of a quantised node.

    Raises
    ------
    UserError
        If ONNX Runtime refuses the node.
    """
    from onnx import TensorProto, helper, numpy_helper

    kind, out = (
        TensorProto.INT8 if flag else TensorProto.UINT8 for flag in (signed, out_signed)
    )
    inner = helper.make_node(
        node.op, ["x" if i == index else name for i, name in enumerate(node.inputs)], ["y"],
        domain=node.domain, **node.attributes,
    )
    graph = helper.make_graph(
        [inner], "table", [helper.make_tensor_value_info("x", kind, [256])],
        [helper.make_tensor_value_info("y", out, None)],
        [
            numpy_helper.from_array(constants[name], name)
            for i, name in enumerate(node.inputs) if i != index and name
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = open_session(model, f"{node.where}: {node.op} {node.name}")
    values = np.arange(256, dtype=np.uint8)
    try:
        (result,) = session.run(["y"], {"x": values.view(np.int8) if signed else values})
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise node.error(f"ONNX Runtime fails: {one_line(error)}") from None
    return np.ascontiguousarray(result).reshape(-1).view(np.uint8)
