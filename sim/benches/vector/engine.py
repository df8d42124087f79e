# SPDX-License-Identifier: Apache-2.0
"""Vector engine against `emu.vector_model`: every operation, random windows, random refusals."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from emu.config import load_config
from emu.isa import ABSENT, VectorOp
from emu.normalise import norm_parameters, parameter_words
from emu.softmax import softmax_table
from emu.vector_model import run_vector
from hdl.vector.collect import COLLECT_OPERATIONS
from hdl.vector.engine import BUILT, VectorEngine
from hdl.vector.routes import ROUTE_OPERATIONS
from hdl.vector.rows import ROW_OPERATIONS
from hdl.vector.walker import VectorCommand
from sim.streams import Source

VARIANTS = {"base": lambda: VectorEngine(load_config("base"))}
OUT = 0x4000
LISTS = (*ROUTE_OPERATIONS, *COLLECT_OPERATIONS)


class Scratch:
    """Scratchpad behind the two ports; ``p_refuse`` is the chance that a port refuses a cycle."""

    def __init__(self, dut, rng, p_refuse: float):
        self.dut, self.rng, self.p_refuse = dut, rng, p_refuse
        self.memory = rng.integers(0, 256, (1 << 16, 16)).astype(np.uint8)
        self.writes: list[int] = []
        self.done: list[tuple[int, int]] = []
        self.cycle = 0

    async def run(self):
        dut, read = self.dut, None
        while True:
            for port in (dut.read__request__ready, dut.write__request__ready):
                port.value = int(self.rng.random() >= self.p_refuse)
            word = self.memory[read] if read is not None else self.rng.bytes(16)
            dut.read__data.value = int.from_bytes(bytes(word), "little")
            await ReadOnly()
            self.cycle += 1
            read = None
            if int(dut.read__request__valid.value) and int(dut.read__request__ready.value):
                read = int(dut.read__request__payload.value)
            if int(dut.write__request__valid.value) and int(dut.write__request__ready.value):
                bits = int(dut.write__request__payload.value)
                value = (bits & (1 << 128) - 1).to_bytes(16, "little")
                self.memory[bits >> 128] = np.frombuffer(value, np.uint8)
                self.writes.append(bits >> 128)
            if int(dut.done.value):
                self.done.append((self.cycle, len(self.writes)))
            await RisingEdge(dut.clk)


async def start(dut, p_refuse):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    scratch = Scratch(dut, rng, p_refuse)
    source = Source(dut, "command", VectorCommand, rng=rng)
    Clock(dut.clk, 1, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    cocotb.start_soon(scratch.run())
    return rng, scratch, source


def pick(rng, low, high):
    return int(rng.integers(low, high + 1))


def window(rng, pool: bool) -> dict:
    """Window fields; every window of a pool has a tap inside, others lie inside."""
    height, width = pick(rng, 1, 9), pick(rng, 1, 9)
    kh, kw = (pick(rng, 1, 4), pick(rng, 1, 4)) if pool else (1, 1)
    sy, sx = pick(rng, 1, 3), pick(rng, 1, 3)
    y0, x0 = (pick(rng, 1 - kh, 0), pick(rng, 1 - kw, 0)) if pool else (0, 0)
    rows, out_width = (height - 1 - y0) // sy + 1, (width - 1 - x0) // sx + 1
    first_x = pick(rng, 0, out_width - 1)
    step, groups = pick(rng, 1, 3), pick(rng, 1, 3)
    row = step * width + pick(rng, 0, 5)
    return {
        "base": pick(rng, 0x100, 0x1000), "step": step, "row": row,
        "plane": row * height + pick(rng, 0, 9), "height": height, "width": width,
        "y0": y0, "x0": x0, "sy": sy, "sx": sx, "kh": kh, "kw": kw, "groups": groups,
        "out_width": out_width, "first_x": first_x,
        "pixels": pick(rng, 1, rows * out_width - first_x),
    }


def random_command(rng, scratch: Scratch, op: VectorOp) -> dict:
    c = window(rng, op in (VectorOp.MAX_POOL, VectorOp.SUM_POOL)) | {"op": int(op)}
    out_step = pick(rng, 1, 3)
    low = int(rng.choice([-128, 0]))
    c |= {
        "b_base": pick(rng, 0x8000, 0x9000), "b_plane": pick(rng, 100, 200),
        "b_step": pick(rng, 1, 3), "b_mode": pick(rng, 0, 2),
        "out": OUT, "out_step": out_step, "out_group": c["pixels"] * out_step + pick(rng, 0, 3),
        "table": 0xF000, "a_signed": pick(rng, 0, 1), "b_signed": pick(rng, 0, 1),
        "a_zero": pick(rng, -128, 255), "b_zero": pick(rng, -128, 255),
        "out_zero": pick(rng, low, low + 255), "clip_low": low + pick(rng, 0, 20),
        "clip_high": low + 255 - pick(rng, 0, 20),
        "scale0": int(np.float32(rng.uniform(0.002, 0.1)).view(np.uint32)),
    }
    c |= {"scale1": 0, "channels": 0, "k": 0, "causal": 0}
    if op == VectorOp.ADD:
        addends = rng.uniform(-100, 100, 256).astype(np.float32)
        scratch.memory[0xF000:0xF040] = addends.view(np.uint8).reshape(64, 16)
        c["scale0"] = int(np.float32(rng.uniform(0.1, 2)).view(np.uint32))
        c["a_zero"] = int(rng.choice([0, -128]))
    return c


def random_rows(rng, scratch: Scratch, op: VectorOp) -> dict:
    """A row operation; rows lie behind one another or interleaved."""
    c = random_command(rng, scratch, op)
    groups, pixels = c["groups"], pick(rng, 1, 5)
    channels = pick(rng, 16 * groups - 15, 16 * groups)
    inner = rng.random() < 0.5  # a row's words next to each other
    c |= {
        "pixels": pixels, "channels": channels, "plane": 1 if inner else pixels + 1,
        "step": groups + 1 if inner else 1, "out_step": groups if inner else 1,
        "out_group": 1 if inner else pixels, "k": 1,
    }
    words = (c["base"] + np.arange(pixels)[:, None] * c["step"]
             + np.arange(groups)[None] * c["plane"])
    spread, middle = rng.choice([0, 1, 5, 30, 200]), rng.integers(-64, 65)
    values = np.rint(rng.normal(middle, spread, (*words.shape, 16))).clip(-128, 127)
    scratch.memory[words] = (values + (0 if c["a_signed"] else 128)).astype(np.int64) & 0xFF
    c["a_zero"] = pick(rng, -128, 127) + (0 if c["a_signed"] else 128)
    if op == VectorOp.SOFTMAX:
        c |= {"scale0": pick(rng, 1, 256), "causal": pick(rng, 0, 1)}
        c["channels"] = max(1, channels - (pixels - 1) * c["causal"])
        table = softmax_table(16 * groups, float(rng.uniform(0.001, 0.3)))
        scratch.memory[0xF000:0xF040] = table.view(np.uint8).reshape(64, 16)
    elif op == VectorOp.TOP_K:
        c |= {"k": pick(rng, 1, min(8, channels)), "b_mode": pick(rng, 0, 1), "out_step": 2}
    else:
        parameters = norm_parameters(
            rng.normal(1, 0.5, channels), rng.normal(0, 0.5, channels),
            in_scale=10 ** rng.uniform(-3, 0), out_scale=10 ** rng.uniform(-2, 0),
            epsilon=float(rng.choice([0, 1e-12, 1e-5])),
        )
        words = parameter_words(parameters)
        scratch.memory[0xF000 : 0xF000 + len(words)] = words
        c |= {"scale0": parameters.epsilon & 0xFFFFFFFF, "scale1": parameters.epsilon >> 32}
    return c


def random_routes(rng, scratch: Scratch, op: VectorOp) -> dict:
    """A list of numbers, few or all of which occur, and one that may not."""
    c = random_command(rng, scratch, op)
    pixels, k = pick(rng, 1, 9), int(rng.choice([1, 2, 3, 4]))
    c |= {"pixels": pixels, "k": k, "step": pick(rng, 1, 3), "groups": pick(rng, 1, 17),
          "channels": pick(rng, 1, 16), "causal": pick(rng, 0, 1),
          "b_mode": pick(rng, 0, 1) if k != 3 else 0}
    numbers = rng.integers(0, int(rng.choice([2, 16])), (pixels, 4)).astype(np.uint32)
    numbers[:, k:] = rng.integers(0, 1 << 32, (pixels, 4 - k))
    scratch.memory[c["base"] + np.arange(pixels) * c["step"]] = numbers.view(np.uint8)
    number = ABSENT if rng.random() < 0.2 else rng.integers(0, 3)
    scratch.memory[c["b_base"], :4] = np.array([number], np.uint32).view(np.uint8)
    if op in (VectorOp.SORT, VectorOp.COLLECT):  # the numbers of a word differ
        most = int(rng.choice([4, 16]))
        for p in range(pixels):
            numbers[p, :k] = rng.permutation(most)[:k]
        scratch.memory[c["base"] + np.arange(pixels) * c["step"]] = numbers.view(np.uint8)
        c |= {"height": 4 * pick(rng, 1, 3), "causal": 0, "b_mode": pick(rng, 0, 1)}
    if op == VectorOp.COLLECT:
        copies = pick(rng, 1, 3)
        c |= {"channels": pick(rng, 0, 3), "height": pick(rng, 1, 3), "groups": pick(rng, 1, 4),
              "kh": copies, "kw": pick(rng, 0, copies - 1)}
    if op == VectorOp.RETAIN:
        slots = min(c["groups"], 16)
        held = np.full((slots, 4), ABSENT, np.uint32)
        full = int(rng.integers(0, slots + 1))
        held[rng.permutation(slots)[:full], 0] = rng.permutation(16)[:full]
        scratch.memory[c["b_base"] : c["b_base"] + slots] = held.view(np.uint8)
        scratch.memory[c["table"], :4] = [pick(rng, 0, slots - 1), 0, 0, 0]
        c |= {"groups": slots}
    return c


def expected(memory, c: dict) -> dict[int, bytes]:
    """Address to word."""
    where, words = run_vector(c, memory)
    return {int(a): word.tobytes() for a, word in zip(where, words, strict=True)}


def maker(op: VectorOp):
    """What makes random commands of an operation."""
    if op in LISTS:
        return random_routes
    return random_rows if op in ROW_OPERATIONS else random_command


async def finish(dut, scratch, commands):
    while len(scratch.done) < commands:
        await RisingEdge(dut.clk)


@cocotb.test
@cocotb.parametrize(op=list(BUILT), p_refuse=[0.0, 0.5])
async def golden(dut, op, p_refuse):
    rng, scratch, source = await start(dut, p_refuse)
    seen = set()
    for number in range(12):
        command = maker(op)(rng, scratch, op)
        want = expected(scratch.memory, command)
        scratch.writes.clear()
        await with_timeout(source.send([command]), 10, "us")
        await with_timeout(finish(dut, scratch, number + 1), 50, "us")
        assert scratch.done[-1][1] == len(want) == len(scratch.writes) > 0
        assert set(scratch.writes) == set(want)
        wrong = [a for a, word in want.items() if scratch.memory[a].tobytes() != word]
        assert not wrong, f"{len(wrong)} of {len(want)} words, first {wrong[0]:#x}: {command}"
        seen |= {byte for word in want.values() for byte in word}
    assert len(seen) > (4 if op in LISTS else 20) and not int(dut.error.value)


@cocotb.test
async def timing(dut):
    """A word costs its reads: 9 of a 3x3 pool, 2 of two operands, 1 of a table's index."""
    _, scratch, source = await start(dut, 0.0)
    plain = {"base": 0x100, "plane": 64, "row": 8, "step": 1, "height": 8, "width": 8, "sy": 1,
             "sx": 1, "kh": 1, "kw": 1, "groups": 2, "out_width": 8, "pixels": 64, "out": OUT,
             "out_group": 64, "out_step": 1, "b_base": 0x400, "b_plane": 64, "b_step": 1,
             "scale0": 0x3C000000, "clip_low": -128, "clip_high": 127}
    pool = {"kh": 3, "kw": 3, "y0": -1, "x0": -1}
    cases: tuple[tuple[VectorOp, dict, int, int], ...] = (
        (VectorOp.MAX_POOL, pool, 9, 0), (VectorOp.SUM_POOL, pool, 9, 0),
        (VectorOp.MULTIPLY, {}, 2, 0), (VectorOp.ADD, {}, 2, 64), (VectorOp.TABLE, {}, 1, 16),
        (VectorOp.SUM_POOL, {}, 2, 0),
    )
    for number, (op, change, cycles, table) in enumerate(cases):
        begin = scratch.cycle
        await with_timeout(source.send([plain | {"op": int(op)} | change]), 10, "us")
        await with_timeout(finish(dut, scratch, number + 1), 10, "us")
        took = scratch.done[-1][0] - begin
        dut._log.info(f"{op.name}: {took} cycles for 128 words")
        assert 128 * cycles <= took <= 128 * cycles + table + 24


ROW_CYCLES = {
    # Cycles of a row of g groups and of a command, at most.
    VectorOp.SOFTMAX: (lambda g: 5 * g + 34, 80), VectorOp.LAYER_NORM: (lambda g: 10 * g + 92, 10),
    VectorOp.TOP_K: (lambda g: 16 * g + 12, 10),
}


@cocotb.test
@cocotb.parametrize(op=list(ROW_CYCLES), groups=[1, 8])
async def row_timing(dut, op, groups):
    rng, scratch, source = await start(dut, 0.0)
    row, once = ROW_CYCLES[op]
    command = random_rows(rng, scratch, op)
    pixels = 6
    words = 0x100 + np.arange(pixels)[:, None] * groups + np.arange(groups)
    scratch.memory[words] = np.rint(rng.normal(0, 30, (*words.shape, 16))).astype(np.int64) & 0xFF
    command |= {"base": 0x100, "step": groups, "plane": 1, "groups": groups, "pixels": pixels,
                "channels": 16 * groups, "k": 2, "b_mode": 0, "a_signed": 1, "causal": 0}
    begin = scratch.cycle
    await with_timeout(source.send([command]), 10, "us")
    await with_timeout(finish(dut, scratch, 1), 10, "us")
    took = scratch.done[-1][0] - begin
    dut._log.info(f"{op.name}: {took} cycles for {pixels} rows of {groups} groups")
    assert pixels * (row(groups) - 24) <= took <= pixels * row(groups) + once


@cocotb.test
@cocotb.parametrize(op=[op for op in ROUTE_OPERATIONS if op != VectorOp.SORT])
async def route_timing(dut, op):
    """Two cycles a word of the list, one a word written, and the start."""
    rng, scratch, source = await start(dut, 0.0)
    command = random_routes(rng, scratch, op)
    command |= {"pixels": 40, "k": 2, "b_mode": 0, "groups": 8, "causal": 0}
    words = {VectorOp.DISTINCT: 8, VectorOp.PLACES: 10, VectorOp.RETAIN: 6 * 8}[op]
    begin = scratch.cycle
    await with_timeout(source.send([command]), 10, "us")
    await with_timeout(finish(dut, scratch, 1), 10, "us")
    took = scratch.done[-1][0] - begin
    dut._log.info(f"{op.name}: {took} cycles")
    assert 80 + words <= took <= 80 + words + 8


@cocotb.test
async def sort_timing(dut):
    """Two cycles a word of the list, once and for each number; two a block, three a four rows."""
    rng, scratch, source = await start(dut, 0.0)
    command = random_routes(rng, scratch, VectorOp.SORT)
    lists = np.zeros((40, 4), np.uint32)
    lists[:, :2] = [rng.permutation(8)[:2] for _ in range(40)]
    scratch.memory[0x100:0x128] = lists.view(np.uint8)
    command |= {"base": 0x100, "step": 1, "pixels": 40, "k": 2, "groups": 13, "height": 16}
    numbers, counts = np.unique(lists[:, :2], return_counts=True)
    full = int((counts // 16 - (counts % 16 == 0)).sum())  # blocks begun by a word read again
    least = 80 * (1 + len(numbers)) + 13 * (2 + 2 * 4)
    begin = scratch.cycle
    await with_timeout(source.send([command]), 10, "us")
    await with_timeout(finish(dut, scratch, 1), 10, "us")
    took = scratch.done[-1][0] - begin
    dut._log.info(f"SORT: {took} cycles, {least} without rows to fill up and {full} words again")
    assert least <= took <= least + 13 * 8 + 3 * full + 20


@cocotb.test
@cocotb.parametrize(rows=[0, 10, 40])
async def collect_timing(dut, rows):
    """Two cycles a word of the list and a word written twice, one more for each not full."""
    rng, scratch, source = await start(dut, 0.0)
    command = random_routes(rng, scratch, VectorOp.COLLECT)
    lists = np.full((40, 4), 9, np.uint32)
    lists[:rows, 1] = 7
    scratch.memory[0x100:0x128] = lists.view(np.uint8)
    command |= {"base": 0x100, "step": 1, "pixels": 40, "k": 2, "groups": 10, "channels": 7,
                "height": 16, "kh": 1, "kw": 0}
    begin = scratch.cycle
    await with_timeout(source.send([command]), 10, "us")
    await with_timeout(finish(dut, scratch, 1), 10, "us")
    took = scratch.done[-1][0] - begin
    dut._log.info(f"COLLECT: {took} cycles for {rows} rows")
    bound = 80 + 2 * 10 + 5 + 10 - rows // 4
    assert bound - 2 <= took <= bound + 4


@cocotb.test
async def unknown_operation(dut):
    """An operation that is not built raises ``error``, writes nothing and still ends."""
    rng, scratch, source = await start(dut, 0.0)
    await source.send([{"op": 31, "pixels": 1, "groups": 1}])
    await with_timeout(finish(dut, scratch, 1), 1, "us")
    await ClockCycles(dut.clk, 30)
    assert int(dut.error.value) and not scratch.writes
    command = random_command(rng, scratch, VectorOp.TABLE)
    want = expected(scratch.memory, command)
    await source.send([command])
    await with_timeout(finish(dut, scratch, 2), 20, "us")
    assert all(scratch.memory[a].tobytes() == word for a, word in want.items()) and want
    assert int(dut.error.value)
