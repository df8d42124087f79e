# SPDX-License-Identifier: Apache-2.0
"""The pager before a memory that answers in any order: every word right, whatever is refilled."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from emu.config import Storage
from emu.storage import Region as Span
from emu.storage import pager_cache
from hdl.packets import ReqFlit, UpFlit
from hdl.prefetch.registry import policy_number
from hdl.storage.packets import Region
from hdl.storage.pager import Pager
from sim.benches import sized
from sim.streams import Source, pack, unpack

STORAGE = Storage(page_kib=1, pages=64, queue=8)
WORDS = STORAGE.page_words
FIRST, BASE = 100, 7
"""Line of the channel at which constants begin, and page at which frames do."""
LAST = FIRST + (STORAGE.pages + 1) * WORDS // 4
SETTLE = 4200
WHOLE = (Span(first=0, pages=STORAGE.pages),)
VARIANTS = {"64 pages": lambda: Pager(STORAGE)}


def constant(word: int) -> int:
    """What the device holds."""
    return (word + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)


def tensor(word: int) -> int:
    """What lies below the constants."""
    return ~constant(word) % (1 << 128)


@dataclass
class Read:
    """A read of the channel, answered a word at a time."""

    first: int
    words: int
    frame: int | None
    asked: int


class Memory:
    """The channel: reads in any order, long after they were taken; writes at once or later."""

    def __init__(self, dut, rng, p_stall: float):
        self.dut, self.rng, self.p_stall = dut, rng, p_stall
        self.cells: dict[int, int] = {}
        self.reads: list[Read] = []
        self.writes: deque[tuple[int, int]] = deque()
        self.answers: list[tuple[int, list[int]]] = []
        self.fills = 0

    async def run(self):
        dut, rng = self.dut, self.rng
        while True:
            dut.o__ready.value = int(rng.random() >= self.p_stall and len(self.reads) < 64)
            dut.write__ready.value = int(rng.random() >= self.p_stall and len(self.writes) < 64)
            dut.release.value, dut.acknowledged.value = 0, 0
            if self.reads and rng.random() < 0.2:
                read = self.reads.pop(int(rng.integers(len(self.reads))))
                self.answers.append((read.asked, [
                    self.cells[read.first + i] if read.frame is not None
                    else tensor(read.first + i) for i in range(read.words)]))
                if read.frame is not None:
                    dut.release.value, dut.released.value = 1, read.frame
            if self.writes and rng.random() < 0.5:
                count = int(rng.integers(1, len(self.writes) + 1))
                for _ in range(count):
                    address, word = self.writes.popleft()
                    self.cells[address] = word
                dut.acknowledged.value = count
            await ReadOnly()
            if int(dut.o__valid.value) and int(dut.o__ready.value):
                flit = unpack(ReqFlit, int(dut.o__payload.value))
                frame = int(dut.frame.value) if int(dut.paged.value) else None
                self.reads.append(Read(flit["address"], flit["last"] + 1, frame,
                                       flit["reply"]["address"]))
            if int(dut.write__valid.value) and int(dut.write__ready.value):
                flit = unpack(UpFlit, int(dut.write__payload.value))
                assert flit["address"] >= BASE * WORDS
                self.writes.append((flit["address"], flit["data"]))
                self.fills += 1
            await RisingEdge(dut.clk)


class Bench:
    """A pager, its device's cells, and the memory behind it."""

    def __init__(self, dut, *, policy="demand", frames=8, latency=200, p_idle=0.0, p_stall=0.0):
        self.dut, self.rng = dut, np.random.default_rng(cocotb.RANDOM_SEED)
        self.memory = Memory(dut, self.rng, p_stall)
        self.source = Source(dut, "request", ReqFlit, p_idle=p_idle, rng=self.rng)
        self.registers = {
            "storage__latency": latency, "storage__page_cycles": WORDS,
            "storage__frames": frames, "storage__random": 0,
            "first": FIRST, "last": LAST, "base": BASE,
            "prefetch__policy": policy_number(policy), "prefetch__depth": 4,
            "prefetch__threshold": 0, "describe": 0, "region": 0,
        }
        self.asked: list[int] = []

    async def start(self, regions=WHOLE):
        dut = self.dut
        for name, value in self.registers.items():
            getattr(dut, f"control__{name}").value = value
        for name in ("request__valid", "request__payload", "o__ready", "write__ready", "release",
                     "released", "acknowledged", "store", "store_line", "number"):
            getattr(dut, name).value = 0
        Clock(dut.clk, 1, unit="ns").start()
        dut.rst.value = 1
        await ClockCycles(dut.clk, 3)
        dut.rst.value = 0
        cocotb.start_soon(self.memory.run())
        for number, span in enumerate(regions):
            dut.control__describe.value = 1
            dut.control__region.value = pack(Region, {"region": number, **{
                name: int(value) for name, value in vars(span).items()}})
            await RisingEdge(dut.clk)
            dut.control__describe.value = 0
            await ClockCycles(dut.clk, span.pages + 2)
        await ClockCycles(dut.clk, SETTLE)

    async def read(self, address: int, words: int):
        await self.source.send([{
            "address": address, "last": words - 1, "reply": {"address": len(self.asked)}}])
        self.asked.append(address)

    async def settle(self):
        while len(self.memory.answers) < len(self.asked):
            await RisingEdge(self.dut.clk)

    def check(self):
        """Every read answered once, every word right."""
        assert sorted(at for at, _ in self.memory.answers) == list(range(len(self.asked)))
        for at, words in self.memory.answers:
            for i, word in enumerate(words):
                address = self.asked[at] + i
                constants = address - 4 * FIRST
                want = constant(constants) if constants >= 0 else tensor(address)
                assert word == want, f"read {at} of word {address}"
        assert not int(self.dut.error.value)


def prepare(folder: Path) -> tuple[str, ...]:
    """The device's cells, most significant byte first."""
    words = b"".join(constant(i).to_bytes(16, "big") for i in range(STORAGE.pages * WORDS))
    (folder / "storage_0.bin").write_bytes(words)
    return (f"+storage={folder}",)


def counter(dut, name: str) -> int:
    """Of the page cache, the device or the pager itself."""
    *path, last = name.split(".")
    for part in path:
        dut = getattr(dut, part)
    return int(getattr(dut, f"count_{last}").value)


def random_reads(rng, count: int) -> list[tuple[int, int]]:
    """(address, words) inside a segment: walks through pages, jumps, and some below them."""
    found, word = [], 0
    for _ in range(count):
        if rng.random() < 0.1:
            word = int(rng.integers(STORAGE.pages * WORDS))
        offset = word % 16
        words = int(rng.integers(1, 17 - offset))
        below = rng.random() < 0.2
        found.append((word % (4 * FIRST) // 16 * 16 if below else 4 * FIRST + word,
                      words))
        word = (word + words) % (STORAGE.pages * WORDS)
    return found


@cocotb.test
@cocotb.parametrize(p_stall=[0.0, 0.5], policy=["demand", "run_ahead", "next_layer"],
                    frames=[8, 24])
async def words(dut, p_stall, policy, frames):
    """Reads in work hold up to all frames: the ring waits, and no word is overwritten too early."""
    bench = Bench(dut, policy=policy, frames=frames, p_stall=p_stall, p_idle=p_stall)
    spans = [Span(first=8 * i, pages=8, child=(i + 1) % 8) for i in range(8)]
    await bench.start(spans)

    async def play():
        for address, size in random_reads(bench.rng, sized(1200, 320)):
            await bench.read(address, size)
        await bench.settle()

    await with_timeout(play(), 4, "ms")
    bench.check()
    # A counter shows an event in the next cycle.
    assert bench.memory.fills - counter(dut, "device.read_words") in (0, 1)
    assert bench.memory.fills > WORDS * frames
    assert counter(dut, "cache.lookups") < counter(dut, "paged_reads") == sum(
        address >= 4 * FIRST for address in bench.asked)
    if policy != "demand":
        assert counter(dut, "cache.useful") > 0
    fetched = counter(dut, "cache.demand_fetches") + counter(dut, "cache.prefetches")
    assert counter(dut, "cache.evictions") == fetched - frames


@cocotb.test
@cocotb.parametrize(frames=[8, 16])
async def one_at_a_time(dut, frames):
    """What is fetched then does not depend on time: it is what the model says."""
    bench = Bench(dut, frames=frames, latency=50)
    await bench.start()
    pages = []

    async def play():
        for _ in range(sized(200, 60)):
            page = int(bench.rng.integers(24))
            pages.append(page)
            await bench.read(4 * FIRST + page * WORDS + int(bench.rng.integers(48)), 1)
            await bench.settle()
            await ClockCycles(dut.clk, 2)

    await with_timeout(play(), 4, "ms")
    bench.check()
    want = pager_cache(pages, frames)
    assert counter(dut, "cache.fills") == want.fills > frames
    assert counter(dut, "cache.evictions") == want.evictions
    assert counter(dut, "cache.write_backs") == counter(dut, "device.page_writes") == 0


@cocotb.test
async def reads_that_need_not_wait_pass_one_that_does(dut):
    bench = Bench(dut, latency=5000)
    await bench.start()
    await bench.read(4 * FIRST, 16)
    for i in range(20):
        await bench.read(16 * i, 16)
    await ClockCycles(dut.clk, 400)
    assert len(bench.memory.answers) == 20 and not counter(dut, "blocked_cycles")
    await bench.read(4 * FIRST + WORDS, 16)
    await bench.read(0, 16)
    await ClockCycles(dut.clk, 400)
    assert len(bench.memory.answers) == 20 and counter(dut, "blocked_cycles") > 390
    await with_timeout(bench.settle(), 20, "us")
    bench.check()


@cocotb.test
@cocotb.parametrize(fault=["store", "read"])
async def constants_are_read_only_and_end(dut, fault):
    bench = Bench(dut)
    await bench.start()
    if fault == "store":
        dut.store.value, dut.store_line.value = 1, FIRST - 1
        await ClockCycles(dut.clk, 2)
        assert not int(dut.error.value)
        dut.store_line.value = FIRST
    else:
        bench.source.p_idle = 0.0
        await bench.read(4 * FIRST + STORAGE.pages * WORDS, 1)
    await ClockCycles(dut.clk, 4)
    assert int(dut.error.value)
