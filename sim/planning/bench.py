# SPDX-License-Identifier: Apache-2.0
"""The cocotb side of `sim.planning.player`: a new command whenever an answer comes."""

import os
from pathlib import Path

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, Timer

PERIOD_NS = 2
LIMIT = 100_000
"""Cycles that a command may take at most: more than there are extents."""


@cocotb.test
async def commands(dut):
    """All commands of a job; per answer its payload, the registers and the cycle counter."""
    folder = Path(os.environ["HEADRACE_JOB"])
    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    dut.command__valid.value = 0
    dut.answer__ready.value = 1
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    answered, found = RisingEdge(dut.answer__valid), []
    for packed in np.fromfile(folder / "commands", np.uint64).tolist():
        # The unit takes nothing while an answer is valid: there is time to change the command.
        dut.command__payload.value = packed
        dut.command__valid.value = 1
        assert await First(answered, Timer(PERIOD_NS * LIMIT, unit="ns")) is answered
        await FallingEdge(dut.clk)  # all that changes with the answer has
        found.append([int(signal.value) for signal in (
            dut.answer__payload, dut.high_water, dut.count_spilled_words, dut.count_cycles)])
    assert found
    np.array(found, np.uint64).tofile(folder / "answers")
