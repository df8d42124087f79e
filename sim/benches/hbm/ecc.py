# SPDX-License-Identifier: Apache-2.0
"""Pseudo-channel with and without ECC: what masked writes cost, and what is found and corrected."""

import os

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout

from emu.config import load_config
from hdl.hbm.channel import HbmChannel
from hdl.packets import DownFlit, Kind, ReqFlit, UpFlit
from sim.benches.hbm._support import read_flit, reset, write_flit
from sim.streams import Sink, Source


def _channel(*settings: str) -> HbmChannel:
    return HbmChannel(load_config("base", ["hbm.mib=1", "hbm.refresh=none", *settings]))


VARIANTS = {
    "off": lambda: _channel(),
    "on": lambda: _channel("hbm.ecc=true"),
    "single": lambda: _channel("hbm.ecc=true", "hbm.ecc_inject=single,1,1"),
    "double": lambda: _channel("hbm.ecc=true", "hbm.ecc_inject=double,0.1,2"),
}
QUICK = ("on", "double")
VARIANT = os.environ.get("HEADRACE_VARIANT", "off")
WORDS = 512
COLUMNS = WORDS // 2
FILTER_CYCLES = 1100


class Bench:
    """The channel's ports, the words that are due from it, and its counters."""

    def __init__(self, dut):
        self.dut = dut
        self.requests = Source(dut, "request", ReqFlit)
        self.writes = Source(dut, "write", UpFlit)
        self.sink = Sink(dut, "down", DownFlit, on_item=self.arrive)
        self.memory: dict[int, int] = {}
        self.acknowledged = self.seen = self.wrong = 0

    async def start(self) -> None:
        self.dut.channel.value, self.dut.dump.value = 0, 0
        await reset(self.dut)
        cocotb.start_soon(self.sink.run())
        await ClockCycles(self.dut.clk, FILTER_CYCLES)

    def arrive(self, flit) -> None:
        if Kind(flit["reply"]["kind"]) == Kind.ACK:
            self.acknowledged += flit["reply"]["address"]
        else:
            self.seen += 1
            self.wrong += flit["data"] != self.memory[flit["reply"]["address"]]

    async def write(self, rng, mask: int) -> int:
        """Write every word with one byte mask; the cycles until all are acknowledged."""
        bits = sum(0xFF << 8 * i for i in range(16) if mask >> i & 1)
        flits = []
        for word in range(WORDS):
            value = int.from_bytes(rng.bytes(16), "little")
            self.memory[word] = self.memory.get(word, 0) & ~bits | value & bits
            flits.append(write_flit(word, value, mask, 1, 1, word % 4 == 3))
        before = self.acknowledged
        job, cycles = cocotb.start_soon(self.writes.send(flits)), 0
        while self.acknowledged < before + WORDS:
            await RisingEdge(self.dut.clk)
            cycles += 1
        await job
        while not int(self.dut.idle.value):
            await RisingEdge(self.dut.clk)
        return cycles

    async def read(self) -> None:
        """Read every word."""
        self.seen = self.wrong = 0
        await self.requests.send(
            [read_flit(word, 16, 0, 0, word) for word in range(0, WORDS, 16)])
        while self.seen < WORDS:
            await RisingEdge(self.dut.clk)

    def counts(self) -> dict[str, int]:
        """Counters of the data path; without ECC there are two."""
        controller = self.dut.controller
        found = {name: int(getattr(controller, f"count_{name}").value)
                 for name in ("reads", "writes")}
        if VARIANT == "off":
            return found
        found["merged"] = int(controller.partial.count_merged_writes.value)
        for name in ("corrected", "uncorrectable"):
            found[name] = int(getattr(controller.read_path, f"count_{name}").value)
        if VARIANT != "on":
            found["injected"] = int(controller.read_path.injector.count_injected.value)
        return found


@cocotb.test
async def masked_writes(dut):
    """Whole words, masked words, and all of it read back."""
    bench, rng = Bench(dut), np.random.default_rng(cocotb.RANDOM_SEED)
    await bench.start()
    whole = await with_timeout(bench.write(rng, 0xFFFF), 20, "us")
    before = bench.counts()
    masked = await with_timeout(bench.write(rng, 0x0FF3), 60, "us")
    after = bench.counts()
    await with_timeout(bench.read(), 20, "us")
    found = bench.counts()
    dut._log.info("RESULT %s: %d words whole %d cycles, masked %d cycles, %d columns read first",
                  VARIANT, WORDS, whole, masked, after["reads"])
    assert int(dut.error.value) == 0 and bench.seen == WORDS
    assert before["reads"] == 0 and before["writes"] == COLUMNS
    assert found["reads"] == after["reads"] + COLUMNS and found["writes"] == 2 * COLUMNS
    assert whole <= 1.1 * WORDS
    if VARIANT == "off":
        assert after["reads"] == 0 and masked <= 1.1 * WORDS and bench.wrong == 0
        return
    assert after["reads"] == after["merged"] == COLUMNS and before["merged"] == 0
    injected = found.get("injected", 0)
    if VARIANT == "double":
        assert found["uncorrectable"] == injected > 0.05 * 2 * WORDS and found["corrected"] == 0
        assert bench.wrong > 0  # of what is reported, nothing is made up
        return
    assert found["corrected"] == injected and found["uncorrectable"] == 0 and bench.wrong == 0
    # Every code word of every word read, twice: for the masked writes and at the end.
    assert injected == (2 * 2 * WORDS if VARIANT == "single" else 0)
