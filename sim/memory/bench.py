# SPDX-License-Identifier: Apache-2.0
"""The cocotb side of `sim.memory.player`: starts the trace and sleeps until it is over."""

import json
import os
from functools import reduce
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, Timer

SETTLE_CYCLES = 1100
"""The controller's conflict filter clears its 1024 counters before it takes writes."""


@cocotb.test
async def play(dut):
    """Play the trace that the plusargs name."""
    Clock(dut.clk, 2, unit="ns").start()
    dut.rst.value, dut.start.value = 1, 0
    # Inputs change half a cycle away from the clock's edge, as in `sim.chip_bench`.
    await ClockCycles(dut.clk, 4)
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    await ClockCycles(dut.clk, SETTLE_CYCLES)
    await FallingEdge(dut.clk)
    dut.start.value = 1
    done = RisingEdge(dut.done)
    limit = int(os.environ["HEADRACE_LIMIT"])
    fired = await First(done, Timer(2 * limit, unit="ns"))
    counters = json.loads(os.environ["HEADRACE_COUNTERS"])
    found = {name: int(reduce(getattr, path.split("."), dut).value)
             for name, path in counters.items()}
    Path(os.environ["HEADRACE_FOUND"]).write_text(json.dumps(found))
    assert fired is done, f"not over after {limit} cycles"
