# SPDX-License-Identifier: Apache-2.0
"""Pseudo-channel: random reads and masked writes of several tiles against a numpy memory.

Reads are made only of words without unacknowledged writes, and writes only of words without reads
under way or unacknowledged writes of another tile: exactly what a program with semaphores can rely
on.
Every command is checked in hardware.
"""

import os

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout

from emu.config import load_config
from hdl.hbm.channel import HbmChannel
from hdl.packets import DownFlit, Kind, ReqFlit, UpFlit
from sim.benches import sized
from sim.benches.hbm._support import CommandLog, read_flit, reset, write_flit
from sim.streams import Sink, Source


def _channel(*settings: str) -> HbmChannel:
    return HbmChannel(load_config("base", ["hbm.mib=1", *settings]), debug=True)


VARIANTS = {
    "per_bank": lambda: _channel(),
    "all_bank_m1": lambda: _channel("hbm.refresh=all_bank", "hbm.address_map=M1"),
    "none_b_closed": lambda: _channel(
        "hbm.refresh=none", "hbm.timing=hbm2_b", "hbm.page_policy=closed", "hbm.address_map=M2"),
    "in_order_timeout": lambda: _channel(
        "hbm.scheduler=in_order", "hbm.page_policy=timeout", "hbm.page_timeout=50"),
    "ecc": lambda: _channel("hbm.ecc=true", "hbm.ecc_inject=single,0.2,7"),
    "cap_small_queues": lambda: _channel(
        "hbm.scheduler=fr_fcfs_cap", "hbm.row_hit_cap=4", "hbm.read_queue=8",
        "hbm.write_queue=8", "hbm.address_map=CCRRRRRRRRRRRRRRRBBGCCCGOOOOO"),
}
QUICK = ("per_bank", "none_b_closed", "ecc")

WORDS = 1 << 16
SOURCES = [(x, y) for x in range(3) for y in range(2)]


class Memory:
    """The expected contents, who is writing what, and which words are being read."""

    def __init__(self, rng):
        self.rng = rng
        segments = rng.choice(WORDS // 16, 24, replace=False)
        self.words = [int(s) * 16 + i for s in sorted(segments) for i in range(16)]
        self.bytes = {word: np.zeros(16, np.uint8) for word in self.words}
        self.writing = dict.fromkeys(self.words, 0)
        self.reading = dict.fromkeys(self.words, 0)
        self.owner = dict.fromkeys(self.words, SOURCES[0])
        self.sent: dict[tuple, list[int]] = {source: [] for source in SOURCES}
        self.expected: dict[tuple, tuple[int, int]] = {}
        self.checked = self.acknowledged = 0

    def value(self, word: int) -> int:
        return int.from_bytes(self.bytes[word].tobytes(), "little")

    def may_write(self, word: int, source: tuple) -> bool:
        if word not in self.writing or self.reading[word]:
            return False
        return not self.writing[word] or self.owner[word] == source

    def write(self, word: int, value: int, mask: int, source: tuple, last: bool) -> dict:
        new = np.frombuffer(value.to_bytes(16, "little"), np.uint8)
        chosen = np.array([mask >> i & 1 for i in range(16)], bool)
        self.bytes[word] = np.where(chosen, new, self.bytes[word])
        self.writing[word] += 1
        self.owner[word] = source
        self.sent[source].append(word)
        x, y = source
        return write_flit(word, value, mask, x, y, last)

    def read(self, word: int, count: int, source: tuple, target: int) -> dict:
        for i in range(count):
            self.reading[word + i] += 1
            assert (source, target + i) not in self.expected
            self.expected[source, target + i] = word + i, self.value(word + i)
        x, y = source
        return read_flit(word, count, x, y, target)

    def arrive(self, flit: dict) -> None:
        reply, rect = flit["reply"], flit["dest"]["rect"]
        source = rect["x0"], rect["y0"]
        assert rect == reply["rect"] and flit["dest"]["exit"] == 0
        if Kind(reply["kind"]) == Kind.ACK:
            for _ in range(reply["address"]):
                self.writing[self.sent[source].pop(0)] -= 1
                self.acknowledged += 1
            return
        word, value = self.expected.pop((source, reply["address"]))
        assert flit["data"] == value, f"word {word:#x}: {flit['data']:032x}, not {value:032x}"
        self.reading[word] -= 1
        self.checked += 1


async def writer(dut, memory, port, count):
    rng = memory.rng
    for _ in range(count):
        source = SOURCES[rng.integers(len(SOURCES))]
        run = int(rng.integers(1, 6))
        word = memory.words[rng.integers(len(memory.words))]
        for i in range(run):
            if not memory.may_write(word + i, source):
                break
            mask = 0xFFFF if rng.random() < 0.7 else int(rng.integers(0, 1 << 16))
            value = int.from_bytes(rng.bytes(16), "little")
            last = i == run - 1 or rng.random() < 0.05
            await port.send([memory.write(word + i, value, mask, source, last)])
        else:
            continue
        await RisingEdge(dut.clk)


async def reader(dut, memory, port, count):
    rng, target = memory.rng, 0
    for _ in range(count):
        source = SOURCES[rng.integers(len(SOURCES))]
        word = memory.words[rng.integers(len(memory.words))]
        most = min(16 - word % 16, int(rng.integers(1, 17)))
        size = 0
        while size < most and not memory.writing[word + size]:
            size += 1
        if not size:
            await RisingEdge(dut.clk)
            continue
        await port.send([memory.read(word, size, source, target)])
        target = (target + 16) % (1 << 15)


async def settle(dut, memory):
    while memory.expected or any(memory.sent.values()) or not int(dut.idle.value):
        await RisingEdge(dut.clk)


@cocotb.test
@cocotb.parametrize(
    (("p_idle", "p_stall"), sized([(0, 0), (0, 0.6), (0.6, 0), (0.6, 0.6)], [(0, 0), (0.6, 0.6)])))
async def random_traffic(dut, p_idle, p_stall):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    memory = Memory(rng)
    reads = Source(dut, "request", ReqFlit, p_idle=p_idle, rng=rng)
    writes = Source(dut, "write", UpFlit, p_idle=p_idle, rng=rng)
    sink = Sink(dut, "down", DownFlit, p_stall=p_stall, rng=rng, on_item=memory.arrive)
    dut.channel.value, dut.dump.value = 3, 0
    await reset(dut)
    log = CommandLog(dut)
    cocotb.start_soon(sink.run())
    cocotb.start_soon(log.run())

    fill = [
        memory.write(word, int.from_bytes(rng.bytes(16), "little"), 0xFFFF, SOURCES[0], False)
        for word in memory.words
    ]
    await with_timeout(writes.send(fill), 30, "us")
    while any(memory.sent.values()):
        await RisingEdge(dut.clk)
    jobs = [cocotb.start_soon(writer(dut, memory, writes, 300)),
            cocotb.start_soon(reader(dut, memory, reads, 400))]
    for job in jobs:
        await with_timeout(job, 60, "us")
    # Partial lines of every tile go out with a last write.
    finish = [memory.write(memory.words[-1], 0, 0, source, True) for source in SOURCES]
    await with_timeout(writes.send(finish), 10, "us")
    await with_timeout(settle(dut, memory), 20, "us")
    everything = [memory.read(w, 16, SOURCES[i % 6], 0x8000 + 16 * i)
                  for i, w in enumerate(memory.words[::16])]
    await with_timeout(reads.send(everything), 20, "us")
    await with_timeout(settle(dut, memory), 20, "us")

    log.save(f"commands_{os.environ['HEADRACE_VARIANT']}_{p_idle}_{p_stall}.txt")
    assert int(dut.error.value) == 0, f"rule {int(dut.rule.value)}"
    assert memory.acknowledged > 700 and memory.checked > 1000 and log.columns > 1000
    assert not memory.expected and not any(memory.writing.values())
    await ClockCycles(dut.clk, 2)
