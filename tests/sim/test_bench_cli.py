# SPDX-License-Identifier: Apache-2.0
"""`make sim`: the list, what a user can get wrong, one variant with waves."""

import pytest

from emu.errors import UserError
from sim.bench_cli import main

COMPONENTS = ("compute.array", "compute.engine", "hbm.traffic", "mesh.router", "network_interface",
              "prefetch.store", "sequencer.sequencer", "tile.scratchpad", "vector.engine")


def test_lists_every_component(capsys):
    assert main([]) == 0
    assert set(COMPONENTS) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mesh.routr"], "mesh.routr"),
        (["mesh.router", "--variant", "round"], "x_first_inside"),
        (["mesh.router", "--waves", "/nowhere/r.vcd"], "/nowhere"),
        (["mesh.router", "--waves", "r.txt"], ".vcd or .fst"),
        (["mesh.router", "--sim", "icarus", "--waves", "r.fst"], "verilator"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


@pytest.mark.parametrize("arguments", [["mesh.router", "--sim", "vcs"], ["x", "--seed", "one"]])
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.rtl
def test_waves_of_one_variant(simulator, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["stream.fifo", "--sim", simulator, "--waves", "r.vcd", "--seed", "7"]) == 0
    text = (tmp_path / "r.vcd").read_text()
    assert "$enddefinitions" in text and "#0" in text and text.count("\n#") > 100
    assert capsys.readouterr().out.count("passed") == 1
