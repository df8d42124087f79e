# SPDX-License-Identifier: Apache-2.0
"""The vector engine: one queue's commands, given to the engine for elements or that for rows."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from emu.config import Config
from hdl.clock_gate import gate
from hdl.counter import count
from hdl.ports import ScratchpadRead, ScratchpadWrite
from hdl.vector.elements import ELEMENT_OPERATIONS, ElementEngine
from hdl.vector.rows import ROW_OPERATIONS, RowEngine
from hdl.vector.walker import VectorCommand

BUILT = (*ELEMENT_OPERATIONS, *ROW_OPERATIONS)
"""Operations this engine has; any other raises ``error`` and ends at once."""


class VectorEngine(wiring.Component):
    """Runs `VECTOR` commands, one at a time, each in the half that has its operation.

    Both halves are behind clock gates of their own; a command begins in the cycle after the one
    before is done. `ElementEngine` and `RowEngine` say what they compute and in how many cycles.

    Parameters
    ----------
    config: The machine.

    Members
    -------
    command: Commands; ready when idle.
    done: Pulse: the command's last word is in the scratchpad.
    read, write: Scratchpad ports.
    busy: A command is in the engine.
    error: Sticky: a command named an operation that is not built; it did nothing.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "command": In(stream.Signature(VectorCommand)),
                "done": Out(1),
                "read": Out(ScratchpadRead),
                "write": Out(ScratchpadWrite),
                "error": Out(1), "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        elements, rows = ElementEngine(self._config), RowEngine()
        gate(m, "elements", elements, elements.command.valid | elements.busy, platform)
        gate(m, "rows", rows, rows.command.valid | rows.busy, platform)
        op, for_rows = self.command.payload.op, Signal()
        m.d.comb += [
            for_rows.eq(Cat(op == each for each in ROW_OPERATIONS).any()),
            rows.command.valid.eq(self.command.valid & for_rows & ~elements.busy),
            elements.command.valid.eq(self.command.valid & ~for_rows & ~rows.busy),
            self.command.ready.eq(
                Mux(for_rows, rows.command.ready & ~elements.busy,
                    elements.command.ready & ~rows.busy)
            ),
            self.done.eq(elements.done | rows.done),
            self.busy.eq(elements.busy | rows.busy),
            self.error.eq(elements.error),
        ]
        for port in (self.read, self.write):
            name = "read" if port is self.read else "write"
            mine, theirs = getattr(elements, name).request, getattr(rows, name).request
            m.d.comb += [
                port.request.valid.eq(mine.valid | theirs.valid),
                port.request.payload.eq(Mux(rows.busy, theirs.payload, mine.payload)),
                mine.ready.eq(port.request.ready),
                theirs.ready.eq(port.request.ready),
            ]
        for engine in (elements, rows):
            m.d.comb += [
                engine.command.payload.eq(self.command.payload),
                engine.read.data.eq(self.read.data),
            ]
        count(m, "busy", self.busy)
        return m
