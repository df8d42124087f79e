# SPDX-License-Identifier: Apache-2.0
"""Everything the importer refuses: one line that names the node and says what is wrong."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper

from emu.errors import UserError
from emu.network.importer import import_onnx
from emu.network.quantise import Options, quantise
from emu.network.workloads import load_network
from emu.network.zoo import tiny_residual
from tests.emu import network_models as models
from tests.emu.float_models import samples, transformer
from tests.emu.hostile import changed as changed_at_random
from tests.emu.network_models import conv_node, draw, gemm_node, operands


def refusal(source, **more) -> str:
    with pytest.raises(UserError) as caught:
        import_onnx(source, **more)
    text = str(caught.value)
    assert "\n" not in text and text
    return text


def changed(change, make=models.conv_model, **arguments):
    """A model with ``change`` applied to its proto."""
    proto = onnx.load_model_from_string(make(np.random.default_rng(1), **arguments))
    change(proto)
    return proto.SerializeToString()


def replace_constant(name, value):
    def change(proto):
        for tensor in proto.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(models.numpy_helper.from_array(np.asarray(value), name))

    return change


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x07" + bytes(100), b"\x08\x07"])
def test_not_onnx(tmp_path, data):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert "model.onnx: not an ONNX file" in refusal(path)


def test_truncated_and_missing_files(tmp_path):
    data = models.conv_model(np.random.default_rng(2))
    for size in (len(data) - 1, len(data) // 2, 20):
        (tmp_path / "m.onnx").write_bytes(data[:size])
        assert "m.onnx: not" in refusal(tmp_path / "m.onnx")
    assert "cannot be read" in refusal(tmp_path / "none.onnx")
    assert "cannot be read" in refusal(tmp_path)


def test_missing_external_data(tmp_path):
    proto = onnx.load_model_from_string(models.conv_model(np.random.default_rng(2), outputs=64))
    external_data_helper.convert_model_to_external_data(proto, location="w.bin", size_threshold=0)
    onnx.save_model(proto, tmp_path / "m.onnx")
    assert import_onnx(tmp_path / "m.onnx").layers[0].weights.shape[0] == 64
    (tmp_path / "w.bin").unlink()
    assert "m.onnx: not a valid ONNX model" in refusal(tmp_path / "m.onnx")


def test_all_unsupported_nodes_are_named():
    rng = np.random.default_rng(3)
    found = operands(rng, draw(rng, (12, 8, 3, 3), "s8"), 12, 72, activation="s8", weight="s8")
    nodes = [
        conv_node(),
        helper.make_node("DequantizeLinear", ["y", "ys", "yz"], ["f"], "dequantise"),
        helper.make_node("Hardmax", ["f"], ["g"], "squash"),
        helper.make_node("Tan", ["f"], ["h"], "more"),
        helper.make_node("QuantizeLinear", ["g", "ys", "yz"], ["z"]),
    ]
    text = refusal(
        models.model(nodes, {"x": ("s8", (1, 8, 7, 6))}, {"z": ("s8", (1, 12, 5, 4))}, found)
    )
    assert "Hardmax squash (f), Tan more (f)" in text.replace("; ", ", ")
    assert "see headrace quantize" in text


def test_channels_last_variant_is_another_operator():
    def change(proto):
        proto.graph.node[0].domain = "com.microsoft"

    assert "unsupported nodes: com.microsoft.QLinearConv" in refusal(changed(change))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(x=("n", 8, 7, 6)), "input x has a dynamic shape [n, 8, 7, 6]"),
        (dict(x=(0, 8, 7, 6)), "shape [0, 8, 7, 6]"),
        (dict(x=(1, 8, 7, 7, 7), kernel=(3, 3, 3)), "only 1-D and 2-D"),
        (dict(x=(1, 3671, 7, 6), kernel=(3, 3)), "sums of 33039 products"),
        (dict(auto_pad="SAME_UPPER", dilations=[2, 2]), "dilations"),
        (dict(pads=[0, 0, -1, 0]), "not a valid ONNX model"),
        (dict(kernel_shape=[3, 4]), "kernel_shape [3, 4] is not [3, 3]"),
        (dict(x=(1, 8, 2, 2)), "no output"),
        (dict(x=(1, 8, 7, 6), outputs=9, groups=2), "do not fit weights"),
        (dict(out=[6, 6]), "not a valid ONNX model"),
    ],
)
def test_convolutions(arguments, text):
    message = refusal(models.conv_model(np.random.default_rng(4), **arguments))
    assert text in message


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("xs", np.float32([0.1, 0.2]), "input scale must be a scalar"),
        ("xs", np.float32(0), "must be positive and finite"),
        ("ws", np.float32(np.nan), "must be positive and finite"),
        ("ws", np.ones(5, np.float32), "weight scale is [5]"),
        ("ys", np.float32(1e38), "positive and normal"),
        ("xz", np.uint8(3), "not a valid ONNX model"),
        ("xz", np.int8([3, 3]), "must be a scalar"),
        ("wz", np.arange(12, dtype=np.int8), "zero points differ between outputs"),
        ("wz", np.uint8(3), "not a valid ONNX model"),
        ("yz", np.uint8(3), "not a valid ONNX model"),
        ("b", np.zeros(12, np.int64), "not a valid ONNX model"),
        ("b", np.zeros(5, np.int32), "bias is [5]"),
        ("w", np.zeros((12, 8, 3, 3), np.float32), "not a valid ONNX model"),
        ("w", np.zeros((12, 8, 3, 3), np.uint8), "not a valid ONNX model"),
        ("w", np.zeros((12, 7, 3, 3), np.int8), "do not fit weights"),
    ],
)
def test_operands(name, value, text):
    message = refusal(changed(replace_constant(name, value)))
    assert text in message


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("xz", np.uint8(3), "uint8 x int8 -> int8 is not computed by ONNX Runtime"),
        ("xz", np.int32(3), "input zero point is int32"),
        ("wz", np.uint8(3), "its weights are int8, their zero point uint8"),
        ("yz", np.uint8(3), "int8 x int8 -> uint8 is not computed by ONNX Runtime"),
        ("xs", np.float64(3), "input scale is float64"),
        ("b", np.zeros(18, np.int64), "bias is int64: int32 expected"),
        ("w", np.zeros((24, 18), np.float32), "weights are float32"),
        ("w", np.zeros((23, 18), np.int8), "do not fit"),
        ("w", np.zeros(24, np.int8), "its weights have the shape [24]"),
    ],
)
def test_operands_that_only_we_check(name, value, text):
    message = refusal(changed(replace_constant(name, value), models.gemm_model))
    assert message.startswith("model: QGemm gemm: ") and text in message


def test_an_unknown_type_is_refused():
    def change(proto):
        proto.graph.input[0].type.tensor_type.elem_type = 56

    message = refusal(changed(change, models.gemm_model))
    assert "model: " in message and "56" in message


def test_input_type_and_zero_point_differ():
    def change(proto):
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8

    message = refusal(changed(change, models.gemm_model))
    assert "QGemm gemm: x is uint8, its zero point int8" in message


def test_missing_initialiser():
    def change(proto):
        kept = [t for t in proto.graph.initializer if t.name != "ws"]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)

    assert "ws" in refusal(changed(change))


def test_damaged_initialiser():
    def change(proto):
        for tensor in proto.graph.initializer:
            if tensor.name == "w":
                tensor.raw_data = tensor.raw_data[:-3]

    assert "model: " in refusal(changed(change))


def test_operand_that_is_an_input():
    def change(proto):
        kept = [t for t in proto.graph.initializer if t.name != "w"]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        info = helper.make_tensor_value_info("w", TensorProto.INT8, [12, 8, 3, 3])
        proto.graph.input.append(info)

    assert "QLinearConv conv: its weights w must be a constant" in refusal(changed(change))


def test_float_input_and_unused_input():
    def to_float(proto):
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT

    def unused(proto):
        proto.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.INT8, [1]))

    message = refusal(changed(to_float))
    assert "not a valid ONNX model" in message
    assert "input extra is read by no node" in refusal(changed(unused))


def test_gemm_with_float_output():
    def change(proto):
        del proto.graph.node[0].input[7:]
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT

    message = refusal(changed(change, models.gemm_model))
    assert "QGemm gemm: without y_scale and y_zero_point its output is float" in message


def test_gemm_bias_that_varies_by_row():
    text = refusal(models.gemm_model(np.random.default_rng(5), bias_shape=(5, 18)))
    assert "bias is [5, 18]" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(x=(2, 5, 24), weight_shape=(2, 24, 18)), "a matrix expected"),
        (dict(weight_shape=(23, 18)), "not a valid ONNX model"),
        (dict(x=(1, 33026), outputs=1), "sums of 33026 products"),
        (dict(ws=np.ones(7, np.float32)), "weight scale is [7]"),
        (dict(xs=np.ones(5, np.float32)), "input scale must be a scalar"),
    ],
)
def test_products(arguments, text):
    message = refusal(models.matmul_model(np.random.default_rng(6), **arguments))
    assert text in message


def conv_and(nodes, outputs, constants=None, second=None):
    rng = np.random.default_rng(7)
    found = operands(rng, draw(rng, (8, 8, 3, 3), "s8"), 8, 72, activation="s8", weight="s8")
    return models.model(
        [conv_node(), *nodes],
        {"x": ("s8", (1, 8, 6, 6))},
        outputs,
        found | (constants or {}) | (second or {}),
    )


SHAPE = ("s8", (1, 8, 4, 4))


@pytest.mark.parametrize(
    ("nodes", "outputs", "text"),
    [
        (
            [helper.make_node("Max", ["y", "channels"], ["z"], "max")],
            {"z": SHAPE},
            "channels must be one int8",
        ),
        ([helper.make_node("Max", ["y", "y"], ["z"], "max")], {"z": SHAPE}, "Max max"),
        (
            [helper.make_node("Flatten", ["x"], ["z"])],
            {"y": SHAPE, "z": ("s8", (1, 288))},
            "output z is only a reshaped input",
        ),
    ],
)
def test_what_cannot_be_fused(nodes, outputs, text):
    channels = {"channels": np.zeros((8, 1, 1), np.int8)}
    assert text in refusal(conv_and(nodes, outputs, channels))


def test_transposing_layouts_are_refused():
    rng = np.random.default_rng(8)
    second = operands(rng, draw(rng, (4, 5), "s8"), 5, 4, activation="s8", weight="s8")
    second = {f"b.{n}": v for n, v in second.items()}
    nodes = [helper.make_node("Reshape", ["y", "shape"], ["r"]), gemm_node("r", "z", "b.")]
    text = refusal(conv_and(nodes, {"z": ("s8", (32, 5))}, {"shape": np.array([32, 4])}, second))
    assert "would have to be moved in memory" in text
    nodes = [helper.make_node("Reshape", ["y", "shape"], ["r"]), conv_node("r", "z", "c.", "two")]
    again = operands(rng, draw(rng, (8, 16, 1, 1), "s8"), 8, 16, activation="s8", weight="s8")
    again = {f"c.{n}": v for n, v in again.items()}
    text = refusal(
        conv_and(nodes, {"z": ("s8", (1, 8, 2, 4))}, {"shape": np.array([1, 16, 2, 4])}, again)
    )
    assert "would have to be moved in memory" in text


ADD = helper.make_node(
    "QLinearAdd", ["y", "as", "az", "x", "as", "az", "as", "az"], ["z"], "add",
    domain="com.microsoft",
)
POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


@pytest.mark.parametrize(
    ("node", "change", "text"),
    [
        (ADD, {}, "QLinearAdd add: [1, 8, 4, 4] and [1, 8, 6, 6]: only operands of one shape"),
        (ADD, {"as": np.float32([1, 2])}, "first operand's scale must be a scalar"),
        (ADD, {"az": np.uint8(3)}, "QLinearAdd add: y is int8, its zero point uint8"),
        (
            helper.make_node("MaxPool", ["y"], ["z", "i"], "pool", **POOL), {},
            "MaxPool pool: its second output (Indices) is not supported",
        ),
        (
            helper.make_node("MaxPool", ["y"], ["z"], "pool", dilations=[1, 2], **POOL), {},
            "MaxPool pool: dilations are not supported",
        ),
        (
            helper.make_node("MaxPool", ["y"], ["z"], "pool", kernel_shape=[1, 3], strides=[1, 3],
                             pads=[0, 1, 0, 0], ceil_mode=1), {}, "",
        ),
        (
            helper.make_node("MaxPool", ["y"], ["z"], "pool", kernel_shape=[1, 2], strides=[1, 5],
                             pads=[0, 1, 0, 1], ceil_mode=1), {},
            "with ceil_mode a window would start behind the image",
        ),
        (
            helper.make_node("QLinearAveragePool", ["y", "as", "az", "as", "az"], ["z"], "pool",
                             domain="com.microsoft", pads=[1, 0, 0, 0], **POOL), {},
            "QLinearAveragePool pool: windows over the border",
        ),
        (
            helper.make_node("QLinearGlobalAveragePool", ["y", "as", "az", "as", "az"], ["z"],
                             "pool", domain="com.microsoft", channels_last=1), {},
            "channels_last is not supported",
        ),
    ],
)
def test_additions_and_pools(node, change, text):
    constants = {"as": np.float32(0.1), "az": np.int8(3)} | change
    data = conv_and([node], {"z": ("s8", (1, 8, "h", "w"))}, constants)
    if text:
        assert text in refusal(data)
    else:
        import_onnx(data)


def test_unknown_workloads_and_paths(tmp_path):
    for name, text in (
        ("resnet50.res9", "resnet50.conv1"),
        ("nothing", "headrace list"),
        (str(tmp_path), "not an ONNX file"),
    ):
        with pytest.raises(UserError, match="not a built-in workload") as caught:
            load_network(name)
        assert text in str(caught.value)


def test_what_only_onnxruntime_refuses(tmp_path):
    path = tmp_path / "old.onnx"
    path.write_bytes(_old_relu())
    with pytest.raises(UserError, match=r"ONNX Runtime refuses it|not a valid ONNX model"):
        load_network(path)


def _old_relu():
    rng = np.random.default_rng(10)
    found = operands(rng, draw(rng, (8, 8, 3, 3), "s8"), 8, 72, activation="s8", weight="s8")
    nodes = [conv_node(), helper.make_node("Relu", ["y"], ["z"])]
    return models.model(nodes, {"x": ("s8", (1, 8, 6, 6))}, {"z": SHAPE}, found, opset=13)


@pytest.mark.filterwarnings("error")
def test_hostile_models_get_one_line(tmp_path):
    """Random changes of attributes, names, shapes and types: accepted or refused, never a crash."""
    onnx.save(transformer(), tmp_path / "float.onnx")
    np.savez(tmp_path / "samples.npz", **samples())
    made = quantise(tmp_path / "float.onnx", tmp_path / "samples.npz", Options())
    seeds = [models.conv_model(np.random.default_rng(1)),
             tiny_residual("r", 1).SerializeToString(), made.SerializeToString()]
    refused = 0
    for number in range(600):
        try:
            import_onnx(changed_at_random(seeds[number % len(seeds)], number))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), number
        except Exception as error:
            raise AssertionError(f"change {number}: {error!r}") from error
    assert 300 < refused < 600


def test_cycles_and_huge_shapes_are_refused():
    def cycle(proto):
        proto.graph.node[0].input[0] = proto.graph.node[0].output[0]

    assert "not a valid ONNX model" in refusal(changed(cycle))

    def huge(proto):
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40

    assert "not a valid ONNX model" in refusal(changed(huge)) or "elements" in refusal(
        changed(huge))


def test_external_data_stays_in_its_folder(tmp_path):
    """A path that leaves the model's folder is refused, and so is one through a link."""
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 8 * 9))
    folder = tmp_path / "model"
    folder.mkdir()
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin"):
        proto = onnx.load_model_from_string(models.conv_model(np.random.default_rng(2), outputs=64))
        external_data_helper.convert_model_to_external_data(proto, location="w.bin",
                                                            size_threshold=0)
        onnx.save_model(proto, folder / "m.onnx")
        proto = onnx.load_model(folder / "m.onnx", load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        (folder / "link.bin").unlink(missing_ok=True)
        (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
        assert "not a valid ONNX model" in refusal(folder / "m.onnx"), location
