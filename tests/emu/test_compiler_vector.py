# SPDX-License-Identifier: Apache-2.0
"""Layers of the vector engine: compiled, interpreted, compared with the element-wise functions."""

from dataclasses import replace

import numpy as np
import pytest

from emu import requantise as rq
from emu.compiler import compile_network
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import execute
from emu.network.layers import AddLayer, MultiplyLayer, Operand, PoolLayer, TableLayer

MACHINES = {
    "small": ("small", ()), "base": ("base", ()), "little": ("small", ("scratchpad.kib=16",)),
}
LOW = {True: -128, False: 0}


def operand(rng, name, shape, signed):
    return Operand(name, shape, signed, int(rng.integers(LOW[signed], LOW[signed] + 256)))


def draw(rng, operand):
    kind = np.int8 if operand.is_signed else np.uint8
    return rng.integers(LOW[operand.is_signed], LOW[operand.is_signed] + 256,
                        operand.shape).astype(kind)


def run(layer, machine, *values):
    chip, settings = MACHINES[machine]
    program = compile_network([layer], load_config(chip, list(settings)))
    inputs = {o.name: v for o, v in zip(layer.sources, values, strict=True)}
    first, second = (execute(program, inputs, eager=eager) for eager in (True, False))
    np.testing.assert_array_equal(first["y"], second["y"])
    return first["y"]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("seed", range(4))
def test_pools(machine, kind, seed):
    rng = np.random.default_rng(seed + 10 * (kind == "max"))
    signed = bool(rng.integers(2))
    channels, height, width = (int(k) for k in rng.integers((3, 4, 4), (53, 18, 18)))
    kernel, strides = tuple(int(k) for k in rng.integers(1, 4, 2)), (1 + seed % 2, 2)
    pads = tuple(int(rng.integers(0, k)) for k in (*kernel, *kernel)) if kind == "max" else (0,) * 4
    if seed == 3:
        kernel, strides, pads = (height, width), (1, 1), (0,) * 4
    rows = (height + pads[0] + pads[2] - kernel[0]) // strides[0] + 1
    columns = (width + pads[1] + pads[3] - kernel[1]) // strides[1] + 1
    x = operand(rng, "x", (1, channels, height, width), signed)
    y = operand(rng, "y", (1, channels, rows, columns), signed)
    if kind == "max":
        y = Operand("y", y.shape, signed, x.zero)
    scale = rq.pool_scale(np.float32(0.05), np.float32(0.04), kernel[0] * kernel[1])
    layer = PoolLayer(
        name="pool", source=x, target=y, kind=kind, kernel=kernel, strides=strides, pads=pads,
        scale=scale, clip_low=LOW[signed], clip_high=LOW[signed] + 255,
    )
    values = draw(rng, x)
    window = {"kernel": kernel, "stride": strides, "origin": (-pads[0], -pads[1]),
              "out": (rows, columns)}
    if kind == "max":
        want = rq.max_pool(values[0], **window)
    else:
        want = rq.sum_pool(values[0], scale, in_zero=x.zero, zero=y.zero, low=LOW[signed],
                           high=LOW[signed] + 255, **window)
    np.testing.assert_array_equal(run(layer, machine, values)[0], want.astype(values.dtype))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("seed", range(4))
def test_element_wise(machine, seed):
    rng = np.random.default_rng(seed)
    shape = (1 + seed % 2, 5 + int(rng.integers(40)), 3 + int(rng.integers(9)), 17)
    signed = bool(seed & 1)
    a, b = operand(rng, "a", shape, bool(seed & 2)), operand(rng, "b", shape, not signed)
    y = operand(rng, "y", shape, signed)
    low = LOW[signed]
    clip = {"clip_low": low + 9, "clip_high": low + 250}
    scale, _ = scales = rq.add_scales(*np.float32([0.03, 0.05, 0.06]))
    table = rq.add_table(
        *scales, a_zero=a.zero, c_zero=b.zero, out_zero=y.zero, c_signed=b.is_signed
    )
    values = draw(rng, a), draw(rng, b)
    layer = AddLayer(name="add", sources=(a, b), target=y, scale=scale, table=table, **clip)
    want = rq.add_by_table(values[0].astype(np.int32), values[1], scale, table, low=low + 9,
                           high=low + 250)
    np.testing.assert_array_equal(run(layer, machine, *values), want)
    layer = MultiplyLayer(name="mul", sources=(a, b), target=y, scale=np.float32(0.01), **clip)
    want = rq.multiply(*values, np.float32(0.01), a_zero=a.zero, b_zero=b.zero, zero=y.zero,
                       low=low + 9, high=low + 250)
    np.testing.assert_array_equal(run(layer, machine, *values), want)
    entries = rng.permutation(256).astype(np.uint8)
    layer = TableLayer(name="table", source=a, target=y, table=entries)
    want = rq.lookup(values[0], entries).view(np.int8 if signed else np.uint8)
    np.testing.assert_array_equal(run(layer, machine, values[0]), want)


@pytest.mark.parametrize(("length", "count"), [(64, 1), (130, 1), (100, 5)])
def test_windows_longer_than_their_field(length, count):
    """Of more than 63 pixels in a row, side by side: two loops of the window share them."""
    rng = np.random.default_rng(length)
    x, y = (operand(rng, name, (1, 20, 1, size), True)
            for name, size in (("x", length * count), ("y", count)))
    scale = rq.pool_scale(np.float32(0.05), np.float32(0.01), length)
    layer = PoolLayer(name="mean", source=x, target=y, kind="average", kernel=(1, length),
                      strides=(1, length), pads=(0,) * 4, scale=scale, clip_low=-128,
                      clip_high=127)
    values = draw(rng, x)
    total = (values.astype(np.int32) - x.zero).reshape(1, 20, 1, count, length).sum(axis=4)
    want = rq.requantise(total, scale, zero=y.zero, low=-128, high=127)
    np.testing.assert_array_equal(run(layer, "small", values), want)
    bad = replace(layer, source=replace(x, shape=(1, 20, 1, 67)), kernel=(1, 67))
    with pytest.raises(UserError, match="a window over 67 pixels in a row: supported are 63"):
        compile_network([bad], load_config("small"))
