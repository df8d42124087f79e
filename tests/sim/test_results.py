# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: the result's schema, and tensors in the model's types and shapes."""

import json

import numpy as np
import pytest

from emu.config import Config
from emu.network.golden import golden, load_inputs
from emu.network.workloads import load_network
from sim.cli import main
from tests.emu import network_models as models

TEXT, COUNT, RATIO = str, int, float
SCHEMA = {
    "schema": COUNT,
    "workload": TEXT,
    "chip": dict,
    "policy": {"name": TEXT, "depth": COUNT, "threshold": COUNT},
    "verified": {"outputs": COUNT, "mismatches": COUNT, "conditions": list},
    "cycles": COUNT,
    "bytes": {
        "hbm_read": COUNT, "hbm_write": COUNT, "mesh_link": COUNT, "scratchpad_read": COUNT,
        "scratchpad_write": COUNT, "array_load": COUNT, "commands": COUNT,
    },
    "compulsory_bytes": {"hbm_read": COUNT, "hbm_write": COUNT},
    "mac_utilisation": RATIO,
    "hbm_utilisation": RATIO,
    "roofline": {"compute": COUNT, "hbm": COUNT, "inbound": COUNT},
    "roofline_fraction": RATIO,
    "stalls": dict,
    "prefetch": {"useful": COUNT, "late": COUNT, "useless": COUNT,
                 "bytes": {"useful": COUNT, "late": COUNT, "useless": COUNT}},
    "counters": dict,
    "host": {
        "simulator": TEXT, "build_seconds": RATIO, "run_seconds": RATIO,
        "kilocycles_per_second": RATIO, "peak_memory_mib": RATIO,
    },
    "versions": dict,
    "seed": COUNT,
}
"""Version 1: keys may be added, never renamed."""


def check_schema(value, schema, where="result"):
    """``value`` holds at least the keys of ``schema``, with values of its types."""
    assert type(value) is (dict if isinstance(schema, dict) else schema), where
    if isinstance(schema, dict):
        for key, inner in schema.items():
            assert key in value, f"{where} has no {key}"
            check_schema(value[key], inner, f"{where}.{key}")


@pytest.mark.rtl
def test_json(tmp_path, capsys):
    path = tmp_path / "r.json"
    arguments = ["run", "tiny.conv1x1", "--chip", "small", "--seed", "7", "--json"]
    assert main([*arguments, str(path)]) == 0
    assert "1,680 outputs, 0 differ" in capsys.readouterr().out
    result = json.loads(path.read_text())
    check_schema(result, SCHEMA)
    assert result["schema"] == 1 and result["workload"] == "tiny.conv1x1" and result["seed"] == 7
    assert result["verified"] == {"outputs": 1680, "mismatches": 0, "conditions": [],
                                  "distances": {}, "host": {}}
    assert Config.model_validate(result["chip"]).mesh.tiles == 4
    assert result["policy"]["name"] == "next_layer"
    assert 0 < result["mac_utilisation"] < 1 and 0 < result["hbm_utilisation"] < 1
    assert result["roofline_fraction"] == max(result["roofline"].values()) / result["cycles"]
    assert result["bytes"]["hbm_read"] >= result["compulsory_bytes"]["hbm_read"] > 0
    assert result["bytes"]["hbm_write"] >= result["compulsory_bytes"]["hbm_write"] >= 1680
    host = result["host"]
    assert host["kilocycles_per_second"] == pytest.approx(
        result["cycles"] / host["run_seconds"] / 1000)
    for name in ("stalls", "counters"):
        assert result[name] and all(type(count) is int for count in result[name].values()), name
    assert {"headrace", "amaranth", "cocotb", "verilator", "onnxruntime"} <= set(result["versions"])
    assert main([*arguments, "-"]) == 0
    check_schema(json.loads(capsys.readouterr().out), SCHEMA)
    assert list(tmp_path.iterdir()) == [path]


MODELS = {
    "u8 image": models.conv_model(
        np.random.default_rng(1), activation="u8", weight="u8", x=(2, 5, 7, 6), outputs=19,
    ),
    "s8 sequence": models.conv_model(
        np.random.default_rng(2), x=(1, 6, 17), kernel=(5,), pads=[3, 1], outputs=4,
    ),
    "s8 rows in three dimensions": models.matmul_model(np.random.default_rng(3), x=(2, 3, 24)),
    "u8 matrix, transposed": models.gemm_model(
        np.random.default_rng(4), activation="u8", weight="s8", transA=1, transB=1,
    ),
}


@pytest.mark.rtl
@pytest.mark.parametrize("name", MODELS)
def test_tensors_round_trip(tmp_path, name):
    """Inputs from a file reach the chip; outputs come back under their graph's name."""
    model, given, kept = (str(tmp_path / name) for name in ("m.onnx", "in.npz", "out.npz"))
    (tmp_path / "m.onnx").write_bytes(MODELS[name])
    network = load_network(model)
    (info,) = network.inputs
    values = np.arange(np.prod(info.shape)).astype(info.dtype).reshape(info.shape)
    np.savez_compressed(given, **{info.name: values})
    assert main(["run", model, "--chip", "small", "--input", given, "--output", kept]) == 0
    expected = golden(network, load_inputs(network, given))
    with np.load(kept, allow_pickle=False) as outputs:
        assert set(outputs.files) == {tensor.name for tensor in network.outputs}
        for tensor in network.outputs:
            assert outputs[tensor.name].dtype == tensor.dtype
            assert outputs[tensor.name].shape == tensor.shape
            np.testing.assert_array_equal(outputs[tensor.name], expected[tensor.name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "m.onnx", "out.npz"]


@pytest.mark.rtl
def test_an_output_may_have_any_name_and_file_name(tmp_path):
    """`np.savez` itself could keep no tensor called ``file``, and appends .npz to names."""
    import onnx

    proto = onnx.load_model_from_string(models.gemm_model(np.random.default_rng(5)))
    proto.graph.node[0].output[0] = proto.graph.output[0].name = "file"
    path, kept = tmp_path / "m.onnx", tmp_path / "kept"
    path.write_bytes(proto.SerializeToString())
    assert main(["run", str(path), "--chip", "small", "--output", str(kept)]) == 0
    with np.load(kept) as outputs:
        assert outputs["file"].shape == (5, 18)


@pytest.mark.rtl
def test_chart_of_the_layers(tmp_path):
    page = tmp_path / "layers.html"
    assert main(["run", "tiny.residual", "--chip", "small", "--chart", str(page)]) == 0
    text = page.read_text()
    assert "MACs used" in text and "block2.shortcut" in text
    assert main(["run", "tiny.residual", "--chart", str(tmp_path)]) == 2
