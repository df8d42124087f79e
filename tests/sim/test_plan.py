# SPDX-License-Identifier: Apache-2.0
"""`headrace plan`: strategies against bounds, offsets without overlap, the picture."""

import json

import pytest

from emu.errors import UserError
from emu.planner import NAMES
from sim.cli import main
from sim.plan import plan


def test_plan_of_a_residual_network(tmp_path, capsys):
    page, out = tmp_path / "plan.html", tmp_path / "plan.json"
    assert main(["plan", "tiny.residual", "--strategy", "exact", "--picture", str(page),
                 "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["memories"]) == {"activations", "hbm", "scratchpad"}
    for memory in found["memories"].values():
        sizes = {name: each["bytes"] for name, each in memory["strategies"].items()}
        assert set(sizes) == set(NAMES)
        assert memory["lower_bound_bytes"] <= sizes["exact"] == min(sizes.values())
        items = memory["items"]
        for k, a in enumerate(items):
            assert 0 <= a["first"] <= a["last"] <= len(found["layers"])
            for b in items[:k]:
                apart = (a["last"] < b["first"] or b["last"] < a["first"]
                         or a["offset"] + a["bytes"] <= b["offset"]
                         or b["offset"] + b["bytes"] <= a["offset"])
                assert apart or not a["bytes"] or not b["bytes"], (a, b)
    assert "lower bound" in page.read_text()
    assert "greedy by size" in capsys.readouterr().out


def test_without_activations_on_the_chip():
    found = plan("tiny.residual", settings=["scratchpad.resident=false"])
    memories = found["memories"]
    assert "scratchpad" not in memories
    assert memories["hbm"]["items"] == memories["activations"]["items"]


def test_bad_input(capsys):
    with pytest.raises(UserError, match="strategy best: must be one of none"):
        plan("tiny.residual", strategy="best")
    with pytest.raises(UserError, match="cannot write"):
        plan("tiny.residual", picture="/nowhere/x.html")
    assert main(["plan", "no.such.network"]) == 2
    assert "no.such.network" in capsys.readouterr().err
