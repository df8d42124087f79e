# SPDX-License-Identifier: Apache-2.0
"""The cocotb side of `sim.storage.player`: sets the registers and sleeps until it is over."""

import json
import os
from functools import reduce
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, Timer

SETTLE_CYCLES = 4200
"""The tags are cleared, entry by entry, and so is the channel's conflict filter."""


@cocotb.test
async def play(dut):
    """Play the decode that the plusargs name."""
    Clock(dut.clk, 2, unit="ns").start()
    dut.rst.value, dut.start.value = 1, 0
    for name, value in json.loads(os.environ["HEADRACE_REGISTERS"]).items():
        getattr(dut, name).value = value
    await ClockCycles(dut.clk, 4)
    # Inputs change half a cycle away from the clock's edge, as in `sim.chip_bench`.
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
    found["error"] = int(dut.error.value)
    found["unused"] = int(dut.unused.value)
    Path(os.environ["HEADRACE_FOUND"]).write_text(json.dumps(found))
    assert fired is done, f"not over after {limit} cycles"
