# SPDX-License-Identifier: Apache-2.0
"""What the pseudo-channel benches share: reset, a command log, flits."""

from pathlib import Path

from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from hdl.hbm.packets import ColumnBus, RowBus
from hdl.packets import Exit, Kind
from sim.streams import unpack

ROW_NAMES = ("ACT", "PRE", "PREA", "REFAB", "REFPB")


async def reset(dut):
    Clock(dut.clk, 1, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


def rect(x: int, y: int) -> dict[str, int]:
    return {"x0": x, "x1": x, "y0": y, "y1": y}


def read_flit(address: int, words: int, x: int, y: int, target: int) -> dict:
    """A request of ``words`` words for scratchpad address ``target`` of tile (x, y)."""
    reply = {"rect": rect(x, y), "address": target, "kind": Kind.DATA, "source_x": x, "source_y": y}
    return {"address": address, "last": words - 1, "reply": reply}


def write_flit(address: int, value: int, mask: int, x: int, y: int, last: bool) -> dict:
    return {
        "data": value, "kind": Kind.WRITE, "address": address, "mask": mask, "last": int(last),
        "source_x": x, "source_y": y, "dest": {"rect": rect(x, y), "exit": Exit.NORTH},
    }


class CommandLog:
    """Records the command bus as ``cycle COMMAND group bank row column`` lines."""

    def __init__(self, dut, row: str = "row", column: str = "column"):
        self.clk = dut.clk
        self.buses = (getattr(dut, row), RowBus), (getattr(dut, column), ColumnBus)
        self.lines: list[tuple] = []
        self.open = [-1] * 16
        self.columns = 0

    @staticmethod
    def _fields(handle, shape: data.StructLayout) -> dict | None:
        text = str(handle.value)
        if text[-1] != "1":
            return None
        if shape is RowBus and text[-4:-1] != "000":  # no activate: the row means nothing
            text = text[-8:]
        return unpack(shape, int(text, 2))

    async def run(self) -> None:
        cycle = 0
        (row_bus, row_shape), (column_bus, column_shape) = self.buses
        while True:
            await ReadOnly()
            column = self._fields(column_bus, column_shape)
            if column:
                self.columns += 1
                bank = column["bank"]
                self.lines.append((cycle, "WR" if column["write"] else "RD", bank >> 2, bank & 3,
                                   self.open[bank], column["column"]))
            row = self._fields(row_bus, row_shape)
            if row:
                kind, bank = int(row["kind"]), row["bank"]
                if kind == 0:
                    self.open[bank] = row["row"]
                self.lines.append((cycle, ROW_NAMES[kind], bank >> 2, bank & 3,
                                   row["row"] if kind == 0 else -1, -1))
            await RisingEdge(self.clk)
            cycle += 1

    def save(self, name: str) -> None:
        """Write the log beside the run's other files."""
        Path(name).write_text("".join(" ".join(map(str, line)) + "\n" for line in self.lines))
