# SPDX-License-Identifier: Apache-2.0
"""Drain against the golden model: every path, random refusals, commands back to back, timing."""

import os

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from emu import requantise as rq
from emu.config import load_config
from hdl.compute.drain import Drain
from hdl.compute.drain_command import DrainCommand
from sim.streams import Source

VARIANTS = {
    f"lanes{n}": lambda n=n: Drain(load_config("base", [f"core.requantise_lanes={n}"]))
    for n in (8, 16)
}
ROWS = 64


class Machine:
    """Scratchpad ports and accumulators around the drain; watches writes and pulses."""

    def __init__(self, dut, rng, p_refuse: float):
        self.dut, self.rng, self.p_refuse = dut, rng, p_refuse
        self.memory = rng.integers(0, 256, (1 << 16, 16)).astype(np.uint8)
        self.accumulators = rng.integers(-(1 << 18), 1 << 18, (2, ROWS, 16)).astype(np.int32)
        self.writes: list[int] = []
        self.done: list[tuple[int, int]] = []
        self.drained = self.cycle = 0

    async def run(self):
        dut = self.dut
        read = row = None
        while True:
            for port in (dut.read__request__ready, dut.write__request__ready):
                port.value = int(self.rng.random() >= self.p_refuse)
            # Data not asked for is noise: nothing may depend on it.
            word = self.memory[read] if read is not None else self.rng.bytes(16)
            dut.read__data.value = int.from_bytes(bytes(word), "little")
            sums = self.accumulators[row].tobytes() if row is not None else self.rng.bytes(64)
            dut.accumulator__data.value = int.from_bytes(sums, "little")
            await ReadOnly()
            self.cycle += 1
            read = row = None
            if int(dut.read__request__valid.value) and int(dut.read__request__ready.value):
                read = int(dut.read__request__payload.value)
            if int(dut.write__request__valid.value) and int(dut.write__request__ready.value):
                bits = int(dut.write__request__payload.value)
                address = bits >> 128
                value = (bits & (1 << 128) - 1).to_bytes(16, "little")
                self.memory[address] = np.frombuffer(value, np.uint8)
                self.writes.append(address)
            if int(dut.accumulator__enable.value):
                row = int(dut.accumulator__half.value), int(dut.accumulator__row.value)
            self.drained += int(dut.drained.value)
            if int(dut.done.value):
                self.done.append((self.cycle, len(self.writes)))
            await RisingEdge(dut.clk)


async def reset(dut):
    Clock(dut.clk, 1, unit="ns").start()
    dut.rst.value = 1
    dut.command__valid.value = 0
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


def random_command(rng, machine: Machine, out: int, number: int, pixels: int, kind: int) -> dict:
    """A command with its constants in memory; its outputs are from word ``out`` on."""
    base = 0x8000 + 256 * (number % 64)
    bias = rng.integers(-(1 << 17), 1 << 17, 16).astype(np.int32)
    scale = (rng.uniform(0.5, 4, 16) * 2.0**-12).astype(np.float32)
    constants = bias.tobytes() + scale.tobytes()
    machine.memory[base : base + 8] = np.frombuffer(constants, np.uint8).reshape(8, 16)
    addends = rng.uniform(-100, 100, 256).astype(np.float32)
    machine.memory[base + 16 : base + 80] = addends.view(np.uint8).reshape(64, 16)
    low = int(rng.integers(-128, 0)) if rng.integers(0, 2) else 0
    low, high = (low, low + int(rng.integers(100, 128)))
    residual_low = int(rng.choice([-128, 0]))
    return {
        "pixels": pixels, "out": out, "out_step": int(rng.integers(4, 8)), "params": base,
        "out_int32": int(kind == 3), "out_zero": int(rng.integers(low, high + 1)),
        "clip_low": low, "clip_high": high,
        "table_valid": int(rng.integers(0, 2)), "table": base + 128,
        "residual_valid": int(kind in (1, 3)), "residual": int(rng.integers(0xD000, 0xE000)),
        "residual_table": base + 16,
        "residual_scale": int(np.float32(rng.uniform(0.1, 2)).view(np.uint32)),
        "residual_low": residual_low, "residual_high": residual_low + 255,
        "residual_a_zero": int(rng.choice([0, -128])), "residual_signed": int(rng.integers(0, 2)),
        "residual_indexes": int(rng.integers(0, 2)),
        "half": number & 1, "same_tables": 0,
    }


def expected(memory, accumulators, c: dict) -> dict[int, bytes]:
    """Address to word, from the golden functions."""
    result = {}
    constants = memory[c["params"] : c["params"] + 8].tobytes()
    bias, scale = np.frombuffer(constants[:64], np.int32), np.frombuffer(constants[64:], np.float32)
    acc = accumulators[c["half"], : c["pixels"]]
    addresses = [(c["out"] + p * c["out_step"]) & 0xFFFF for p in range(c["pixels"])]
    if c["out_int32"]:
        totals = rq.wrap_int32(acc.astype(np.int64) + bias)
        for p, address in enumerate(addresses):
            for q in range(4):
                result[address + q] = totals[p, 4 * q : 4 * q + 4].tobytes()
        return result
    clip = {"zero": c["out_zero"], "low": c["clip_low"], "high": c["clip_high"]}
    y = rq.requantise(acc, scale, bias=bias, **clip)
    if c["residual_valid"]:
        words = [(c["residual"] + p * c["out_step"]) & 0xFFFF for p in range(c["pixels"])]
        a = rq.from_bytes(memory[words].ravel(), bool(c["residual_signed"])).reshape(-1, 16)
        table = memory[c["residual_table"] : c["residual_table"] + 64].view(np.float32).ravel()
        if c["residual_indexes"]:
            a, y = rq.from_bytes(rq.to_bytes(y).ravel(), bool(c["residual_signed"])), a
            a = a.reshape(-1, 16)
        y = rq.add_by_table(
            a, y, np.uint32(c["residual_scale"]).view(np.float32), table,
            offset=c["residual_a_zero"], low=c["residual_low"], high=c["residual_high"],
        )
    data = rq.to_bytes(y)
    if c["table_valid"]:
        data = memory[c["table"] : c["table"] + 16].reshape(256)[data]
    return {address: data[p].tobytes() for p, address in enumerate(addresses)}


@cocotb.test
@cocotb.parametrize(p_refuse=[0.0, 0.5], p_idle=[0.0, 0.7])
async def golden(dut, p_refuse, p_idle):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    machine = Machine(dut, rng, p_refuse)
    source = Source(dut, "command", DrainCommand, p_idle=p_idle, rng=rng)
    await reset(dut)
    cocotb.start_soon(machine.run())
    commands: list[dict] = []
    want: dict[int, bytes] = {}
    out = 0x100
    for number in range(24):
        pixels = int(rng.choice([1, 2, 3, 17, ROWS]))
        command = random_command(rng, machine, out, number, pixels, number % 4)
        if number % 4 == 1:  # a second output group of the same command: tables need no reload
            again = command | {"same_tables": 1, "out": out + 8 * ROWS, "half": 0}
            commands += [command, again]
            out += 8 * ROWS
        else:
            commands.append(command)
        out += 8 * ROWS
    counts = [0]
    for command in commands:
        new = expected(machine.memory, machine.accumulators, command)
        assert not set(new) & set(want)
        want |= new
        counts.append(len(want))
    await with_timeout(source.send(commands), 100, "us")
    await with_timeout(finish(dut, machine, len(commands)), 20, "us")
    await ClockCycles(dut.clk, 30)
    assert len(machine.writes) == len(want) > 0 and set(machine.writes) == set(want)
    wrong = [a for a, word in want.items() if machine.memory[a].tobytes() != word]
    assert not wrong, f"{len(wrong)} of {len(want)} words, first {wrong[0]:#x}"
    assert machine.drained == len(commands)
    # Each command is done once its own last word, and no later one, was transferred.
    assert len(machine.done) == len(commands)
    for (_, written), count in zip(machine.done, counts[1:], strict=True):
        assert written >= count


async def finish(dut, machine, commands):
    while len(machine.done) < commands:
        await RisingEdge(dut.clk)


@cocotb.test
async def timing(dut):
    """Unhindered: 16 / lanes cycles a pixel, and 10 cycles at most between two commands."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    machine = Machine(dut, rng, 0.0)
    source = Source(dut, "command", DrainCommand, rng=rng)
    await reset(dut)
    cocotb.start_soon(machine.run())
    step = 1 if os.environ["HEADRACE_VARIANT"] == "lanes16" else 2
    first = random_command(rng, machine, 0x100, 0, ROWS, 0) | {"table_valid": 0}
    second = first | {"out": 0x1000, "half": 1}
    await with_timeout(source.send([first, second]), 10, "us")
    await with_timeout(finish(dut, machine, 2), 10, "us")
    between = machine.done[1][0] - machine.done[0][0]
    dut._log.info(f"command to command: {between} cycles for {ROWS} pixels")
    assert between <= ROWS * step + 10
    # With a residual every pixel also costs one read; the port gives one word a cycle.
    third = random_command(rng, machine, 0x2000, 2, ROWS, 1) | {"table_valid": 0, "same_tables": 1}
    start = machine.cycle
    await with_timeout(source.send([third]), 10, "us")
    await with_timeout(finish(dut, machine, 3), 10, "us")
    assert machine.cycle - start <= ROWS * step + 10 + 16
