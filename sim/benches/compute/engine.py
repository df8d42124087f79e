# SPDX-License-Identifier: Apache-2.0
"""The compute engine against the golden model, and its passes against the clock.

With the plain array one combination runs: it is slow here, and `compute.array` compares both.
"""

import os

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, with_timeout

from emu.compute_model import DEPTHWISE
from emu.config import load_config
from emu.golden_compute import TILE_WORDS, group_sums
from emu.isa import WeightMode
from emu.requantise import wrap_int32
from hdl.compute.command import Command
from hdl.compute.engine import ComputeEngine
from sim.benches.compute._machine import Machine, frame_of
from sim.benches.compute.drain import expected
from sim.streams import Source

VARIANTS = {
    name: lambda packed=packed: ComputeEngine(
        load_config("base", [f"core.packed_cells={packed}", "core.accumulator_rows=256"])
    )
    for name, packed in (("packed", "true"), ("plain", "false"))
}
QUICK = ("packed",)
PLAIN = os.environ.get("HEADRACE_VARIANT") == "plain"
WEIGHTS, PARAMS, OUTPUTS = 0x4000, 0x8000, 0x9000
ROWS = 0x8F00
"""Words that say how many rows a command has."""
LAYERS, BLOCKS = 8, 4


def random_zero(rng, is_signed: int) -> int:
    low = -128 if is_signed else 0
    return int(rng.choice([low, low + 255, rng.integers(low, low + 256), 0]))


def random_shape(rng, mode: int, pixels: int, groups: int) -> dict:
    """Window and weight fields of a command whose input lies below 0x4000."""
    shape = {name: int(rng.integers(1, 4)) for name in ("kh", "kw", "dy", "dx", "sy", "sx")}
    if mode not in DEPTHWISE and rng.random() < 0.4:
        shape |= {"kh": 1, "kw": 1}
    out_width = int(rng.integers(1, 21))
    a_signed, w_signed = (int(x) for x in rng.integers(0, 2, 2))
    return shape | {
        "base": int(rng.integers(0, 0x800)), "plane": int(rng.integers(0, 0x300)),
        "row": int(rng.integers(0, 0x80)), "step": int(rng.integers(0, 8)),
        "height": int(rng.integers(1, 24)), "width": int(rng.integers(1, 24)),
        "y0": int(rng.integers(-5, 4)), "x0": int(rng.integers(-5, 4)),
        "in_groups": 1 if mode in DEPTHWISE else int(rng.integers(1, 4)),
        "out_width": out_width, "first_x": int(rng.integers(0, out_width)), "pixels": pixels,
        "out_groups": groups, "advance": int(rng.integers(0, 0x300)),
        "w_mode": mode, "a_signed": a_signed, "a_zero": random_zero(rng, a_signed),
        "w_signed": w_signed,
        "w_zero": (
            int(rng.integers(-8, 8)) if mode == WeightMode.INT4 else random_zero(rng, w_signed)
        ),
    }


def random_weights(rng, f: dict) -> dict:
    """Where the weights lie: resident below 0x6000, or in up to four blocks of a layer."""
    tiles = f["out_groups"] * f["in_groups"] * f["kh"] * f["kw"]
    if rng.random() < 0.4 or tiles > 16 * BLOCKS - 16:
        return {
            "w_resident": 1, "w_base": WEIGHTS + int(rng.integers(0, 0x400)),
            "w_group_stride": int(rng.integers(0, 0x300)),
            "w_tile_stride": int(rng.integers(0, 20)), "w_keep": int(rng.integers(0, 2)),
        }
    return {
        "w_resident": 0, "w_layer": int(rng.integers(0, LAYERS)),
        "w_tile": int(rng.integers(0, 16 * BLOCKS - tiles)), "w_keep": int(rng.random() < 0.3),
    }


def drain_fields(rng, machine: Machine, number: int, out: int) -> dict:
    params = PARAMS + 32 * (number % 64)
    for group in range(3):
        bias = rng.integers(-(1 << 17), 1 << 17, 16).astype(np.int32)
        scale = (rng.uniform(0.5, 4, 16) * 2.0**-14).astype(np.float32)
        data = np.frombuffer(bias.tobytes() + scale.tobytes(), np.uint8).reshape(8, 16)
        machine.memory[params + 8 * group : params + 8 * group + 8] = data
    kind = int(rng.integers(0, 4))
    return {
        "out": out, "out_step": 4, "out_group": 0x400, "params": params,
        "out_int32": int(kind < 2), "out_zero": 3, "clip_low": -128, "clip_high": 127,
        "table_valid": int(kind == 2), "table": int(rng.integers(0, 0x3000)),
        "residual_valid": int(kind == 3), "residual": int(rng.integers(0, 0x1000)),
        "residual_group": int(rng.integers(0, 0x800)), "residual_table": 0x8900,
        "residual_scale": int(np.float32(0.7).view(np.uint32)),
        "residual_low": -128, "residual_high": 127, "residual_signed": 1,
    }


class Reference:
    """Executes commands on a copy of the constants; knows what must be written and released."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.acc = np.zeros((256, 16), np.int64)
        self.skipped = 0
        self.want: dict[int, bytes] = {}
        self.written: list[int] = []
        self.releases: list[tuple[int, int]] = []
        self.passes = 0

    def _tile(self, f, group, k):
        tiles, size = f["in_groups"] * f["kh"] * f["kw"], TILE_WORDS[f["w_mode"]]
        if f["w_resident"]:
            word = f["w_base"] + group * f["w_group_stride"] + k * f["w_tile_stride"]
        else:
            block, slot = divmod(f["w_tile"] + group * tiles + k, 16)
            word = frame_of(f["w_layer"], block) + slot * size
        return self.machine.memory[word : word + size]

    def execute(self, f: dict) -> None:
        memory = self.machine.memory
        if f.get("rows_valid"):
            rows = int(memory[f["rows"], :4].view(np.uint32)[0])
            f = f | {"pixels": min(f["pixels"], rows)}
        pixels = f["pixels"]
        if not pixels:
            self.skipped += 1
            self.written.append(len(self.want))
            return
        for group in range(f["out_groups"]):
            sums = group_sums(f, group, memory, lambda g, k: self._tile(f, g, k))
            self.acc[:pixels] = sums if f["first"] else self.acc[:pixels] + sums
            if f["last"]:
                acc = wrap_int32(self.acc[:pixels])
                drain = f | {
                    "half": 0, "residual_a_zero": f.get("residual_a_zero", 0),
                    "residual_indexes": f.get("residual_indexes", 0),
                    "out": f["out"] + group * f["out_group"], "params": f["params"] + 8 * group,
                    "residual": f["residual"] + group * f["residual_group"],
                }
                self.want |= expected(memory, acc[None], drain)
        self.written.append(len(self.want))
        tiles = f["out_groups"] * f["in_groups"] * f["kh"] * f["kw"]
        self.passes += tiles
        if not f["w_resident"] and not f["w_keep"]:
            first, last = f["w_tile"] // 16, (f["w_tile"] + tiles - 1) // 16
            self.releases += [(f["w_layer"], block) for block in range(first, last + 1)]


def random_commands(rng, machine: Machine, count: int) -> list[dict]:
    """Commands and chains of commands that accumulate into one half."""
    commands: list[dict] = []
    out = OUTPUTS
    while len(commands) < count:
        sizes = [1, 2, 3, 4, 5, 15, 16, 17, 31, 64, 256]
        pixels = int(rng.choice(sizes, p=[0.1] * 9 + [0.07, 0.03]))
        chain = int(rng.choice([1, 1, 1, 2, 3]))
        for link in range(chain):
            mode = int(rng.choice([0, 0, 1, 2, 3, 4, 4]))
            groups = 1 if chain > 1 else int(rng.integers(1, 4))
            f = random_shape(rng, mode, pixels, groups)
            f |= random_weights(rng, f) | drain_fields(rng, machine, len(commands), out)
            f |= {"first": int(link == 0), "last": int(link == chain - 1)}
            if chain == 1 and f["w_resident"] and rng.random() < 0.5:
                f |= {"rows_valid": 1, "rows": ROWS + len(commands)}
                rows = int(rng.choice([0, 0, 1, pixels - 1, pixels, 1 << 31]))
                machine.memory[f["rows"], :4] = np.array([rows], np.uint32).view(np.uint8)
            commands.append(f)
        out += 0xC00
        if out > 0xF000:
            break
    return commands


@cocotb.test
@cocotb.parametrize(p_refuse=[0.0, 0.4], p_idle=[0.0, 0.9], p_absent=[0.0, 0.95])
async def golden(dut, p_refuse, p_idle, p_absent):
    if PLAIN and (p_refuse, p_idle, p_absent) != (0.4, 0.0, 0.0):
        return
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    machine = Machine(dut, rng, p_refuse=p_refuse, p_absent=p_absent)
    machine.memory[0x8900:0x8940] = (
        rng.uniform(-60, 60, 256).astype(np.float32).view(np.uint8).reshape(64, 16)
    )
    commands = random_commands(rng, machine, 6 if PLAIN else 14)
    reference = Reference(machine)
    for command in commands:
        reference.execute(command)
    await machine.reset()
    cocotb.start_soon(machine.run())
    source = Source(dut, "command", Command, p_idle=p_idle, rng=rng)
    await with_timeout(source.send(commands), 400, "us")
    await with_timeout(machine.finish(len(commands)), 50, "us")
    await ClockCycles(dut.clk, 30)
    check(machine, reference, commands)
    assert int(dut.count_skipped.value) == reference.skipped


def check(machine: Machine, reference: Reference, commands: list[dict]) -> None:
    want = reference.want
    assert len(machine.writes) == len(want) > 0 and set(machine.writes) == set(want)
    wrong = [a for a, word in want.items() if machine.memory[a].tobytes() != word]
    assert not wrong, f"{len(wrong)} of {len(want)} words, first {wrong[0]:#x}"
    assert machine.releases == reference.releases
    assert len(machine.done) == len(commands)
    for (_, written), count in zip(machine.done, reference.written, strict=True):
        assert written >= count


def plain_command(**fields) -> dict:
    """A command all of whose pixels lie inside, with resident row-mode weights."""
    return {
        "base": 0x100, "plane": 0x40, "row": 16, "step": 1, "height": 64, "width": 64,
        "sy": 1, "sx": 1, "dy": 1, "dx": 1, "kh": 1, "kw": 1, "in_groups": 1, "out_width": 16,
        "pixels": 16, "out_groups": 1, "w_resident": 1, "w_base": WEIGHTS, "w_tile_stride": 16,
        "w_mode": 0, "w_keep": 1, "a_signed": 1, "w_signed": 1, "first": 1, "last": 1,
        "out": OUTPUTS, "out_step": 1, "out_group": 0x100, "params": PARAMS,
        "clip_low": -128, "clip_high": 127, **fields,
    }


async def issue_span(dut, commands: list[dict]) -> int:
    """Cycles from the first to the last activation read of ``commands``, sent back to back."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    machine = Machine(dut, rng)
    await machine.reset()
    cocotb.start_soon(machine.run())
    await with_timeout(Source(dut, "command", Command).send(commands), 100, "us")
    await with_timeout(machine.finish(len(commands)), 50, "us")
    reads = machine.reads["read_activation"]
    pixels = sum(
        c["pixels"] * c["kh"] * c["kw"] * c["in_groups"] * c["out_groups"] for c in commands
    )
    assert len(reads) == pixels > 0
    return reads[-1][0] - reads[0][0] + 1


@cocotb.test(skip=PLAIN)
@cocotb.parametrize(pixels=[16, 40], resident=[0, 1])
async def no_bubbles(dut, pixels, resident):
    """Every cycle issues a pixel: across taps, input groups, output groups, blocks and commands.

    The drain needs 2 cycles a pixel and at most 12 more for a group, which has 12 passes here.
    """
    shape = {"pixels": pixels, "w_resident": resident, "kh": 2, "kw": 2, "in_groups": 3}
    commands = [plain_command(**shape, out_groups=n, w_tile=16 * n - 10) for n in (1, 3, 2)]
    passes = 12 * (1 + 3 + 2)
    assert await issue_span(dut, commands) == passes * pixels


@cocotb.test(skip=PLAIN)
@cocotb.parametrize(case=[(WeightMode.ROW, 16), (WeightMode.INT4, 8), (WeightMode.DIAGONAL, 4),
                          (WeightMode.COLUMN, 16)])
async def short_passes(dut, case):
    """Four pixels: a pass lasts as long as its words take, four cycles at least."""
    mode, length = case
    commands = [plain_command(pixels=4, w_mode=int(mode), kh=4, kw=5, out_groups=2)]
    span = await issue_span(dut, commands)
    assert span == 39 * length + 4, f"{span / 40:.2f} cycles a pass, not {length}"


@cocotb.test(skip=PLAIN)
@cocotb.parametrize(case=[(1, 7, 7), (2, 7, 7), (1, 16, 16), (1, 14, 18)])
async def rows_of_taps(dut, case):
    """3x3 with padding: a row takes its input columns and the one right of them, thrice."""
    stride, width, height = case
    fields = {"pixels": width * height, "out_width": width, "height": 64, "width": width * stride,
              "row": 20, "y0": 0, "x0": -1, "sy": stride, "sx": stride, "dx": 3, "kh": 3}
    commands = [plain_command(w_mode=int(WeightMode.ROW_TAP), out_groups=2, **fields)] * 2
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    machine = Machine(dut, rng)
    await machine.reset()
    cocotb.start_soon(machine.run())
    await with_timeout(Source(dut, "command", Command).send(commands), 100, "us")
    await with_timeout(machine.finish(2), 50, "us")
    times = [time for time, _ in machine.reads["read_activation"]]
    words = height * (stride * (width - 1) + 2)
    assert times[-1] - times[0] + 1 <= 12 * words + 4


@cocotb.test(skip=PLAIN)
async def halves_overlap(dut):
    """Groups of one pass: the drain is the bottleneck and the array works meanwhile."""
    commands = [plain_command(pixels=64, out_groups=8)]
    span = await issue_span(dut, commands)
    assert span <= 7 * (2 * 64 + 12) + 64
