# SPDX-License-Identifier: Apache-2.0
"""The cocotb side of `sim.noc.nodes`: sets a load, sleeps, reads the counts, sets the next."""

import json
import os
from functools import reduce
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, Timer

from sim.noc.nodes import CHANCE, SUMS
from sim.noc.traffic import Pattern

PERIOD_NS = 2
ROUNDS = 5
"""Bisections of the load between the last that is sustained and the first that is not."""
EMPTY_LIMIT = 1 << 24


def _cycles(count: int) -> Timer:
    return Timer(PERIOD_NS * count, unit="ns")


def _read(dut, job) -> dict[str, Any]:
    nodes = job["nodes"]
    found: dict[str, Any] = {name: int(getattr(dut, name).value) for name in SUMS}
    found["now"] = int(dut.now.value)
    for name in ("accepted", "slowest"):
        bits = int(getattr(dut, name).value)
        found[name] = [bits >> 32 * k & 0xFFFFFFFF for k in range(nodes)]
    return found


def _links(dut, job) -> int:
    """Flits that crossed links between routers so far."""
    return sum(int(reduce(getattr, path.split("."), dut).value) for path in job["links"])


async def _when(signal, limit: int) -> bool:
    """Whether ``signal`` is or becomes high within ``limit`` cycles."""
    if signal.value == 1:
        return True
    rise = RisingEdge(signal)
    return await First(rise, _cycles(limit)) is rise


async def _point(dut, job, rate: float, measured: int, seed: int) -> dict[str, Any]:
    """One load: warm up, measure, wait for what was measured, stop, wait for all."""
    await FallingEdge(dut.clk)
    dut.rate.value, dut.seed.value = round(rate * CHANCE), seed
    dut.clear.value = 1
    links = _links(dut, job)
    await ClockCycles(dut.clk, 1)
    await FallingEdge(dut.clk)
    dut.clear.value, dut.enable.value = 0, 1
    await _cycles(job["warm"])
    dut.measure.value = 1
    await _cycles(measured)
    dut.measure.value = 0
    await _cycles(1)
    sustained = await _when(dut.settled, 4 * measured)
    if sustained:
        await FallingEdge(dut.clk)
    point: dict[str, Any] = {"offered": rate, "sustained": sustained, "measured_cycles": measured}
    point["at_end"] = _read(dut, job)
    dut.enable.value = 0
    await _cycles(1)
    point["emptied"] = await _when(dut.empty, EMPTY_LIMIT)
    await FallingEdge(dut.clk)
    point["totals"] = _read(dut, job)
    point["link_flits"] = _links(dut, job) - links
    return point


def _latency(point: dict[str, Any]) -> float:
    """Mean latency of a point, infinite if its load was not sustained."""
    end = point["at_end"]
    if not point["sustained"] or not end["measured"]:
        return float("inf")
    return end["latency"] / end["measured"]


async def _sweep(dut, job) -> list[dict[str, Any]]:
    """Zero load, a grid of loads, and a bisection between the last below the bound and the next."""
    seed = iter(range(job["seed"], job["seed"] + 1000))
    points = [await _point(dut, job, job["zero_load"], job["zero_cycles"], next(seed))]
    bound = job["factor"] * _latency(points[0])
    for rate in job["loads"]:
        points.append(await _point(dut, job, rate, job["measured"], next(seed)))
    below = [p["offered"] for p in points if _latency(p) < bound]
    above = [p["offered"] for p in points if _latency(p) >= bound and p["offered"] > max(below)]
    low, high = max(below), min(above, default=1.0)
    for _ in range(ROUNDS if above else 0):
        middle = round((low + high) / 2, 4)
        points.append(await _point(dut, job, middle, 2 * job["measured"], next(seed)))
        low, high = (middle, high) if _latency(points[-1]) < bound else (low, middle)
    return sorted(points, key=lambda point: point["offered"])


async def _trace(dut, job) -> list[dict[str, Any]]:
    """A trace from its first packet to the last delivery."""
    await FallingEdge(dut.clk)
    dut.clear.value = 1
    await ClockCycles(dut.clk, 1)
    await FallingEdge(dut.clk)
    dut.clear.value, dut.enable.value = 0, 1
    await _cycles(job["warm"])
    dut.enable.value = 1
    done = await _when(dut.over, job["limit"])
    await FallingEdge(dut.clk)
    found = _read(dut, job)
    return [{"offered": None, "sustained": done, "emptied": done, "at_end": found,
             "totals": found, "link_flits": _links(dut, job), "measured_cycles": found["now"]}]


@cocotb.test
async def curve(dut):
    """All loads of a job, or its trace."""
    job = json.loads(Path(os.environ["HEADRACE_JOB"]).read_text())
    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    for name in ("clear", "enable", "measure", "rate", "seed"):
        getattr(dut, name).value = 0
    dut.rst.value = 1
    dut.pattern.value = job["pattern"]
    dut.hot_x.value, dut.hot_y.value = job["node"]
    dut.multicast.value = round(job["multicast"] * CHANCE)
    await ClockCycles(dut.clk, 4)
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 4)
    if job["pattern"] == Pattern.TRACE:
        points = await _trace(dut, job)
    elif job["soak"]:
        points = [await _point(dut, job, job["loads"][-1], job["soak"], job["seed"])]
    else:
        points = await _sweep(dut, job)
    Path(job["result"]).write_text(json.dumps(points))
