# SPDX-License-Identifier: Apache-2.0
"""Commands that work, and runs that fail."""

import pytest

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
