# SPDX-License-Identifier: Apache-2.0
"""Golden results and input tensors: agreement, named conditions, refused inputs."""

import numpy as np
import pytest

from emu.errors import UserError
from emu.network import golden as module
from emu.network.golden import (
    SATURATION,
    GoldenWarning,
    evaluate,
    golden,
    load_inputs,
    random_inputs,
)
from emu.network.importer import import_onnx
from emu.network.workloads import load_network
from tests.emu import network_models as models


@pytest.fixture
def network():
    return load_network("tiny.matmul")


def test_golden_is_onnxruntimes(network):
    inputs = random_inputs(network, 5)
    (values,) = golden(network, inputs).values()
    assert values.dtype == np.int8 and values.shape == (2, 4, 50)
    np.testing.assert_array_equal(values, module.run_onnxruntime(network, inputs)["y"])


def test_random_inputs_are_seeded_and_cover_the_type(network):
    first, again, other = (random_inputs(network, seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.int8 and first.min() < -120 and first.max() > 120
    unsigned = random_inputs(load_network("tiny.conv1x1"), 1)["x"]
    assert unsigned.dtype == np.uint8 and unsigned.max() == 255


def _off_by_one(network, inputs):
    return {name: values ^ 1 for name, values in module.exact(network, inputs).items()}


def _products(weight, activation="u8"):
    data = models.matmul_model(np.random.default_rng(1), activation=activation, weight=weight)
    return import_onnx(data)


def _wide_products():
    """With weights of which two can exceed 16 bits, as some processors add them up."""
    rng = np.random.default_rng(2)
    wide = rng.integers(-128, 128, (24, 18)).astype(np.int8)
    return import_onnx(models.matmul_model(rng, activation="u8", weight="s8", w=wide))


def test_saturation_is_a_named_condition(monkeypatch):
    network = _wide_products()
    inputs = random_inputs(network, 1)
    assert evaluate(network, inputs).conditions in ((), (SATURATION,))
    monkeypatch.setattr(module, "run_onnxruntime", _off_by_one)
    result = evaluate(network, inputs)
    assert result.conditions == (SATURATION,)
    np.testing.assert_array_equal(result.outputs["y"], module.exact(network, inputs)["y"])
    with pytest.warns(GoldenWarning, match=SATURATION):
        golden(network, inputs)


@pytest.mark.parametrize(("weight", "activation"), [("u8", "u8"), ("s8", "s8")])
def test_unexplained_difference_is_an_error(monkeypatch, weight, activation):
    network = _products(weight, activation)
    monkeypatch.setattr(module, "run_onnxruntime", _off_by_one)
    with pytest.raises(UserError, match="differs from exact integer arithmetic in 90 outputs"):
        evaluate(network, random_inputs(network, 1))


def test_small_weights_cannot_saturate():
    layer = _wide_products().layers[0]
    assert module.may_saturate(layer)
    object.__setattr__(layer, "weights", np.clip(layer.weights, -64, 64))
    assert not module.may_saturate(layer)


def test_inputs_round_trip(tmp_path, network):
    inputs = random_inputs(network, 3)
    np.savez(tmp_path / "in.npz", **inputs)
    loaded = load_inputs(network, tmp_path / "in.npz")
    np.testing.assert_array_equal(loaded["x"], inputs["x"])


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "x is missing"),
        (
            {"x": np.zeros((2, 4, 72), np.uint8)},
            r"x is uint8\[2, 4, 72\], int8\[2, 4, 72\] expected",
        ),
        ({"x": np.zeros((8, 72), np.int8)}, r"x is int8\[8, 72\]"),
        ({"x": np.zeros((2, 4, 72), np.int8), "z": np.zeros(1)}, r"z is no input \(x\)"),
        ({"x": np.zeros((2, 4, 72))}, "x is float64"),
        ({"x": np.array([None])}, "not an .npz file of plain arrays"),
    ],
)
def test_wrong_inputs(tmp_path, network, arrays, text):
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=text):
        load_inputs(network, path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(50)])
def test_files_that_are_not_npz(tmp_path, network, content):
    path = tmp_path / "in.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not an \.npz file"):
        load_inputs(network, path)


def test_other_wrong_files(tmp_path, network):
    np.save(tmp_path / "in.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"not an \.npz file"):
        load_inputs(network, tmp_path / "in.npy")
    with pytest.raises(UserError, match="cannot be read"):
        load_inputs(network, tmp_path / "none.npz")
    with pytest.raises(UserError, match="cannot be read"):
        load_inputs(network, tmp_path)


def test_wrong_inputs_to_evaluate(network):
    with pytest.raises(UserError, match=r"tiny.matmul: x is missing"):
        evaluate(network, {})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_are_refused_or_read(tmp_path, network, save):
    """Whatever zlib, zipfile or numpy say to a few wrong bytes, it is one error of ours."""
    path, rng = tmp_path / "in.npz", np.random.default_rng(1)
    save(path, **random_inputs(network, 1))
    data = path.read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_inputs(network, path)
        except UserError:
            refused += 1
    assert refused > 100
