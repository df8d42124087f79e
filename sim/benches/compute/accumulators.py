# SPDX-License-Identifier: Apache-2.0
"""Accumulators against numpy: random rows, replaced and added to, while the other half is read."""

import os

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.config import load_config
from emu.requantise import wrap_int32
from hdl.compute.accumulators import Accumulators

ROWS = {"rows16": 16, "rows256": 256}
VARIANTS = {
    name: lambda rows=rows: Accumulators(load_config("base", [f"core.accumulator_rows={rows}"]))
    for name, rows in ROWS.items()
}
CELLS, WORD = 16, (1 << 32) - 1


async def start(dut):
    Clock(dut.clk, 1, unit="ns").start()
    for name in ("fetch", "enable", "overwrite", "drain__enable"):
        getattr(dut, name).value = 0
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


class Bench:
    """Drives one cycle at a time; the model is an array, undefined where nothing was written."""

    def __init__(self, dut):
        self.dut = dut
        self.rows = ROWS[os.environ["HEADRACE_VARIANT"]]
        self.values = np.zeros((2, self.rows, CELLS), np.int64)
        self.known = np.zeros((2, self.rows), bool)
        self.announced: tuple[int, int] | None = None
        self.reading: tuple[int, int] | None = None
        self.checked = 0

    async def cycle(self, fetch=None, sums=None, overwrite=False, drain=None):
        """Announce ``fetch`` (half, row), add ``sums`` to what was announced, read ``drain``."""
        dut = self.dut
        dut.fetch.value = int(fetch is not None)
        dut.fetch_half.value, dut.fetch_row.value = fetch or (0, 0)
        dut.enable.value, dut.overwrite.value = int(sums is not None), int(overwrite)
        dut.sums.value = sum(
            (int(value) & WORD) << 32 * cell for cell, value in enumerate(sums or ()))
        dut.drain__enable.value = int(drain is not None)
        dut.drain__half.value, dut.drain__row.value = drain or (0, 0)
        await ReadOnly()
        if self.reading is not None:
            bits = int(dut.drain__data.value)
            got = [bits >> 32 * cell & WORD for cell in range(CELLS)]
            assert got == [int(v) & WORD for v in self.values[self.reading]], self.reading
            self.checked += 1
        await RisingEdge(dut.clk)
        if sums is not None:
            place = self.announced
            base = 0 if overwrite else self.values[place]
            self.values[place] = wrap_int32(base + np.asarray(sums, np.int64))
            self.known[place] = True
        self.announced, self.reading = fetch, drain


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.4], large=[0, 1])
async def random(dut, p_idle, large):
    """Sums are exact and wrap; a row may come again two cycles later and is readable then."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    bench = Bench(dut)
    await start(dut)
    low, high = (2**31 - 9, 2**31) if large else (-1000, 1000)
    window = [int(row) for row in rng.choice(bench.rows, 4, replace=False)]
    for number in range(1500):
        half = number // 100 % 2  # one fills while the other is read
        fetch = None
        if rng.random() >= p_idle:
            row = int(rng.choice(window) if rng.random() < 0.7 else rng.integers(bench.rows))
            fetch = (half, row) if (half, row) != bench.announced else None
        sums, overwrite = None, False
        if bench.announced is not None:
            sums = [int(value) for value in rng.integers(low, high, CELLS)]
            overwrite = not bench.known[bench.announced] or rng.random() < 0.02
        filled = np.flatnonzero(bench.known[1 - half])
        drain = None
        if len(filled) and rng.random() < 0.7 and number % 100 > 2:
            drain = 1 - half, int(rng.choice(filled))
        await bench.cycle(fetch, sums, overwrite, drain)
    assert bench.checked > 400


@cocotb.test
async def readable_two_cycles_later(dut):
    """The last row of a pass is read as soon as the contract allows."""
    bench = Bench(dut)
    await start(dut)
    for row in range(bench.rows):
        place = row % 2, row
        await bench.cycle(fetch=place)
        await bench.cycle(sums=[row * n for n in range(CELLS)], overwrite=True)
        await bench.cycle(drain=place)
    await bench.cycle()
    assert bench.checked == bench.rows
