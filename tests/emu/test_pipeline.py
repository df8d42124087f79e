# SPDX-License-Identifier: Apache-2.0
"""Layers on groups of tiles that work at one time: same results, who works on what, bad input."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.compiler.geometry import geometry_of
from emu.compiler.mapping import rect_tiles
from emu.compiler.stages import deal, split_of
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import execute
from emu.isa import Opcode, decode
from emu.network.golden import evaluate
from emu.network.tensors import random_inputs
from emu.network.transformers import decoder, encoder, perceptron
from tests.emu.compiler_layers import golden, make_input, make_layer, nibbles
from tests.emu.test_compiler import SAME

WIDTHS = (64, 96, 64, 96, 64)


def config_of(chip, *settings):
    return load_config(chip, ["mapping.mode=pipeline", *settings])


def check(network, config):
    inputs = random_inputs(network, 2)
    outputs = evaluate(network, inputs).outputs
    program = compile_network(network, config)
    for eager in (True, False):
        for name, value in execute(program, inputs, eager=eager).items():
            np.testing.assert_array_equal(value, outputs[name])
    return program


@pytest.mark.parametrize("settings", [
    (), ("mapping.groups=equal",), ("mapping.bands=5",), ("mesh.multicast=false",),
    ("core.queue_depth=1",), ("hbm.edge_kib=64",),
])
@pytest.mark.parametrize("chip", ["small", "base"])
def test_a_perceptron(chip, settings):
    network = perceptron("p", 3, widths=WIDTHS, tokens=37, steps=3)
    program = check(network, config_of(chip, *settings))
    weights, parameters = 4 * 64 * 96, 8 * 16 * (2 * 6 + 2 * 4)
    assert program.pinned_bytes == weights + parameters
    # All is read once: weights, parameters and three inputs of 37 words for 4 groups.
    assert program.compulsory_bytes["hbm_read"] == weights + parameters + 3 * 37 * 64
    assert program.planned_read_bytes >= program.compulsory_bytes["hbm_read"]


@pytest.mark.parametrize("tokens, steps", [(1, 1), (1, 9), (300, 2), (600, 1)])
def test_tokens_and_steps(tokens, steps):
    check(perceptron("p", 4, widths=(32, 48, 80, 16), tokens=tokens, steps=steps),
          config_of("small"))


def test_more_layers_than_tiles():
    """Twelve layers on four tiles: neighbours share a tile and take turns."""
    network = perceptron("p", 5, widths=(16, 48, 32, 64) * 3 + (32,), tokens=20, steps=4)
    program = check(network, config_of("small", "mapping.groups=equal"))
    assert program.plans[0].startswith("4 stages on 1 + 1 + 1 + 1 tiles")


def test_stages_by_hand():
    """64 -> 128 -> 32 -> 32: passes 8 x 4, 2 x 8 and 2 x 2, of 16 pixels each."""
    network = perceptron("p", 3, widths=(64, 128, 32, 32), tokens=16, steps=9)
    program = check(network, config_of("small"))
    assert program.plans == ("2 stages on 2 + 2 tiles, 1 band",) * 9  # 2 x 8 + 2 x 2 on two: less
    assert [bound.compute for bound in program.rooflines] == [16 * 16] * 9
    equal = compile_network(network, config_of("small", "mapping.groups=equal"))
    assert equal.plans[0].startswith("2 stages on 2 + 2 tiles")
    assert equal.rooflines[0].compute == 16 * (16 + 8)


def test_one_item_has_no_use_for_stages():
    """Four layers of 16 x 16 tiles on 16: all on all, 4 x 16 passes, instead of 64 each."""
    widths = (256,) * 5
    once = compile_network(perceptron("p", 3, widths=widths, tokens=1, steps=1), config_of("base"))
    assert once.plans == ("1 stage on 16 tiles, 1 band",)
    assert once.rooflines[0].compute == 16 * 4 * 16
    check(perceptron("p", 3, widths=widths, tokens=33, steps=3), config_of("base"))


@pytest.mark.parametrize("widths", [(64, 64, 64), WIDTHS, (16, 256, 32, 96, 16, 16), (512, 16)])
@pytest.mark.parametrize("chip", ["small", "base", "wafer"])
def test_stages_are_apart_and_have_work(chip, widths):
    config = config_of(chip)
    network = perceptron("p", 3, widths=widths, tokens=16, steps=1)
    shapes = [geometry_of(layer) for layer in network.layers]
    dealt = deal(config, shapes, 1, 9)
    assert [s.first for s in dealt.stages] == [0, *(s.end for s in dealt.stages)][:-1]
    tiles = Counter(tile for stage in dealt.stages
                    for tile in rect_tiles(split_of(stage.area).activation_rect(0)))
    assert set(tiles.values()) == {1}
    assert all(0 <= x < config.mesh.cols and 0 <= y < config.mesh.rows for x, y in tiles)
    for stage in dealt.stages:
        assert stage.area[2] * stage.area[3] <= min(
            shape.out_groups for shape in shapes[stage.first : stage.end])
    assert (0, 0) in rect_tiles(split_of(dealt.stages[0].area).activation_rect(0))


def test_nothing_holds_the_stages_together():
    """No frames, no semaphore that all tiles signal; the first tile marks the steps but the first,
    and in each store and compute queue the items follow one another."""
    network = perceptron("p", 3, widths=WIDTHS, tokens=32, steps=5)
    program = compile_network(network, config_of("base"))
    marks = 0
    for tile, stream in program.streams.items():
        for opcode, fields in map(decode, stream):
            assert opcode not in (Opcode.FRAMES, Opcode.LAYER)
            if opcode == Opcode.SYNC:
                marks += fields["mark"]
                assert tile == (0, 0)
    assert marks == 4


def convolutions(rng, batch):
    """Two steps of 3x3, depthwise 3x3 and a strided one with nibbles and a table."""
    layers = [make_layer(rng, n=batch, c=20, m=48, h=9, w=9, k=(3, 3), pads=(1, 1, 1, 1), name="a",
                         source="x", target="t")]
    layers.append(make_layer(rng, n=batch, c=48, m=48, h=9, w=9, k=(3, 3), pads=(1, 1, 1, 1),
                             groups=48, name="b", source="t", target="u",
                             x_zero=layers[0].y_zero, x_signed=layers[0].y_signed))
    layers.append(nibbles(make_layer(rng, n=batch, c=48, m=40, h=9, w=9, k=(3, 3), s=(2, 2),
                                     name="c", source="u", target="v", x_zero=layers[1].y_zero,
                                     x_signed=layers[1].y_signed)))
    again = [replace(layer, name=f"{layer.name}@1", input_name=f"{layer.input_name}@1",
                     output_name=f"{layer.output_name}@1") for layer in layers]
    return layers, again


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("settings", [(), ("core.accumulator_rows=16",), ("mesh.multicast=false",)])
def test_convolutions(settings, batch):
    """Halos, pixels in several chunks, layers that are not dense; steps in any order of layers."""
    rng = np.random.default_rng(6)
    layers, again = convolutions(rng, batch)
    inputs = {"x": make_input(rng, layers[0]), "x@1": make_input(rng, layers[0])}
    mixed = [layer for both in zip(layers, again, strict=True) for layer in both]
    for order in (layers + again, mixed):
        program = compile_network(order, config_of("base", *settings))
        assert program.layer_names == ("a", "b", "c", "a@1", "b@1", "c@1")
        found = execute(program, inputs)
        for name, target in (("x", "v"), ("x@1", "v@1")):
            expected = inputs[name]
            for layer in layers:
                expected = golden(layer, expected)
            np.testing.assert_array_equal(found[target], expected)


def chain_of(rng, *channels, **options):
    layers = []
    for k, (c, m) in enumerate(pairwise(channels)):
        before = {"x_zero": layers[-1].y_zero, "x_signed": layers[-1].y_signed} if layers else {}
        layers.append(make_layer(rng, c=c, m=m, w=8, name=f"l{k}", source=f"t{k}",
                                 target=f"t{k + 1}", **before, **options))
    return layers


def test_networks_that_are_no_chain():
    rng = np.random.default_rng(1)
    layers = chain_of(rng, 16, 16, 16, **SAME)
    side = replace(layers[1], name="side", output_name="s")
    other = [replace(chain_of(rng, 16, 16)[0], name="other", input_name="z", output_name="w")]
    config = config_of("small")
    for wrong, text in (
        ([*layers, side], "tensor t1 has more readers than layer l1"),
        ([*layers, *other], "layer other has other weights or another shape than l0"),
        ([*layers, replace(layers[0], name="x", input_name="z", output_name="w")],
         r"the chain that begins with layer x has 1 layers, that with l0 2"),
    ):
        with pytest.raises(UserError, match=text):
            compile_network(wrong, config)
    for network, text in (
        (decoder("d", 3, layers=1, width=64, heads=4, cached=3, steps=1), "has no weights"),
        (encoder("e", 3, layers=1, width=64, heads=4, tokens=8), "has no weights"),
    ):
        with pytest.raises(UserError, match=text):
            compile_network(network, config)


def test_what_does_not_fit():
    network = perceptron("p", 3, widths=(512, 512, 512), tokens=16, steps=1)
    with pytest.raises(UserError, match=r"2 layers with 512 KiB of weights .* the 256 KiB of 4"):
        compile_network(network, config_of("small", "scratchpad.kib=64"))
    with pytest.raises(UserError, match=r"pinned_kib must be 0, not 8"):
        config_of("small", "scratchpad.pinned_kib=8")
    with pytest.raises(UserError, match=r"mapping\.bands: at most 16 for this network, not 17"):
        compile_network(network, config_of("small", "mapping.bands=17"))
    rng = np.random.default_rng(6)
    with pytest.raises(UserError, match=r"at most 1 .* need neighbouring pixels"):
        compile_network(convolutions(rng, 1)[0], config_of("small", "mapping.bands=2"))
    with pytest.raises(UserError, match=r"the \d+ layers of stage 0 need more than the 64 sem"):
        compile_network(perceptron("p", 3, widths=(16,) * 30, tokens=1, steps=1),
                        config_of("small", "mesh.rows=1", "mesh.cols=1"))
