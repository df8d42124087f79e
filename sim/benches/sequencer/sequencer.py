# SPDX-License-Identifier: Apache-2.0
"""Sequencer: random programs against a model in program order, with a memory that answers in any
order, engines of random length, and waits that pass when they please."""

import os
from functools import partial

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from emu import isa
from emu.config import Config, Core
from emu.isa import Opcode, Queue
from hdl.packets import COMMANDS, HbmRequest, Kind
from hdl.ports import SignalOp, WaitOp
from hdl.sequencer.dispatch import LayerCommand
from hdl.sequencer.fetch import DIRECTORY_SLOT, CommandWord
from hdl.sequencer.sequencer import Sequencer
from sim.streams import Sink, Source, bits_of, unpack

VARIANTS = {
    "base": lambda: Sequencer(Config()),
    "shallow": lambda: Sequencer(Config(core=Core(queue_depth=1))),
}
X, Y, INDEX, BASE = 2, 1, 6, 4096
NAMES = [queue.name.lower() for queue in Queue]
HERE = {"x0": X, "x1": X, "y0": Y, "y1": Y}
LAYER_OPCODES = (Opcode.LAYER, Opcode.FRAMES, Opcode.PIN, Opcode.UNPIN)


def random_program(rng, length: int) -> list[tuple[Opcode, dict[str, int]]]:
    """``length`` commands and END; a signal's semaphore names its queue and place."""
    program, sent = [], [0, 0, 0, 0]
    kinds = [Opcode.COMPUTE, Opcode.VECTOR, Opcode.LOAD, Opcode.STORE, Opcode.SYNC,
             Opcode.LAYER, Opcode.PIN, Opcode.SET, Opcode.ADD, Opcode.FRAMES, Opcode.UNPIN]
    weights = np.array([4, 2, 4, 4, 2, 1, 0.5, 1, 1, 0.3, 0.3])
    for kind in rng.choice(len(kinds), length, p=weights / weights.sum()):
        opcode = kinds[kind]
        fields = {
            name: int(rng.integers(0, 1 << abs(width)) - (width < 0) * (1 << abs(width) - 1))
            for name, width in isa.BODIES[opcode]
        }
        fields |= {"index_valid": int(rng.random() < 0.5), "index": int(rng.integers(8))}
        for i in range(isa.WAITS):
            if rng.random() < 0.4:
                fields[f"wait{i}_sem"] = int(rng.integers(32))
                fields[f"wait{i}_count"] = int(rng.integers(1, 1 << isa.WAIT_BITS))
        queue = isa.QUEUE_OF.get(opcode, fields.get("queue"))
        for i in range(isa.SIGNALS):
            if queue is not None and rng.random() < 0.5:
                rect = isa.pack_fields(isa.RECT, HERE)
                if rng.random() < 0.5:
                    rect = int(rng.integers(1 << isa.RECT_BITS)) | 1 << 19
                fields |= {f"signal{i}_valid": 1, f"signal{i}_rect": rect,
                           f"signal{i}_sem": queue << 3 | sent[queue] % 8}
                sent[queue] += 1
        program.append((opcode, fields))
    return [*program, (Opcode.END, {})]


class Model:
    """What each queue and the parameter store must see, by walking the program in order."""

    def __init__(self, program):
        registers = [0] * 8
        self.waits: list[list[dict]] = [[] for _ in Queue]
        self.commands: list[list[int]] = [[] for _ in Queue]
        # (local, sem, rect, engine commands done before)
        self.signals: list[list[tuple[bool, int, int, int]]] = [[] for _ in Queue]
        self.layers = []
        for opcode, fields in program:
            fields = dict(fields)
            if opcode in (Opcode.SET, Opcode.ADD):
                old = registers[fields["register"]] if opcode == Opcode.ADD else 0
                registers[fields["register"]] = (old + fields["value"]) % (1 << 28)
            if opcode in LAYER_OPCODES:
                bits = int.from_bytes(isa.encode(opcode, **fields), "little")
                self.layers.append((opcode, bits & (1 << LayerCommand.size) - 1))
            queue = isa.QUEUE_OF.get(opcode, fields.get("queue"))
            if queue is None:
                continue
            target = {Opcode.COMPUTE: "base", Opcode.LOAD: "far", Opcode.STORE: "far"}.get(opcode)
            if target and fields.get("index_valid"):
                bits = 16 if target == "base" else 28
                fields[target] = (fields[target] + registers[fields["index"]]) % (1 << bits)
            self.waits[queue] += [
                {"sem": fields[f"wait{i}_sem"], "count": fields[f"wait{i}_count"]}
                for i in range(isa.WAITS) if f"wait{i}_sem" in fields
            ]
            if opcode != Opcode.SYNC:
                bits = int.from_bytes(isa.encode(opcode, **fields), "little")
                self.commands[queue].append(bits & (1 << COMMANDS[opcode].size) - 1)
            here = isa.pack_fields(isa.RECT, HERE)
            for i in range(isa.SIGNALS):
                if fields.get(f"signal{i}_valid"):
                    rect = fields[f"signal{i}_rect"]
                    self.signals[queue].append(
                        (rect == here, fields[f"signal{i}_sem"], rect, len(self.commands[queue]))
                    )


class Bench:
    """Everything around the sequencer."""

    def __init__(self, dut, program, *, p_stall, p_idle, rng, fast=False):
        self.dut, self.program, self.rng, self.fast = dut, program, rng, fast
        self.model = Model(program)
        image = b"".join(isa.encode(opcode, **fields) for opcode, fields in program)
        self.words = {
            BASE + i: int.from_bytes(image[16 * i : 16 * i + 16], "little")
            for i in range(len(image) // 16)
        }
        self.words[INDEX] = BASE | len(program) << 32
        self.owed, self.requested = [], 0
        self.waits = [0] * 4
        self.taken, self.done = [0] * 4, [0] * 4
        self.running: list[list] = [[] for _ in Queue]
        self.layers = 0
        for name in NAMES:
            getattr(dut, f"done_{name}").value = 0
        dut.x.value, dut.y.value, dut.index.value, dut.start.value = X, Y, INDEX, 0
        self.source = Source(dut, "command_word", CommandWord, p_idle=p_idle, rng=rng)
        sink = {"p_stall": p_stall, "rng": rng}
        self.sinks = [
            Sink(dut, "request", HbmRequest, on_item=self.request, **sink),
            Sink(dut, "layer_command", LayerCommand.size, on_item=self.layer, **sink),
            Sink(dut, "signal", 5, on_item=lambda sem: self.signal(True, sem), **sink),
            Sink(dut, "remote_signal", SignalOp,
                 on_item=lambda op: self.signal(False, op["sem"], op["rect"]), **sink),
        ]
        for queue, name in enumerate(NAMES):
            self.sinks += [
                Sink(dut, f"wait_{name}", WaitOp,
                     on_item=partial(self.wait, queue), **sink),
                Sink(dut, f"command_{name}", COMMANDS[Opcode[name.upper()]].size,
                     on_item=partial(self.command, queue), **sink),
            ]

    def request(self, item):
        reply = item["reply"]
        assert int(reply["kind"]) == bits_of(Kind.COMMAND)
        assert reply["rect"] == {**HERE, "xs": 0, "ys": 0}
        assert (reply["source_x"], reply["source_y"]) == (X, Y)
        assert item["address"] % 16 + item["last"] < 16
        for i in range(item["last"] + 1):
            slot = reply["address"] + i
            assert slot not in [owed["address"] for owed in self.owed]
            self.owed.append({"address": slot, "data": self.words[item["address"] + i]})
            self.requested += slot < DIRECTORY_SLOT

    def layer(self, bits):
        opcode, expected = self.model.layers[self.layers]
        assert bits == expected
        if opcode in (Opcode.FRAMES, Opcode.UNPIN):
            assert self.taken[0] == self.done[0], "blocks taken away before their use"
        self.layers += 1

    def wait(self, queue, op):
        assert op == self.model.waits[queue][self.waits[queue]]
        self.waits[queue] += 1

    def command(self, queue, bits):
        assert bits == self.model.commands[queue][self.taken[queue]]
        fields = unpack(COMMANDS[Opcode[NAMES[queue].upper()]], bits)
        assert fields["opcode"] == Opcode[NAMES[queue].upper()]
        self.taken[queue] += 1
        self.running[queue].append(0 if self.fast else int(self.rng.integers(0, 60)))

    def signal(self, local, sem, rect=None):
        queue = sem >> 3
        mine = [s for s in self.model.signals[queue] if s[0] == local]
        count = self.sent[local][queue]
        _, want, bits, before = mine[count]
        assert sem == want, (queue, sem, want)
        assert self.done[queue] >= before, "signal before its command was done"
        if not local:
            assert rect == unpack(SignalOp.members["rect"], bits)
        self.sent[local][queue] += 1

    async def memory(self):
        """Answer words in any order."""
        while True:
            if self.owed:
                pick = 0 if self.fast else int(self.rng.integers(len(self.owed)))
                word = self.owed[pick]
                await self.source.send([word])
                self.owed.remove(word)
            else:
                await RisingEdge(self.dut.clk)

    async def engines(self):
        """Complete commands in order, each after its time."""
        while True:
            pulses = [0] * 4
            for queue in range(4):
                if self.running[queue]:
                    if self.running[queue][0] == 0:
                        self.running[queue].pop(0)
                        pulses[queue] = 1
                    else:
                        self.running[queue][0] -= 1
            for queue, name in enumerate(NAMES):
                getattr(self.dut, f"done_{name}").value = pulses[queue]
            await RisingEdge(self.dut.clk)
            for queue in range(4):
                self.done[queue] += pulses[queue]

    async def run(self) -> int:
        """Run to `done`; returns cycles since start."""
        self.sent = {True: [0] * 4, False: [0] * 4}
        dut = self.dut
        Clock(dut.clk, 1, unit="ns").start()
        dut.rst.value = 1
        await ClockCycles(dut.clk, 3)
        dut.rst.value = 0
        for sink in self.sinks:
            cocotb.start_soon(sink.run())
        cocotb.start_soon(self.memory())
        cocotb.start_soon(self.engines())
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        cycles = 0
        while True:
            await ReadOnly()
            if int(dut.done.value):
                break
            await RisingEdge(dut.clk)
            cycles += 1
        assert self.check()
        await ClockCycles(dut.clk, 50)
        assert int(dut.done.value) == 1
        return cycles

    def check(self) -> bool:
        """At `done` everything has happened."""
        model = self.model
        assert self.waits == [len(w) for w in model.waits]
        assert self.taken == [len(c) for c in model.commands] == self.done
        for queue in range(4):
            total = self.sent[True][queue] + self.sent[False][queue]
            assert total == len(model.signals[queue])
        assert self.layers == len(model.layers)
        assert not self.owed and self.requested == 8 * len(self.program)
        assert int(self.dut.error.value) == 0
        return sum(self.taken) > 0


@cocotb.test
@cocotb.parametrize(p_stall=[0.0, 0.7], p_idle=[0.0, 0.6], length=[1, 60, 121])
async def programs(dut, p_stall, p_idle, length):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    program = random_program(rng, length)
    program.insert(0, (Opcode.LOAD, {"far": 5}))
    bench = Bench(dut, program, p_stall=p_stall, p_idle=p_idle, rng=rng)
    await with_timeout(bench.run(), 60, "us")
    assert int(dut.count_commands.value) == len(program)
    assert int(dut.count_command_words.value) == 8 * len(program)


@cocotb.test
async def rate(dut):
    """Commands without waits pass at eight cycles each, plus the way in and out.

    A queue of one command is not written while its command moves on, four words of LOAD."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    program = [(Opcode.LOAD, {"far": i}) for i in range(64)] + [(Opcode.END, {})]
    bench = Bench(dut, program, p_stall=0.0, p_idle=0.0, rng=rng, fast=True)
    cycles = await with_timeout(bench.run(), 20, "us")
    each = 12 if os.environ["HEADRACE_VARIANT"] == "shallow" else 8
    assert cycles <= 65 * each + 60, cycles


@cocotb.test
@cocotb.parametrize(fault=["opcode", "no_end"])
async def faults(dut, fault):
    """An unknown opcode and a stream without END raise ``error``, never ``done``."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    program = [(Opcode.LOAD, {"far": 5})] + [(Opcode.END, {})] * (fault == "opcode")
    bench = Bench(dut, program, p_stall=0.0, p_idle=0.0, rng=rng)
    if fault == "opcode":
        bench.words[BASE + 8] |= 13
    cocotb.start_soon(bench.run())
    for _ in range(400):
        await RisingEdge(dut.clk)
        await ReadOnly()
        assert int(dut.done.value) == 0
    assert int(dut.error.value) == 1
