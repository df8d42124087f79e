# SPDX-License-Identifier: Apache-2.0
"""Scratchpad: every grant, every word and every counter against a model, joined and banked."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, NextTimeStep, ReadOnly, RisingEdge

from hdl.scratchpad import Scratchpad

READERS = ("activation", "weight", "drain", "store")
WRITERS = ("net", "drain")
PRIORITY = (
    "read_activation",
    "read_weight",
    "write_net",
    "write_drain",
    "read_drain",
    "read_store",
)
WORDS, BANKS = 128, 8


def factory(joined):
    return lambda: Scratchpad(WORDS, BANKS, READERS, WRITERS, PRIORITY, joined=joined)


VARIANTS = {"joined": factory(True), "banked": factory(False)}


class Clients:
    """Drives all ports, holds what is refused, and predicts grants and data."""

    def __init__(self, dut, rng, load: float, spread: int):
        self.dut, self.rng, self.load, self.spread = dut, rng, load, spread
        self.waiting: dict[str, tuple[int, int]] = {}
        self.memory: dict[int, int] = {}
        self.seen = {name: 0 for name in PRIORITY}
        self.refused = {name: 0 for name in PRIORITY}

    def port(self, name, part):
        return getattr(self.dut, f"{name}__{part}")

    def idle(self):
        for name in PRIORITY:
            self.port(name, "request__valid").value = 0
            self.port(name, "request__payload").value = 0

    async def cycle(self):
        for name in PRIORITY:
            if name not in self.waiting and self.rng.random() < self.load:
                item = int(self.rng.integers(self.spread)), int.from_bytes(self.rng.bytes(16))
                if name.startswith("write_") or item[0] in self.memory:
                    self.waiting[name] = item
            self.port(name, "request__valid").value = int(name in self.waiting)
            if name in self.waiting:
                address, word = self.waiting[name]
                payload = address << 128 | word if name.startswith("write_") else address
                self.port(name, "request__payload").value = payload
        await ReadOnly()
        taken, expected = set(), {}
        for name in PRIORITY:
            if name not in self.waiting:
                continue
            address, word = self.waiting[name]
            granted = int(self.port(name, "request__ready").value)
            assert granted == (address % BANKS not in taken), f"{name} at {address}"
            taken.add(address % BANKS)
            if not granted:
                self.refused[name] += 1
                continue
            self.seen[name] += 1
            del self.waiting[name]
            if name.startswith("write_"):
                self.memory[address] = word
            else:
                expected[name] = self.memory[address]
        await RisingEdge(self.dut.clk)
        return expected

    async def run(self, cycles):
        for _ in range(cycles):
            expected = await self.cycle()
            await ReadOnly()
            for name, word in expected.items():
                assert int(self.port(name, "data").value) == word, name
            await NextTimeStep()  # still in this cycle: the next requests follow back to back


async def start(dut, rng, load, spread):
    clients = Clients(dut, rng, load, spread)
    clients.idle()
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    return clients


@cocotb.test(timeout_time=500, timeout_unit="us")
@cocotb.parametrize(load=[0.2, 0.6, 1.0], spread=[16, 128])
async def traffic(dut, load, spread):
    clients = await start(dut, np.random.default_rng(cocotb.RANDOM_SEED), load, spread)
    await clients.run(400)
    assert min(clients.seen[name] for name in ("read_activation", "write_net")) > 20
    clients.idle()
    await ClockCycles(dut.clk, 2)
    for name in PRIORITY:
        assert int(getattr(dut, f"count_refused_{name}").value) == clients.refused[name]
    total = {
        way: sum(n for name, n in clients.seen.items() if name.startswith(way))
        for way in ("read_", "write_")
    }
    assert int(dut.count_reads.value) == total["read_"] > 0
    assert int(dut.count_writes.value) == total["write_"] > 0
    assert int(dut.count_conflicts.value) == sum(clients.refused.values())
    assert int(dut.error.value) == 0


@cocotb.test(timeout_time=10, timeout_unit="us")
async def beyond_the_end(dut):
    """Sticky error, nothing written in place of the address that does not exist."""
    clients = await start(dut, np.random.default_rng(cocotb.RANDOM_SEED), 0.0, WORDS)
    dut.write_net__request__valid.value = 1
    dut.write_net__request__payload.value = 5 << 128 | 77
    await RisingEdge(dut.clk)
    assert int(dut.error.value) == 0
    dut.write_net__request__payload.value = (WORDS + 5) << 128 | 99
    await ReadOnly()
    assert int(dut.write_net__request__ready.value) == 1
    await RisingEdge(dut.clk)
    clients.idle()
    dut.read_drain__request__valid.value = 1
    dut.read_drain__request__payload.value = 5
    await RisingEdge(dut.clk)
    clients.idle()
    await ReadOnly()
    assert int(dut.read_drain__data.value) == 77
    assert int(dut.error.value) == 1
    await ClockCycles(dut.clk, 5)
    assert int(dut.error.value) == 1
