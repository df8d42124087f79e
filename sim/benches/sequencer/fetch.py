# SPDX-License-Identifier: Apache-2.0
"""Command fetch: every word of a stream once and in order, whatever order memory answers in."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout

from emu.config import SEGMENT_WORDS
from hdl.packets import HbmRequest, Kind
from hdl.sequencer.fetch import DIRECTORY_SLOT, SEGMENTS, CommandFetch, CommandWord
from sim.streams import Sink, Source, bits_of

VARIANTS = {"base": CommandFetch}
X, Y, INDEX, BASE = 3, 1, 9, 64 * SEGMENT_WORDS


class Bench:
    """Memory behind the requests, and the stream that comes out."""

    def __init__(self, dut, commands, *, p_stall=0.0, p_idle=0.0, shuffle=True):
        self.dut, self.shuffle = dut, shuffle
        self.rng = np.random.default_rng(cocotb.RANDOM_SEED)
        self.words = [int.from_bytes(self.rng.bytes(16), "little") for _ in range(8 * commands)]
        self.memory = {BASE + i: word for i, word in enumerate(self.words)}
        self.memory[INDEX] = BASE | commands << 32
        self.owed: list[dict] = []
        self.requested = 0
        self.source = Source(dut, "command_word", CommandWord, p_idle=p_idle, rng=self.rng)
        self.requests = Sink(dut, "request", HbmRequest, p_stall=p_stall, rng=self.rng,
                             on_item=self.request)
        self.stream = Sink(dut, "o", 128, p_stall=p_stall, rng=self.rng)

    def request(self, item):
        reply = item["reply"]
        assert reply["kind"] == bits_of(Kind.COMMAND)
        assert reply["rect"] == {"x0": X, "x1": X, "y0": Y, "y1": Y, "xs": 0, "ys": 0}
        assert (reply["source_x"], reply["source_y"]) == (X, Y)
        assert item["address"] % SEGMENT_WORDS + item["last"] < SEGMENT_WORDS or self.requested == 0
        for i in range(item["last"] + 1):
            slot = reply["address"] + i
            assert slot not in [word["address"] for word in self.owed], "asked for twice"
            self.owed.append({"address": slot, "data": self.memory[item["address"] + i]})
        if reply["address"] != DIRECTORY_SLOT:
            self.requested += item["last"] + 1
            ahead = self.requested - len(self.stream.received)
            assert ahead <= SEGMENTS * SEGMENT_WORDS, "a slot is asked for that is not free"

    async def answer(self):
        while True:
            if self.owed:
                pick = int(self.rng.integers(len(self.owed))) if self.shuffle else 0
                word = self.owed[pick]
                await self.source.send([word])
                self.owed.remove(word)
            else:
                await RisingEdge(self.dut.clk)

    async def run(self) -> int:
        """From start to exhausted; returns the cycles that took."""
        dut = self.dut
        dut.x.value, dut.y.value, dut.index.value, dut.start.value = X, Y, INDEX, 0
        Clock(dut.clk, 1, unit="ns").start()
        dut.rst.value = 1
        await ClockCycles(dut.clk, 3)
        dut.rst.value = 0
        for task in (self.requests.run(), self.stream.run(), self.answer()):
            cocotb.start_soon(task)
        await ClockCycles(dut.clk, 3)
        assert not self.requests.received, "a request before the start"
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        cycles = 0
        while not int(dut.exhausted.value):
            await RisingEdge(dut.clk)
            cycles += 1
        await ClockCycles(dut.clk, 20)
        assert self.stream.received == self.words and self.words
        assert not self.owed and self.requested == len(self.words)
        return cycles


@cocotb.test
@cocotb.parametrize(p_stall=[0.0, 0.7], p_idle=[0.0, 0.6], commands=[1, 2, 7, 8, 9, 60])
async def whole_streams(dut, p_stall, p_idle, commands):
    bench = Bench(dut, commands, p_stall=p_stall, p_idle=p_idle)
    await with_timeout(bench.run(), 20, "us")


@cocotb.test
async def a_word_a_cycle(dut):
    """A memory that answers at once keeps the stream full but for the two cycles of the way in."""
    bench = Bench(dut, 64, shuffle=False)
    cycles = await with_timeout(bench.run(), 20, "us")
    assert cycles <= 64 * 8 + 20, cycles
