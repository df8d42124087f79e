# SPDX-License-Identifier: Apache-2.0
"""A pipeline over groups of tiles on the RTL: same bits, steps at the pace of the slowest stage."""

from functools import partial

import pytest

from emu.network.transformers import perceptron
from sim.execute import Options, run

MODE = "mapping.mode=pipeline"
PASS = 32
"""A mark may be passed earlier by that."""
SWITCH = 100
"""Cycles from one item to the next that are allowed beside the passes."""


def layers_of(network, *settings):
    result = run("a perceptron", chip="small", settings=(MODE, *settings), network=network,
                 options=Options(seed=2))
    assert result["verified"]["outputs"] > 0 and result["verified"]["mismatches"] == 0
    return result["layers"]


@pytest.mark.rtl
def test_steps_take_as_long_as_the_slowest_stage():
    """Four layers of 64 x 64 or so on a tile each: 4 x 6 passes of 32 pixels. Marks are passed when
    a step's commands are taken, so single steps are not compared: ten from the sixth on are."""
    layers = layers_of(perceptron("p", 3, widths=(64, 96, 64, 96, 64), tokens=32, steps=20))
    assert len(layers) == 20
    passes = 4 * 6 * 32
    assert {layer["roofline"]["compute"] for layer in layers} == {passes}
    ten = layers[15]["begin"] - layers[5]["begin"]
    assert 10 * passes - PASS <= ten <= 10 * (passes + 2 * SWITCH)  # two items a step


@pytest.mark.rtl
@pytest.mark.parametrize("network, settings", [
    (partial(perceptron, widths=(64, 128, 32, 32), tokens=40, steps=5), ("mapping.groups=equal",)),
    (partial(perceptron, widths=(16, 48, 32, 64) * 3, tokens=21, steps=4), ("mapping.bands=3",)),
    (partial(perceptron, widths=(64, 128, 32, 32), tokens=300, steps=1), ("mesh.multicast=false",)),
])
def test_layers_that_share_tiles(network, settings):
    layers_of(network("p", 3), *settings)
