# SPDX-License-Identifier: Apache-2.0
"""Odd layers, as ONNX files, through the RTL of the small chip: outputs equal ONNX Runtime's."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from emu.compiler import compile_network
from emu.config import load_config
from emu.network.workloads import load_network
from sim.execute import Options, run
from tests.emu import network_models as models
from tests.emu.network_models import conv_node, draw, gemm_node, operands
from tests.sim.random_layers import random_chain, random_layer

S8 = dict(activation="s8", weight="s8")
MIXED = dict(activation="u8", weight="s8")
U8 = dict(activation="u8", weight="u8")
PER_TENSOR, BARE = dict(per_channel=False), dict(bias=False)


def conv(seed, *fused, **arguments):
    """A QLinearConv, and a Relu or Clip (steps around the output's zero point) after it."""
    data = models.conv_model(np.random.default_rng(seed), **arguments)
    return clipped(data, fused) if fused else data


def gemm(seed, *fused, **arguments):
    data = models.gemm_model(np.random.default_rng(seed), **arguments)
    return clipped(data, fused) if fused else data


def matmul(seed, **arguments):
    return models.matmul_model(np.random.default_rng(seed), **arguments)


def clipped(data, steps):
    """``data`` with a Relu (no ``steps``: ("relu",)) or a Clip at ``steps`` behind it."""
    proto = onnx.load_model_from_string(data)
    graph, inputs = proto.graph, ["before"]
    graph.node[0].output[0] = "before"
    if steps != ("relu",):
        zero = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == "yz")
        info = np.iinfo(zero.dtype)
        for name, step in zip(("low", "high"), steps, strict=True):
            bound = np.clip(int(zero) + step, info.min, info.max).astype(zero.dtype)
            graph.initializer.append(numpy_helper.from_array(np.asarray(bound), name))
            inputs.append(name)
    graph.node.append(helper.make_node("Clip" if inputs[1:] else "Relu", inputs, ["y"], "fused"))
    return proto.SerializeToString()


def chain():
    """A convolution, a depthwise one with Relu, and a classifier on the flattened image."""
    rng = np.random.default_rng(40)
    shapes = {"a": (20, 3, 3, 3), "b": (20, 1, 3, 3), "c": (20 * 4 * 3, 11)}
    constants = {}
    for name, shape in shapes.items():
        outputs = shape[-1] if name == "c" else shape[0]
        depth = shape[0] if name == "c" else int(np.prod(shape[1:]))
        found = operands(rng, draw(rng, shape, "s8"), outputs, depth, **S8)
        constants |= {f"{name}.{role}": value for role, value in found.items()}
    # What one layer writes is what the next reads.
    for before, after in (("a", "b"), ("b", "c")):
        for role in ("s", "z"):
            constants[f"{after}.x{role}"] = constants[f"{before}.y{role}"]
    nodes = [
        conv_node("x", "one", "a.", "a", pads=[1, 1, 1, 1]),
        conv_node("one", "two", "b.", "b", group=20, strides=[2, 2], pads=[0, 1, 1, 0]),
        helper.make_node("Relu", ["two"], ["three"], "relu"),
        helper.make_node("Flatten", ["three"], ["four"], "flatten"),
        gemm_node("four", "y", "c.", "c"),
    ]
    return models.model(
        nodes, {"x": ("s8", (2, 3, 9, 7))}, {"y": ("s8", (2, 11))}, constants
    )


LAYERS = {
    "1 to 1 channel, 1 output": conv(1, **S8, x=(1, 1, 3, 3), outputs=1),
    "3 to 17 channels, 7x7 stride 2": conv(
        2, "relu", **S8, x=(1, 3, 23, 18), outputs=17, kernel=(7, 7), strides=[2, 2],
        pads=[3, 2, 1, 3],
    ),
    "40 to 3 channels, 1x1, batch 8": conv(
        3, **U8, **PER_TENSOR, x=(8, 40, 5, 6), outputs=3, kernel=(1, 1)
    ),
    "17 to 40 channels, dilated": conv(
        4, -20, 50, **MIXED, **BARE, x=(3, 17, 12, 13), outputs=40, dilations=[2, 3],
        pads=[2, 0, 1, 3],
    ),
    "1x1 with stride and padding": conv(
        5, **U8, x=(2, 33, 9, 8), outputs=20, kernel=(1, 1), strides=[2, 3], pads=[1, 0, 2, 1]
    ),
    "7x7 to 1 output, batch 4": conv(6, **MIXED, x=(4, 24, 7, 7), outputs=33, kernel=(7, 7)),
    "outputs of padding alone": conv(
        7, **S8, **BARE, x=(2, 5, 4, 4), outputs=6, kernel=(1, 3), strides=[3, 2], pads=[3, 3, 3, 3]
    ),
    "even kernel, padding by name": conv(
        8, 0, 100, **S8, x=(1, 16, 10, 11), outputs=16, kernel=(4, 2), auto_pad="SAME_LOWER",
        strides=[2, 1],
    ),
    "1-D": conv(9, **U8, x=(2, 6, 37), outputs=19, kernel=(5,), strides=[2], pads=[3, 1]),
    "depthwise, 17 channels": conv(
        10, "relu", **S8, x=(2, 17, 9, 8), outputs=17, groups=17, pads=[1, 0, 1, 2]
    ),
    "depthwise, stride and dilation": conv(
        11, -10, 60, **U8, **BARE, x=(1, 40, 14, 11), outputs=40, groups=40, kernel=(5, 3),
        strides=[2, 1], dilations=[1, 2], pads=[2, 2, 2, 2],
    ),
    "grouped, 3 x (12 to 20)": conv(
        12, **MIXED, **PER_TENSOR, x=(1, 36, 8, 8), outputs=60, groups=3, pads=[1, 1, 1, 1]
    ),
    "depthwise with two outputs a channel": conv(
        13, **S8, x=(1, 10, 7, 7), outputs=20, groups=10, kernel=(3, 3)
    ),
    "matrix": matmul(14, **U8, x=(37, 100), outputs=55),
    "matrix with a batch": matmul(15, **S8, **PER_TENSOR, x=(3, 5, 72), outputs=17),
    "QGemm, B transposed": gemm(16, "relu", **S8, rows=1, k=300, outputs=130, transB=1),
    "QGemm, A transposed": gemm(
        17, -30, 30, **MIXED, **BARE, rows=21, k=40, outputs=3, transA=1, alpha=0.5
    ),
    "chain": chain(),
}


def check(path, data, seed=1):
    path.write_bytes(data)
    size = sum(np.prod(tensor.shape) for tensor in load_network(path).outputs)
    result = run(str(path), chip="small", options=Options(seed=seed))
    assert result["verified"] == {"outputs": size, "mismatches": 0, "conditions": [],
                                  "distances": {}, "host": {}}
    return result


@pytest.mark.rtl
@pytest.mark.parametrize("name", LAYERS)
def test_layer(tmp_path, name):
    check(tmp_path / "m.onnx", LAYERS[name])


TILED = {
    "bands of the image": (
        "bands", conv(20, **S8, x=(4, 64, 70, 70), outputs=12, kernel=(1, 3), pads=[0, 1, 0, 1])),
    "rows of a matrix": ("bands", gemm(22, **MIXED, rows=700, k=1900, outputs=20)),
    "weights of a part of the outputs at a time": (
        "batch", matmul(23, **S8, x=(1100, 700), outputs=250)),
}
"""Layers larger than four scratchpads of 256 KiB, and how they are cut."""


@pytest.mark.rtl
@pytest.mark.parametrize("name", TILED)
def test_layer_larger_than_the_scratchpads(tmp_path, name):
    plan, data = TILED[name]
    check(tmp_path / "m.onnx", data)
    program = compile_network(load_network(tmp_path / "m.onnx"), load_config("small"), check=False)
    assert any(plan in text for text in program.plans), program.plans


@pytest.mark.rtl
@pytest.mark.parametrize("seed", [0, 1, 19, 54, 83])
def test_random_chain(tmp_path, seed):
    """Layers split in different ways one after another: who leads whom, and when, changes."""
    check(tmp_path / "m.onnx", random_chain(seed)[1], seed + 1)


@pytest.mark.rtl
def test_a_chain_longer_than_the_descriptors(tmp_path):
    """Tiles number their layer descriptors modulo 64 and write them in groups of 20."""
    text, data = random_chain(0, most=60)
    assert text.count(">") > 40
    check(tmp_path / "m.onnx", data)


@pytest.mark.rtl
@pytest.mark.parametrize("seed", [3, 11])
def test_weights_of_four_bits(tmp_path, seed):
    """They go through HBM, mesh and scratchpads as nibbles."""
    text, data = random_layer(seed)
    assert "4-bit" in text
    check(tmp_path / "m.onnx", data)
    network = load_network(tmp_path / "m.onnx")
    assert all(layer.fits_nibbles for layer in network.layers)


@pytest.mark.slow
@pytest.mark.rtl
@pytest.mark.parametrize("seed", range(100, 160))
def test_more_random_chains(tmp_path, seed):
    check(tmp_path / "m.onnx", random_chain(seed)[1], seed + 1)


@pytest.mark.slow
@pytest.mark.rtl
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("seed", range(60))
def test_random_layer(tmp_path, seed, large):
    text, data = random_layer(seed, large)
    print(text)
    check(tmp_path / "m.onnx", data, seed + 1)
