# SPDX-License-Identifier: Apache-2.0
"""The cocotb side of `sim.storage.player`."""

import cocotb

from sim import play_bench

SETTLE_CYCLES = 4200
"""The tags are cleared, entry by entry, and so is the channel's conflict filter."""


@cocotb.test
async def play(dut):
    """Play the decode that the plusargs name."""
    await play_bench.play(dut, SETTLE_CYCLES, signals=("error", "unused"))
