# SPDX-License-Identifier: Apache-2.0
"""ONNX models for tests: the same few operators with every attribute that matters."""

import platform
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

TYPES = {"s8": (np.int8, TensorProto.INT8), "u8": (np.uint8, TensorProto.UINT8)}
COMBINATIONS = [("s8", "s8"), ("u8", "s8"), ("u8", "u8")]


def _saturates():
    """Whether ONNX Runtime saturates uint8 x int8 products on this machine."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine().lower() in ("x86_64", "amd64")
    return platform.machine() == "x86_64" and "vnni" not in text


SATURATES = _saturates()


def draw(rng, shape, kind):
    """Uniform values over a type."""
    info = np.iinfo(TYPES[kind][0])
    return rng.integers(info.min, info.max, shape, dtype=info.dtype, endpoint=True)


def near_middle(rng, kind, reach):
    """A zero point within ``reach`` of its type's middle."""
    middle = 0 if kind == "s8" else 128
    return TYPES[kind][0](middle + rng.integers(-reach, reach, endpoint=True))


def operands(rng, weights, outputs, k, *, activation, weight, per_channel=True, bias=True):
    """Constants of a quantised layer, by role, scaled so that few outputs saturate.

    Where ONNX Runtime is not exact, weights stay in the range in which it is.
    """
    if SATURATES and (activation, weight) == ("u8", "s8"):
        weights = np.clip(weights, -64, 64)
    spread = rng.uniform(0.5, 2, outputs if per_channel else ())
    deviation = np.sqrt(k) * 74 * 74
    found = {
        "xs": np.float32(rng.uniform(0.01, 0.05)),
        "xz": near_middle(rng, activation, 40),
        "w": weights,
        "ws": (0.01 * spread).astype(np.float32),
        "wz": np.full(outputs if per_channel else (), near_middle(rng, weight, 8)),
        "yz": near_middle(rng, activation, 50),
    }
    found["ys"] = np.float32(found["xs"] * 0.01 * deviation / 50)
    if bias:
        found["b"] = rng.uniform(-deviation, deviation, outputs).astype(np.int32)
    return {name: np.asarray(value) for name, value in found.items()}


def model(nodes, inputs, outputs, constants, opset=21):
    """Bytes of a model; ``inputs`` and ``outputs`` are name -> (kind, shape)."""

    def infos(values):
        return [
            helper.make_tensor_value_info(name, TYPES[kind][1], shape)
            for name, (kind, shape) in values.items()
        ]

    graph = helper.make_graph(
        nodes,
        "test",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def conv_node(source="x", target="y", prefix="", name="conv", bias=True, **attributes):
    roles = ["xs", "xz", "w", "ws", "wz", "ys", "yz"] + (["b"] if bias else [])
    return helper.make_node(
        "QLinearConv", [source] + [prefix + r for r in roles], [target], name, **attributes
    )


def conv_model(
    rng,
    *,
    activation="s8",
    weight="s8",
    x=(1, 8, 7, 6),
    outputs=12,
    kernel=(3, 3),
    groups=1,
    per_channel=True,
    bias=True,
    out=None,
    **attributes,
):
    """One QLinearConv; ``out`` is the declared spatial output shape (symbolic by default)."""
    weights = draw(rng, (outputs, x[1] // groups, *kernel), weight)
    k = x[1] // groups * int(np.prod(kernel))
    constants = operands(
        rng,
        weights,
        outputs,
        k,
        activation=activation,
        weight=weight,
        per_channel=per_channel,
        bias=bias,
    )
    node = conv_node(bias=bias, group=groups, **attributes)
    out = out or [f"d{i}" for i in range(len(kernel))]
    return model(
        [node], {"x": (activation, x)}, {"y": (activation, [x[0], outputs, *out])}, constants
    )


def gemm_node(source="x", target="y", prefix="", name="gemm", bias=True, **attributes):
    names = [prefix + r for r in ("xs", "xz", "w", "ws", "wz")]
    names += [prefix + "b" if bias else "", prefix + "ys", prefix + "yz"]
    return helper.make_node(
        "QGemm", [source, *names], [target], name, domain="com.microsoft", **attributes
    )


def gemm_model(
    rng,
    *,
    activation="s8",
    weight="s8",
    rows=5,
    k=24,
    outputs=18,
    per_channel=True,
    bias=True,
    bias_shape=None,
    **attributes,
):
    """One QGemm with any transposition."""
    shape = (outputs, k) if attributes.get("transB") else (k, outputs)
    constants = operands(
        rng,
        draw(rng, shape, weight),
        outputs,
        k,
        activation=activation,
        weight=weight,
        per_channel=per_channel,
        bias=bias,
    )
    if bias_shape is not None:
        constants["b"] = np.resize(constants["b"], bias_shape)
    x = (k, rows) if attributes.get("transA") else (rows, k)
    return model(
        [gemm_node(bias=bias, **attributes)],
        {"x": (activation, x)},
        {"y": (activation, (rows, outputs))},
        constants,
    )


def matmul_model(
    rng,
    *,
    activation="s8",
    weight="s8",
    x=(5, 24),
    outputs=18,
    per_channel=True,
    weight_shape=None,
    **change,
):
    """One QLinearMatMul; ``change`` replaces constants."""
    k = x[-1]
    constants = operands(
        rng,
        draw(rng, weight_shape or (k, outputs), weight),
        outputs,
        k,
        activation=activation,
        weight=weight,
        per_channel=per_channel,
        bias=False,
    )
    names = ["xs", "xz", "w", "ws", "wz", "ys", "yz"]
    node = helper.make_node("QLinearMatMul", ["x", *names], ["y"], "matmul")
    return model(
        [node], {"x": (activation, x)}, {"y": (activation, [*x[:-1], outputs])}, constants | change
    )
