# SPDX-License-Identifier: Apache-2.0
"""The golden arithmetic of the drain against ONNX Runtime itself."""

from fractions import Fraction

import numpy as np
import pytest

from emu import requantise as rq
from emu.errors import UserError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper, TensorProto = onnx.helper, onnx.TensorProto


def run_node(node, inputs: dict, constants: dict, output_type, domain=""):
    """Result of a model of one node, with every graph optimisation off."""
    of = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info(k, of(v.dtype), v.shape) for k, v in inputs.items()],
        [helper.make_tensor_value_info("y", of(np.dtype(output_type)), None)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(["y"], inputs)[0]


@pytest.mark.parametrize("seed", range(6))
def test_convolution(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (1, 24, 9, 9)).astype(np.int8)
    w = rng.integers(-127, 128, (32, 24, 3, 3)).astype(np.int8)
    bias = rng.integers(-200000, 200000, 32).astype(np.int32)
    sx, sy = np.float32(rng.uniform(0.001, 0.1)), np.float32(rng.uniform(0.01, 1.0))
    sw = rng.uniform(0.0005, 0.01, 32).astype(np.float32) * np.float32(10.0 ** -(seed % 3))
    zx, zy = int(rng.integers(-128, 128)), int(rng.integers(-128, 128))
    names = ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], pads=[1, 1, 1, 1])
    constants = {"sx": sx, "zx": np.int8(zx), "w": w, "sw": sw, "zw": np.int8(0),
                 "sy": sy, "zy": np.int8(zy), "b": bias}
    got = run_node(node, {"x": x}, constants, np.int8)[0]
    padded = np.full((24, 11, 11), zx, np.int64)
    padded[:, 1:10, 1:10] = x[0]
    view = np.lib.stride_tricks.sliding_window_view(padded - zx, (3, 3), axis=(1, 2))
    acc = np.einsum("chwij,ocij->hwo", view, w.astype(np.int64))
    want = rq.requantise(acc, rq.scale_of(sx, sw, sy), bias=bias, zero=zy)
    assert np.array_equal(got, want.transpose(2, 0, 1)) and np.unique(got).size > 2


@pytest.mark.parametrize("seed", range(4))
def test_matrix_multiplication_rounds_twice(seed):
    """Scales near a power of two over small sums hit ties and the middle rounding often."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (64, 96)).astype(np.uint8)
    b = rng.integers(0, 256, (96, 80)).astype(np.uint8)
    sa, sb, sy = np.float32(0.5), np.float32(2.0**-9), np.float32(0.25 * (1 + seed * 2.0**-22))
    za, zb, zy = 128, 127, 100
    names = ["a", "sa", "za", "b", "sb", "zb", "sy", "zy"]
    node = helper.make_node("QLinearMatMul", names, ["y"])
    constants = {"sa": sa, "za": np.uint8(za), "b": b, "sb": sb, "zb": np.uint8(zb),
                 "sy": sy, "zy": np.uint8(zy)}
    got = run_node(node, {"a": a}, constants, np.uint8)
    acc = (a.astype(np.int64) - za) @ (b.astype(np.int64) - zb)
    want = rq.requantise(acc, rq.scale_of(sa, sb, sy), zero=zy, low=0, high=255)
    assert np.array_equal(got, want) and np.unique(got).size > 100


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("seed", range(5))
def test_addition(dtype, seed):
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    a, c = (rng.integers(info.min, info.max + 1, 65536).astype(dtype) for _ in range(2))
    sa, sc, sy = (np.float32(rng.uniform(0.01, 0.2)) for _ in range(3))
    if seed == 4:
        sa, sc, sy = np.float32(0.5), np.float32(0.25), np.float32(1.0)
    za, zc, zy = (int(rng.integers(info.min, info.max + 1)) for _ in range(3))
    names = ["a", "sa", "za", "c", "sc", "zc", "sy", "zy"]
    node = helper.make_node("QLinearAdd", names, ["y"], domain="com.microsoft")
    constants = {"sa": sa, "za": dtype(za), "sc": sc, "zc": dtype(zc), "sy": sy, "zy": dtype(zy)}
    got = run_node(node, {"a": a, "c": c}, constants, dtype, "com.microsoft")
    ra, rc = rq.add_scales(sa, sc, sy)
    table = rq.add_table(ra, rc, a_zero=za, c_zero=zc, out_zero=zy, c_signed=dtype == np.int8)
    want = rq.add_by_table(a.astype(int), c.astype(int), ra, table, low=info.min, high=info.max)
    assert np.array_equal(got, want) and np.unique(got).size > 2


def test_global_average_pool():
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (1, 64, 7, 7)).astype(np.int8)
    sx, sy, zx, zy = np.float32(0.037), np.float32(0.0121), 5, -9
    node = helper.make_node(
        "QLinearGlobalAveragePool", ["x", "sx", "zx", "sy", "zy"], ["y"], domain="com.microsoft",
        channels_last=0,
    )
    constants = {"sx": sx, "zx": np.int8(zx), "sy": sy, "zy": np.int8(zy)}
    got = run_node(node, {"x": x}, constants, np.int8, "com.microsoft")[0]
    want = rq.sum_pool(
        x[0].astype(int), rq.pool_scale(sx, sy, 49), in_zero=zx, zero=zy, kernel=(7, 7),
        stride=(1, 1), origin=(0, 0), out=(1, 1),
    )
    assert np.array_equal(got, want)


def test_max_pool():
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (1, 16, 8, 7)).astype(np.int8)
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2],
                            pads=[1, 1, 1, 1])
    got = run_node(node, {"x": x}, {}, np.int8)[0]
    want = rq.max_pool(x[0].astype(int), kernel=(3, 3), stride=(2, 2), origin=(-1, -1), out=(4, 4))
    assert np.array_equal(got, want)


def test_fma_rounds_once():
    rng = np.random.default_rng(2)
    for _ in range(3000):
        exponent = rng.integers(-30, 30, 3)
        a, b, c = (np.float32(v) for v in rng.normal(size=3) * 2.0**exponent)
        if rng.random() < 0.3:
            c = np.float32(-np.float32(a * b))
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        got = rq.fma32(a, b, c)
        error = abs(Fraction(float(got)) - exact)
        for near in (np.nextafter(got, np.float32(np.inf)), np.nextafter(got, np.float32(-np.inf))):
            assert error <= abs(Fraction(float(near)) - exact)


@pytest.mark.parametrize("ra, rc", [(0.0, 1.0), (2.0**20, 1.0), (1.0, 2.0**23), (-1.0, 1.0)])
def test_addition_beyond_the_adder_is_refused(ra, rc):
    with pytest.raises(UserError, match="quantised addition: scale ratios"):
        rq.add_table(ra, rc, a_zero=0, c_zero=0, out_zero=0, c_signed=True)


def test_window_outside_is_refused():
    with pytest.raises(ValueError, match="wholly outside"):
        rq.max_pool(
            np.zeros((1, 2, 2), int), kernel=(1, 1), stride=(1, 1), origin=(-1, 0), out=(1, 1)
        )
