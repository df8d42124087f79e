# SPDX-License-Identifier: Apache-2.0
"""Sums of rows: several tiles at once, words in any order, int8 and int4, back-pressure."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.config import load_config
from emu.row_sums import sum_words
from hdl.hbm.sums import RowSums, SumWord
from hdl.packets import Kind, Reply
from sim.streams import Sink, bits_of, pack

VARIANTS = {"small": lambda: RowSums(load_config("small", ["hbm.sum_rows=1"]))}
TILES = [(x, y) for x in range(2) for y in range(2)]


class Bag:
    """Rows of one sum of a tile, which goes to scratchpad word ``address``."""

    def __init__(self, rng, tile, address):
        self.tile, self.address, self.int4 = tile, address, int(rng.random() < 0.4)
        self.count = int(rng.choice([1, 2, 3, 30, 128]))
        self.words = int(rng.integers(1, 5 if self.int4 else 9))
        self.rows = rng.integers(0, 256, (self.count, self.words, 16)).astype(np.uint8)
        if rng.random() < 0.2:
            self.rows[:] = rng.choice([0x7F, 0x80])  # as far from 0 as 15 bits go
        self.sent = 0

    def announce(self):
        close = self.sent == self.count - 1
        return {"address": self.address, "kind": bits_of(Kind.SUM), "block": close | self.int4 << 1,
                "source_x": self.tile[0], "source_y": self.tile[1], "has_sem": 1, "sem": 5}

    def expected(self):
        fields = {"sum": self.count, "count2": self.count, "sum_int4": self.int4}
        found = sum_words(fields, self.rows.reshape(-1, 16))
        return {self.address + k: int.from_bytes(word.tobytes(), "little")
                for k, word in enumerate(found)}


async def announcer(dut, rng, bags, pending, p_idle):
    """Rows of the tiles' bags in turn at random, each tile's own in order."""
    waiting = {tile: [bag for bag in bags if bag.tile == tile] for tile in TILES}
    while any(waiting.values()):
        tile = [tile for tile in TILES if waiting[tile]][rng.integers(0, 4) % sum(
            bool(each) for each in waiting.values())]
        bag = waiting[tile][0]
        dut.open.value = 0
        dut.reply.value = pack(Reply, bag.announce())
        dut.words.value = bag.words
        await ReadOnly()
        room, slot = int(dut.room.value), int(dut.slot.value)
        await RisingEdge(dut.clk)
        if not room or len(pending) > 200 or rng.random() < p_idle:
            continue
        dut.open.value = 1
        await RisingEdge(dut.clk)
        dut.open.value = 0
        pending += [(slot, k, int.from_bytes(word.tobytes(), "little"), bag.int4)
                    for k, word in enumerate(bag.rows[bag.sent])]
        bag.sent += 1
        if bag.sent == bag.count:
            waiting[tile].pop(0)


async def adder(dut, rng, pending, p_idle):
    """Words that were announced, in any order."""
    while True:
        take = bool(pending) and rng.random() >= p_idle
        dut.add.value = int(take)
        if take:
            slot, index, word, int4 = pending.pop(int(rng.integers(0, len(pending))))
            dut.add_slot.value, dut.index.value = slot, index
            dut.data.value, dut.int4.value = word, int4
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(p_idle=[0.0, 0.5], p_stall=[0.0, 0.6])
async def sums(dut, p_idle, p_stall):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    bags = [Bag(rng, TILES[rng.integers(0, 4)], 16 * k) for k in range(60)]
    pending: list = []
    for name in ("open", "add", "reply", "words", "add_slot", "index", "data", "int4"):
        getattr(dut, name).value = 0
    sink = Sink(dut, "o", SumWord, p_stall=p_stall, rng=rng)
    Clock(dut.clk, 1, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    cocotb.start_soon(sink.run())
    cocotb.start_soon(adder(dut, rng, pending, p_idle))
    await announcer(dut, rng, bags, pending, p_idle)
    while pending or not int(dut.idle.value):
        await RisingEdge(dut.clk)
    await ClockCycles(dut.clk, 5)
    expected: dict[int, int] = {}
    for bag in bags:
        expected |= bag.expected()
    found = {item["reply"]["address"]: item["data"] for item in sink.received}
    assert len(sink.received) == len(expected) > 0
    assert found == expected
    for item in sink.received:
        reply = item["reply"]
        assert (reply["kind"], reply["block"], reply["sem"]) == (bits_of(Kind.DATA), 0, 5)
        tile = bags[reply["address"] // 16].tile
        assert (reply["source_x"], reply["source_y"]) == tile
    await ReadOnly()
    words = sum(bag.rows.size // 16 for bag in bags)
    assert int(dut.count_row_words.value) == words
    assert int(dut.count_sum_words.value) == len(expected)
    assert int(dut.count_rows.value) == sum(bag.count for bag in bags)


@cocotb.test(timeout_time=20, timeout_unit="us")
async def rate(dut):
    """A word a cycle goes in, also of one word again and again; the sum leaves three cycles on."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    for name in ("open", "add", "words", "add_slot", "index", "data", "int4"):
        getattr(dut, name).value = 0
    dut.reply.value = 0
    sink = Sink(dut, "o", SumWord, rng=rng)
    Clock(dut.clk, 1, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    bag = Bag(rng, (1, 0), 32)
    bag.int4, bag.count, bag.words = 0, 50, 1
    bag.rows = rng.integers(0, 256, (50, 1, 16)).astype(np.uint8)
    for row in range(bag.count):
        bag.sent = row
        dut.reply.value, dut.words.value, dut.open.value = pack(Reply, bag.announce()), 1, 1
        await ReadOnly()
        slot = int(dut.slot.value)
        await RisingEdge(dut.clk)
    dut.open.value = 0
    cocotb.start_soon(sink.run())
    for words in bag.rows:
        dut.add.value, dut.add_slot.value = 1, slot
        dut.data.value = int.from_bytes(words.tobytes(), "little")
        await RisingEdge(dut.clk)
    dut.add.value = 0
    await ClockCycles(dut.clk, 5)
    assert {i["reply"]["address"]: i["data"] for i in sink.received} == bag.expected()
