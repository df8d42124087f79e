# SPDX-License-Identifier: Apache-2.0
"""The vector engine: one queue's commands, each given to the engine that has its operation."""

from amaranth.hdl import Cat, Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from emu.config import Config
from hdl.clock_gate import gate
from hdl.counter import count
from hdl.ports import ScratchpadRead, ScratchpadWrite
from hdl.vector.collect import COLLECT_OPERATIONS, CollectEngine
from hdl.vector.elements import ELEMENT_OPERATIONS, ElementEngine
from hdl.vector.routes import ROUTE_OPERATIONS, RouteEngine
from hdl.vector.rows import ROW_OPERATIONS, RowEngine
from hdl.vector.walker import VectorCommand

BUILT = (*ELEMENT_OPERATIONS, *ROW_OPERATIONS, *ROUTE_OPERATIONS, *COLLECT_OPERATIONS)
"""Operations this engine has; any other raises ``error`` and ends at once."""


class VectorEngine(wiring.Component):
    """Runs `VECTOR` commands, one at a time, each in the part that has its operation.

    The parts are behind clock gates of their own; a command begins in the cycle after the one
    before is done. `ElementEngine`, `RowEngine`, `RouteEngine` and `CollectEngine` say what they
    compute and in how many cycles.

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
        elements, rows, routes = ElementEngine(self._config), RowEngine(), RouteEngine()
        collect = CollectEngine()
        op = self.command.payload.op
        for_rows, for_routes, for_collect = (
            Cat(op == each for each in operations).any()
            for operations in (ROW_OPERATIONS, ROUTE_OPERATIONS, COLLECT_OPERATIONS))
        parts = {"elements": (elements, ~(for_rows | for_routes | for_collect)),
                 "rows": (rows, for_rows), "routes": (routes, for_routes),
                 "collect": (collect, for_collect)}
        engines = [engine for engine, _ in parts.values()]
        for name, (engine, mine) in parts.items():
            gate(m, name, engine, engine.command.valid | engine.busy, platform)
            others = Cat(each.busy for each in engines if each is not engine).any()
            m.d.comb += [
                engine.command.valid.eq(self.command.valid & mine & ~others),
                engine.command.payload.eq(self.command.payload),
                engine.read.data.eq(self.read.data),
            ]
            with m.If(mine):
                m.d.comb += self.command.ready.eq(engine.command.ready & ~others)
        m.d.comb += [
            self.done.eq(Cat(engine.done for engine in engines).any()),
            self.busy.eq(Cat(engine.busy for engine in engines).any()),
            self.error.eq(elements.error),
        ]
        for name, port in (("read", self.read), ("write", self.write)):
            requests = [getattr(engine, name).request for engine in engines]
            payload = requests[0].payload
            for engine, each in zip(engines[1:], requests[1:], strict=True):
                payload = Mux(engine.busy, each.payload, payload)
            m.d.comb += [
                port.request.valid.eq(Cat(each.valid for each in requests).any()),
                port.request.payload.eq(payload),
                *(each.ready.eq(port.request.ready) for each in requests),
            ]
        count(m, "busy", self.busy)
        return m
