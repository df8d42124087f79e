# SPDX-License-Identifier: Apache-2.0
"""Layers that read several tensors, or one of several readers: compiled, interpreted, compared."""

from dataclasses import replace

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.compiler.activations import fill_lanes
from emu.compiler.choices import in_hbm, plan_layers
from emu.compiler.space_to_depth import block_of, from_blocks, over_blocks, to_blocks
from emu.config import load_config
from emu.interpreter import execute
from emu.network.layers import Operand, Residual, SliceLayer
from emu.network.workloads import load_network
from emu.requantise import add_by_table, add_scales, add_table
from tests.emu.compiler_layers import golden, make_input, make_layer
from tests.emu.test_compiler import MACHINES, SAME


def with_residual(rng, layer, source, *, first, signed=True, target="sum"):
    """``layer`` with an addition of tensor ``source`` (shape as its output's) behind it."""
    a_zero, c_zero = (source.zero, layer.y_zero) if first else (layer.y_zero, source.zero)
    scales = add_scales(*rng.uniform(0.02, 0.06, 3).astype(np.float32))
    c_signed = layer.y_signed if first else source.is_signed
    zero = int(rng.integers(-20, 20)) if signed else int(rng.integers(90, 150))
    table = add_table(*scales, a_zero=a_zero, c_zero=c_zero, out_zero=zero, c_signed=c_signed)
    low, high = (-128, 127) if signed else (0, 255)
    residual = Residual(
        source=source, target=Operand(target, layer.output_shape, signed, zero), scale=scales[0],
        table=table, clip_low=zero if rng.integers(2) else low, clip_high=high, source_first=first,
    )
    return replace(layer, residual=residual)


def added(layer, y, other):
    """The sum behind ``layer``, by definition."""
    r = layer.residual
    a, c = (other, y) if r.source_first else (y, other)
    total = add_by_table(a.astype(np.int32), c, r.scale, r.table, low=r.clip_low, high=r.clip_high)
    return total.astype(np.int8 if r.target.is_signed else np.uint8)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("first", [False, True])
def test_residual(machine, first):
    rng = np.random.default_rng(len(machine) + 50 * first)
    config = load_config(MACHINES[machine][0], list(MACHINES[machine][1]))
    for signed in (True, False):
        one = make_layer(rng, c=40, m=56, h=9, w=7, k=(3, 3), pads=(1, 1, 1, 1), target="y",
                         y_signed=signed)
        two = make_layer(rng, c=56, m=40, h=9, w=7, source="y", target="z", name="two",
                         x_signed=signed, x_zero=one.y_zero, y_signed=signed)
        source = Operand("x", one.input_shape, True, one.x_zero)
        two = with_residual(rng, two, source, first=first, signed=not signed)
        table = rng.permutation(256).astype(np.uint8)
        two = replace(two, table=table,
                      table_target=Operand("out", two.output_shape, True, 3))
        program = compile_network([one, two], config)
        assert program.planned_read_bytes >= program.compulsory_bytes["hbm_read"]
        x = make_input(rng, one)
        total = added(two, golden(two, golden(one, x)), x)
        expected = table[total.view(np.uint8)].view(np.int8)
        for eager in (True, False):
            found = execute(program, {"x": x}, eager=eager)
            assert list(found) == ["out"]
            np.testing.assert_array_equal(found["out"], expected)


@pytest.mark.parametrize("seed", range(12))
def test_space_to_depth(seed):
    rng = np.random.default_rng(seed)
    s = tuple(int(v) for v in rng.integers(1, 4, 2))
    k = tuple(int(v) for v in rng.integers(1, 8, 2))
    c = max(1, int(rng.integers(1, 17)) // (s[0] * s[1]))
    layer = make_layer(rng, c=c, m=20, h=int(rng.integers(7, 20)), w=int(rng.integers(7, 20)), k=k,
                       s=s, pads=tuple(int(v) for v in rng.integers(0, 4, 4)),
                       n=int(rng.integers(1, 3)), y_signed=bool(rng.integers(2)))
    x = make_input(rng, layer)
    block = block_of(layer)
    assert (block == (1, 1)) == (s == (1, 1) or k == (1, 1) or c * s[0] * s[1] > 16)
    blocks = to_blocks(x, block, layer.x_zero)
    np.testing.assert_array_equal(from_blocks(blocks, block, x.shape[2:]), x)
    if block != (1, 1):
        np.testing.assert_array_equal(golden(over_blocks(layer, block), blocks), golden(layer, x))
    program = compile_network([layer], load_config("small"))
    np.testing.assert_array_equal(execute(program, {"x": x})["y"], golden(layer, x))
    image = program.global_image({"x": x})
    np.testing.assert_array_equal(program.read_tensors(image, every=True)["x"], x)


def test_first_layer_of_resnet_needs_a_third_of_the_cycles():
    layer = make_layer(np.random.default_rng(1), c=3, m=64, h=224, w=224, k=(7, 7), s=(2, 2),
                       pads=(3, 3, 3, 3))
    program = compile_network([layer], load_config())
    assert program.roofline["compute"] == 16 * 4 * 784


def test_a_tensor_of_two_readers_and_a_fork():
    """x -> a, a -> b, a -> c + b: two layers read a, the sum reads b."""
    rng = np.random.default_rng(3)
    a = make_layer(rng, c=16, m=32, h=8, w=8, target="a", **SAME)
    b = make_layer(rng, c=32, m=48, h=8, w=8, source="a", target="b", name="b", x_zero=a.y_zero,
                   **SAME)
    c = make_layer(rng, c=32, m=48, h=8, w=8, source="a", target="c", name="c", x_zero=a.y_zero)
    c = with_residual(rng, c, Operand("b", b.output_shape, True, b.y_zero), first=False)
    x = make_input(rng, a)
    ya = golden(a, x)
    expected = added(c, golden(c, ya), golden(b, ya))
    for chip in ("small", "base"):
        program = compile_network([a, b, c], load_config(chip))
        np.testing.assert_array_equal(execute(program, {"x": x})["sum"], expected)


def test_a_tensor_of_more_readers_than_semaphores():
    """Edges that find no semaphore go through HBM."""
    rng = np.random.default_rng(12)
    first = make_layer(rng, c=32, m=32, h=6, w=6, target="t")
    zero = first.y_zero
    readers = [make_layer(rng, c=32, m=16, h=6, w=6, x_zero=zero, x_signed=first.y_signed,
                          source="t", target=f"y{k}", name=f"reader {k}") for k in range(12)]
    program = compile_network([first, *readers], load_config("small"))
    inputs = make_input(rng, first)
    found = execute(program, {"x": inputs})
    made = golden(first, inputs)
    for layer in readers:
        np.testing.assert_array_equal(found[layer.output_name], golden(layer, made))


def test_room_for_activations():
    """At most so many KiB of a tile are taken by activations that stay, at any one layer."""
    network = load_network("tiny.residual")
    reads = []
    for kib in (0, 2, 1, None):
        program = compile_network(network, load_config("small", [
            f"scratchpad.resident_kib={kib or 0}",
            f"scratchpad.resident={str(kib is not None).lower()}"]))
        areas = [item for item in program.memories["scratchpad"] if "temporaries" not in item.name]
        most = max((sum(item.size for item in areas if item.first <= k <= item.last)
                    for k in range(len(network.layers))), default=0)
        assert most <= 1024 * kib if kib else (most > 0) == (kib == 0)
        reads.append(program.planned_read_bytes)
    assert max(reads[:-1]) < reads[-1]


def test_edges_have_all_semaphores_that_nobody_else_needs():
    """With those of experts, whom it has not, `resnet50` keeps all but these of its activations."""
    network = load_network("resnet50")
    layers, _ = fill_lanes(list(network.layers))
    outputs = {tensor.layer_name for tensor in network.outputs}
    choices = plan_layers(load_config("base"), layers, 32)
    assert len(in_hbm(layers, choices, outputs)) == 7


@pytest.mark.parametrize("channel, pixel", [(0, 0), (16, 8), (32, 20)])
def test_a_convolution_of_a_slice(channel, pixel):
    """It reads a part of another tensor, whose groups lie further apart than its own pixels."""
    rng = np.random.default_rng(channel)
    one = make_layer(rng, c=20, m=64, w=40, target="a", name="one")
    whole = Operand("a", one.output_shape, True, one.y_zero)
    cut = Operand("b", (1, 32, 1, 20), True, one.y_zero)
    two = make_layer(rng, c=32, m=20, w=20, k=(1, 3), pads=(0, 1, 0, 1), source="b", target="z",
                     name="two", x_zero=one.y_zero)
    view = SliceLayer(name="cut", source=whole, target=cut, channel=channel, pixel=pixel)
    program = compile_network([one, view, two], load_config("small"))
    x = make_input(rng, one)
    part = golden(one, x)[:, channel : channel + 32, :, pixel : pixel + 20]
    np.testing.assert_array_equal(execute(program, {"x": x})["z"], golden(two, part))
