# SPDX-License-Identifier: Apache-2.0
"""One's own quantised ONNX file: write a small one, run it, keep the outputs."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sim import run

rng = np.random.default_rng(5)
constants = {
    "x_scale": np.float32(0.02), "x_zero": np.int8(3),
    "w": rng.integers(-40, 41, (20, 12, 3, 3), dtype=np.int8),
    "w_scale": rng.uniform(0.001, 0.003, 20).astype(np.float32), "w_zero": np.zeros(20, np.int8),
    "y_scale": np.float32(0.05), "y_zero": np.int8(-4),
    "bias": rng.integers(-500, 500, 20, dtype=np.int32),
}
node = helper.make_node(
    "QLinearConv",
    ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "bias"],
    ["y"], strides=[2, 2], pads=[1, 1, 1, 1],
)
graph = helper.make_graph(
    [node], "own",
    [helper.make_tensor_value_info("x", TensorProto.INT8, [1, 12, 15, 15])],
    [helper.make_tensor_value_info("y", TensorProto.INT8, [1, 20, 8, 8])],
    [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)

with tempfile.TemporaryDirectory() as folder:
    path, kept = Path(folder, "own.onnx"), Path(folder, "outputs.npz")
    onnx.save(model, path)
    result = run(str(path), chip="small", output=str(kept))
    outputs = np.load(kept)["y"]
print(f"{result['cycles']} cycles, {result['verified']['mismatches']} outputs differ, "
      f"first row {outputs[0, 0, 0].tolist()}")
