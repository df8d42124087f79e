# SPDX-License-Identifier: Apache-2.0
"""Allocation unit: each answer, its cycle, and all counters as the model says."""

import os
from dataclasses import asdict

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.allocator import Allocator as Model
from emu.allocator import Answer, Command, Mode, Op
from hdl.allocator.ports import answer_layout, command_layout
from hdl.allocator.unit import Allocator
from sim.benches import sized
from sim.streams import pack, unpack

SIZES = {"small": (32, 4), "tile": (16384, 64)}
VARIANTS = {name: lambda sizes=sizes: Allocator(*sizes) for name, sizes in SIZES.items()}


def random_commands(rng, words: int, areas: int, mode: Mode, amount: int) -> list[Command]:
    """A memory in use: numbers that are held are mostly freed, others mostly allocated."""
    capacity = int(rng.integers(words // 2, words + 1))
    commands = [Command(Op.BEGIN, words=capacity, mode=mode)]
    held: set[int] = set()
    for area in rng.permutation(areas).tolist():
        commands.append(Command(Op.PLAN, area, offset=int(rng.integers(words)),
                                spilled=not area or bool(rng.random() < 0.2)))
    for _ in range(amount):
        area = int(rng.integers(areas))
        if (area in held) != (rng.random() < 0.03):  # a few that must be refused
            commands.append(Command(Op.FREE, area))
            held.discard(area)
            continue
        least = 0 if rng.random() < 0.05 else 1
        most = max(1, words // int(rng.choice([2, areas, 4 * areas])))
        commands.append(Command(Op.ALLOCATE, area, int(rng.integers(least, most + 1))))
        held.add(area)
    return commands


async def start(dut):
    dut.command__valid.value = 0
    dut.command__payload.value = 0
    dut.answer__ready.value = 0
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


async def transfer(dut, port, handshake, p_wait, rng) -> int:
    """Wait at random, then raise ``handshake`` until the transfer; the payload is returned."""
    other = getattr(dut, f"{port}__{'ready' if handshake == 'valid' else 'valid'}")
    signal = getattr(dut, f"{port}__{handshake}")
    while rng.random() < p_wait:
        await RisingEdge(dut.clk)
    signal.value = 1
    while True:
        await ReadOnly()
        done, payload = int(other.value), getattr(dut, f"{port}__payload").value
        await RisingEdge(dut.clk)
        if done:
            signal.value = 0
            return int(payload)


async def check(dut, sizes, commands, p_wait, rng) -> Model:
    """Play ``commands`` on unit and model."""
    model, layouts = Model(*sizes), (command_layout(*sizes), answer_layout(*sizes))
    for command in commands:
        dut.command__payload.value = pack(layouts[0], asdict(command))
        await transfer(dut, "command", "valid", p_wait, rng)
        want, cycles = model.execute(command), 0
        while True:
            await ReadOnly()
            if int(dut.answer__valid.value):
                break
            assert int(dut.command__ready.value) == 0
            cycles += 1
            await RisingEdge(dut.clk)
        assert cycles == want.cycles, (command, cycles, want)
        await RisingEdge(dut.clk)
        found = unpack(layouts[1], await transfer(dut, "answer", "ready", p_wait, rng))
        assert Answer(**found, cycles=cycles) == want, (command, found, want)
        await ReadOnly()
        assert int(dut.high_water.value) == model.counters.high_water
        assert int(dut.error.value) == model.error
        await RisingEdge(dut.clk)
    for name in ("cycles", "allocations", "spills", "spilled_words"):
        found = int(getattr(dut, f"count_{name}").value)
        assert found == getattr(model.counters, name), name
    return model


@cocotb.test(timeout_time=4, timeout_unit="ms")
@cocotb.parametrize(mode=list(Mode), p_wait=[0.0, 0.4])
async def random(dut, mode, p_wait):
    sizes, rng = SIZES[os.environ["HEADRACE_VARIANT"]], np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    commands = [command for _ in range(sized(24, 6))
                for command in random_commands(rng, *sizes, mode, 120)]
    model = await check(dut, sizes, commands, p_wait, rng)
    assert model.counters.allocations > 50 and model.counters.spills > 5 and model.error


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def all_that_changes_the_list(dut):
    """Each way to cut an extent and to join one, in the fewest commands."""
    sizes = SIZES[os.environ["HEADRACE_VARIANT"]]
    await start(dut)
    take, give = (lambda area, words: Command(Op.ALLOCATE, area, words)), (
        lambda area: Command(Op.FREE, area))
    commands = [
        Command(Op.BEGIN, words=16, mode=Mode.FIRST_FIT),
        give(0),                                 # never held
        take(0, 4), take(1, 4), take(2, 4), take(3, 4),  # the last uses all up
        take(3, 1), give(3), take(3, 5), give(3),  # held; joined into none; no room; spilled
        take(3, 4), give(1), give(3), give(2),   # alone; behind; three become one
        give(0), take(0, 16), give(0),           # before; all
        Command(Op.BEGIN, words=16, mode=Mode.POWER_OF_TWO),
        take(0, 1), take(1, 4), take(2, 2), take(3, 9),  # a block that leaves room on both sides
        Command(Op.BEGIN, words=0), Command(Op.BEGIN, words=sizes[0] + 1),
        Command(Op.BEGIN, words=8, mode=Mode.STATIC),
        Command(Op.PLAN, 0, offset=4), take(0, 5), take(0, 4), take(1, 1), give(0),
        Command(Op.PLAN, 1, spilled=True), take(1, 9), give(1),
    ]
    model = await check(dut, sizes, commands, 0.0, np.random.default_rng(0))
    assert model.counters.spills == 3 and model.error
