# SPDX-License-Identifier: Apache-2.0
"""Requantiser lanes against the golden model: random, tie-heavy and extreme operands, with gaps."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from emu import requantise as rq
from hdl.compute.requantise import Requantiser

LANES = 2
VARIANTS = {"lanes2": lambda: Requantiser(LANES)}


async def reset(dut):
    Clock(dut.clk, 1, unit="ns").start()
    dut.rst.value = 1
    dut.valid.value = 0
    dut.stop.value = 0
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


def operands(rng, kind: str, count: int):
    """Accumulators, biases and scales ``[count, LANES]``."""
    shape = (count, LANES)
    bias = rng.integers(-(1 << 20), 1 << 20, shape)
    if kind == "typical":
        acc = rng.integers(-(1 << 22), 1 << 22, shape)
        scale = rng.uniform(1e-5, 3e-4, shape)
    elif kind == "ties":  # odd numbers over powers of two, nudged by a few units in the last place
        bias[:] = 0
        bits = rng.integers(8, 31, shape)
        acc = (2 * rng.integers(-300, 300, shape) + 1) << (bits - 8) >> rng.integers(0, 3, shape)
        scale = np.ldexp(1.0, 7 - bits) * (1 + rng.integers(-3, 4, shape) * 2.0**-23)
    else:  # the whole range of both
        acc = rng.integers(-(1 << 31), 1 << 31, shape)
        ends = rng.choice([0, -(1 << 31), (1 << 31) - 1], shape)
        acc = np.where(rng.random(shape) < 0.1, ends, acc)
        scale = np.exp2(rng.uniform(-40, 2, shape))
        scale = np.where(rng.random(shape) < 0.1, np.exp2(rng.uniform(-126, 127, shape)), scale)
    return rq.wrap_int32(acc), rq.wrap_int32(bias), scale.astype(np.float32)


def packed(values) -> int:
    return int.from_bytes(np.ascontiguousarray(values).tobytes(), "little")


@cocotb.test
@cocotb.parametrize(kind=["typical", "ties", "extreme"], p_idle=[0.0, 0.4])
async def golden(dut, kind, p_idle):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await reset(dut)
    seen = 0
    for is_signed in (True, False):
        low, high = (-128, 127) if is_signed else (0, 255)
        low, high = low + int(rng.integers(0, 40)), high - int(rng.integers(0, 40))
        zero = int(rng.integers(low, high + 1))
        dut.zero.value, dut.low.value, dut.high.value = (v & 511 for v in (zero, low, high))
        acc, bias, scale = operands(rng, kind, 1500)
        want = rq.to_bytes(rq.requantise(acc, scale, bias=bias, zero=zero, low=low, high=high))
        got: list[bytes] = []
        await with_timeout(stream(dut, rng, p_idle, acc, bias, scale, got), 20, "us")
        assert np.array_equal(np.frombuffer(b"".join(got), np.uint8).reshape(-1, LANES), want)
        seen += len(np.unique(want))
    assert seen > 4


async def stream(dut, rng, p_idle, acc, bias, scale, got):
    """Offer every operand once; collect every result."""
    scales, item = [0, 0], 0
    while len(got) < len(acc):
        offer = item < len(acc) and rng.random() >= p_idle
        dut.valid.value = int(offer)
        dut.scale.value = scales.pop(0)
        if offer:
            dut.acc.value, dut.bias.value = packed(acc[item]), packed(bias[item])
            scales.append(packed(scale[item]))
            item += 1
        else:
            scales.append(0)
        await ReadOnly()
        if int(dut.y_valid.value):
            got.append(int(dut.y.value).to_bytes(LANES, "little"))
        await RisingEdge(dut.clk)
    dut.valid.value = 0


@cocotb.test
async def totals_only(dut):
    """With ``stop`` the sums come after one cycle, wrapped, and no byte follows."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await reset(dut)
    dut.stop.value = 1
    acc, bias, _ = operands(rng, "extreme", 50)
    for item in range(50):
        dut.valid.value = 1
        dut.acc.value, dut.bias.value = packed(acc[item]), packed(bias[item])
        await RisingEdge(dut.clk)
        dut.valid.value = 0
        await ReadOnly()
        assert int(dut.total_valid.value) and not int(dut.y_valid.value)
        total = np.frombuffer(int(dut.total.value).to_bytes(4 * LANES, "little"), np.int32)
        assert np.array_equal(total, rq.wrap_int32(acc[item].astype(np.int64) + bias[item]))
        await RisingEdge(dut.clk)
    await ClockCycles(dut.clk, 5)
    assert not int(dut.y_valid.value)
