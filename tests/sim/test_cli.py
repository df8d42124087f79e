# SPDX-License-Identifier: Apache-2.0
"""Commands that work, and runs that fail."""

import pytest

from emu.network import golden
from sim import execute, measure
from sim.cli import main


def test_list_and_version(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "resnet50.res4_3x3" in text and "wafer" in text and "run_ahead" in text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("headrace ")


@pytest.mark.rtl
def test_cycle_limit_names_the_engines(capsys):
    assert main(["run", "tiny.conv1x1", "--chip", "small", "--cycle-limit", "50"]) == 1
    error = capsys.readouterr().err
    assert "reached its cycle limit after 50 cycles (limit 50)" in error
    assert all(f"tile {x},{y}: " in error for x in range(2) for y in range(2))
    assert "replay: headrace run tiny.conv1x1 --chip small --sim verilator --seed 1" in error
    assert "log: " in error and error.count("\n") == 1


@pytest.fixture
def wrong(monkeypatch):
    """The machine is right; what it is compared with is one step off in one output."""

    def evaluate(network, inputs):
        found = golden.evaluate(network, inputs)
        found.outputs["y"].reshape(-1)[3] ^= 1
        return found

    monkeypatch.setattr(execute, "evaluate", evaluate)


@pytest.mark.rtl
def test_a_wrong_output_fails_and_is_kept(tmp_path, wrong, capsys):
    arguments = ["run", "tiny.conv1x1", "--chip", "small", "--set", "prefetch.depth=2"]
    kept = tmp_path / "o.npz"
    files = ["--output", str(kept), "--json", str(tmp_path / "r.json")]
    assert main([*arguments, "--seed", "5", *files]) == 1
    assert capsys.readouterr().err == (
        "headrace: 1 of 1680 outputs differ from ONNX Runtime; replay: headrace run tiny.conv1x1 "
        "--chip small --set prefetch.depth=2 --sim verilator --seed 5\n"
    )
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.rtl
def test_a_broken_conservation_fails(monkeypatch, capsys):
    total = measure.Counters.total
    monkeypatch.setattr(measure.Counters, "total", lambda self, pattern: total(self, pattern)
                        + (pattern == r"network\.request_words"))
    assert main(["run", "tiny.conv1x1", "--chip", "small"]) == 1
    error = capsys.readouterr().err
    assert "conservation broken: words requested = words that leave HBM: " in error
    assert "replay: headrace run tiny.conv1x1" in error and error.count("\n") == 1


@pytest.mark.rtl
def test_a_condition_of_the_comparison_is_told(monkeypatch, capsys):
    monkeypatch.setattr(execute, "evaluate", lambda network, inputs: golden.Golden(
        golden.evaluate(network, inputs).outputs, (golden.SATURATION,)))
    assert main(["run", "tiny.conv1x1", "--chip", "small"]) == 0
    assert capsys.readouterr().err.startswith("headrace: u8s8_saturation: ONNX Runtime saturates")
