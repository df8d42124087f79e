# SPDX-License-Identifier: Apache-2.0
"""DRAM array: random commands against a numpy memory, data on the bus when the timing set says."""

import os

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.config import Hbm
from emu.hbm_timing import TIMINGS, Place, row_bits, word
from hdl.hbm import array
from hdl.hbm.packets import ColumnBus, Phy, RowBus, RowKind
from sim.streams import bits_of, pack

MACHINES = {
    "m1": Hbm(mib=1, address_map="M1"),
    "m2x": Hbm(mib=1, address_map="M2X"),
    "b": Hbm(mib=2, address_map="M2", timing="hbm2_b"),
}


class Array(wiring.Component):
    """The array behind its command bus."""

    def __init__(self, hbm: Hbm):
        self._hbm = hbm
        super().__init__({"phy": In(Phy), "channel": In(8), "dump": In(1)})

    def elaborate(self, platform):
        platform.add_source(array.NAME, array.verilog(self._hbm))
        m = Module()
        m.submodules.array = array.instance(self.phy, self.channel, self.dump)
        return m


VARIANTS = {name: lambda hbm=hbm: Array(hbm) for name, hbm in MACHINES.items()}
HBM = MACHINES[os.environ.get("HEADRACE_VARIANT", "m1")]
TIMING = TIMINGS[HBM.timing]


def new_data(rng) -> tuple[int, int]:
    """A word and its byte mask, often whole."""
    mask = 0xFFFF if rng.random() < 0.7 else int(rng.integers(1 << 16))
    return int.from_bytes(rng.bytes(16), "little"), mask


def merged(old: int, data: int, mask: int) -> int:
    bits = sum(0xFF << 8 * i for i in range(16) if mask >> i & 1)
    return old & ~bits | data & bits


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.5])
async def random(dut, p_idle):
    """Words are written and read back through any open row of any bank, two cycles a column."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    dut.phy__row.value = dut.phy__column.value = dut.channel.value = dut.dump.value = 0
    Clock(dut.clk, 1, unit="ns").start()
    await ClockCycles(dut.clk, 3)
    rows = [int(row) for row in rng.integers(1 << row_bits(HBM), size=3)]
    memory: dict[int, int] = {}
    opened: dict[int, int] = {}
    # By cycle: what the write bus carries, what must be on the read bus.
    writes: dict[int, tuple[int, int, int]] = {}
    reads: dict[int, int] = {}
    sure: dict[int, int] = {}  # word: the cycle from which a read may be issued
    seen: dict[int, int] = {}
    checked = free = 0
    for cycle in range(4000):
        row = column = 0
        if rng.random() < 0.2 or len(opened) < 4:
            bank = int(rng.integers(16))
            opened[bank] = int(rng.choice(rows))
            row = pack(RowBus, {"valid": 1, "kind": bits_of(RowKind.ACTIVATE), "bank": bank,
                                "row": opened[bank]})
        settled = [bank for bank in opened if not row or bank != bank_of(row)]
        if settled and cycle >= free and rng.random() >= p_idle:
            bank, number = int(rng.choice(settled)), int(rng.integers(4))
            first = word(HBM, Place(row=opened[bank], group=bank >> 2, bank=bank & 3,
                                    column=number, half=0))
            second = word(HBM, Place(row=opened[bank], group=bank >> 2, bank=bank & 3,
                                     column=number, half=1))
            readable = all(sure.get(w, cycle + 1) <= cycle for w in (first, second))
            write = not readable or rng.random() < 0.4
            column = pack(ColumnBus, {"valid": 1, "write": int(write), "bank": bank,
                                      "column": number})
            free = cycle + 2
            for beat, w in enumerate((first, second)):
                if write:
                    data, mask = new_data(rng)
                    mask = mask if w in sure else 0xFFFF
                    writes[cycle + TIMING.cwl + beat] = w, data, mask
                    sure.setdefault(w, cycle + TIMING.cwl + 2)
                else:
                    reads[cycle + TIMING.cl + beat] = w
        dut.phy__row.value, dut.phy__column.value = row, column
        carried = writes.get(cycle)
        dut.phy__write_data.value, dut.phy__write_mask.value = carried[1:] if carried else (0, 0)
        # What is read in this cycle left the cells at the edge before it.
        await ReadOnly()
        if cycle in reads:
            assert int(dut.phy__read_data.value) == seen[reads[cycle]], (cycle, reads[cycle])
            checked += 1
        await RisingEdge(dut.clk)
        seen = dict(memory)
        if carried:
            w, data, mask = carried
            memory[w] = merged(memory.get(w, 0), data, mask)
    assert checked > 800 and len(memory) > 100


def bank_of(row: int) -> int:
    """Bank of a packed row command."""
    return row >> 4 & 15
