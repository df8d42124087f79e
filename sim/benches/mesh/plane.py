# SPDX-License-Identifier: Apache-2.0
"""Mesh planes: exactly-once delivery, order, latency and link use of random multicast traffic."""

import os
from collections import defaultdict

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, Combine, with_timeout
from cocotb.utils import get_sim_time

from sim.benches import sized
from sim.benches.mesh._traffic import Case, members, random_dest, tree_links
from sim.streams import Sink, Source

CASES = {
    "req_4x4": Case("req", 4, 4),
    "up_4x4": Case("up", 4, 4),
    "down_4x4": Case("down", 4, 4),
    "x_first_3x5": Case("general", 3, 5, "x_first", depth=3),
    "y_first_3x5": Case("general", 3, 5, "y_first", "age"),
    "x_first_1x4": Case("general", 1, 4, "x_first", "age"),
    "y_first_4x1": Case("general", 4, 1, "y_first", depth=9),
    "x_first_1x1": Case("general", 1, 1, "x_first", depth=2),
}
VARIANTS = {name: case.mesh for name, case in CASES.items()}
QUICK = ("up_4x4", "down_4x4", "y_first_3x5", "x_first_1x1")
CASE = CASES[os.environ.get("HEADRACE_VARIANT", "up_4x4")]


class Testbench:
    """Sources and sinks on every port, and who has received what when."""

    def __init__(self, dut, *, p_idle=0.0, p_stall=0.0):
        self.rng = np.random.default_rng(cocotb.RANDOM_SEED)
        self.sources = {
            name: Source(dut, name, CASE.flit, p_idle=p_idle, rng=self.rng)
            for name in CASE.sources()
        }
        self.arrivals: dict[str, list[tuple[int, int]]] = defaultdict(list)  # port: (tag, time)
        self.sinks = {
            name: Sink(dut, name, CASE.flit, p_stall=p_stall, rng=self.rng,
                       on_item=self._note(name))
            for name in CASE.sinks()
        }
        self.dut = dut
        for x, y in CASE.places():  # ports that this plane does not use
            for side in ("north", "south", "west", "east"):
                number = x if side in ("north", "south") else y
                if f"in_{side}_{number}" not in self.sources:
                    port = getattr(dut, f"in_{side}_{number}__valid", None)
                    if port is not None:
                        port.value = 0

    def _note(self, name):
        def note(item):
            self.arrivals[name].append((item[CASE.tag], round(get_sim_time("ns"))))
        return note

    async def start(self):
        Clock(self.dut.clk, 1, unit="ns").start()
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 3)
        self.dut.rst.value = 0
        for sink in self.sinks.values():
            cocotb.start_soon(sink.run())
        await ClockCycles(self.dut.clk, 1)

    def link_flits(self) -> int:
        """Flits that crossed links between routers."""
        total = 0
        for x, y in CASE.places():
            router = getattr(self.dut, f"router_{x}_{y}")
            inner = {"north": y > 0, "south": y < CASE.rows - 1, "west": x > 0,
                     "east": x < CASE.cols - 1}
            total += sum(
                int(getattr(router, f"count_flits_{side}").value)
                for side, exists in inner.items() if exists
            )
        return total


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.8], p_stall=[0.0, 0.6])
async def random_traffic(dut, p_idle, p_stall):
    """Every flit reaches each of its receivers once, in order per source and receiver."""
    bench = Testbench(dut, p_idle=p_idle, p_stall=p_stall)
    await bench.start()
    expected: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    tasks = []
    for number, (name, source) in enumerate(bench.sources.items()):
        flits = []
        for sequence in range(sized(16, 6)):
            dest, receivers = random_dest(CASE, name, bench.rng)
            flits.append({CASE.tag: number << 16 | sequence, "dest": dest})
            for receiver in receivers:
                expected[receiver][number].append(sequence)
        tasks.append(cocotb.start_soon(source.send(flits)))
    await with_timeout(Combine(*tasks), 50, "us")
    total = sum(len(tags) for by in expected.values() for tags in by.values())
    for _ in range(100):
        await ClockCycles(dut.clk, 20)
        if sum(map(len, bench.arrivals.values())) >= total:
            break
    await ClockCycles(dut.clk, 20)
    assert total > 0 and sum(map(len, bench.arrivals.values())) == total
    for name in bench.sinks:
        got = defaultdict(list)
        for tag, _ in bench.arrivals[name]:
            got[tag >> 16].append(tag & 0xFFFF)
        assert got == expected[name], name


@cocotb.test
async def zero_load_latency(dut):
    """A lone flit takes a cycle per hop and one to leave: hops + 1."""
    bench = Testbench(dut)
    await bench.start()
    checked = 0
    for name, source in bench.sources.items():
        for _ in range(sized(3, 1)):
            dest, receivers = random_dest(CASE, name, bench.rng)
            if not receivers:
                continue
            bench.arrivals.clear()
            await with_timeout(source.send([{CASE.tag: 1, "dest": dest}]), 1, "us")
            sent = round(get_sim_time("ns"))  # the edge that took it
            await ClockCycles(dut.clk, CASE.cols + CASE.rows + 3)
            x, y, _ = CASE.sources()[name]
            assert set(bench.arrivals) == set(receivers)
            for receiver in receivers:
                ((_, seen),) = bench.arrivals[receiver]
                to_x, to_y, _ = CASE.sinks()[receiver]
                # Seen in the cycle that starts `hops` edges after the one that took it.
                assert seen - sent == abs(x - to_x) + abs(y - to_y), (name, receiver)
                checked += 1
    assert checked > 0


@cocotb.test
async def multicast_uses_each_link_once(dut):
    """A multicast word crosses each link of its tree once, whatever the number of receivers."""
    bench = Testbench(dut, p_stall=0.3)
    await bench.start()
    checked = 0
    for name, (x, y, _) in CASE.sources().items():
        dest, receivers = random_dest(CASE, name, bench.rng)
        if dest["exit"] or not receivers:
            continue
        rect = dest["rect"]
        rect |= {"x1": max(p[0] for p in members(rect)), "y1": max(p[1] for p in members(rect))}
        before = bench.link_flits()
        await with_timeout(bench.sources[name].send([{CASE.tag: 5, "dest": dest}] * 3), 1, "us")
        await ClockCycles(dut.clk, 60)
        assert bench.link_flits() - before == 3 * tree_links(CASE, x, y, rect)
        checked += 1
    assert checked > 0 or CASE.plane == "req"


@cocotb.test
async def full_throughput(dut):
    """A source streams a flit a cycle through the whole mesh."""
    bench = Testbench(dut)
    await bench.start()
    name = next(iter(bench.sources))
    dest, receivers = random_dest(CASE, name, bench.rng)
    while not receivers:
        dest, receivers = random_dest(CASE, name, bench.rng)
    flits = [{CASE.tag: n, "dest": dest} for n in range(40)]
    await with_timeout(bench.sources[name].send(flits), 1, "us")
    await ClockCycles(dut.clk, CASE.cols + CASE.rows + 3)
    for receiver in receivers:
        times = [time for _, time in bench.arrivals[receiver]]
        assert len(times) == 40 and times[-1] - times[0] == 39
