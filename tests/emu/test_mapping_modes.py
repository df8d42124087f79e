# SPDX-License-Identifier: Apache-2.0
"""How layers are dealt to tiles: same results; who holds which weights."""

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.compiler.mapping import candidates, tile_groups
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import execute
from emu.network.golden import evaluate
from emu.network.tensors import random_inputs
from emu.network.transformers import decoder, perceptron

MODES = ("auto", "retained", "weight_streaming", "activation_streaming")


def config_of(chip, mode, *settings):
    return load_config(chip, [f"mapping.mode={mode}", *settings])


@pytest.mark.parametrize("chip", ["small", "base"])
@pytest.mark.parametrize("tokens", [1, 5, 32])
def test_a_perceptron(chip, tokens):
    network = perceptron("p", 3, widths=(64, 96, 64, 96, 64), tokens=tokens, steps=3)
    inputs = random_inputs(network, 2)
    outputs = evaluate(network, inputs).outputs
    pinned = {}
    for mode in MODES:
        program = compile_network(network, config_of(chip, mode, "scratchpad.pinned_kib=16"))
        for name, value in execute(program, inputs).items():
            np.testing.assert_array_equal(value, outputs[name])
        pinned[mode] = program.pinned_bytes
    weights = 4 * 64 * 96
    assert pinned["retained"] == pinned["activation_streaming"] == weights
    assert pinned["weight_streaming"] == 0 or tokens == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_decoder(mode):
    network = decoder("d", 3, layers=2, width=64, heads=4, cached=13, steps=2)
    inputs = random_inputs(network, 2)
    outputs = evaluate(network, inputs).outputs
    program = compile_network(network, config_of("base", mode, "scratchpad.pinned_kib=32"))
    for name, value in execute(program, inputs).items():
        np.testing.assert_array_equal(value, outputs[name])


def test_weights_lie_in_one_group():
    """Four layers, four groups: no tile holds weights of two."""
    network = perceptron("p", 3, widths=(64, 96, 64, 96, 64), tokens=4, steps=2)
    config = config_of("base", "activation_streaming", "scratchpad.pinned_kib=16")
    plans = compile_network(network, config).plans
    assert plans[:4] == plans[4:]
    assert tile_groups(config, 4) == [(0, 0, 2, 2), (2, 0, 2, 2), (2, 2, 2, 2), (0, 2, 2, 2)]
    assert tile_groups(config, 3) == [(0, 0, 4, 2), (0, 2, 4, 2)]
    assert tile_groups(config, 1) == [(0, 0, 4, 4)]
    assert len(tile_groups(config, 99)) == 16


@pytest.mark.parametrize("mode, pixels, parts", [
    ("retained", 64, {1}), ("weight_streaming", 64, {16}), ("weight_streaming", 4, {4}),
    ("weight_streaming", 1, {1}), ("activation_streaming", 64, {1}),
])
def test_splits(mode, pixels, parts):
    splits = candidates(config_of("base", mode), pixels, 64)
    assert {split.pixel_parts for split in splits} == parts


def test_the_setting_is_checked():
    with pytest.raises(UserError, match=r"mapping\.mode"):
        config_of("base", "thrice")
