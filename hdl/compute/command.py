# SPDX-License-Identifier: Apache-2.0
"""A COMPUTE command made ready: its strides multiplied out once, by one shared multiplier."""

from amaranth.hdl import Array, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from emu import isa
from hdl.packets import COMMANDS, layout

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
    """Multiplies out a command's strides, one product a cycle.

    Latency: 11 cycles, hidden behind the command before. One command is held.

    Members
    -------
    i: COMPUTE commands. ``o``: the same with `Derived`.
    """

    i: In(stream.Signature(Command))
    o: Out(stream.Signature(Prepared))

    def elaborate(self, platform):
        m = Module()
        names = [name for name, _ in isa.COMPUTE]
        held, derived = Signal(layout(isa.COMPUTE)), Signal(Derived)
        step, busy = Signal(range(11)), Signal()
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
            self.o.valid.eq(busy & (step == count)),
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
        with m.Elif(self.o.ready):
            m.d.sync += busy.eq(0)
        return m
