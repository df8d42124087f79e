# SPDX-License-Identifier: Apache-2.0
"""`headrace experiment --quick`: rows checked and cached, baselines, findings, bad input."""

import json
import tomllib

import pytest

from emu.errors import UserError
from sim.cli import main
from sim.experiments import foresight, framework
from sim.experiments.studies import EXPERIMENTS

KEYS = {"schema", "experiment", "idea", "baseline", "rows", "null_case", "losing_case", "findings"}
ROW = {"case", "machine", "footprint_bytes", "traffic_bytes", "cycles", "stall_cycles",
       "energy_pj", "verified"}


@pytest.mark.rtl
def test_quick_experiments(tmp_path, capsys, monkeypatch):
    out = tmp_path / "e.json"
    assert main(["experiment", "--quick", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [study["experiment"] for study in found] == list(EXPERIMENTS)
    for study in found:
        assert set(study) >= KEYS and study["findings"]
        assert all(set(row) >= ROW for row in study["rows"])
        assert not any(row["verified"]["mismatches"] for row in study["rows"])
        for row in study["rows"]:
            energy = row["energy_pj"]
            # All in HBM: low and mid of its bits are the same coefficient.
            only_hbm = {k for k, moved in row["traffic_bytes"].items() if moved} <= {
                "hbm_read", "hbm_write"}
            assert 0 < energy["low"] <= energy["mid"] < energy["high"]
            assert energy["low"] < energy["mid"] or only_hbm
        groups = {row["group"] for row in study["rows"]}
        assert sum(row["is_baseline"] for row in study["rows"]) == len(groups)
    fusion = {(row["group"], row["case"]): row for row in found[1]["rows"]}
    written = {case: row["traffic_bytes"]["hbm_write"] for (group, case), row in fusion.items()
               if group.startswith("tiny.residual")}
    assert written["on the chip"] <= written["on the chip, at most 4 KiB"] < written["in HBM"]
    null = [row["traffic_bytes"] for key, row in fusion.items() if "one layer" in key[0]]
    assert null[0] == null[1]
    bags = {(row["group"], row["case"]): row["traffic_bytes"]
            for study in found if study["experiment"] == "embeddings" for row in study["rows"]}
    near, far = bags["bags", "summed in HBM"], bags["bags", "summed in the tile"]
    assert near["mesh_link_down"] < far["mesh_link_down"] / 2
    moe = {(row["group"], row["case"]): row["traffic_bytes"]["hbm_read"]
           for study in found if study["experiment"] == "experts" for row in study["rows"]}
    ahead = [row for study in found if study["experiment"] == "experts" for row in study["rows"]
             if foresight.is_ours(row)]
    assert len(ahead) == 4
    for row in ahead:  # what left HBM is what the model of the caches says
        fetched = foresight.replayed(foresight.ASKED[row["group"], row["case"]])
        assert foresight.loaded(row) == fetched.early + fetched.late > 0
    three, many = "48 x 80, 3 tokens", "48 x 80, 32 tokens"
    distinct = "distinct experts, uniform, seed 1"
    assert moe[three, distinct] < moe[three, "all experts"]
    assert moe[many, distinct] == moe[many, "all experts"]
    assert moe[many, "each token's own, uniform, seed 1"] > 4 * moe[many, distinct]
    one = "one lookup a bag"
    assert bags[one, "from 3 rows on in HBM"] == bags[one, "summed in the tile"]
    assert bags[one, "summed in HBM"]["mesh_link"] > bags[one, "summed in the tile"]["mesh_link"]
    modes = {row["case"]: row for study in found if study["experiment"] == "residency"
             for row in study["rows"] if row["group"].startswith("perceptron")}
    weights = 2 * 64 * 96
    for mode in ("retained", "activation-streaming"):
        assert modes[mode]["initial_load_bytes"] == weights
        saved = (modes["streamed"]["traffic_bytes"]["hbm_read"]
                 - modes[mode]["traffic_bytes"]["hbm_read"])
        assert saved >= weights  # two steps, loaded once
    assert modes["weight-streaming"]["initial_load_bytes"] == 0
    parameters = 128 * (96 + 64) // 16
    assert modes["pipeline"]["initial_load_bytes"] == weights + parameters
    for row in modes.values():
        assert 0 < row["arrays"]["idle_tiles"] < row["arrays"]["tiles"] == 4
    assert "fusion" in capsys.readouterr().out

    def refuse(*_, **__):
        raise AssertionError("a row that is kept is not simulated again")

    monkeypatch.setattr(framework, "run", refuse)
    assert framework.experiment(["prefetch"], quick=True)[0]["rows"] == found[0]["rows"]


def test_coefficients_are_ordered():
    for event, levels in framework.coefficients().items():
        assert 0 < levels["low"] <= levels["mid"] <= levels["high"], event
    with framework.Path(framework.__file__).with_name("energy.toml").open("rb") as file:
        assert tomllib.load(file) == framework.coefficients()


def test_energy_of_memories_beside_the_channels():
    """The edge's words and those of summed rows cost something; what is not there does not."""
    counters = {"hbm_0.controller.activates": 0, "hbm_0.port.edge_words": 5,
                "hbm_1.port.kept_words": 2, "hbm_0.port.sums.row_words": 3}
    names = ("scratchpad_read", "scratchpad_write", "hbm_read", "hbm_write", "mesh_link")
    result = {"counters": counters, "bytes": dict.fromkeys(names, 0)}
    table = framework.coefficients()
    for edge, rows in ((0, 0), (64, 0), (0, 1), (64, 3)):
        result["chip"] = {"hbm": {"edge_kib": edge, "sum_rows": rows}}
        want = 7 * (edge > 0) * table["edge_word"]["mid"]
        want += 3 * (rows > 0) * table["row_word"]["mid"]
        assert framework.modelled_energy(result, 0)["mid"] == round(want)


def test_bad_input(capsys):
    with pytest.raises(UserError, match="experiment photons: must be one of prefetch, fusion"):
        framework.experiment(["photons"])
    with pytest.raises(UserError, match="cannot write"):
        framework.experiment(["prefetch"], output="/nowhere/x.json")
    with pytest.raises(UserError, match="jobs: must be at least 1, not 0"):
        framework.experiment(["prefetch"], jobs=0)
    assert main(["experiment", "photons"]) == 2
    assert "must be one of" in capsys.readouterr().err
