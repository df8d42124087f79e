# SPDX-License-Identifier: Apache-2.0
"""Imported layers, computed exactly, equal ONNX Runtime running the same file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from emu.network.exact import exact
from emu.network.golden import random_inputs, run_onnxruntime
from emu.network.importer import import_onnx
from tests.emu import network_models as models
from tests.emu.network_models import COMBINATIONS, conv_node, draw, gemm_node, operands


def check(data, seed=1, varied=True):
    """Import, run both, compare; returns the network and its outputs."""
    network = import_onnx(data)
    inputs = random_inputs(network, seed)
    theirs, ours = run_onnxruntime(network, inputs), exact(network, inputs)
    assert set(theirs) == set(ours)
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype
        assert not varied or expected.size < 30 or np.unique(expected).size > 8
        np.testing.assert_array_equal(ours[name], expected)
    return network, ours


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_random_convolutions(data):
    activation, weight = data.draw(st.sampled_from(COMBINATIONS))
    ints = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups = ints(1, 3)
    kernel = (ints(1, 4), ints(1, 4))
    rng = np.random.default_rng(ints(0, 1 << 30))
    check(
        models.conv_model(
            rng,
            activation=activation,
            weight=weight,
            groups=groups,
            kernel=kernel,
            x=(ints(1, 2), groups * ints(1, 9), ints(10, 13), ints(10, 13)),
            outputs=groups * ints(1, 9),
            strides=[ints(1, 3), ints(1, 3)],
            dilations=[ints(1, 3), ints(1, 3)],
            pads=[ints(0, 3) for _ in range(4)],
            per_channel=data.draw(st.booleans()),
            bias=data.draw(st.booleans()),
        )
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_random_products(data):
    activation, weight = data.draw(st.sampled_from(COMBINATIONS))
    ints = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    rng = np.random.default_rng(ints(0, 1 << 30))
    common = dict(
        activation=activation,
        weight=weight,
        outputs=ints(1, 40),
        per_channel=data.draw(st.booleans()),
    )
    if data.draw(st.booleans()):
        shape = tuple(ints(1, 4) for _ in range(ints(0, 3)))
        check(models.matmul_model(rng, x=(*shape, ints(1, 60)), **common))
    else:
        check(
            models.gemm_model(
                rng,
                rows=ints(1, 9),
                k=ints(1, 60),
                transA=ints(0, 1),
                transB=ints(0, 1),
                alpha=data.draw(st.sampled_from([1.0, 0.3])),
                bias=data.draw(st.booleans()),
                **common,
            )
        )


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_depthwise(kind):
    rng = np.random.default_rng(3)
    data = models.conv_model(
        rng,
        activation=kind[0],
        weight=kind[1],
        x=(2, 20, 9, 8),
        outputs=20,
        groups=20,
        pads=[1, 1, 1, 1],
    )
    network, _ = check(data)
    assert network.layers[0].groups == 20 and network.layers[0].weights.shape == (20, 1, 3, 3)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_auto_pad(mode, stride):
    rng = np.random.default_rng(4)
    data = models.conv_model(
        rng, kernel=(4, 3), x=(1, 4, 10, 11), auto_pad=mode, strides=[stride, stride]
    )
    network, _ = check(data)
    if mode == "SAME_LOWER" and stride == 1:
        assert network.layers[0].pads == (2, 1, 1, 1)


def test_one_dimensional_convolution():
    rng = np.random.default_rng(5)
    data = models.conv_model(
        rng, x=(2, 6, 17), kernel=(5,), strides=[2], pads=[3, 1], dilations=[2], groups=2
    )
    network, ours = check(data)
    layer = network.layers[0]
    assert layer.input_shape == (2, 6, 1, 17) and layer.pads == (0, 3, 0, 1)
    assert ours["y"].shape == (2, 12, 7)


def test_scale_is_rounded_as_onnxruntime_does():
    rng = np.random.default_rng(6)
    network = import_onnx(models.conv_model(rng))
    layer = network.layers[0]
    constants = {t.name: t for t in network.model.graph.initializer}
    xs, ws, ys = (np.frombuffer(constants[n].raw_data, np.float32) for n in ("xs", "ws", "ys"))
    np.testing.assert_array_equal(layer.scale, ((xs * ws).astype(np.float32) / ys))
    assert layer.scale.dtype == np.float32 and layer.bias.dtype == np.int32


def test_product_of_a_batch_of_rows():
    network, ours = check(models.matmul_model(np.random.default_rng(7), x=(2, 3, 24)))
    layer, tensor = network.layers[0], network.inputs[0]
    assert layer.input_shape == (1, 24, 1, 6) and layer.weights.shape == (18, 24, 1, 1)
    assert ours["y"].shape == (2, 3, 18) and tensor.shape == (2, 3, 24)
    x = np.arange(144, dtype=np.uint8).view(np.int8).reshape(2, 3, 24)
    rows = tensor.to_layer(x)
    np.testing.assert_array_equal(rows[0, :, 0, 4], x[1, 1])
    np.testing.assert_array_equal(tensor.from_layer(rows), x)


@pytest.mark.parametrize("shape", [(), (1,), (18,), (1, 1), (1, 18)])
def test_gemm_bias_shapes(shape):
    check(models.gemm_model(np.random.default_rng(8), bias_shape=shape))


def fused(nodes, constants=None, *, kind="s8", target="z", opset=21):
    rng = np.random.default_rng(9)
    weights = draw(rng, (12, 8, 3, 3), "s8")
    found = operands(rng, weights, 12, 72, activation=kind, weight="s8")
    return models.model(
        [conv_node(), *nodes],
        {"x": (kind, (1, 8, 7, 6))},
        {target: (kind, (1, 12, 5, 4))},
        found | (constants or {}),
        opset,
    )


@pytest.mark.parametrize("kind", ["s8", "u8"])
@pytest.mark.parametrize(
    ("op", "inputs", "bounds"),
    [
        ("Clip", ["y", "low", "high"], (20, 60)),
        ("Clip", ["y", "low"], (20, None)),
        ("Clip", ["y", "", "high"], (None, 60)),
        ("Clip", ["y", "high", "low"], (20, 20)),
        ("Max", ["y", "low"], (20, None)),
        ("Max", ["low", "y"], (20, None)),
        ("Min", ["y", "high", "low"], (None, 20)),
        ("Clip", ["y"], (None, None)),
    ],
)
def test_clips_are_fused(kind, op, inputs, bounds):
    dtype = models.TYPES[kind][0]
    node = helper.make_node(op, inputs, ["z"], "clip")
    network, ours = check(
        fused([node], {"low": dtype(20), "high": dtype(60)}, kind=kind),
        varied=bounds[0] != bounds[1],
    )
    info = np.iinfo(dtype)
    low, high = (
        info.min if bounds[0] is None else bounds[0],
        info.max if bounds[1] is None else bounds[1],
    )
    (layer,) = network.layers
    assert (layer.clip_low, layer.clip_high, layer.output_name) == (low, high, "z")
    assert bounds[0] is None or ours["z"].min() == low
    assert bounds[1] is None or ours["z"].max() == high


def test_relu_is_fused_on_the_quantised_values():
    network, _ = check(fused([helper.make_node("Relu", ["y"], ["z"], "relu")]))
    assert network.layers[0].clip_low == 0 and network.layers[0].clip_high == 127


def test_clip_through_a_reshape():
    nodes = [
        helper.make_node("Flatten", ["y"], ["f"], axis=1),
        helper.make_node("Relu", ["f"], ["r"], "relu"),
        helper.make_node("Reshape", ["r", "shape"], ["z"]),
    ]
    network, _ = check(fused(nodes, {"shape": np.array([0, 12, 5, -1])}))
    assert network.layers[0].output_name == "z" and network.layers[0].clip_low == 0


def chain(middle, shape, *, rows, k, x=(2, 4, 6, 5), extra=None):
    """A convolution to 6 channels of 3x3, layout nodes, a QGemm."""
    rng = np.random.default_rng(10)
    first = operands(rng, draw(rng, (6, 4, 3, 3), "s8"), 6, 36, activation="s8", weight="s8")
    second = operands(rng, draw(rng, (k, 7), "s8"), 7, k, activation="s8", weight="s8")
    second["xz"] = first["yz"]
    constants = {f"a.{n}": v for n, v in first.items()} | {f"b.{n}": v for n, v in second.items()}
    nodes = [
        conv_node("x", "c", "a.", strides=[2, 2], pads=[1, 1, 1, 1]),
        *middle,
        gemm_node("f", "y", "b."),
    ]
    return models.model(
        nodes,
        {"x": ("s8", x)},
        {"y": ("s8", (rows, 7))},
        constants | {"shape": np.asarray(shape)} | (extra or {}),
    )


@pytest.mark.parametrize("op", ["Flatten", "Reshape"])
def test_flatten_between_convolution_and_gemm(op):
    inputs = ["c"] if op == "Flatten" else ["c", "shape"]
    network, _ = check(chain([helper.make_node(op, inputs, ["f"])], [0, -1], rows=2, k=54))
    gemm = network.layers[1]
    assert gemm.weights.shape == (7, 6, 3, 3) and gemm.output_shape == (2, 7, 1, 1)
    assert gemm.input_name == network.layers[0].output_name
    assert gemm.input_shape == network.layers[0].output_shape


def test_squeeze_and_unsqueeze_are_free():
    rng = np.random.default_rng(11)
    constants = operands(rng, draw(rng, (24, 18), "s8"), 18, 24, activation="s8", weight="s8")
    nodes = [
        helper.make_node("Squeeze", ["x", "axes"], ["s"]),
        gemm_node("s", "g"),
        helper.make_node("Unsqueeze", ["g", "axes"], ["y"]),
    ]
    data = models.model(
        nodes,
        {"x": ("s8", (5, 24, 1))},
        {"y": ("s8", (5, 18, 1))},
        constants | {"axes": np.array([2])},
    )
    check(data)


def test_gemm_chain_and_flattened_rows():
    rng = np.random.default_rng(12)
    a = operands(rng, draw(rng, (9, 16), "s8"), 16, 9, activation="s8", weight="s8")
    b = operands(rng, draw(rng, (48, 5), "s8"), 5, 48, activation="s8", weight="s8")
    b["xz"] = a["yz"]
    constants = {f"a.{n}": v for n, v in a.items()} | {f"b.{n}": v for n, v in b.items()}
    nodes = [
        gemm_node("x", "g", "a.", "first"),
        helper.make_node("Reshape", ["g", "shape"], ["f"]),
        gemm_node("f", "y", "b.", "second"),
    ]
    data = models.model(
        nodes,
        {"x": ("s8", (6, 9))},
        {"y": ("s8", (2, 5))},
        constants | {"shape": np.array([2, 48])},
    )
    network, _ = check(data)
    assert network.layers[1].weights.shape == (5, 16, 1, 3)
    assert network.layers[1].strides == (1, 3)


def test_two_readers_and_two_outputs():
    rng = np.random.default_rng(13)
    found = {
        f"{p}{n}": v
        for p in ("a.", "b.", "c.")
        for n, v in operands(
            rng, draw(rng, (8, 8, 1, 1), "s8"), 8, 8, activation="s8", weight="s8"
        ).items()
    }
    found["b.xz"] = found["c.xz"] = found["a.yz"]
    nodes = [
        conv_node("x", "m", "a.", "one"),
        conv_node("m", "y", "b.", "two"),
        conv_node("m", "z", "c.", "three"),
    ]
    shape = ("s8", (1, 8, 4, 4))
    network, _ = check(models.model(nodes, {"x": shape}, {"y": shape, "z": shape}, found))
    assert [layer.input_name for layer in network.layers] == ["x", "m", "m"]


def test_dead_nodes_and_constant_nodes():
    rng = np.random.default_rng(14)
    constants = operands(rng, draw(rng, (24, 18), "s8"), 18, 24, activation="s8", weight="s8")
    zero = constants.pop("xz")
    nodes = [
        helper.make_node("Constant", [], ["xz0"], value=models.numpy_helper.from_array(zero)),
        helper.make_node("Identity", ["xz0"], ["xz"]),
        gemm_node(),
        helper.make_node("Sigmoid", ["ws"], ["unused"]),
    ]
    network, _ = check(
        models.model(nodes, {"x": ("s8", (3, 24))}, {"y": ("s8", (3, 18))}, constants)
    )
    assert len(network.layers) == 1


@pytest.mark.parametrize("kind", COMBINATIONS)
@pytest.mark.parametrize("x_zero", ["min", "max"])
@pytest.mark.parametrize("w_zero", ["min", "max"])
def test_extreme_zero_points(kind, x_zero, w_zero):
    ends = [np.iinfo(models.TYPES[k][0]) for k in kind]
    rng = np.random.default_rng(16)
    constants = operands(
        rng, draw(rng, (24, 18), kind[1]), 18, 24, activation=kind[0], weight=kind[1]
    )
    constants["xz"] = np.full((), getattr(ends[0], x_zero), ends[0].dtype)
    constants["wz"] = np.full(18, getattr(ends[1], w_zero), ends[1].dtype)
    constants["ys"] = constants["ys"] * np.float32(20)
    check(
        models.model([gemm_node()], {"x": (kind[0], (9, 24))}, {"y": (kind[0], (9, 18))}, constants)
    )


def test_wrapping_bias():
    rng = np.random.default_rng(15)
    constants = operands(rng, draw(rng, (24, 18), "s8"), 18, 24, activation="s8", weight="s8")
    constants["b"] = np.where(np.arange(18) % 2, 2**31 - 5, -(2**31) + 5).astype(np.int32)
    constants["ys"] = np.float32(constants["xs"] * 0.01 * 2e7)
    data = models.model([gemm_node()], {"x": ("s8", (3, 24))}, {"y": ("s8", (3, 18))}, constants)
    check(data)
