# SPDX-License-Identifier: Apache-2.0
"""Float models through the quantiser and the importer, and the operators that only these have."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from emu.compiler import compile_network
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import execute
from emu.network.golden import OWN_OPERATORS, evaluate, qdq_mismatches
from emu.network.importer import import_onnx
from emu.network.layers import (
    AttentionLayer,
    ConcatLayer,
    ConvLayer,
    ExpertLayer,
    GatherLayer,
    IndexTensor,
    NormLayer,
    TableLayer,
    TopKLayer,
)
from emu.network.qdq import DEQUANTISE, QUANTISE
from emu.network.quantise import Options, quantise
from emu.network.tensors import random_inputs
from tests.emu.float_models import ROWS, TOKENS, Graph, samples, transformer

SMALL = load_config("small")


def quantised(tmp_path, model, data):
    onnx.save(model, tmp_path / "float.onnx")
    np.savez(tmp_path / "samples.npz", **data)
    made = quantise(tmp_path / "float.onnx", tmp_path / "samples.npz", Options())
    onnx.save(made, tmp_path / "q.onnx")
    return import_onnx(tmp_path / "q.onnx")


def check(network, seeds=2):
    """Golden, and the compiled program; returns the golden result of the last seed."""
    program = compile_network(network, SMALL)
    for seed in range(seeds):
        inputs = random_inputs(network, seed)
        golden = evaluate(network, inputs)
        found = execute(program, inputs)
        for name, value in golden.outputs.items():
            np.testing.assert_array_equal(found[name], value)
    return inputs, golden


@pytest.mark.parametrize("arguments", [
    {}, {"decomposed": True}, {"activation": "Gelu", "opset": 20},
    {"activation": "Tanh", "embedded": False},
], ids=["erf", "decomposed", "gelu", "tanh"])
def test_an_exported_transformer(tmp_path, arguments):
    """Embedding, normalisations, attention and activation; nothing else is a layer of its own."""
    embedded = arguments.get("embedded", True)
    network = quantised(tmp_path, transformer(**arguments), samples(embedded))
    kinds = [type(layer) for layer in network.layers]
    assert kinds.count(NormLayer) == 3 and kinds.count(AttentionLayer) == 1
    assert kinds.count(ConvLayer) == 7 and kinds.count(TableLayer) == 0
    assert kinds.count(GatherLayer) == int(embedded)
    if embedded:
        (ids,) = network.inputs
        assert isinstance(ids, IndexTensor) and (ids.limit, ids.dtype) == (ROWS, "int64")
        assert ids.shape == (1, TOKENS)
    inputs, golden = check(network)
    assert golden.conditions == (OWN_OPERATORS,)
    apart = golden.distances["layer normalisation"]
    assert apart["layers"] == 3 and apart["largest_steps"] < 0.51
    count, _, most = qdq_mismatches(network, inputs, golden.outputs)
    assert count == TOKENS * 16 and most <= 8


def image_net(body, outputs, channels=16):
    """A float model over images [1, channels, 8, 8]; ``body`` adds nodes up to y."""
    net = Graph(3)

    def conv(name, x, into, kernel=1):
        return net.node("Conv", [x, net.normal(f"{name}.w", into, channels, kernel, kernel,
                                               scale=0.2)], name, pads=[kernel // 2] * 4)

    body(net, conv)
    data = {"x": net.rng.standard_normal((6, channels, 8, 8)).astype(np.float32)}
    return net.model({"x": (TensorProto.FLOAT, [1, channels, 8, 8])},
                     {"y": (TensorProto.FLOAT, outputs)}), data


def test_concatenated_branches(tmp_path):
    """Branches of different scales side by side; one of them is read twice."""
    def body(net, conv):
        a, b = conv("a", "x", 32), net.node("Relu", [conv("b", "x", 16, 3)], "b.relu")
        both = net.node("Concat", [a, b], "both", axis=1)
        again = net.node("Concat", [b, both], "again", axis=1)
        net.node("GlobalAveragePool", [again], "y")

    network = quantised(tmp_path, *image_net(body, [1, 64, 1, 1]))
    kinds = [type(layer) for layer in network.layers]
    assert kinds.count(ConcatLayer) == 2
    check(network)


def test_concatenation_along_rows(tmp_path):
    net = Graph(4)
    a, b = net.linear("a", "x", 16, 16), net.linear("b", "x", 16, 16)
    net.node("Concat", [a, b], "y", axis=1)
    model = net.model({"x": (TensorProto.FLOAT, [1, 5, 16])},
                      {"y": (TensorProto.FLOAT, [1, 10, 16])})
    data = {"x": net.rng.standard_normal((6, 5, 16)).astype(np.float32)}
    network = quantised(tmp_path, model, data)
    assert [layer.axis for layer in network.layers if isinstance(layer, ConcatLayer)] == ["tokens"]
    check(network)


def test_functions_of_one_tensor_are_one_table(tmp_path):
    """HardSwish in four nodes, SiLU in two: fused behind their convolutions."""
    def body(net, conv):
        a = conv("a", "x", 16)
        inner = net.node("Add", [a, net.constant("three", 3)], "a.3")
        inner = net.node("Clip", [inner, net.constant("low", 0), net.constant("high", 6)], "a.6")
        a = net.node("Div", [net.node("Mul", [a, inner], "a.m"), net.constant("six", 6)], "a.out")
        b = conv("b", a, 16)
        b = net.node("Mul", [b, net.node("Sigmoid", [b], "b.s")], "b.out")
        net.node("Add", [a, b], "y")

    network = quantised(tmp_path, *image_net(body, [1, 16, 8, 8]))
    assert [type(layer) for layer in network.layers[:2]] == [ConvLayer, ConvLayer]
    assert all(layer.table is not None for layer in network.layers[:2])
    check(network)


def test_constant_tensors_as_operands(tmp_path):
    """By channel and by pixel; they lie in HBM beside the inputs."""
    def body(net, conv):
        a = net.node("Relu", [conv("a", "x", 16)], "relu")
        b = net.node("Mul", [a, net.normal("gain", 1, 16, 1, 1)], "gained")
        net.node("Add", [net.normal("shift", 8, 8), b], "y")

    network = quantised(tmp_path, *image_net(body, [1, 16, 8, 8]))
    assert len(network.constants) == 2
    check(network)


def integer_model(nodes, constants, outputs, x=(4, 16)):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "integers", [value("x", TensorProto.UINT8, x)],
        [value("y", *outputs)], [numpy_helper.from_array(np.asarray(v), k)
                                 for k, v in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("relu", [False, True])
def test_integer_products_take_the_scales_behind_them(relu):
    """MatMulInteger, Cast, Mul, Add, QuantizeLinear: a QGemm. Of larger weights ONNX Runtime lets
    sums of two products saturate on processors without VNNI."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w", "xz"], ["sums"], "product"),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["biased"]),
        *([helper.make_node("Relu", ["biased"], ["clipped"])] if relu else []),
        helper.make_node(QUANTISE, ["clipped" if relu else "biased", "s", "z"], ["y"]),
    ]
    constants = {
        "w": rng.integers(-64, 65, (16, 20), np.int8), "xz": np.uint8(120),
        "factor": rng.uniform(1e-5, 2e-5, 20).astype(np.float32),
        "bias": rng.normal(0, 0.3, 20).astype(np.float32), "s": np.float32(0.01),
        "z": np.uint8(100),
    }
    model = integer_model(nodes, constants, (TensorProto.UINT8, [4, 20]))
    network = import_onnx(model.SerializeToString(), "sums")
    assert [type(layer) for layer in network.layers] == [ConvLayer]
    inputs, golden = check(network)
    session = __import__("onnxruntime").InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(["y"], inputs)
    apart = np.abs(theirs.astype(int) - golden.outputs["y"])
    assert apart.max() <= 1 and np.count_nonzero(apart) <= 2


def test_what_has_no_static_scale_is_refused():
    rng = np.random.default_rng(6)
    weights = {"w": rng.integers(-127, 128, (16, 20), np.int8), "xz": np.uint8(120)}
    sums = helper.make_node("MatMulInteger", ["x", "w", "xz"], ["y"], "product")
    quantiser = helper.make_node(QUANTISE, ["f", "s", "z"], ["unread"])
    model = integer_model([sums, helper.make_node(DEQUANTISE, ["x", "s", "z"], ["f"]), quantiser],
                          weights | {"s": np.float32(1), "z": np.uint8(0)},
                          (TensorProto.INT32, [4, 20]))
    with pytest.raises(UserError, match=r"MatMulInteger product .*int32 sums cannot leave"):
        import_onnx(model.SerializeToString(), "sums")
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "observe"),
             helper.make_node(DEQUANTISE, ["q", "s", "z"], ["y"])]
    graph = helper.make_graph(nodes, "dynamic", [value("x", TensorProto.FLOAT, [4, 4])],
                              [value("y", TensorProto.FLOAT, [4, 4])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(UserError, match=r"DynamicQuantizeLinear observe .*only known at run time"):
        import_onnx(model.SerializeToString(), "dynamic")


def routed(count=6, width=16, inner=32):
    """A router, two of ``count`` experts on one token, up and down; values, numbers, products."""
    net = Graph(8)
    scores = net.linear("router", "x", width, count)
    k = net.constant("k", [2], np.int64)
    net.nodes.append(helper.make_node("TopK", [scores, k], ["values", "numbers"], "top"))
    net.node("Identity", ["values"], "best")
    net.node("Identity", ["numbers"], "which")
    up = net.node("Gather", [net.normal("up.w", count, width, inner, scale=0.2), "numbers"],
                  "up.chosen")
    down = net.node("Gather", [net.normal("down.w", count, inner, width, scale=0.2), "numbers"],
                    "down.chosen")
    hidden = net.node("Relu", [net.node("MatMul", ["x", up], "up")], "hidden")
    net.node("MatMul", [hidden, down], "y")
    return net.model({"x": (TensorProto.FLOAT, [1, width])}, {
        "y": (TensorProto.FLOAT, [1, 2, 1, width]), "best": (TensorProto.FLOAT, [1, 2]),
        "which": (TensorProto.INT64, [1, 2])})


@pytest.mark.parametrize("width", [16, 20])
def test_routing_by_topk(tmp_path, width):
    """The largest scores, their numbers, and the experts that they choose."""
    data = {"x": np.random.default_rng(9).standard_normal((8, width)).astype(np.float32)}
    network = quantised(tmp_path, routed(width=width, inner=2 * width), data)
    kinds = [type(layer) for layer in network.layers]
    assert kinds.count(TopKLayer) == 1 and kinds.count(ExpertLayer) == 2
    _, golden = check(network, 4)
    best, which = golden.outputs["best"], golden.outputs["which"]
    assert best.dtype == np.int8 and best[0, 0] >= best[0, 1]
    assert which.dtype == np.int64 and len(set(which[0])) == 2


def test_rows_of_the_largest(tmp_path):
    """TopK of several rows, as outputs."""
    net = Graph(9)
    k = net.constant("k", [3], np.int64)
    net.nodes.append(helper.make_node("TopK", [net.linear("scores", "x", 16, 9), k],
                                      ["best", "which"], "top"))
    model = net.model({"x": (TensorProto.FLOAT, [5, 16])}, {
        "best": (TensorProto.FLOAT, [5, 3]), "which": (TensorProto.INT64, [5, 3])})
    data = {"x": net.rng.standard_normal((10, 16)).astype(np.float32)}
    check(quantised(tmp_path, model, data), 3)


def test_sums_become_float32_only():
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w", "xz"], ["sums"], "product"),
        helper.make_node("Cast", ["sums"], ["wide"], "cast", to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["wide"], ["real"], "narrow", to=TensorProto.FLOAT),
        helper.make_node(QUANTISE, ["real", "s", "z"], ["y"]),
    ]
    constants = {"w": np.ones((16, 20), np.int8), "xz": np.uint8(120), "s": np.float32(9),
                 "z": np.uint8(100)}
    model = integer_model(nodes, constants, (TensorProto.UINT8, [4, 20]))
    with pytest.raises(UserError, match=r"Cast cast \(sums\): int32 sums can only become float32"):
        import_onnx(model.SerializeToString(), "sums")


def test_a_number_of_more_dimensions_is_no_function(tmp_path):
    """It adds dimensions, which a table does not: refused, not misread."""
    net = Graph(12)
    a = net.linear("a", "x", 16, 16)
    wide = net.node("Mul", [a, net.constant("half", [[[0.5]]])], "wide")
    net.node("Tanh", [wide], "y")
    model = net.model({"x": (TensorProto.FLOAT, [5, 16])}, {"y": (TensorProto.FLOAT, [1, 5, 16])})
    data = {"x": net.rng.standard_normal((6, 16)).astype(np.float32)[:5]}
    with pytest.raises(UserError, match=r"Mul wide: .* has more dimensions than the other, 2"):
        quantised(tmp_path, model, data)
