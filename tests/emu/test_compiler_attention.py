# SPDX-License-Identifier: Apache-2.0
"""Rows, attention, concatenations and slices: compiled, interpreted, equal to their definition."""

from dataclasses import replace

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import execute
from emu.network.exact import run_layer
from emu.network.layers import (
    AttentionLayer,
    ConcatLayer,
    ExpertLayer,
    GatherLayer,
    IndexTensor,
    NormLayer,
    Operand,
    SliceLayer,
    SoftmaxLayer,
    TableLayer,
    TopKLayer,
)
from tests.emu.test_compiler_vector import MACHINES, draw, operand, run


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("seed", range(3))
def test_rows(machine, seed):
    rng = np.random.default_rng(seed)
    channels, tokens = int(rng.integers(2, 150)), int(rng.integers(1, 60))
    shape = (1, channels, 1, tokens)
    x, y = operand(rng, "x", shape, bool(seed & 1)), operand(rng, "y", shape, bool(seed & 1))
    values = draw(rng, x)
    zero = Operand("y", shape, y.is_signed, -128 if y.is_signed else 0)
    layer = SoftmaxLayer(name="softmax", source=x, target=zero, x_scale=0.05, y_scale=1 / 256)
    np.testing.assert_array_equal(run(layer, machine, values), run_layer(layer, values))
    layer = NormLayer(
        name="norm", source=x, target=y, gamma=rng.normal(1, 0.3, channels).astype(np.float32),
        beta=rng.normal(0, 0.5, channels).astype(np.float32), epsilon=1e-5, x_scale=0.04,
        y_scale=0.03,
    )
    np.testing.assert_array_equal(run(layer, machine, values), run_layer(layer, values))


def attention(rng, heads, depth, queries, keys, signed=True):
    channels = heads * depth
    q = operand(rng, "q", (1, channels, 1, queries), signed)
    k, v = (operand(rng, name, (1, channels, 1, keys), signed) for name in "kv")
    y = operand(rng, "y", (1, channels, 1, queries), signed)
    inner = (heads, keys, 1, queries)
    return AttentionLayer(
        name="attention", sources=(q, k, v), target=y, heads=heads,
        scores=operand(rng, "s", inner, signed),
        probabilities=Operand("p", inner, signed, -128 if signed else 0),
        score_scale=np.float32(40 / 74**2 / np.sqrt(depth)), scores_scale=0.03,
        probability_scale=1 / 256, value_scale=np.float32(0.7 / 74),
    )


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("heads", "depth", "queries", "keys"),
    [(1, 16, 1, 1), (3, 32, 37, 50), (12, 64, 1, 77), (2, 16, 300, 20), (5, 16, 16, 16)],
)
def test_attention(machine, heads, depth, queries, keys):
    rng = np.random.default_rng(keys)
    layer = attention(rng, heads, depth, queries, keys, signed=bool(keys & 1))
    values = [draw(rng, source) for source in layer.sources]
    want = run_layer(layer, *values)
    if keys > 1:
        assert len(np.unique(want)) > 20
    np.testing.assert_array_equal(run(layer, machine, *values), want)


def test_attention_that_does_not_fit():
    rng = np.random.default_rng(0)
    layer = attention(rng, 1, 64, 1, 4000)
    with pytest.raises(UserError, match="the 4000 keys and values of one head do not fit"):
        compile_network([layer], load_config("small", ["scratchpad.kib=64"]))
    layer = attention(rng, 2, 24, 1, 4)
    with pytest.raises(UserError, match="heads of 24 channels: a multiple of 16"):
        compile_network([layer], load_config("small"))


def test_views():
    """A table's results appended to a cache and a slice of both; nothing is copied."""
    rng = np.random.default_rng(1)
    x, old = (Operand(name, (1, 48, 1, count), True, 3) for name, count in (("x", 2), ("old", 7)))
    new, both = (Operand(name, (1, 48, 1, count), True, 3) for name, count in (("n", 2), ("b", 9)))
    cut = Operand("cut", (1, 32, 1, 5), True, 3)
    y = Operand("y", cut.shape, True, 3)
    table = rng.permutation(256).astype(np.uint8)
    layers = [
        TableLayer(name="one", source=x, target=new, table=table),
        ConcatLayer(name="append", sources=(old, new), target=both),
        SliceLayer(name="slice", source=both, target=cut, channel=16, pixel=4),
        TableLayer(name="two", source=cut, target=y, table=table),
    ]
    inputs = {"x": draw(rng, x), "old": draw(rng, old)}
    known = dict(inputs)
    for layer in layers:
        known[layer.target.name] = run_layer(layer, *(known[s.name] for s in layer.sources))
    program = compile_network(layers, load_config("small"))
    assert len(program.plans) == 2
    np.testing.assert_array_equal(execute(program, inputs)["y"], known["y"])
    with pytest.raises(UserError, match="would have to be copied"):
        compile_network([*layers, ConcatLayer(name="again", sources=(old, old), target=both)],
                        load_config("small"))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("rows", "channels", "count"), [(50, 40, 3), (7, 16, 1), (300, 384, 131)])
def test_gather(machine, rows, channels, count):
    rng = np.random.default_rng(count)
    numbers = rng.integers(0, rows, count, np.int32)
    words = -(-count // 4)
    tensor = IndexTensor(name="x", shape=(count,), dtype="int32", scale=1.0, zero_point=0,
                         layer_name="x", layer_shape=(1, 16, 1, words), limit=rows)
    table = rng.integers(-128, 128, (rows, channels)).astype(np.int8)
    layer = GatherLayer(name="gather", source=Operand("x", tensor.layer_shape, False, 0),
                        target=Operand("y", (1, channels, 1, count), True, 5), table=table)
    x = tensor.to_layer(numbers)
    np.testing.assert_array_equal(tensor.from_layer(x), numbers)
    np.testing.assert_array_equal(run_layer(layer, x)[0, :, 0].T, table[numbers])
    np.testing.assert_array_equal(run(layer, machine, x), run_layer(layer, x))


def test_channels_side_by_side():
    rng = np.random.default_rng(3)
    a, b, both = (Operand(n, (1, c, 1, 3), True, 1) for n, c in (("a", 16), ("b", 32), ("c", 48)))
    y = Operand("y", both.shape, True, 1)
    layers = [ConcatLayer(name="concat", sources=(a, b), target=both, axis="channels"),
              TableLayer(name="t", source=both, target=y, table=np.arange(256, dtype=np.uint8))]
    values = {"a": draw(rng, a), "b": draw(rng, b)}
    got = execute(compile_network(layers, load_config("small")), values)["y"]
    np.testing.assert_array_equal(got, np.concatenate([values["a"], values["b"]], axis=1))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("channels", "k", "count"), [(8, 2, 1), (16, 4, 37), (3, 1, 5)])
def test_top(machine, channels, k, count):
    rng = np.random.default_rng(count)
    x = operand(rng, "x", (1, channels, 1, count), bool(k & 1))
    layer = TopKLayer(name="top", source=x, target=Operand("y", (1, 16, 1, 2 * count), False, 0),
                      k=k)
    values = draw(rng, x)
    np.testing.assert_array_equal(run(layer, machine, values), run_layer(layer, values))
    bad = replace(layer, k=5)
    with pytest.raises(UserError, match="the 5 largest of"):
        compile_network([bad], load_config("small"))


@pytest.mark.parametrize("machine", ["small", "base"])
@pytest.mark.parametrize(("inputs", "outputs", "pixels"), [(40, 100, 1), (300, 700, 2)])
def test_experts(machine, inputs, outputs, pixels):
    rng = np.random.default_rng(inputs)
    experts, k = 5, 2
    x = operand(rng, "x", (1, inputs, 1, pixels), True)
    numbers = Operand("n", (1, 16, 1, 1), False, 0)
    layer = ExpertLayer(
        name="experts", sources=(x, numbers), target=Operand("y", (1, outputs, 1, k), True, 0), k=k,
        weights=rng.integers(-127, 128, (experts, outputs, inputs)).astype(np.int8),
        bias=rng.integers(-9999, 9999, (experts, outputs)).astype(np.int32),
        scale=rng.uniform(0.5, 1, (experts, outputs)).astype(np.float32) / np.float32(
            130 * np.sqrt(inputs)), y_zero=7,
        table=rng.permutation(256).astype(np.uint8) if pixels > 1 else None,
    )
    chosen = np.array([3, 1, 0, 0], np.uint32).view(np.uint8).reshape(numbers.shape)
    values = draw(rng, x), chosen
    want = run_layer(layer, *values)
    assert len(np.unique(want)) > 60
    np.testing.assert_array_equal(run(layer, machine, *values), want)
