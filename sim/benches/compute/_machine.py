# SPDX-License-Identifier: Apache-2.0
"""Surroundings of the compute engine: a scratchpad that may refuse, and a parameter store."""

import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from hdl.ports import BlockRef
from sim.streams import unpack

FRAMES = 0x6000
"""First scratchpad word of the frames; a block always lies at `frame_of`."""
READS = ("read_activation", "read_weight", "read_drain", "read_rows")


def frame_of(layer: int, block: int) -> int:
    return FRAMES + 256 * (4 * layer + block)


class Machine:
    """Serves every port of ``dut``; records transfers and checks that no released block is read.

    A lookup is answered one cycle after it is seen at the earliest; ``p_absent`` is the chance that
    its block stays absent for one more cycle.
    """

    def __init__(self, dut, rng, *, p_refuse: float = 0.0, p_absent: float = 0.0):
        self.dut, self.rng, self.p_refuse, self.p_absent = dut, rng, p_refuse, p_absent
        self.memory = rng.integers(0, 256, (1 << 16, 16)).astype(np.uint8)
        self.writes: list[int] = []
        self.lookups: list[tuple[int, int, int]] = []
        self.releases: list[tuple[int, int]] = []
        self.held: dict[int, bool] = {}
        self.reads: dict[str, list[tuple[int, int]]] = {name: [] for name in READS}
        self.done: list[tuple[int, int]] = []
        self.cycle = 0
        self._pending: dict[str, int | None] = dict.fromkeys(READS)
        self._asked: tuple[int, int, int] | None = None

    async def reset(self):
        Clock(self.dut.clk, 1, unit="ns").start()
        self.dut.rst.value = 1
        self.dut.command__valid.value = 0
        await ClockCycles(self.dut.clk, 3)
        self.dut.rst.value = 0

    async def finish(self, commands: int):
        while len(self.done) < commands:
            await RisingEdge(self.dut.clk)

    async def run(self):
        while True:
            self._drive()
            await ReadOnly()
            self.cycle += 1
            self._reads()
            self._blocks()
            if int(self.dut.done.value):
                self.done.append((self.cycle, len(self.writes)))
            await RisingEdge(self.dut.clk)

    def _drive(self):
        dut, rng = self.dut, self.rng
        for name in (*READS, "write_drain"):
            getattr(dut, f"{name}__request__ready").value = int(rng.random() >= self.p_refuse)
        for name, word in self._pending.items():
            # Data not asked for is noise: nothing may depend on it.
            data = bytes(self.memory[word]) if word is not None else rng.bytes(16)
            getattr(dut, f"{name}__data").value = int.from_bytes(data, "little")
        present = self._asked is not None and rng.random() >= self.p_absent
        dut.lookup__request__ready.value = int(present)
        address = int(rng.integers(0, 1 << 16))
        if present and self._asked is not None:
            address = frame_of(*self._asked[:2])
        dut.lookup__address.value = address

    def _transfer(self, port: str) -> int | None:
        """Payload of a stream's transfer in this cycle, if there is one."""
        if not int(getattr(self.dut, f"{port}__valid").value):
            return None
        if not int(getattr(self.dut, f"{port}__ready").value):
            return None
        return int(getattr(self.dut, f"{port}__payload").value)

    def _reads(self):
        for name in READS:
            word = self._pending[name] = self._transfer(f"{name}__request")
            if word is not None:
                self.reads[name].append((self.cycle, word))
        word = self._pending["read_weight"]
        if word is not None and word >= FRAMES:
            assert self.held.get(word // 256), f"frame word {word:#x} read outside its use"
        bits = self._transfer("write_drain__request")
        if bits is not None:
            value = (bits & (1 << 128) - 1).to_bytes(16, "little")
            self.memory[bits >> 128] = np.frombuffer(value, np.uint8)
            self.writes.append(bits >> 128)

    def _blocks(self):
        dut = self.dut
        if int(dut.release__valid.value):
            ref = unpack(BlockRef, int(dut.release__payload.value))
            used = ref["layer"], ref["block"]
            frame = frame_of(*used) // 256
            assert self.held.get(frame), f"block {used} released without a use"
            self.held[frame] = False
            self.releases.append(used)
        asked = self._asked
        self._asked = None
        if int(dut.lookup__request__valid.value):
            ref = unpack(BlockRef, int(dut.lookup__request__payload.value))
            block = ref["layer"], ref["block"], ref["last"]
            assert asked in (None, block), "a lookup changed before it was answered"
            if int(dut.lookup__request__ready.value):
                assert asked == block
                self.held[frame_of(*block[:2]) // 256] = True
                self.lookups.append(block)
            else:
                self._asked = block
