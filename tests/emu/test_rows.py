# SPDX-License-Identifier: Apache-2.0
"""Softmax against ONNX Runtime's integer operator, normalisation against the float operator."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from emu.errors import UserError
from emu.normalise import layer_norm, norm_parameters, normalise, parameter_words, root_reciprocal
from emu.softmax import softmax, softmax_factor, softmax_table


def onnxruntime_softmax(values, scale, zero, out_scale, out_zero):
    import onnxruntime

    kind = TensorProto.INT8 if values.dtype == np.int8 else TensorProto.UINT8
    numbers = [
        helper.make_tensor(name, type_, [], [value])
        for name, type_, value in (
            ("sx", TensorProto.FLOAT, scale), ("zx", kind, zero),
            ("sy", TensorProto.FLOAT, out_scale), ("zy", kind, out_zero),
        )
    ]
    node = helper.make_node(
        "QLinearSoftmax", ["x", "sx", "zx", "sy", "zy"], ["y"], domain="com.microsoft", axis=-1,
        opset=13,
    )
    x, y = (helper.make_tensor_value_info(name, kind, values.shape) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "softmax", [x], [y], numbers), ir_version=8,
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)],
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": values})[0]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("channels, scale", [(1, 0.1), (37, 0.3), (128, 0.05), (1000, 0.02)])
def test_softmax_is_onnxruntimes(dtype, channels, scale):
    rng = np.random.default_rng(channels)
    low = int(np.iinfo(dtype).min)
    values = rng.integers(low, low + 256, (48, channels)).astype(dtype)
    values[:24] = np.clip(rng.normal(low + 70, 9, (24, channels)), low, low + 255).astype(dtype)
    kinds = ((1 / 256, low), (1 / 256, low + 3), (1 / 100, low))
    for out_scale, zero in kinds:
        want = onnxruntime_softmax(values, scale, low + 5, out_scale, zero)
        got = softmax(
            values, softmax_table(channels, scale), softmax_factor(out_scale),
            is_signed=dtype == np.int8, zero=zero, low=low, high=low + 255,
        )
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("out_scale", [1 / 300, 1.5])
def test_softmax_refuses_scales(out_scale):
    with pytest.raises(UserError, match="must be 1/256 to 1"):
        softmax_factor(out_scale)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    "channels, in_scale, out_scale", [(64, 0.01, 0.04), (384, 0.02, 0.02), (768, 0.5, 0.05)]
)
def test_normalisation_is_near_the_float_operator(channels, in_scale, out_scale, centred):
    """At most 0.01 of an output step from the exact value before rounding, so 1 step after it."""
    rng = np.random.default_rng(channels)
    values = np.clip(np.rint(rng.normal(0, 30, (400, channels))), -128, 127).astype(np.int64)
    gamma, beta = rng.normal(1, 0.4, channels), rng.normal(0, 0.5, channels)
    parameters = norm_parameters(
        gamma, beta, in_scale=in_scale, out_scale=out_scale, epsilon=1e-5
    )
    got = normalise(values, parameters, in_zero=3, zero=5, centred=centred)
    if centred:
        scales = {"in_scale": in_scale, "out_scale": out_scale, "epsilon": 1e-5}
        same = layer_norm(values, gamma, beta, in_zero=3, zero=5, **scales)
        np.testing.assert_array_equal(same, got)
    x = (values - 3) * in_scale
    x = x - x.mean(axis=-1, keepdims=True) if centred else x
    y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * gamma + beta
    exact = np.clip(y / out_scale + 5, -128, 127)
    difference = np.abs(got - np.rint(exact))
    assert np.abs(got - exact).max() < 0.51
    assert difference.max() <= 1 and 0 < difference.mean() < 0.002


def test_constant_rows_and_no_epsilon():
    parameters = norm_parameters([1.0] * 4, [0.5] * 4, in_scale=1, out_scale=0.25, epsilon=0)
    assert normalise([[7] * 4], parameters).tolist() == [[2] * 4]
    assert normalise([[0, 0, 0, 1]], parameters).tolist() == [[0, 0, 0, 9]]


def test_roots_are_exact():
    w = np.array([0, 1, 2, 3, 4, (1 << 46) - 1, (1 << 44) + 12345, (1 << 40) - 1, 10**9])
    t, s = root_reciprocal(w)
    for value, reciprocal, shift in zip(w.tolist(), t.tolist(), s.tolist(), strict=True):
        scaled = value << 2 * shift
        assert 1 << 44 <= scaled < 1 << 46 or value == 0
        root = int(np.floor(np.sqrt(scaled)))
        root = next((k for k in (root - 1, root, root + 1)
                     if k * k <= scaled < (k + 1) * (k + 1)), 1)
        assert reciprocal == (1 << 45) // max(root, 1)


def test_parameter_words_interleave_four_lanes():
    parameters = norm_parameters(
        np.arange(1, 18) / 4096, np.arange(1, 18) / 2048, in_scale=1, out_scale=1, epsilon=1
    )
    words = parameter_words(parameters).view(np.int32)
    assert words.shape == (16, 4)
    assert words[0].tolist() == [2, 4, 6, 8] and words[1].tolist() == [1, 2, 3, 4]
    assert words[8].tolist() == [34, 0, 0, 0] and parameters.epsilon == 17 * 17


@pytest.mark.parametrize(
    "count, change, message",
    [
        (1 << 14, {}, "over 16384 channels: at most 16383"),
        (4, {"out_scale": 1e-4}, "a gain of 1 or an offset of 0 is too large"),
        (400, {"in_scale": 1e-5}, "epsilon 0.1 is too large for an input scale of 1e-05"),
    ],
)
def test_norm_parameters_refuse(count, change, message):
    kind = {"in_scale": 0.1, "out_scale": 0.1, "epsilon": 0.1} | change
    with pytest.raises(UserError, match=message):
        norm_parameters(np.ones(count), np.zeros(count), **kind)
