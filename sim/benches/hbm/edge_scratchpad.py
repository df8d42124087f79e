# SPDX-License-Identifier: Apache-2.0
"""The scratchpad at the edge: every word right whoever answers, kept from its first read on."""

from collections import Counter

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.config import load_config
from hdl.hbm.edge import EdgeScratchpad
from hdl.hbm.packets import LineRead, ReadWord
from sim.streams import Source, pack, unpack

LINES, FIRST = 64, 200
VARIANTS = {"4 KiB": lambda: EdgeScratchpad(
    load_config("base", ["hbm.channels=1", "hbm.edge_kib=4"]))}


def content(word: int) -> int:
    return word * 0x1_0001_0001 + 17


class Memory:
    """Answers reads word by word, in any order, after a while."""

    def __init__(self, dut, rng, p_stall: float):
        self.dut, self.rng, self.p_stall = dut, rng, p_stall
        self.waiting: list[dict] = []
        self.reads: Counter = Counter()

    async def run(self):
        dut, rng = self.dut, self.rng
        offered, refused = None, None
        while True:
            dut.read__ready.value = int(rng.random() >= self.p_stall)
            if offered is None and self.waiting and rng.random() < 0.7:
                offered = self.waiting.pop(int(rng.integers(len(self.waiting))))
            dut.words__valid.value = int(offered is not None)
            if offered is not None:
                dut.words__payload.value = pack(ReadWord, offered)
            await ReadOnly()
            asked = int(dut.read__valid.value) and int(dut.read__payload.value)
            assert refused is None or asked == refused, "a read was withdrawn"
            refused = asked if asked and not int(dut.read__ready.value) else None
            if int(dut.read__valid.value) and int(dut.read__ready.value):
                line = unpack(LineRead, int(dut.read__payload.value))
                for k in range(4):
                    if line["words"] >> k & 1:
                        word = 4 * line["line"] + k
                        self.reads[word] += 1
                        self.waiting.append({"data": content(word), "tag": line["tag"],
                                             "index": word & 15})
            if offered is not None and int(dut.words__ready.value):
                offered = None
            await RisingEdge(dut.clk)


def random_reads(rng, count: int) -> list[list[dict]]:
    """Requests of up to 16 words of a segment, as the lines that they are split into."""
    found = []
    for number in range(count):
        segment = int(rng.integers(FIRST // 4 - 4, (FIRST + LINES) // 4 + 4))
        first = int(rng.integers(0, 16))
        last = int(rng.integers(first, 16))
        lines = []
        for line in range(first // 4, last // 4 + 1):
            mask = sum(1 << k for k in range(4) if first <= 4 * line + k <= last)
            lines.append({"line": 4 * segment + line, "words": mask, "tag": number % 64})
        found.append(lines)
    return found


@cocotb.test
@cocotb.parametrize(p_stall=[0.0, 0.5], p_idle=[0.0, 0.6])
async def words(dut, p_stall, p_idle):
    """A tag is used again when all its words have left; words come as `Requests` wants them."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    Clock(dut.clk, 1, unit="ns").start()
    memory = Memory(dut, rng, p_stall)
    requests = random_reads(rng, 600)
    dut.first.value, dut.written.value, dut.line.value = FIRST, 0, 0
    for name in ("lines__valid", "lines__payload", "o__ready", "words__valid", "words__payload",
                 "read__ready"):
        getattr(dut, name).value = 0
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    cocotb.start_soon(memory.run())
    source = Source(dut, "lines", LineRead, p_idle=p_idle, rng=rng)
    missing: dict[int, dict[int, int]] = {}

    async def drive():
        for lines in requests:
            while lines[0]["tag"] in missing:
                await RisingEdge(dut.clk)
            missing[lines[0]["tag"]] = {
                (4 * each["line"] + k) & 15: 4 * each["line"] + k
                for each in lines for k in range(4) if each["words"] >> k & 1}
            await source.send(lines)

    driver = cocotb.start_soon(drive())
    for _ in range(60_000):
        dut.o__ready.value = int(rng.random() >= p_stall)
        await ReadOnly()
        if int(dut.o__valid.value) and int(dut.o__ready.value):
            got = unpack(ReadWord, int(dut.o__payload.value))
            word = missing[got["tag"]].pop(got["index"])
            assert got["data"] == content(word), f"word {word}"
            if not missing[got["tag"]]:
                del missing[got["tag"]]
        await RisingEdge(dut.clk)
        if driver.done() and not missing:
            break
    assert driver.done() and not missing
    inside = [word for word in memory.reads if FIRST <= word // 4 < FIRST + LINES]
    wanted = Counter(4 * each["line"] + k for lines in requests for each in lines
                     for k in range(4) if each["words"] >> k & 1)
    kept = sum(wanted[word] - memory.reads[word] for word in inside)
    assert kept > 0.5 * sum(wanted[word] for word in inside)
    assert all(memory.reads[word] == count for word, count in wanted.items()
               if not FIRST <= word // 4 < FIRST + LINES)
    assert not int(dut.error.value)


@cocotb.test
async def what_is_kept_is_not_written(dut):
    Clock(dut.clk, 1, unit="ns").start()
    dut.first.value, dut.written.value, dut.line.value = FIRST, 0, FIRST
    for name in ("lines__valid", "lines__payload", "o__ready", "words__valid", "words__payload",
                 "read__ready"):
        getattr(dut, name).value = 0
    dut.read__ready.value = 1
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    for line, error in ((FIRST - 1, 0), (FIRST + LINES, 0), (FIRST + LINES - 1, 1)):
        dut.written.value, dut.line.value = 1, line
        await ClockCycles(dut.clk, 2)
        assert int(dut.error.value) == error, line
