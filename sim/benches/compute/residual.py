# SPDX-License-Identifier: Apache-2.0
"""Residual lanes against the golden fused multiply-add: typical, tied, cancelling, extreme."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from emu import requantise as rq
from hdl.compute.residual import ResidualAdder

LANES = 2
VARIANTS = {"lanes2": lambda: ResidualAdder(LANES)}


def operands(rng, kind: str, count: int):
    """``(scale, a bytes, addends)``, the latter ``[count, LANES]``."""
    shape = (count, LANES)
    a = rng.integers(0, 256, shape)
    if kind == "typical":
        return np.float32(rng.uniform(0.01, 2)), a, rng.uniform(-150, 150, shape).astype(np.float32)
    if kind == "ties":
        scale = np.float32(2.0 ** -int(rng.integers(1, 5)))
        # Half a unit in the last place of sums from 1/4 to 255 is 2**-26 to 2**-17.
        nudge = rng.choice([0, 1, -1, 1.5, -1.5], shape) * 2.0 ** -rng.integers(14, 29, shape)
        coarse = rng.choice([0, 0, 0.5, -0.5, 0.125, -3.5], shape)
        return scale, a, (coarse + nudge).astype(np.float32)
    if kind == "cancel":  # addend close to -a * scale at sizes far beyond a byte
        scale = np.float32(rng.uniform(1, 2) * 2.0 ** int(rng.integers(0, 19)))
        signed_a = np.where(a > 127, a - 256, a)
        near = -(signed_a * np.float64(scale)) + rng.integers(-90, 90, shape)
        return scale, a, near.astype(np.float32)
    scale = np.float32(np.exp2(rng.uniform(-100, 20)))
    addend = np.exp2(rng.uniform(-126, 29, shape)) * rng.choice([-1, 1], shape)
    return scale, a, np.where(rng.random(shape) < 0.2, 0, addend).astype(np.float32)


@cocotb.test
@cocotb.parametrize(kind=["typical", "ties", "cancel", "extreme"])
async def golden(dut, kind):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    Clock(dut.clk, 1, unit="ns").start()
    dut.rst.value, dut.valid.value = 1, 0
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    seen = set()
    for _ in range(12):
        is_signed = kind == "cancel" or bool(rng.integers(0, 2))
        zero = 0 if is_signed else int(rng.integers(-128, 128))
        low, high = (-128, 127) if rng.integers(0, 2) else (0, 255)
        scale, a, addend = operands(rng, kind, 200)
        value = rq.from_bytes(a.astype(np.uint8).ravel(), is_signed).reshape(a.shape) - zero
        total = rq.fma32(value.astype(np.float32), scale, addend)
        want = rq.to_bytes(np.clip(np.rint(total), low, high).astype(int))
        dut.a_signed.value, dut.a_zero.value = int(is_signed), zero & 511
        dut.scale.value = int(np.float32(scale).view(np.uint32))
        dut.low.value, dut.high.value = low & 511, high & 511
        got: list[bytes] = []
        await with_timeout(stream(dut, rng, a, addend, got), 5, "us")
        assert np.array_equal(np.frombuffer(b"".join(got), np.uint8).reshape(-1, LANES), want)
        seen |= set(want.ravel().tolist())
    assert len(seen) > 2


async def stream(dut, rng, a, addend, got):
    """Offer every operand once, with gaps; collect every result."""
    item = 0
    while len(got) < len(a):
        offer = item < len(a) and rng.random() >= 0.2
        dut.valid.value = int(offer)
        if offer:
            dut.a.value = int.from_bytes(a[item].astype(np.uint8).tobytes(), "little")
            dut.addend.value = int.from_bytes(addend[item].tobytes(), "little")
            item += 1
        await ReadOnly()
        if int(dut.y_valid.value):
            got.append(int(dut.y.value).to_bytes(LANES, "little"))
        await RisingEdge(dut.clk)
    dut.valid.value = 0
