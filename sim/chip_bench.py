# SPDX-License-Identifier: Apache-2.0
"""The whole chip under a program: start it, sleep until done, read the counters, dump the memory.

The clock is the simulator's own and Python wakes three times a run, so cocotb costs nothing. The
job (policy registers, cycle limit, counter paths, result file) is a JSON file named by
``HEADRACE_JOB``; the result is another. Starting and ending the run is all that happens here.
"""

import json
import os
import time
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, Timer
from cocotb.utils import get_sim_time

from sim.sampler import sampling

PERIOD_NS = 2
RESET_CYCLES = 4


def _read(dut, path: str) -> int:
    """The value at a dotted path; a part may end in an index: ``tile_0_0.counters[3]``."""
    handle = dut
    for part in path.split("."):
        name, _, index = part.partition("[")
        handle = getattr(handle, name)
        if index:
            handle = handle[int(index.removesuffix("]"))]
    return int(handle.value)


async def _counters(dut, paths: dict[str, str]) -> dict[str, int]:
    """All counters; those behind a shell of `sim.lockstep` are sampled first."""
    for instance in {path.split(".")[0] for path in paths.values() if "[" in path}:
        getattr(dut, instance).sample.value = 1
    await Timer(1, unit="step")
    return {name: _read(dut, path) for name, path in paths.items()}


async def _watch_steps(dut, steps: list[int], begin: float) -> None:
    """Append the cycle in which each marked step begins: as many wakes as the program has steps."""
    while True:
        await dut.step.value_change
        steps.append(int(get_sim_time("ns") - begin) // PERIOD_NS)


async def _set_pagers(dut, pager: dict) -> None:
    """Registers, then regions, each for as long as it takes to be stored; then tags are cleared."""
    for name, value in pager["registers"].items():
        getattr(dut, f"pager__{name}").value = value
    dut.pager__describe.value = 0
    await ClockCycles(dut.clk, pager["settle_cycles"])
    for region, cycles in pager["regions"]:
        await FallingEdge(dut.clk)
        dut.pager__region.value = region
        dut.pager__describe.value = 1
        await FallingEdge(dut.clk)
        dut.pager__describe.value = 0
        await ClockCycles(dut.clk, cycles)


@cocotb.test
async def workload(dut):
    """Run one job; the outcome is ``done``, ``error`` or ``limit``."""
    job = json.loads(Path(os.environ["HEADRACE_JOB"]).read_text())
    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    dut.rst.value = 1
    dut.start.value = 0
    dut.dump.value = 0
    dut.prefetch__policy.value = job["policy"]
    dut.prefetch__depth.value = job["depth"]
    dut.prefetch__threshold.value = job["threshold"]
    if job.get("edge_first") is not None:
        dut.edge_first.value = job["edge_first"]
    # Icarus trusts cocotb's writes here, so inputs change half a cycle away from the clock's edge.
    await ClockCycles(dut.clk, RESET_CYCLES)
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 1)
    if job.get("pager"):
        await _set_pagers(dut, job["pager"])
    begin, wall = get_sim_time("ns"), time.perf_counter()
    await FallingEdge(dut.clk)
    dut.start.value = 1
    done, error = RisingEdge(dut.done), RisingEdge(dut.error)
    limit = Timer(PERIOD_NS * job["cycle_limit"], unit="ns")
    steps: list[int] = []
    watch = cocotb.start_soon(_watch_steps(dut, steps, begin))
    with sampling(job["sampler"], job["profile"]):
        fired = await First(done, error, limit)
    outcome = "done" if fired is done else "error" if fired is error else "limit"
    result = {
        "outcome": outcome,
        "cycles": int(get_sim_time("ns") - begin) // PERIOD_NS,
        "run_seconds": time.perf_counter() - wall,
    }
    watch.cancel()
    result["step_begins"] = steps
    await ClockCycles(dut.clk, 2)
    result["counters"] = await _counters(dut, job["counters"])
    result["status"] = str(dut.status.value)
    result["error_tiles"] = str(dut.error_tiles.value)
    result["error_channels"] = str(dut.error_channels.value)
    if outcome == "done":
        await FallingEdge(dut.clk)
        dut.dump.value = 1
        await ClockCycles(dut.clk, 2)
    Path(job["result"]).write_text(json.dumps(result))
