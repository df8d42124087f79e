# SPDX-License-Identifier: Apache-2.0
"""QDQ models and the quantiser: the QLinear form, its golden result, what stays on the host."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from emu.errors import UserError
from emu.network.golden import evaluate, qdq_mismatches
from emu.network.importer import import_onnx
from emu.network.qdq import QUANTISE
from emu.network.quantise import Options, quantise
from emu.network.tensors import load_inputs, random_inputs

pytest.importorskip("onnxruntime.quantization")


class FloatNet:
    """A float model under construction: convolutions, a pool, a residual, a classifier."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def conv(self, name, x, inputs, outputs, k, stride=1, group=1):
        fan = inputs // group * k * k
        shape = (outputs, inputs // group, k, k)
        weights = self.constant(f"{name}_w", self.rng.standard_normal(shape) / np.sqrt(fan))
        bias = self.constant(f"{name}_b", 0.1 * self.rng.standard_normal(outputs))
        return self.node("Conv", [x, weights, bias], name, kernel_shape=[k, k],
                         pads=[k // 2] * 4, strides=[stride] * 2, group=group)

    def save(self, path, outputs):
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT,
                                                              [1, 3, 12, 12])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)], self.constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)],
                                    ir_version=8), path)


def save_cnn(path):
    net = FloatNet()
    a = net.node("Relu", [net.conv("c1", "x", 3, 16, 3)], "r1")
    p = net.node("MaxPool", [a], "pool", kernel_shape=[2, 2], strides=[2, 2])
    low, high = net.constant("low", 0), net.constant("high", 6)
    b = net.node("Clip", [net.conv("c2", p, 16, 16, 3, group=16), low, high], "r2")
    scale = [net.constant(f"bn_{k}", v) for k, v in
             (("s", np.ones(16) * 1.5), ("b", np.zeros(16)), ("m", np.full(16, 0.1)),
              ("v", np.ones(16)))]
    c = net.node("BatchNormalization", [net.conv("c3", b, 16, 16, 1), *scale], "bn")
    d = net.node("Relu", [net.node("Add", [c, p], "add")], "r3")
    s = net.node("Sigmoid", [d], "sig")
    f = net.node("Flatten", [net.node("GlobalAveragePool", [s], "gap")], "flat", axis=1)
    w = net.constant("fc_w", net.rng.standard_normal((10, 16)))
    net.node("Gemm", [f, w, net.constant("fc_b", np.full(10, 0.1))], "y", transB=1)
    net.save(path, [1, 10])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qdq")
    save_cnn(folder / "float.onnx")
    rng = np.random.default_rng(1)
    np.savez(folder / "samples.npz", x=rng.standard_normal((6, 3, 12, 12)).astype(np.float32))
    return folder


@pytest.mark.parametrize("options", [
    Options(), Options(observer="percentile", percentile=99.9), Options(int4=("fc",)),
    Options(int4=("all",)),
], ids=["min_max", "percentile", "int4_fc", "int4"])
def test_quantised_models_import_with_onnxruntimes_bits(files, options):
    """The QLinear form is exact; against the QDQ model nearly everything is equal."""
    if options.int4 == ("fc",):
        options = Options(int4=("y",))
    path = files / "q.onnx"
    model = quantise(files / "float.onnx", files / "samples.npz", options)
    onnx.save(model, path)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    kinds = {i.data_type for i in model.graph.initializer}
    assert (TensorProto.INT4 in kinds) == bool(options.int4)
    network = import_onnx(path)
    assert [t.dtype for t in (*network.inputs, *network.outputs)] == ["int8", "int8"]
    for seed in range(3):
        inputs = random_inputs(network, seed)
        outputs = evaluate(network, inputs).outputs
        count, wrong, most = qdq_mismatches(network, inputs, outputs)
        assert count == 10 and wrong <= 2 and most <= 1
    host = network.boundary.host_operators({"x": 432, "y": 10})
    assert [name.split()[0] for name in host] == ["QuantizeLinear", "DequantizeLinear"]
    assert [text.split(",")[0] for text in host.values()] == [
        "1", "10 of int8 to 40 bytes of float32"]
    assert "1,728 bytes of float32 to 432 of int8" in host["QuantizeLinear x"]


def test_float_inputs_are_quantised_on_the_host(files, tmp_path):
    onnx.save(quantise(files / "float.onnx", files / "samples.npz", Options()),
              tmp_path / "q.onnx")
    network = import_onnx(tmp_path / "q.onnx")
    values = np.random.default_rng(3).standard_normal((1, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=values)
    scale = network.boundary.inputs["x"]
    loaded = load_inputs(network, tmp_path / "x.npz")["x"]
    expected = np.clip(np.rint(values / scale.scale) + int(scale.zero), -128, 127)
    assert loaded.dtype == np.int8
    np.testing.assert_array_equal(loaded, expected)


def test_a_clip_above_the_types_minimum_stays(tmp_path):
    """Relu with a zero point in the middle: a Clip of the integers."""
    scale, zero = np.float32(0.1), np.int8(3)
    names = {"s": scale, "z": zero}
    nodes = [
        helper.make_node(QUANTISE, ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xf"]),
        helper.make_node("MaxPool", ["xf"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node(QUANTISE, ["r", "s", "z"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2, 2])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in names.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    network = import_onnx(model.SerializeToString(), "clip")
    inputs = random_inputs(network, 5)
    outputs = evaluate(network, inputs).outputs
    assert outputs["y"].min() == 3
    assert qdq_mismatches(network, inputs, outputs) == (16, 0, 0)


def test_all_that_is_not_quantised_is_named_at_once(tmp_path, files):
    model = quantise(files / "float.onnx", files / "samples.npz", Options())
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = "Hardmax"
        if node.op_type == "GlobalAveragePool":
            node.op_type = "GlobalMaxPool"
    onnx.save(model, tmp_path / "q.onnx")
    message = r"not all of it is quantised: Hardmax sig .*GlobalMaxPool gap"
    with pytest.raises(UserError, match=message):
        import_onnx(tmp_path / "q.onnx")


def test_errors(files, tmp_path):
    good, samples = files / "float.onnx", files / "samples.npz"
    for options, message in (
        (Options(observer="mean"), "observer mean: must be one of"),
        (Options(percentile=20), "percentile 20"),
        (Options(int4=("c9",)), "no Conv, Gemm or MatMul called c9"),
    ):
        with pytest.raises(UserError, match=message):
            quantise(good, samples, options)
    with pytest.raises(UserError, match="cannot be read"):
        quantise(good, tmp_path / "none.npz", Options())
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"not an \.npz file"):
        quantise(good, tmp_path / "text.npz", Options())
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    with pytest.raises(UserError, match="has arrays z, the model's inputs are x"):
        quantise(good, tmp_path / "other.npz", Options())
    np.savez(tmp_path / "shape.npz", x=np.zeros((2, 3, 9, 9), np.float32))
    with pytest.raises(UserError, match=r"\[N, 3, 12, 12\] expected"):
        quantise(good, tmp_path / "shape.npz", Options())
    onnx.save(quantise(good, samples, Options()), tmp_path / "q.onnx")
    with pytest.raises(UserError, match="is quantised already"):
        quantise(tmp_path / "q.onnx", samples, Options())
