# SPDX-License-Identifier: Apache-2.0
"""Runs of convolutions fused stripe by stripe: the same outputs, less traffic."""

from dataclasses import replace

import numpy as np
import pytest

from emu.compiler import compile_network, fusion
from emu.compiler.mapping import part
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import execute
from emu.network.layers import Operand
from tests.emu.compiler_layers import golden, make_input, make_layer
from tests.emu.test_compiler_graphs import added, with_residual

SMALL = ["scratchpad.kib=16", "mapping.fused=true"]


def chain(rng, height, width, *, strides=(1, 1, 1), kernels=(1, 3, 1), channels=(24, 40, 40, 24),
          depthwise=True):
    """An inverted residual block of any size, its second layer depthwise; the input is "t0"."""
    layers, h, w = [], height, width
    for k, (stride, kernel) in enumerate(zip(strides, kernels, strict=True)):
        groups = channels[k] if depthwise and k == 1 else 1
        more = {"x_zero": layers[-1].y_zero} if layers else {}
        pads = tuple(int(v) for v in rng.integers(0, kernel // 2 + 1, 4))
        layers.append(make_layer(
            rng, c=channels[k], m=channels[k + 1], h=h, w=w, k=(kernel, kernel),
            s=(stride, stride), pads=pads, groups=groups, source=f"t{k}", target=f"t{k + 1}",
            name=f"layer{k}", **more))
        h, w = layers[-1].output_shape[2:]
    return layers


def reference(layers, x):
    for layer in layers:
        x = golden(layer, x)
    return x


def force(monkeypatch, count):
    """Fuse whatever can be, in ``count`` stripes, longest runs first."""

    def best(apart, first, end):
        run = apart.layers[first:end]
        if apart.inner(first, end) is None:
            return None
        height = run[-1].target.shape[2]
        rows = [fusion._rows(run, part(height, min(count, height), k))
                for k in range(min(count, height))]
        return None if None in rows else fusion._Run(first, end, rows, float(end - first) ** 2)

    monkeypatch.setattr(fusion, "_best", best)
    monkeypatch.setattr(fusion, "_traffic", lambda layers, *_: -len(layers))


@pytest.mark.parametrize("seed", range(16))
def test_any_run_in_any_stripes(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    kernels = tuple(int(v) for v in rng.choice([1, 2, 3, 5], 3))
    layers = chain(rng, int(rng.integers(24, 40)), int(rng.integers(20, 26)), kernels=kernels,
                   strides=tuple(int(v) for v in rng.integers(1, 3, 3)),
                   depthwise=bool(rng.integers(2)))
    force(monkeypatch, int(rng.integers(2, 6)))
    config = load_config("small", [*SMALL, f"scratchpad.kib={16 << int(rng.integers(3))}"])
    program = compile_network(layers, config)
    assert len(program.layer_names) > len(layers)
    assert program.macs == sum(layer.macs for layer in layers)
    assert program.input_names == ("t0",) and program.output_names == ("t3",)
    x = make_input(rng, layers[0])
    for eager in (True, False):
        found = execute(program, {"t0": x}, eager=eager)
        np.testing.assert_array_equal(found["t3"], reference(layers, x))


@pytest.mark.parametrize("inside", [True, False])
def test_an_addition_in_a_run(monkeypatch, inside):
    """The addend is the run's own input, or what a second branch of the run makes of it."""
    rng = np.random.default_rng(3 + inside)
    layers = chain(rng, 14, 9, kernels=(1, 1, 1), channels=(24, 40, 40, 24), depthwise=False)
    addend = Operand("t0", layers[0].input_shape, True, layers[0].x_zero)
    branch = make_layer(rng, c=24, m=24, h=14, w=9, source="t0", target="b", name="branch",
                        x_zero=layers[0].x_zero)
    if inside:
        addend = branch.target
    layers[2] = replace(with_residual(rng, layers[2], addend, first=False),
                        table=rng.permutation(256).astype(np.uint8),
                        table_target=Operand("out", layers[2].output_shape, True, 3))
    x = make_input(rng, layers[0])
    other = golden(branch, x) if inside else x
    total = added(layers[2], reference(layers, x), other)
    network = [branch, *layers] if inside else layers
    force(monkeypatch, 3)
    program = compile_network(network, load_config("small", SMALL))
    assert len(program.layer_names) == 3 * len(network)
    found = execute(program, {"t0": x})
    assert list(found) == ["out"]
    np.testing.assert_array_equal(
        found["out"], layers[2].table[total.view(np.uint8)].view(np.int8))


def test_an_addend_that_is_the_input_with_other_rows(monkeypatch):
    """``x + conv3x3(x)`` in a run: of x the convolution needs more rows than the addition."""
    rng = np.random.default_rng(6)
    one = make_layer(rng, c=24, m=24, h=14, w=9, k=(3, 3), pads=(1, 1, 1, 1), source="t0",
                     target="y", name="one")
    addend = Operand("t0", one.input_shape, True, one.x_zero)
    one = with_residual(rng, one, addend, first=False, target="s")
    two = make_layer(rng, c=24, m=16, h=14, w=9, source="s", target="z", name="two",
                     x_zero=one.target.zero)
    x = make_input(rng, one)
    force(monkeypatch, 4)
    program = compile_network([one, two], load_config("small", SMALL))
    assert len(program.layer_names) == 8
    np.testing.assert_array_equal(
        execute(program, {"t0": x})["z"], golden(two, added(one, golden(one, x), x)))


def test_a_tensor_called_like_a_stripe(monkeypatch):
    rng = np.random.default_rng(9)
    layers = chain(rng, 8, 8)
    layers[2] = replace(layers[2], output_name="t1@1")
    force(monkeypatch, 2)
    with pytest.raises(UserError, match="would be called t1@1"):
        compile_network(layers, load_config("small", SMALL))


def test_what_is_no_run(monkeypatch):
    """Several images, a tensor that others read, an output: all stay as they are."""
    rng = np.random.default_rng(8)
    force(monkeypatch, 2)
    config = load_config("small", SMALL)
    one = make_layer(rng, c=16, m=16, h=6, w=6, n=2, target="y")
    two = make_layer(rng, c=16, m=16, h=6, w=6, n=2, source="y", target="z", name="two",
                     x_zero=one.y_zero)
    assert len(compile_network([one, two], config).layer_names) == 2
    layers = chain(rng, 8, 8)
    third = make_layer(rng, c=40, m=16, h=layers[0].output_shape[2], w=layers[0].output_shape[3],
                       source="t1", target="other", name="third", x_zero=layers[0].y_zero)
    names = compile_network([*layers, third], config).layer_names
    assert "layer0" in names and "third" in names


def test_it_is_done_where_it_saves():
    """With little room an expansion of six times does not leave the chip; with much it is whole."""
    rng = np.random.default_rng(2)
    layers = chain(rng, 48, 48, channels=(16, 96, 96, 16), strides=(1, 2, 1))
    x = make_input(rng, layers[0])
    traffic = {}
    for kib, fused in ((32, "false"), (32, "true"), (1024, "false"), (1024, "true")):
        config = load_config("small", [f"scratchpad.kib={kib}", f"mapping.fused={fused}"])
        program = compile_network(layers, config)
        written = sum(bound.write_words for bound in program.rooflines)
        total = program.planned_read_bytes + 16 * written
        traffic[kib, fused] = total, len(program.layer_names)
        np.testing.assert_array_equal(execute(program, {"t0": x})["t3"], reference(layers, x))
    assert traffic[32, "true"][0] < 0.75 * traffic[32, "false"][0]
    assert traffic[1024, "true"] == traffic[1024, "false"] and traffic[1024, "true"][1] == 3


def test_settings_that_do_not_go_together():
    for other in ("scratchpad.resident=false", "mapping.mode=pipeline"):
        with pytest.raises(UserError, match="fused needs"):
            load_config("small", ["mapping.fused=true", other])
