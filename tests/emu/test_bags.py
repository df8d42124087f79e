# SPDX-License-Identifier: Apache-2.0
"""Embedding bags: numbers, sums in a tile and in HBM, tables in slices and copies, bad input."""

from dataclasses import replace

import numpy as np
import pytest

from emu.compiler import bag_step, compile_network
from emu.compiler.images import Memory
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import execute
from emu.network.bags import BagsTensor, numbers_shape
from emu.network.exact import exact, run_layer
from emu.network.layers import BagsLayer, Operand
from emu.network.recommender import LOOKUPS, embeddings
from emu.row_sums import split, sum_words, unsummable

ROWS = 50


def bags(batch, lookups, width, bits=8):
    rng, low = np.random.default_rng(batch), 1 << bits - 1
    shape = numbers_shape(batch, lookups)
    tensor = BagsTensor(
        name="n", shape=(batch, sum(lookups)), dtype="int32", scale=1.0, zero_point=0,
        layer_name="n", layer_shape=shape, limit=ROWS, lookups=lookups)
    layer = BagsLayer(
        name="bags", source=Operand("n", shape, False, 0), lookups=lookups, bits=bits,
        target=Operand("y", (1, len(lookups) * width, 1, batch), True, 3),
        tables=tuple(rng.integers(-low, low, (ROWS, width)).astype(np.int8) for _ in lookups),
        scales=tuple(np.float32(80 / low / np.sqrt(count)) for count in lookups))
    numbers = rng.integers(0, ROWS, tensor.shape, np.int32)
    values = tensor.to_layer(numbers)
    np.testing.assert_array_equal(tensor.from_layer(values), numbers)
    return layer, numbers, values


def test_definition():
    layer, numbers, values = bags(3, (2, 5), 16)
    y = run_layer(layer, values)
    sums = layer.tables[1][numbers[2, 2:7]].astype(np.int64).sum(axis=0)
    want = np.clip(np.rint(sums * np.float64(layer.scales[1])), -131, 124) + 3
    np.testing.assert_array_equal(y[0, 16:, 0, 2], want)


@pytest.mark.parametrize(("chip", "least", "bits"), [
    ("small", 0, 8), ("small", 1, 8), ("small", 1, 4), ("base", 0, 8), ("base", 3, 8),
])
@pytest.mark.parametrize(("batch", "lookups", "width"), [
    (3, (2, 1, 70), 32), (8, (3, 2, 1, 100, 27, 10), 128), (5, (1, 9, 7), 64),
])
def test_bags(chip, least, bits, batch, lookups, width):
    layer, _, values = bags(batch, lookups, width, bits)
    program = compile_network([layer], load_config(chip, [f"hbm.sum_rows={least}"]))
    near = sum(count >= least for count in lookups) if least else 0
    assert f"{near} of them summed in HBM" in program.plans[0]
    want = run_layer(layer, values)
    assert len(np.unique(want)) > 60
    for eager in (True, False):
        got = execute(program, {"n": values}, eager=eager)["y"]
        np.testing.assert_array_equal(got, want)


def test_busiest_table_has_copies_or_slices(monkeypatch):
    """No channel reads much more than the others."""
    network = embeddings("e", 1, batch=8, rows=ROWS)
    (layer,) = network.layers
    config = load_config("base", ["hbm.sum_rows=1"])
    for least, wide in ((8, 1), (4, 2)):
        monkeypatch.setattr(bag_step, "LEAST_SLICE", least)
        tables = bag_step.place_tables(Memory(config), layer)
        busiest = tables[LOOKUPS.index(100)]
        assert (busiest.slices, len(busiest.bases)) == (wide, 4 // wide)
        assert all(len(t.bases) == t.slices == 1 for t in tables if t is not busiest)


def test_both_forms_say_the_same():
    options = {"batch": 3, "lookups": (2, 1, 9), "rows": ROWS, "width": 32, "zipf": 1.0}
    one, many = (embeddings("e", 1, fused=fused, **options) for fused in (True, False))
    a, b = (exact(network, network.given)["bags"] for network in (one, many))
    np.testing.assert_array_equal(a, b)


def test_sums_in_words():
    sums = np.array([[-128 * 128, 127 * 128, -1, 0, 129] + [5] * 11])
    high, low = split(sums)[0].view(np.int8).astype(int)
    np.testing.assert_array_equal(high * 128 + low, sums[0])
    assert low.min() >= 0
    word = np.full((2, 16), 0x8F, np.uint8)
    first = sum_words({"sum": 2, "count2": 2, "sum_int4": 1}, word).view(np.int8)
    assert first[:, 0].tolist() == [-1, 126, -1, 112]  # of -1 + -1, then of -8 + -8


def test_refusals():
    fields = {"sum": 3, "count2": 6, "run": 8, "sum_int4": 0}
    far = np.arange(48)
    assert not unsummable(fields, far, 1)
    assert "have no adders" in unsummable(fields, far, 0)
    assert "6 rows in sums of 4" in unsummable(fields | {"sum": 4}, far, 1)
    assert "across segments" in unsummable(fields, far + 1, 1)
    assert "more than 16" in unsummable(fields | {"sum_int4": 1}, far, 1)
    layer, _, _ = bags(3, (2, 5), 32, 4)
    with pytest.raises(UserError, match=r"set hbm\.sum_rows=1"):
        compile_network([layer], load_config("small"))
    with pytest.raises(UserError, match=r"of bag 1 need \d+ words of scratchpad"):
        compile_network([bags(3, (2, 1000), 32)[0]], load_config("small", ["scratchpad.kib=16"]))
    odd = replace(layer, bits=8, tables=tuple(t[:, :24] for t in layer.tables))
    with pytest.raises(UserError, match="rows of 24 channels of 8 bits"):
        compile_network([odd], load_config("small"))
