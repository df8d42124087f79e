# SPDX-License-Identifier: Apache-2.0
"""One router: where each flit goes, once, in order; latency, forks and fair shares of an output."""

import os
from collections import defaultdict
from dataclasses import dataclass

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, Combine, ReadOnly, RisingEdge, with_timeout

from hdl.mesh.plane import STEPS
from hdl.mesh.route import OPPOSITE, ORDERS, SIDES
from hdl.mesh.router import Router
from hdl.packets import Exit
from sim.benches.mesh._traffic import SMALL, members, unicast
from sim.streams import Sink, Source, bits_of

PORTS = (*SIDES, "core")


@dataclass(frozen=True)
class Case:
    """A router at (x, y) of a mesh with something at every edge."""

    order: str
    x: int
    y: int
    cols: int = 4
    rows: int = 4
    arbiter: str = "round_robin"
    depth: int = 4

    def make(self) -> Router:
        return Router(SMALL, self.order, cols=self.cols, rows=self.rows, depth=self.depth,
                      edges=SIDES, exits=SIDES, arbiter=self.arbiter)

    def inside(self, x: int, y: int) -> bool:
        return 0 <= x < self.cols and 0 <= y < self.rows

    def at_edge(self, side: str) -> bool:
        dx, dy = STEPS[side]
        return not self.inside(self.x + dx, self.y + dy)


CASES = {
    "x_first_inside": Case("x_first", 1, 2),
    "y_first_inside": Case("y_first", 2, 1, arbiter="age"),
    "x_first_corner": Case("x_first", 0, 0, depth=2),
    "y_first_edge": Case("y_first", 3, 1, depth=3),
    "x_first_alone": Case("x_first", 0, 0, cols=1, rows=1, arbiter="age"),
}
VARIANTS = {name: case.make for name, case in CASES.items()}
CASE = CASES[os.environ.get("HEADRACE_VARIANT", "x_first_inside")]


def outputs(source: str, dest: dict) -> set[str]:
    """Outputs that a flit from ``source`` takes here, by the rules of dimension order.

    What enters from the core or over the mesh's edge has both dimensions before it. In the first
    dimension it goes on in its direction, and forks into the second where a column (in Y-first
    order: a row) of the rectangle is; in the second it only goes on.
    """
    first, second = ORDERS[CASE.order]
    here = {"x": CASE.x, "y": CASE.y}
    places = members(dest["rect"])
    axes = {"x": {x for x, _ in places}, "y": {y for _, y in places}}
    along = "x" if first[0] == "west" else "y"

    def ahead(side: str) -> bool:
        """Whether the rectangle has anything in the direction of ``side``."""
        axis = "x" if side in ("west", "east") else "y"
        low = side in ("west", "north")
        bound = dest["rect"][f"{axis}0"] if low else dest["rect"][f"{axis}1"]
        return bound < here[axis] if low else bound > here[axis]

    fresh = source == "core" or CASE.at_edge(source)
    taken = set()
    for side in first:
        if ahead(side) and (source == OPPOSITE[side] or (fresh and source != side)):
            taken.add(side)
    for side in second:
        if ahead(side) and here[along] in axes[along] and source != side:
            taken.add(side)
    if (CASE.x, CASE.y) in places:
        taken.add(Exit(dest["exit"]).name.lower())
    return {output for output in taken if output != source or output == "core"}


def random_dest(rng: np.random.Generator) -> dict:
    """A rectangle, or the exit of a router at the mesh's edge."""
    if rng.random() < 0.3:
        side = str(rng.choice(SIDES))
        x, y = int(rng.integers(CASE.cols)), int(rng.integers(CASE.rows))
        edge = {"north": (x, 0), "south": (x, CASE.rows - 1),
                "west": (0, y), "east": (CASE.cols - 1, y)}[side]
        return {"rect": unicast(*edge), "exit": bits_of(getattr(Exit, side.upper()))}
    rect: dict[str, int] = {}
    for axis, size in (("x", CASE.cols), ("y", CASE.rows)):
        low, high = sorted(int(v) for v in rng.integers(0, size, 2))
        rect |= {f"{axis}0": low, f"{axis}1": high, f"{axis}s": int(rng.integers(0, 4))}
    return {"rect": rect, "exit": 0}


async def start(dut, p_idle=0.0, p_stall=0.0):
    """Sources and sinks of every port, after reset."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    sources = {name: Source(dut, f"in_{name}", SMALL, p_idle=p_idle, rng=rng) for name in PORTS}
    sinks = {name: Sink(dut, f"out_{name}", SMALL, p_stall=p_stall, rng=rng) for name in PORTS}
    dut.x.value, dut.y.value, dut.rst.value = CASE.x, CASE.y, 1
    Clock(dut.clk, 1, unit="ns").start()
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    return rng, sources, sinks


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.7], p_stall=[0.0, 0.6])
async def random_traffic(dut, p_idle, p_stall):
    """Each output gets the flits that are meant for it, once, those of a source in order."""
    rng, sources, sinks = await start(dut, p_idle, p_stall)
    for sink in sinks.values():
        cocotb.start_soon(sink.run())
    expected: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    tasks = []
    for number, (name, source) in enumerate(sources.items()):
        flits: list[dict] = [
            {"data": number << 16 | n, "dest": random_dest(rng)} for n in range(100)]
        for flit in flits:
            for output in outputs(name, flit["dest"]):
                expected[output][number].append(flit["data"])
        tasks.append(cocotb.start_soon(source.send(flits)))
    await with_timeout(Combine(*tasks), 20, "us")
    for _ in range(400):
        await RisingEdge(dut.clk)
        if not int(dut.busy.value):
            break
    await ClockCycles(dut.clk, 3)
    assert int(dut.busy.value) == 0
    for name, sink in sinks.items():
        got = defaultdict(list)
        for flit in sink.received:
            got[flit["data"] >> 16].append(flit["data"])
        assert got == expected[name], name
        if CASE.cols > 1 or name != "core":
            assert sink.received, name
        assert int(getattr(dut, f"count_flits_{name}").value) == len(sink.received)


@cocotb.test
async def one_cycle(dut):
    """A flit that was taken in one cycle is offered at its outputs in the next, and complete."""
    rng, sources, sinks = await start(dut)
    for sink in sinks.values():
        sink.ready.value = 1
    checked = 0
    for name, source in sources.items():
        for _ in range(20):
            flit: dict = {"data": int(rng.integers(1 << 32)), "dest": random_dest(rng)}
            await source.send([flit])
            await ReadOnly()
            for output, sink in sinks.items():
                wanted = output in outputs(name, flit["dest"])
                assert int(sink.valid.value) == wanted, (name, output, flit)
                checked += wanted
            await ClockCycles(dut.clk, 2)
    assert checked > 50


@cocotb.test
async def fork_is_asynchronous(dut):
    """Copies leave as their outputs become free; the flit stays until the last has left."""
    rng, sources, sinks = await start(dut)
    dest = random_dest(rng)
    while len(outputs("core", dest)) < 2 and CASE.cols > 1:
        dest = random_dest(rng)
    branches = sorted(outputs("core", dest))
    await sources["core"].send([{"data": 1, "dest": dest}])
    for last, branch in enumerate(rng.permutation(branches)):
        await ClockCycles(dut.clk, 5)
        await ReadOnly()
        waiting = {name for name, sink in sinks.items() if int(sink.valid.value)}
        assert len(waiting) == len(branches) - last and int(dut.busy.value)
        await RisingEdge(dut.clk)
        sinks[str(branch)].ready.value = 1
        await RisingEdge(dut.clk)
        sinks[str(branch)].ready.value = 0
    await ClockCycles(dut.clk, 2)
    assert int(dut.busy.value) == 0


@cocotb.test
async def fair_and_full(dut):
    """An output that several inputs want all the time works in every cycle and serves all alike."""
    _, sources, sinks = await start(dut)
    rect = unicast(CASE.x, CASE.y)
    sink = sinks["core"]
    flits = {name: {"data": n, "dest": {"rect": rect, "exit": 0}} for n, name in enumerate(PORTS)}
    for name, source in sources.items():
        cocotb.start_soon(source.send([flits[name]] * 200))
    await ClockCycles(dut.clk, 20)
    cocotb.start_soon(sink.run())
    await ClockCycles(dut.clk, 102)
    assert 100 <= len(sink.received) <= 102, "a cycle was lost"
    shares = [sum(flit["data"] == n for flit in sink.received) for n in range(len(PORTS))]
    assert max(shares) - min(shares) <= 1, shares
