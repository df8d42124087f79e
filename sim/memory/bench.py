# SPDX-License-Identifier: Apache-2.0
"""The cocotb side of `sim.memory.player`."""

import cocotb

from sim import play_bench

SETTLE_CYCLES = 1100
"""The controller's conflict filter clears its 1024 counters before it takes writes."""


@cocotb.test
async def play(dut):
    """Play the trace that the plusargs name."""
    await play_bench.play(dut, SETTLE_CYCLES)
