# SPDX-License-Identifier: Apache-2.0
"""Bounds of experts on tiles of their own: by hand and in the findings."""

import numpy as np
import pytest

from sim.experiments.expert_bounds import LEAST_ROWS, idle
from sim.experiments.experts import CHOSEN, EXPERTS_OF_LAYER, Load, bounds, routing


def test_idle_by_hand():
    assert idle(np.array([[40, 40, 40, 40]])) == 0
    assert idle(np.array([[60, 20, 20, 20]])) == pytest.approx(1 - 120 / 240)
    assert idle(np.array([[60, 20, 20, 20]]), twice=1) == pytest.approx(1 - 120 / 150)
    assert idle(np.array([[1, 1, 0, 0, 0, 0, 0, 0]])) == 0.75
    # Popular over all steps, not in each: the copy helps only where it is the busiest.
    steps = np.array([[60, 20, 20, 20], [20, 40, 20, 20]])
    assert idle(steps, twice=1) == pytest.approx(1 - (120 + 16 * 2 + 80) / (5 * 70))
    # A copy of an expert with few tokens only costs rows.
    assert idle(np.array([[LEAST_ROWS] * 4]), twice=1) == 0


@pytest.mark.parametrize("law", ["uniform", "Zipf 1"])
def test_bounds_of_the_routing_that_is_found(law):
    load = Load("48 x 80", 32, law=law)
    counts = routing(load)
    assert counts.shape == (1, EXPERTS_OF_LAYER) and counts.sum() == CHOSEN * load.tokens
    line = bounds(load)
    assert line.startswith("computed, not measured: ") and "tiles of its own" in line
