# SPDX-License-Identifier: Apache-2.0
"""The trained mixture as a network: right as in float, its mix by hand, compiled in every way."""

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.config import load_config
from emu.interpreter import execute
from emu.network.exact import exact
from emu.network.mixture import digits_moe
from emu.network.trained import score


def test_as_right_as_in_float():
    """348 of 360 in float (`tools/train_experts.py`)."""
    network = digits_moe("digits_moe", 0, tokens=90, steps=4)
    found = score("digits_moe", exact(network, network.given))
    assert found["samples"] == 360 and abs(found["correct"] - 348) <= 3


def test_mix_by_hand():
    """Of one token: each expert's output times its probability, on top of the token."""
    network = digits_moe("m", 0, tokens=5, steps=1)
    found = exact(network, network.given, every=True)
    targets = {layer.target.name: layer for layer in network.layers}
    token = 3
    top = np.ascontiguousarray(found["top0"][0, :, 0].T)
    probabilities = top[2 * token + 1, :2].astype(int)
    experts = found["down0"][0, :, 0, 2 * token : 2 * token + 2].astype(int)
    zero = targets["down0"].target.zero
    weighed = found["weighed0"][0, :, 0, token].astype(int)
    layer = targets["weighed0"]
    for i in range(2):
        want = np.rint((experts[:, i] - zero) * probabilities[i] * float(layer.scale))
        got = weighed[32 * i : 32 * i + 32] - layer.target.zero
        assert abs(got - want).max() <= 1
    numbers = top[2 * token].view(np.uint32)[:2]
    routing = found["routing0"][0, :8, 0, token]
    np.testing.assert_array_equal(routing[numbers], probabilities)
    assert sorted(routing)[-2:] == sorted(probabilities)


@pytest.mark.parametrize("settings", [
    ["prefetch.experts=distinct"], ["prefetch.experts=sorted"],
    ["prefetch.experts=cached", "prefetch.expert_slots=8", "prefetch.experts_ahead=known"],
])
def test_compiled(settings):
    network = digits_moe("m", 0, tokens=18, steps=1)
    program = compile_network(network, load_config("base", settings))
    found = execute(program, network.given)
    for name, values in exact(network, network.given).items():
        np.testing.assert_array_equal(found[name], values)
