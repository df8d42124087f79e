# SPDX-License-Identifier: Apache-2.0
"""Everything a user can get wrong: one line, exit code 2, no traceback, nothing half-written."""

import json

import pytest

from sim.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.such.layer"], "no.such.layer"),
        (["run", "missing.onnx"], "missing.onnx"),
        (["run", "tiny.conv3x3", "--chip", "huge"], "huge"),
        (["run", "tiny.conv3x3", "--set", "mesh.rows=99"], "mesh.rows"),
        (["run", "tiny.conv3x3", "--set", "mesh.rows"], "section.name=value"),
        (["run", "tiny.conv3x3", "--output", "/nowhere/out.npz"], "/nowhere"),
        (["run", "tiny.conv3x3", "--json", "/nowhere/out.json"], "/nowhere"),
        (["run", "tiny.conv3x3", "--input", "missing.npz"], "missing.npz"),
        (["run", "tiny.conv3x3", "--waves", "x.txt"], ".vcd or .fst"),
        (["run", "tiny.conv3x3", "--wave-tile", "0,0"], "--waves"),
        (["compare", "tiny.conv3x3", "--vary", "prefetch.policy"], "section.name=value,value"),
        (["verilog", "-o", "/nowhere/out"], "/nowhere"),
        (["run", "tiny.conv3x3", "--set", "scratchpad.kib=7"], "power of two"),
        (["run", "tiny.conv3x3", "--set", "prefetch.policy=psychic"], "psychic"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("headrace: ") and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["fly"], ["run"], ["run", "x", "--sim", "modelsim"]])
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("text", [b"", b"not a model", b"\x08\x07" + bytes(100)])
def test_files_that_are_not_onnx(tmp_path, text, capsys):
    path = tmp_path / "model.onnx"
    path.write_bytes(text)
    assert main(["run", str(path)]) == 2
    assert "model.onnx" in capsys.readouterr().err


def test_list_and_version(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "resnet50.res4_3x3" in text and "wafer" in text and "run_ahead" in text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("headrace ")


@pytest.mark.rtl
def test_run_writes_json_and_outputs(tmp_path, capsys):
    arguments = ["run", "tiny.conv1x1", "--chip", "small", "--json", str(tmp_path / "r.json"),
                 "--output", str(tmp_path / "o.npz")]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["schema"] == 1 and result["verified"]["mismatches"] == 0
    assert {"workload", "chip", "policy", "cycles", "bytes", "compulsory_bytes", "mac_utilisation",
            "hbm_utilisation", "roofline", "roofline_fraction", "stalls", "prefetch", "counters",
            "host", "versions", "seed"} <= set(result)
    assert (tmp_path / "o.npz").exists()


@pytest.mark.rtl
def test_cycle_limit_names_the_engines(capsys):
    assert main(["run", "tiny.conv1x1", "--chip", "small", "--cycle-limit", "50"]) == 1
    error = capsys.readouterr().err
    assert "cycle limit" in error and "tile 0,0" in error
