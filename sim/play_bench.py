# SPDX-License-Identifier: Apache-2.0
"""The cocotb side of the players in Verilog: start one, sleep until it is over, read counters."""

import json
import os
from functools import reduce
from pathlib import Path

from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, Timer

PERIOD_NS = 2
RESET_CYCLES = 4


async def play(dut, settle_cycles: int, signals: tuple[str, ...] = ()) -> None:
    """Play what the plusargs name, begun ``settle_cycles`` after reset.

    Inputs of ``HEADRACE_REGISTERS`` are set before; the counters of ``HEADRACE_COUNTERS`` and
    ``signals`` go to ``HEADRACE_FOUND``, also if it is not over after ``HEADRACE_LIMIT`` cycles.
    """
    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    dut.rst.value, dut.start.value = 1, 0
    for name, value in json.loads(os.environ.get("HEADRACE_REGISTERS", "{}")).items():
        getattr(dut, name).value = value
    await ClockCycles(dut.clk, RESET_CYCLES)
    # Inputs change half a cycle away from the clock's edge, as in `sim.chip_bench`.
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    await ClockCycles(dut.clk, settle_cycles)
    await FallingEdge(dut.clk)
    dut.start.value = 1
    done = RisingEdge(dut.done)
    limit = int(os.environ["HEADRACE_LIMIT"])
    fired = await First(done, Timer(PERIOD_NS * limit, unit="ns"))
    paths = json.loads(os.environ["HEADRACE_COUNTERS"]) | {name: name for name in signals}
    found = {name: int(reduce(getattr, path.split("."), dut).value)
             for name, path in paths.items()}
    Path(os.environ["HEADRACE_FOUND"]).write_text(json.dumps(found))
    assert fired is done, f"not over after {limit} cycles"
