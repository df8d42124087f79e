# SPDX-License-Identifier: Apache-2.0
"""What the study of placed experts makes of a row's counters, by hand."""

import pytest

from sim.experiments import expert_places
from sim.experiments.expert_places import Placed, findings, idle_tiles, uneven, weight_bytes
from sim.experiments.experts import CHOSEN, EXPERTS_OF_LAYER, Load, routing


def row(case, load, **fields):
    expert_places.ASKED["group", case] = load, Placed() if case == "placed" else None
    return {"group": "group", "case": case, "is_baseline": case != "placed", "cycles": 100,
            "tiles": {"busy_cycles": [30, 10, 0, 0], "passes": [60, 9, 3, 0]}} | fields


@pytest.mark.parametrize("law", ["uniform", "Zipf 1", "trained"])
def test_routing(law):
    counts = routing(Load("48 x 80", 32, law=law))
    assert counts.shape == (1, EXPERTS_OF_LAYER) and counts.sum() == CHOSEN * 32


def test_tiles():
    """Three passes of 48 channels are the router's."""
    found = row("placed", Load("48 x 80", 32))
    assert uneven(found) == 3 and idle_tiles(found) == 2


def test_weight_bytes():
    """Of eight experts that may be read all but two are."""
    load = Load("48 x 80", 10)
    moved = {"hbm_read": 5000 + 700 + 6 * load.expert_bytes, "commands": 700}
    found = row("placed", load, traffic_bytes=moved,
                planned_read_bytes=5000 + 8 * load.expert_bytes)
    assert weight_bytes(found) == 6 * load.expert_bytes / 10
    shared = row(expert_places.SHARED, load, traffic_bytes=moved,
                 planned_read_bytes=5000 + 8 * load.expert_bytes, cycles=200)
    lines = findings([shared, found])
    assert "arrays busy 0.050 of the time, largest over mean 3.00" in lines[0]
    assert lines[1].endswith("2 tiles idle, weights of 5,222 bytes a token; 0.500 of the cycles")
    assert weight_bytes(row(expert_places.SORTED, load)) is None
