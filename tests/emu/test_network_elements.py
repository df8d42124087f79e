# SPDX-License-Identifier: Apache-2.0
"""Tables, products, softmax, attention and views, against ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from emu.errors import UserError
from emu.network.importer import import_onnx
from emu.network.layers import (
    AttentionLayer,
    ConvLayer,
    MultiplyLayer,
    SoftmaxLayer,
    TableLayer,
)
from tests.emu import network_models as models
from tests.emu.network_models import draw, gemm_node, operands
from tests.emu.test_network_importer import check
from tests.emu.test_network_residuals import Chain, kinds

MICROSOFT = "com.microsoft"


class Rows(Chain):
    """A chain over (1, rows, channels)."""

    def product(self, source, target, outputs, inputs=None):
        inputs = inputs or self.channels
        found = operands(self.rng, draw(self.rng, (inputs, outputs), "s8"), outputs, inputs,
                         activation=self.kind, weight="s8", bias=False)
        self.constants |= {f"{target}.{name}": value for name, value in found.items()}
        names = [f"{target}.{n}" for n in ("xs", "xz", "w", "ws", "wz", "ys", "yz")]
        self.nodes.append(helper.make_node("QLinearMatMul", [source, *names], [target], target))

    def values(self, target, **values):
        names = []
        for name, value in values.items():
            self.constants[f"{target}.{name}"] = np.asarray(value)
            names.append(f"{target}.{name}")
        return names

    def zero(self, reach=60):
        return models.near_middle(self.rng, self.kind, reach)

    def function(self, op, source, target, y_scale, **attributes):
        names = self.values(target, xs=np.float32(0.04), xz=self.zero(), ys=np.float32(y_scale),
                            yz=self.zero())
        self.nodes.append(
            helper.make_node(op, [source, *names], [target], target, domain=MICROSOFT,
                             **attributes)
        )

    def softmax(self, source, target, scale=0.06, axis=-1):
        least = models.TYPES[self.kind][0](-128 if self.kind == "s8" else 0)
        names = self.values(target, xs=np.float32(scale), xz=self.zero(), ys=np.float32(1 / 256),
                            yz=least)
        self.nodes.append(helper.make_node("QLinearSoftmax", [source, *names], [target], target,
                                           domain=MICROSOFT, axis=axis, opset=13))

    def pair(self, a, b, target, y_scale):
        """QLinearMatMul of two activations."""
        names = self.values(target, a=np.float32(0.02), az=self.zero(20), b=np.float32(0.02),
                            bz=self.zero(20), y=np.float32(y_scale), yz=self.zero(20))
        self.nodes.append(helper.make_node(
            "QLinearMatMul", [a, *names[:2], b, *names[2:]], [target], target
        ))

    def move(self, op, source, target, *constants, **attributes):
        names = self.values(target, **{f"c{i}": c for i, c in enumerate(constants)})
        self.nodes.append(helper.make_node(op, [source, *names], [target], target, **attributes))

    def run(self, inputs, outputs):
        data = models.model(
            self.nodes, {name: (self.kind, shape) for name, shape in inputs.items()},
            {name: (self.kind, shape) for name, shape in outputs.items()}, self.constants,
        )
        return check(data, varied=False)


@pytest.mark.parametrize("kind", ["s8", "u8"])
@pytest.mark.parametrize(("op", "y_scale", "attributes"), [
    ("QLinearSigmoid", 1 / 256, {}), ("QLinearLeakyRelu", 0.03, {"alpha": 0.1}),
])
def test_functions_of_a_byte(kind, op, y_scale, attributes):
    net = Rows(np.random.default_rng(1), kind, 20)
    net.function(op, "x", "y", y_scale, **attributes)
    network, _ = net.run({"x": (1, 9, 20)}, {"y": (1, 9, 20)})
    assert kinds(network) == [TableLayer]
    net = Rows(np.random.default_rng(2), kind, 20)
    net.product("x", "p", 24)
    net.function(op, "p", "q", y_scale, **attributes)
    net.function("QLinearSigmoid", "q", "y", 1 / 200)
    network, _ = net.run({"x": (1, 9, 20)}, {"y": (1, 9, 24)})
    assert kinds(network) == [ConvLayer] and network.layers[0].table is not None
    assert network.layers[0].target.name == "y"


@pytest.mark.parametrize("kind", ["s8", "u8"])
@pytest.mark.parametrize("seed", range(4))
def test_products_of_elements(kind, seed):
    """Of scales without ties: ONNX Runtime adds the zero point before rounding, we behind."""
    net = Rows(np.random.default_rng(seed), kind, 20)
    names = net.values("y", a=np.float32(0.01333 * (1 + seed)), az=net.zero(),
                       b=np.float32(0.02071), bz=net.zero(), y=np.float32(0.02131), yz=net.zero())
    inputs = ["x", *names[:2], "z", *names[2:]]
    net.nodes.append(helper.make_node("QLinearMul", inputs, ["y"], "y", domain=MICROSOFT))
    shape = (2, 20, 5, 7)
    network, _ = net.run({"x": shape, "z": shape}, {"y": shape})
    assert kinds(network) == [MultiplyLayer]


@pytest.mark.parametrize("op", ["QLinearMul", "QLinearAdd"])
def test_one_constant_number(op):
    net = Rows(np.random.default_rng(3))
    names = net.values("y", a=np.float32(0.013), az=net.zero(), c=np.int8(77), b=np.float32(0.02),
                       bz=net.zero(), y=np.float32(0.03), yz=net.zero())
    net.nodes.append(helper.make_node(op, ["x", *names], ["y"], "y", domain=MICROSOFT))
    network, _ = net.run({"x": (1, 8, 4, 5)}, {"y": (1, 8, 4, 5)})
    assert kinds(network) == [TableLayer]


@pytest.mark.parametrize("kind", ["s8", "u8"])
@pytest.mark.parametrize(("shape", "axis"), [((1, 9, 20), -1), ((7, 33), 1), ((1, 18, 5), 1)])
def test_softmax(kind, shape, axis):
    net = Rows(np.random.default_rng(4), kind)
    net.softmax("x", "y", axis=axis)
    network, _ = net.run({"x": shape}, {"y": shape})
    assert kinds(network) == [SoftmaxLayer]


def attention(kind="s8", split=False, heads=2, depth=16, rows=6):
    """Projections of one input to heads, attention, and the projection behind it."""
    net = Rows(np.random.default_rng(5), kind, 24)
    width = heads * depth
    if split:
        net.product("x", "qkv", 3 * width)
        net.values("cut", sizes=np.array([width] * 3))
        net.nodes.append(helper.make_node("Split", ["qkv", "cut.sizes"], ["q0", "k0", "v0"], "cut",
                                          axis=2))
    else:
        for name in ("q0", "k0", "v0"):
            net.product("x", name, width)
    for name, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        net.move("Reshape", f"{name}0", f"{name}1", np.array([1, rows, heads, depth]))
        net.move("Transpose", f"{name}1", name, perm=order)
    net.pair("q", "k", "s", 0.3)
    net.softmax("s", "p", 0.05)
    net.pair("p", "v", "m", 0.02)
    net.move("Transpose", "m", "m1", perm=[0, 2, 1, 3])
    net.move("Reshape", "m1", "m2", np.array([1, rows, width]))
    net.product("m2", "y", 20, width)
    return net, (1, rows, 24), (1, rows, 20)


@pytest.mark.parametrize("kind", ["s8", "u8"])
@pytest.mark.parametrize("split", [True, False])
def test_attention(kind, split):
    net, x, y = attention(kind, split)
    zero = net.constants["s.yz"]
    net.constants["p.xz"] = zero
    net.constants["m.az"] = net.constants["p.yz"]
    network, ours = net.run({"x": x}, {"y": y})
    assert kinds(network) == [ConvLayer] * 3 + [AttentionLayer, ConvLayer]
    layer = network.layers[3]
    assert layer.heads == 2 and layer.sources[0].shape == (1, 32, 1, 6)
    assert np.unique(ours["y"]).size > 20


def test_attention_refusals():
    net, x, y = attention()
    text = "as quantised, over keys"
    data = lambda outputs: models.model(  # noqa: E731
        net.nodes, {"x": ("s8", x)}, outputs, net.constants
    )
    net.constants["p.xz"] = np.int8(int(net.constants["s.yz"]) + 1)
    with pytest.raises(UserError, match=text):
        import_onnx(data({"y": ("s8", y)}))
    net.constants["p.xz"] = net.constants["s.yz"]
    net.constants["m.az"] = net.constants["p.yz"]
    with pytest.raises(UserError, match=r"read by others|read by nothing else"):
        import_onnx(data({"y": ("s8", y), "s": ("s8", (1, 2, 6, 6))}))
    net.move("Reshape", "s", "t", np.array([1, 72]))
    with pytest.raises(UserError, match=r"s is a product of activations|read by others"):
        import_onnx(data({"y": ("s8", y), "t": ("s8", (1, 72))}))


def test_transposed_rows_of_images():
    """Patches of an image, channels last, through a matrix: a 1x1 convolution."""
    net = Rows(np.random.default_rng(6), "s8", 8)
    net.conv("x", "c")
    net.move("Reshape", "c", "r", np.array([1, 8, 42]))
    net.move("Transpose", "r", "t", perm=[0, 2, 1])
    net.product("t", "y", 12)
    network, _ = net.run({"x": (1, 8, 7, 6)}, {"y": (1, 42, 12)})
    assert network.layers[1].input_shape == (1, 8, 7, 6)
    assert network.layers[1].output_shape == (1, 12, 7, 6)


def test_channels_last_input():
    net = Rows(np.random.default_rng(7), "s8", 8)
    net.move("Transpose", "x", "t", perm=[0, 3, 1, 2])
    net.conv("t", "c", 3)
    net.move("Transpose", "c", "y", perm=[0, 2, 3, 1])
    network, _ = net.run({"x": (1, 7, 6, 8)}, {"y": (1, 7, 6, 8)})
    assert kinds(network) == [ConvLayer] and network.inputs[0].order is not None


def test_slices_of_channels_and_rows():
    net = Rows(np.random.default_rng(8), "s8", 24)
    net.product("x", "a", 40)
    net.move("Slice", "a", "s", np.array([8]), np.array([32]), np.array([2]))
    net.product("s", "y", 12, 24)
    net.move("Gather", "a", "z", np.array([3, 1]), axis=1)
    network, _ = net.run({"x": (1, 5, 24)}, {"y": (1, 5, 12), "z": (1, 2, 40)})
    assert network.layers[1].weights.shape == (12, 40, 1, 1)


def test_a_flattened_transposed_image():
    net = Rows(np.random.default_rng(9), "s8", 8)
    net.conv("x", "c")
    net.move("Transpose", "c", "t", perm=[0, 2, 3, 1])
    net.move("Flatten", "t", "f", axis=1)
    found = operands(net.rng, draw(net.rng, (96, 5), "s8"), 5, 96, activation="s8", weight="s8")
    net.constants |= {f"g.{n}": v for n, v in found.items()}
    net.nodes.append(gemm_node("f", "y", "g."))
    network, _ = net.run({"x": (2, 8, 4, 3)}, {"y": (2, 5)})
    assert network.layers[1].weights.shape == (5, 8, 4, 3)
