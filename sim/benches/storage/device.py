# SPDX-License-Identifier: Apache-2.0
"""Storage device: data, order, and the very cycle in which each page comes."""

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from emu.config import Storage
from emu.storage import due_times
from hdl.storage.device import StorageDevice
from hdl.storage.packets import (
    TIME_BITS,
    StorageControl,
    StorageRequest,
    frame_word,
    page_word,
)
from sim.benches import sized
from sim.streams import Sink, Source, unpack

STORAGE = Storage(page_kib=1, pages=16, queue=4, latency=300, bytes_per_cycle=13)
WORDS = STORAGE.page_words


class Timed(wiring.Component):
    """The device and a clock that does not leap."""

    def __init__(self):
        super().__init__(
            {
                "control": In(StorageControl),
                "request": In(stream.Signature(StorageRequest)),
                "writes": In(stream.Signature(page_word(STORAGE))),
                "words": Out(stream.Signature(frame_word(STORAGE))),
                "now": Out(TIME_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.device = device = StorageDevice(STORAGE)
        for name in ("control", "request", "writes"):
            connect(m, flipped(getattr(self, name)), getattr(device, name))
        connect(m, device.words, flipped(self.words))
        m.d.comb += device.now.eq(self.now)
        m.d.sync += self.now.eq(self.now + 1)
        return m


VARIANTS = {"small": Timed}


class Bench:
    """Drives the device, keeps what it stores, and watches both ends."""

    def __init__(self, dut, rng, p_idle: float, p_stall: float):
        self.dut, self.rng = dut, rng
        self.requests = Source(dut, "request", StorageRequest, p_idle=p_idle, rng=rng)
        self.writes = Source(dut, "writes", page_word(STORAGE), p_idle=p_idle, rng=rng)
        self.words = Sink(dut, "words", frame_word(STORAGE), p_stall=p_stall, rng=rng)
        self.stored: dict[int, list[int]] = {}
        self.expected: list[dict] = []
        self.reads: list[int] = []
        self.accepted: list[tuple[int, bool]] = []
        self.came: list[int] = []

    async def start(self):
        control = {"latency": STORAGE.latency, "page_cycles": STORAGE.page_cycles, "frames": 8,
                   "random": 0}
        for name, value in control.items():
            getattr(self.dut, f"control__{name}").value = value
        Clock(self.dut.clk, 1, unit="ns").start()
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 3)
        self.dut.rst.value = 0
        cocotb.start_soon(self.words.run())
        cocotb.start_soon(self.watch())

    async def watch(self):
        while True:
            await ReadOnly()
            now = int(self.dut.now.value)
            if int(self.dut.request__valid.value) & int(self.dut.request__ready.value):
                request = unpack(StorageRequest, int(self.dut.request__payload.value))
                self.accepted.append((now, bool(request["write"])))
            if int(self.dut.words__valid.value) & int(self.dut.words__ready.value):
                self.came.append(now)
            await RisingEdge(self.dut.clk)

    async def write(self, page: int):
        words = [int.from_bytes(self.rng.bytes(16), "little") for _ in range(WORDS)]
        await self.requests.send([{"write": 1, "page": page}])
        await self.writes.send({"index": int(i), "data": words[i]}
                               for i in self.rng.permutation(WORDS))
        self.stored[page] = words

    async def read(self, page: int, frame: int):
        await self.requests.send([{"page": page, "frame": frame}])
        self.reads.append(page)
        self.expected += [{"data": word, "index": i, "frame": frame}
                          for i, word in enumerate(self.stored[page])]

    async def play(self, operations: int):
        for page in range(4):
            await self.write(page)
        for _ in range(operations):
            # Of a page that is written no read waits.
            waiting = self.reads[len(self.words.received) // WORDS:]
            idle = [page for page in range(4) if page not in waiting]
            if idle and self.rng.random() < 0.3:
                await self.write(int(self.rng.choice(idle)))
            else:
                await self.read(int(self.rng.integers(4)), int(self.rng.integers(8)))
        while len(self.words.received) < len(self.expected):
            await RisingEdge(self.dut.clk)
        await ClockCycles(self.dut.clk, 20)


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.4], p_stall=[0.0, 0.5])
async def order(dut, p_idle, p_stall):
    """Reads come in their order and see every write accepted before them."""
    bench = Bench(dut, np.random.default_rng(cocotb.RANDOM_SEED), p_idle, p_stall)
    await bench.start()
    await with_timeout(bench.play(sized(60, 12)), 200, "us")
    assert bench.words.received == bench.expected
    assert len(bench.expected) >= 4 * WORDS


@cocotb.test
async def timing(dut):
    """Each page begins when the model says, or right after the one before."""
    bench = Bench(dut, np.random.default_rng(cocotb.RANDOM_SEED), 0.0, 0.0)
    await bench.start()
    await with_timeout(bench.play(sized(80, 20)), 200, "us")
    due = [time for time, (_, write) in
           zip(due_times(STORAGE, bench.accepted), bench.accepted, strict=True) if not write]
    begins, before = bench.came[::WORDS], -1
    assert len(begins) == len(due) > 5
    for number, (time, begin) in enumerate(zip(due, begins, strict=True)):
        assert begin == max(time, before), number
        before = bench.came[number * WORDS + WORDS - 1] + 1
        assert before == begin + WORDS
