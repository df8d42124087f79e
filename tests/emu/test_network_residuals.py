# SPDX-License-Identifier: Apache-2.0
"""Additions, pools and tensors with several readers, against ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from emu.network.layers import AddLayer, ConvLayer, PoolLayer, TableLayer
from tests.emu import network_models as models
from tests.emu.network_models import conv_node, draw, operands
from tests.emu.test_network_importer import check


class Chain:
    """Nodes and constants of a model over one image of ``channels`` channels."""

    def __init__(self, rng, kind="s8", channels=8, size=(7, 6)):
        self.rng, self.kind, self.channels, self.size = rng, kind, channels, size
        self.nodes, self.constants = [], {}

    def conv(self, source, target, kernel=1):
        weights = draw(self.rng, (self.channels, self.channels, kernel, kernel), "s8")
        found = operands(self.rng, weights, self.channels, self.channels * kernel**2,
                         activation=self.kind, weight="s8")
        self.constants |= {f"{target}.{name}": value for name, value in found.items()}
        pads = [kernel // 2] * 4
        self.nodes.append(conv_node(source, target, f"{target}.", target, pads=pads))

    def add(self, a, b, target):
        names = []
        for role, source in (("a", a), ("b", b), ("y", None)):
            scale, zero = f"{target}.{role}s", f"{target}.{role}z"
            self.constants[scale] = np.float32(self.rng.uniform(0.02, 0.05) * (1 + (role == "y")))
            self.constants[zero] = models.near_middle(self.rng, self.kind, 60)
            names += [source, scale, zero] if source else [scale, zero]
        self.nodes.append(
            helper.make_node("QLinearAdd", names, [target], target, domain="com.microsoft")
        )

    def node(self, op, source, target, **attributes):
        self.nodes.append(helper.make_node(op, [source], [target], target, **attributes))

    def clip(self, source, target):
        low = self.constants[f"{target}.low"] = models.near_middle(self.rng, self.kind, 30)
        self.constants[f"{target}.high"] = np.asarray(low + 70, low.dtype)
        self.nodes.append(helper.make_node("Clip", [source, f"{target}.low", f"{target}.high"],
                                           [target], target))

    def average(self, source, target, **attributes):
        names = [f"{target}.{n}" for n in ("xs", "xz", "ys", "yz")]
        values = (np.float32(self.rng.uniform(0.02, 0.05)),
                  models.near_middle(self.rng, self.kind, 60),
                  np.float32(self.rng.uniform(0.01, 0.02)),
                  models.near_middle(self.rng, self.kind, 60))
        self.constants |= dict(zip(names, values, strict=True))
        op = "QLinearAveragePool" if attributes else "QLinearGlobalAveragePool"
        self.nodes.append(helper.make_node(op, [source, *names], [target], target,
                                           domain="com.microsoft", **attributes))

    def run(self, *outputs, varied=False):
        shape = (self.kind, (1, self.channels, "h", "w"))
        data = models.model(
            self.nodes, {"x": (self.kind, (1, self.channels, *self.size))},
            {name: shape for name in outputs}, self.constants,
        )
        return check(data, varied=varied)


def kinds(network):
    return [type(layer) for layer in network.layers]


@pytest.mark.parametrize("kind", ["s8", "u8"])
@pytest.mark.parametrize("first", [True, False])
def test_a_convolution_takes_the_addition(kind, first):
    net = Chain(np.random.default_rng(1), kind)
    net.conv("x", "a")
    net.conv("a", "b", 3)
    net.add(*(("b", "a") if first else ("a", "b")), "y")
    network, _ = net.run("y", varied=True)
    assert kinds(network) == [ConvLayer, ConvLayer]
    fused = network.layers[1].residual
    assert fused.source.name == "a" and fused.source_first is not first
    assert network.layers[1].target.name == "y"


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_convolution_that_runs_last_takes_it(order):
    net = Chain(np.random.default_rng(2))
    for target in order:
        net.conv("x", target)
    net.add("a", "b", "y")
    network, _ = net.run("y", varied=True)
    assert kinds(network) == [ConvLayer, ConvLayer]
    assert network.layers[0].residual is None
    assert network.layers[1].residual.source.name == order[0]


def test_a_convolution_waits_for_the_other_operand():
    net = Chain(np.random.default_rng(3))
    net.conv("x", "a")
    net.node("MaxPool", "x", "p", kernel_shape=[3, 3], pads=[1] * 4)
    net.add("a", "p", "y")
    network, _ = net.run("y")
    assert kinds(network) == [PoolLayer, ConvLayer]
    assert network.layers[1].residual.source.name == "p"


def test_clips_behind_an_addition():
    net = Chain(np.random.default_rng(4))
    net.conv("x", "a")
    net.node("Relu", "a", "b")
    net.conv("b", "c")
    net.add("b", "c", "s")
    net.node("Relu", "s", "y")
    network, ours = net.run("y")
    layer = network.layers[1]
    assert (layer.clip_low, layer.residual.clip_low, layer.target.name) == (-128, 0, "y")
    assert ours["y"].min() == 0


def test_operands_that_others_read_too():
    net = Chain(np.random.default_rng(5))
    net.conv("x", "a")
    net.add("a", "x", "s")
    net.node("Relu", "s", "t")
    net.add("s", "t", "y")
    network, _ = net.run("y", "a")
    assert kinds(network) == [ConvLayer, AddLayer, TableLayer, AddLayer]
    net = Chain(np.random.default_rng(6))
    net.conv("x", "a")
    net.add("a", "a", "y")
    network, _ = net.run("y")
    assert kinds(network) == [ConvLayer, AddLayer]


def test_outputs_that_others_read_too():
    net = Chain(np.random.default_rng(7))
    net.conv("x", "a")
    net.node("Relu", "a", "b")
    net.conv("b", "c")
    net.node("Identity", "c", "d")
    network, _ = net.run("a", "b", "c", "d")
    assert kinds(network) == [ConvLayer, TableLayer, ConvLayer]


def test_clips_of_an_input():
    net = Chain(np.random.default_rng(8))
    net.node("Relu", "x", "y")
    network, _ = net.run("y")
    assert kinds(network) == [TableLayer]


@pytest.mark.parametrize("kind", ["s8", "u8"])
@pytest.mark.parametrize("seed", range(12))
def test_pools(kind, seed):
    rng = np.random.default_rng(seed)
    net = Chain(rng, kind, int(rng.integers(1, 20)), tuple(int(v) for v in rng.integers(6, 14, 2)))
    kernel = [int(v) for v in rng.integers(1, 5, 2)]
    window = {
        "kernel_shape": kernel, "strides": [int(v) for v in rng.integers(1, 4, 2)],
        "pads": [int(rng.integers(0, k)) for k in kernel * 2],
    }
    if seed % 3 == 0:
        net.node("MaxPool", "x", "m", **window)
        net.node("Clip", "m", "y")
    elif seed % 3 == 1:
        net.average("x", "y", count_include_pad=1, **window)
    else:
        net.average("x", "y")
    network, _ = net.run("y")
    clipped = [TableLayer] if seed % 3 == 0 else []  # a maximum has no clip of its own
    assert kinds(network) == [PoolLayer, *clipped]


def test_a_pool_shares_its_input_quantisation():
    net = Chain(np.random.default_rng(9))
    net.node("MaxPool", "x", "p", kernel_shape=[2, 2])
    net.conv("p", "y")
    network, _ = net.run("y")
    pool, conv = network.layers
    assert pool.source.zero == pool.target.zero == conv.x_zero
    assert network.inputs[0].zero_point == conv.x_zero and network.inputs[0].scale != 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_random_topologies(data):
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    net = Chain(np.random.default_rng(data.draw(st.integers(0, 1 << 30))), pick("s8", "u8"),
                data.draw(st.integers(1, 20)), (5, 4))
    tensors = ["x"]
    for number in range(data.draw(st.integers(2, 9))):
        target, source = f"t{number}", data.draw(st.sampled_from(tensors))
        op = pick("conv", "conv3", "add", "clip", "max", "average")
        if op in ("conv", "conv3"):
            net.conv(source, target, 3 if op == "conv3" else 1)
        elif op == "add":
            net.add(source, data.draw(st.sampled_from(tensors)), target)
        elif op == "clip":
            net.clip(source, target)
        elif op == "max":
            net.node("MaxPool", source, target, kernel_shape=[3, 3], pads=[1] * 4)
        else:
            net.average(source, target, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
        tensors.append(target)
    read = {name for node in net.nodes for name in node.input}
    outputs = [t for t in tensors[1:] if t not in read or data.draw(st.booleans())]
    if "x" not in read:
        net.clip("x", "unread")
        outputs.append("unread")
    net.run(*outputs)
