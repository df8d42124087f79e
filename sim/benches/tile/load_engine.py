# SPDX-License-Identifier: Apache-2.0
"""Load engine: the requests of random commands against the golden list, and their rate."""

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.golden_move import load_requests, moved_words
from emu.isa import ABSENT, Opcode
from hdl.load_engine import LoadEngine
from hdl.move_loops import MoveCommand
from hdl.packets import HbmRequest
from hdl.ports import Credit
from sim.benches.tile._moves import (
    Memory,
    X,
    Y,
    random_command,
    random_list,
    reset,
    watch_done,
)
from sim.streams import Sink, Source

VARIANTS = {"base": LoadEngine}


def random_sum(rng):
    """Rows of up to eight words within a segment, of one sum or several, by a list or not."""
    rows, words = int(rng.integers(1, 6)), int(rng.choice([1, 2, 8]))
    slices = int(rng.integers(1, 3))
    fields = random_command(rng, gather=rng.random() < 0.5)
    return fields | {
        "run": words, "count0": slices, "count1": 1, "count2": rows * int(rng.integers(1, 4)),
        "far": 16 * int(rng.integers(0, 1 << 20)), "f_stride0": 1 << 21, "f_stride2": words,
        "sum": rows, "sum_int4": int(rng.random() < 0.5),
    }


def expected_requests(fields, numbers):
    rows, slices = fields.get("sum", 0), fields["count0"]
    for position, (address, words, near) in enumerate(load_requests(fields, numbers)):
        row = position // slices if rows else 0
        close = int(rows and row % rows == rows - 1)
        yield {
            "address": address,
            "last": words - 1,
            "reply": {
                "rect": fields["rect"],
                "address": near,
                "kind": 7 if rows else 0,
                "has_sem": fields["sem_valid"],
                "sem": fields["sem"],
                "block": close | fields["sum_int4"] << 1 if rows else 0,
                "tiles": 0,
                "tile_words": 0,
                "source_x": X,
                "source_y": Y,
            },
        }


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(p_idle=[0.0, 0.5], p_stall=[0.0, 0.6], p_gather=[0.0, 0.5])
async def random(dut, p_idle, p_stall, p_gather):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    source = Source(dut, "command", MoveCommand, p_idle=p_idle, rng=rng)
    sink = Sink(dut, "request", HbmRequest, p_stall=p_stall, rng=rng)
    memory = Memory(dut, rng, p_stall)
    credit = Sink(dut, "credit", Credit, p_stall=p_stall, rng=rng)
    credits: list[tuple[int, int]] = []
    commands, expected, ends, words = [], [], [], 0
    for _ in range(40):
        fields = random_command(rng, gather=rng.random() < p_gather)
        if rng.random() < 0.4:
            fields = random_sum(rng)
        numbers = random_list(rng, fields["count2"]) if fields["gather"] else None
        absent = 0
        if numbers and not fields.get("sum") and rng.random() < 0.5:
            absent = fields["turn"] = fields["run"] * fields["count0"] * fields["count1"]
            for place in {int(rng.integers(len(numbers))) for _ in range(2)}:
                numbers[place] = ABSENT
                if absent and fields["sem_valid"]:
                    credits.append((fields["sem"], absent))
        if numbers is not None:
            fields["gather_base"] = len(memory.lists) + 3
            memory.place_list(fields["gather_base"], numbers)
        commands.append(fields)
        expected += expected_requests(fields, numbers)
        words += len(moved_words(Opcode.LOAD, fields, numbers))
        ends.append(len(expected))
    dones = []
    await reset(dut)
    cocotb.start_soon(sink.run())
    cocotb.start_soon(credit.run())
    cocotb.start_soon(memory.run())
    cocotb.start_soon(watch_done(dut, lambda: dones.append(len(sink.received))))
    await source.send(commands)
    for _ in range(20000):
        if len(dones) >= len(commands) and len(sink.received) >= len(expected):
            break
        await RisingEdge(dut.clk)
    await ClockCycles(dut.clk, 20)
    assert sink.received == expected
    assert len(expected) > 50
    given: dict[int, int] = {}
    wanted: dict[int, int] = {}
    for sem, count in credits:
        wanted[sem] = wanted.get(sem, 0) + count
    for item in credit.received:
        given[item["sem"]] = given.get(item["sem"], 0) + item["words"]
    assert given == wanted
    assert len(credit.received) == len(credits)  # one for each turn
    # Each is done after its own last request, before more than the next two can be taken.
    assert len(dones) == len(commands)
    for done, end in zip(dones, ends, strict=True):
        assert end <= done <= end + 2
    await ReadOnly()
    assert int(dut.count_words.value) == words
    assert (memory.reads > 0) == any(f["gather"] and expected for f in commands)


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(shape=["long", "short", "single"])
async def rate(dut, shape):
    """One request a cycle: inside long runs and over runs of one to four words."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    loops = {
        "long": {"run": 1600, "count0": 1, "far": 0},
        "short": {"run": 4, "count0": 25, "count1": 4, "far": 64, "f_stride0": 64, "f_stride1": 16},
        "single": {"run": 1, "count0": 10, "count1": 5, "count2": 2, "far": 9, "f_stride0": -1},
    }[shape]
    fields = {"count0": 1, "count1": 1, "count2": 1, **loops}
    source = Source(dut, "command", MoveCommand, rng=rng)
    sink = Sink(dut, "request", HbmRequest, rng=rng)
    memory = Memory(dut, rng, 0.0)
    await reset(dut)
    cocotb.start_soon(memory.run())
    cocotb.start_soon(sink.run())
    await source.send([fields])
    cycles = 0
    while len(sink.received) < 100:
        await RisingEdge(dut.clk)
        cycles += 1
    # The first request comes two cycles after the command; one cycle is the bench's.
    assert cycles <= 100 + 3, cycles
    assert len(load_requests(fields)) == 100
