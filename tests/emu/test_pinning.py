# SPDX-License-Identifier: Apache-2.0
"""Weights that stay in the scratchpads: same results, loaded once, never more than the room."""

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.config import load_config
from emu.interpreter import execute
from emu.network.golden import evaluate
from emu.network.tensors import random_inputs
from emu.network.transformers import decoder
from tests.emu.compiler_layers import golden, make_input, make_layer, nibbles
from tests.emu.test_compiler import SAME


@pytest.fixture(scope="module")
def network():
    return decoder("d", 3, layers=2, width=64, heads=4, cached=13, steps=4)


@pytest.mark.parametrize("chip", ["small", "base"])
@pytest.mark.parametrize("kib", [1, 4, 16, 64])
def test_a_decoder(network, chip, kib):
    """Three of four steps read no pinned weights; the results are the same."""
    config = load_config(chip, [f"scratchpad.pinned_kib={kib}"])
    streamed = compile_network(network, load_config(chip))
    program = compile_network(network, config)
    inputs = random_inputs(network, 2)
    outputs = evaluate(network, inputs).outputs
    for name, value in execute(program, inputs).items():
        np.testing.assert_array_equal(value, outputs[name])
    saved = (streamed.compulsory_bytes["hbm_read"] - program.compulsory_bytes["hbm_read"])
    assert saved == 3 * program.pinned_bytes <= 3 * kib * 1024 * config.mesh.tiles
    assert streamed.pinned_bytes == 0 < program.pinned_bytes or kib == 1


def test_layers_of_any_kind():
    """Dense with nibbles, depthwise, cut at its inputs; pixels on one tile."""
    config = load_config("small", ["mesh.rows=1", "mesh.cols=1", "hbm.channels=1",
                                   "scratchpad.pinned_kib=120"])
    rng = np.random.default_rng(4)
    layers = [make_layer(rng, c=48, m=64, h=8, w=8, name="a", source="x", target="t", **SAME)]
    layers.append(nibbles(make_layer(rng, c=64, m=40, h=8, w=8, name="b", source="t", target="u",
                                     x_zero=layers[0].y_zero, x_signed=layers[0].y_signed)))
    layers.append(make_layer(rng, c=40, m=40, h=8, w=8, groups=40, name="c", source="u",
                             target="v", x_zero=layers[1].y_zero, x_signed=layers[1].y_signed,
                             **SAME))
    program = compile_network(layers, config)
    assert program.pinned_bytes > 0
    inputs = make_input(rng, layers[0])
    expected = inputs
    for layer in layers:
        expected = golden(layer, expected)
    np.testing.assert_array_equal(execute(program, {"x": inputs})["v"], expected)


def test_the_setting_is_checked():
    with pytest.raises(Exception, match="pinned_kib must leave"):
        load_config("small", ["scratchpad.pinned_kib=4000"])
