# SPDX-License-Identifier: Apache-2.0
"""Store engine: words, places, line ends, acknowledgements and rate against the golden model."""

from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.config import load_config
from emu.golden_move import line_ends, moved_words
from emu.isa import ABSENT, Opcode
from hdl.move_loops import MoveCommand
from hdl.packets import UpFlit
from hdl.store_engine import StoreEngine, StoreWord
from sim.benches.tile._moves import (
    Memory,
    X,
    Y,
    random_command,
    random_list,
    reset,
    watch_done,
    word_at,
)
from sim.streams import Sink, Source

VARIANTS = {"base": lambda: StoreEngine(load_config())}


class Acknowledger:
    """Acknowledges words taken from ``store`` late, in lumps."""

    def __init__(self, dut, rng, p_ack: float):
        self.dut, self.rng, self.p_ack, self.owed, self.given = dut, rng, p_ack, 0, 0
        dut.ack__valid.value = dut.ack__words.value = 0

    def taken(self, _):
        self.owed += 1

    async def run(self):
        while True:
            give = 0
            if self.owed and self.rng.random() < self.p_ack:
                give = int(self.rng.integers(1, self.owed + 1))
            self.dut.ack__valid.value, self.dut.ack__words.value = int(give > 0), give
            self.owed -= give
            await RisingEdge(self.dut.clk)
            self.given += give


def expected_words(memory, fields, numbers):
    """(to_tiles, item) of each word of a command."""
    pairs = moved_words(Opcode.STORE, fields, numbers).tolist()
    ends = line_ends([far for _, far in pairs])
    for (near, far), last in zip(pairs, ends, strict=True):
        word = memory.lists.get(near, word_at(near))
        if fields["to_tiles"]:
            yield {
                "data": word,
                "kind": 0,
                "address": far % (1 << 16),
                "has_sem": fields["sem_valid"],
                "sem": fields["sem"],
                "mask": 0xFFFF,
                "last": 0,
                "source_x": X,
                "source_y": Y,
                "dest": {"rect": fields["rect"], "exit": 0},
            }
        else:
            yield {"data": word, "address": far, "mask": 0xFFFF, "last": int(last)}


class Bench:
    def __init__(self, dut, rng, p_idle, p_stall, p_ack):
        self.dut = dut
        self.source = Source(dut, "command", MoveCommand, p_idle=p_idle, rng=rng)
        self.memory = Memory(dut, rng, p_stall)
        self.acks = Acknowledger(dut, rng, p_ack)
        self.store = Sink(
            dut, "store", StoreWord, p_stall=p_stall, rng=rng, on_item=self.acks.taken
        )
        self.push = Sink(dut, "push", UpFlit, p_stall=p_stall, rng=rng)
        self.dones = []

    async def start(self):
        await reset(self.dut)
        for part in (self.memory, self.acks, self.store, self.push):
            cocotb.start_soon(part.run())
        cocotb.start_soon(watch_done(self.dut, self._done))

    def _done(self):
        self.dones.append((len(self.store.received), self.acks.given, len(self.push.received)))


@cocotb.test(timeout_time=4000, timeout_unit="us")
@cocotb.parametrize(p_idle=[0.0, 0.5], p_stall=[0.0, 0.6], p_ack=[0.05, 1.0], p_gather=[0.0, 0.5])
async def random(dut, p_idle, p_stall, p_ack, p_gather):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    bench = Bench(dut, rng, p_idle, p_stall, p_ack)
    stores: list[dict[str, Any]] = []
    pushes: list[dict[str, Any]] = []
    commands, numbers, ends = [], [], []
    for _ in range(24):
        fields = random_command(rng, gather=rng.random() < p_gather)
        fields["to_tiles"] = int(rng.integers(2))
        numbers.append(random_list(rng, fields["count2"]))
        if fields["gather"]:
            if numbers[-1] and rng.random() < 0.5:
                for place in rng.integers(0, len(numbers[-1]), 2):
                    numbers[-1][place] = ABSENT
            fields["gather_base"] = len(bench.memory.lists) + 3
            bench.memory.place_list(fields["gather_base"], numbers[-1])
        commands.append(fields)
    for fields, indices in zip(commands, numbers, strict=True):
        (pushes if fields["to_tiles"] else stores).extend(
            expected_words(bench.memory, fields, indices)
        )
        ends.append((len(stores), len(pushes)))
    await bench.start()
    await bench.source.send(commands)
    for _ in range(40000):
        if len(bench.dones) >= len(commands):
            break
        await RisingEdge(dut.clk)
    await ClockCycles(dut.clk, 20)
    check_words(bench, commands, stores, pushes)
    assert len(stores) > 50 and len(pushes) > 50
    # Done: all words of the command are out, those to HBM acknowledged, and what belongs to the
    # next command has not got further than one cycle allows.
    assert len(bench.dones) == len(commands)
    for (stored, acked, pushed), (store_end, push_end) in zip(bench.dones, ends, strict=True):
        assert store_end <= stored <= store_end + 2 and push_end <= pushed <= push_end + 2
        assert acked >= store_end
    await ReadOnly()
    assert int(dut.busy.value) == 0
    assert int(dut.count_words.value) == len(stores) + len(pushes)


def check_words(bench, commands, stores, pushes):
    assert bench.push.received == pushes
    if any(fields["gather"] for fields in commands):
        # A list's next address may come too late to tell that the line goes on: it is then closed.
        for got, want in zip(bench.store.received, stores, strict=True):
            assert got["last"] >= want["last"]
            got["last"] = want["last"]
    assert bench.store.received == stores


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(shape=["long", "single"], to_tiles=[0, 1])
async def rate(dut, shape, to_tiles):
    """One word a cycle: inside a run and over runs of one word."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    loops = {
        "long": {"run": 400},
        "single": {
            "run": 1,
            "count0": 20,
            "count1": 10,
            "count2": 2,
            "s_stride0": 64,
            "s_stride1": 1,
            "f_stride0": 1,
            "f_stride1": 20,
            "f_stride2": 300,
        },
    }[shape]
    fields = {"count0": 1, "count1": 1, "count2": 1, "to_tiles": to_tiles, **loops}
    bench = Bench(dut, rng, 0.0, 0.0, 1.0)
    await bench.start()
    await bench.source.send([fields])
    cycles = 0
    sink = bench.push if to_tiles else bench.store
    while len(sink.received) < 400:
        await RisingEdge(dut.clk)
        cycles += 1
    # The first word comes four cycles after the command; one cycle is the bench's.
    assert cycles <= 400 + 5, cycles
    await ClockCycles(dut.clk, 10)
    assert len(bench.dones) == 1
    if not to_tiles:
        closed = sum(item["last"] for item in sink.received)
        assert closed == 100, f"{closed} lines closed for 400 words"
