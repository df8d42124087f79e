# SPDX-License-Identifier: Apache-2.0
"""A COMPUTE command made ready: its strides multiplied out once, its rows counted."""

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from emu import isa
from hdl.packets import COMMANDS, layout
from hdl.ports import ScratchpadRead

Command = COMMANDS[isa.Opcode.COMPUTE]

Derived = data.StructLayout(
    {
        "origin": 16,        # base + y0*row + x0*step: word of tap (0, 0) for output (0, 0)
        "step_x": 16,        # sx*step: words between neighbouring pixels
        "step_y": 16,        # sy*row
        "tap_x": 16,         # dx*step: words between neighbouring taps
        "tap_y": 16,         # dy*row
        "first_word": 16,    # first_x*sx*step
        "first_column": 20,  # first_x*sx: input columns from tap to first pixel
        "group_tiles": 24,   # in_groups*kh*kw: passes per output group
    }
)

Prepared = data.StructLayout({"command": layout(isa.COMPUTE), "derived": Derived})


class Preparer(wiring.Component):
    """Multiplies out a command's strides, one product a cycle, and looks up how many rows it has.

    Latency: 11 cycles, hidden behind the command before. One command is held. One that turns out
    to have no rows ends here, when those before it are done.

    Members
    -------
    i: COMPUTE commands. ``o``: the same with `Derived`.
    read: Scratchpad port, for the number of rows.
    idle: All commands that went out are done.
    skipped: Pulse: the command has no rows and is done.
    """

    i: In(stream.Signature(Command))
    o: Out(stream.Signature(Prepared))
    read: Out(ScratchpadRead)
    idle: In(1)
    skipped: Out(1)

    def elaborate(self, platform):
        m = Module()
        names = [name for name, _ in isa.COMPUTE]
        held, derived = Signal(layout(isa.COMPUTE)), Signal(Derived)
        step, busy, ready = Signal(range(11)), Signal(), Signal()
        left, right, product = Signal(signed(21)), Signal(signed(17)), Signal(24)
        command, d = held, derived
        # (left, right, destination or None: added to the origin) in order; a product is stored
        # one cycle after its operands are chosen and may be an operand from then on.
        products = [
            (command.sx, command.step, d.step_x), (command.sy, command.row, d.step_y),
            (command.dx, command.step, d.tap_x), (command.dy, command.row, d.tap_y),
            (command.first_x, command.sx, d.first_column),
            (command.first_x, d.step_x, d.first_word),
            (command.y0, command.row, None), (command.x0, command.step, None),
            (command.kh, command.kw, d.group_tiles),
            (d.group_tiles, command.in_groups, d.group_tiles),
        ]
        count = len(products)
        m.d.comb += [
            left.eq(Array([a for a, _, _ in products])[step]),
            right.eq(Array([b for _, b, _ in products])[step]),
            product.eq(left * right),
            self.i.ready.eq(~busy),
            ready.eq(busy & (step == count) & self._rows(m, held, self.i.valid & self.i.ready)),
            self.o.valid.eq(ready & held.pixels.any()),
            self.skipped.eq(ready & ~held.pixels.any() & self.idle),
            self.o.payload.command.eq(held),
            self.o.payload.derived.eq(derived),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [getattr(held, name).eq(getattr(self.i.payload, name)) for name in names]
            m.d.sync += [derived.origin.eq(self.i.payload.base), step.eq(0), busy.eq(1)]
        with m.Elif(busy & (step != count)):
            m.d.sync += step.eq(step + 1)
            with m.Switch(step):
                for index, (_, _, target) in enumerate(products):
                    with m.Case(index):
                        if target is None:
                            m.d.sync += derived.origin.eq(derived.origin + product)
                        else:
                            m.d.sync += target.eq(product)
        with m.Elif(ready & (self.o.ready | self.skipped)):
            m.d.sync += busy.eq(0)
        return m

    def _rows(self, m, held, accept):
        """Replace the pixels by the rows that are there; whether that is over."""
        request = self.read.request
        asks, comes = Signal(), Signal()
        rows = self.read.data[:32]
        m.d.comb += [request.valid.eq(asks), request.payload.eq(held.rows)]
        m.d.sync += comes.eq(asks & request.ready)
        with m.If(accept):
            m.d.sync += asks.eq(self.i.payload.rows_valid)
        with m.Elif(request.ready):
            m.d.sync += asks.eq(0)
        with m.If(comes):
            m.d.sync += held.pixels.eq(Mux(rows < held.pixels, rows, held.pixels))
        return ~asks & ~comes
