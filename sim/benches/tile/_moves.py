# SPDX-License-Identifier: Apache-2.0
"""What the benches of the load and the store engine share: random commands, a scratchpad, dones."""

from typing import Any

import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.golden_move import NEAR_WORDS

RECTS = (
    {"x0": 1, "x1": 1, "y0": 2, "y1": 2, "xs": 0, "ys": 0},
    {"x0": 0, "x1": 3, "y0": 1, "y1": 3, "xs": 0, "ys": 1},
)
X, Y = 1, 2


def word_at(address: int) -> int:
    """What the scratchpad of these benches holds, index lists aside."""
    return (address * 0x9E3779B97F4A7C15F39CC0605CEDC835 + 1) % (1 << 128)


class Memory:
    """Serves a scratchpad read port; refuses with chance ``p_stall``."""

    def __init__(self, dut, rng, p_stall: float):
        self.dut, self.rng, self.p_stall = dut, rng, p_stall
        self.lists: dict[int, int] = {}
        self.reads = 0
        dut.read__request__ready.value = 0

    def place_list(self, base: int, numbers: list[int]) -> None:
        padded = numbers + [0xDEADBEEF] * (-len(numbers) % 4)
        raw = np.array(padded, dtype="<u4").tobytes()
        for i in range(0, len(raw), 16):
            address = (base + i // 16) % NEAR_WORDS
            self.lists[address] = int.from_bytes(raw[i : i + 16], "little")

    async def run(self):
        port, rng = self.dut, self.rng
        refused = None
        while True:
            ready = rng.random() >= self.p_stall
            port.read__request__ready.value = int(ready)
            await ReadOnly()
            valid = int(port.read__request__valid.value)
            address = int(port.read__request__payload.value) if valid else -1
            assert refused is None or address == refused, "a refused read changed"
            refused = address if valid and not ready else None
            await RisingEdge(port.clk)
            if valid and ready:
                self.reads += 1
                word = self.lists.get(address, word_at(address))
            else:
                word = int.from_bytes(rng.bytes(16))  # only the cycle after a read has its word
            port.read__data.value = word


async def reset(dut):
    dut.x.value, dut.y.value = X, Y
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


async def watch_done(dut, on_done):
    """Call ``on_done`` in every cycle in which ``done`` is high."""
    while True:
        await ReadOnly()
        if int(dut.done.value):
            on_done()
        await RisingEdge(dut.clk)


def random_command(rng, *, far_bits: int = 28, gather: bool = False) -> dict[str, Any]:
    """Any command of at most about 400 words; now and then one that moves nothing."""
    count0, count1, count2 = (int(v) for v in rng.integers(1, 5, 3))
    run = int(rng.choice([1, 2, 3, 4, 7, 16, 33, 50]))
    while run * count0 * count1 * count2 > 400:
        count0 = max(1, count0 - 1)
        run = max(1, run // 2)
    fields: dict[str, Any] = {
        "scratchpad": int(rng.integers(1 << 16)),
        "far": int(rng.integers(1 << far_bits)),
        "run": run,
        "count0": count0,
        "count1": count1,
        "count2": count2,
        "rect": dict(RECTS[int(rng.integers(2))]),
        "sem_valid": int(rng.integers(2)),
        "sem": int(rng.integers(32)),
        "gather": int(gather),
        "gather_base": int(rng.integers(1 << 16)),
        **{f"s_stride{k}": int(rng.integers(-(1 << 16), 1 << 16)) for k in range(3)},
    }
    for k in range(3):
        wide = rng.random() < 0.5
        low, high = (-(1 << 28), 1 << 28) if wide else (-3, 60)
        fields[f"f_stride{k}"] = int(rng.integers(low, high))
    if rng.random() < 0.15:
        fields[str(rng.choice(["run", "count0", "count1", "count2"]))] = 0
    return fields


def random_list(rng, length: int) -> list[int]:
    bits = int(rng.choice([1, 4, 15, 32]))
    return [int(v) for v in rng.integers(0, 1 << bits, length)]
