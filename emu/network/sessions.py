# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime sessions, opened as every golden result needs them."""

from typing import Any

from emu.errors import UserError
from emu.network.graph import one_line


def open_session(model: Any, name: str) -> Any:
    """A session of one thread without graph optimisation: every integer operator stays itself.

    Raises
    ------
    UserError
        If ONNX Runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # failures come as exceptions
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"{name}: ONNX Runtime refuses it: {one_line(error)}") from None
