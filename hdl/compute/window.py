# SPDX-License-Identifier: Apache-2.0
"""The window generator: which activation word each pixel of each pass needs."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.compute.command import Prepared

Pixel = data.StructLayout(
    {
        "address": 16,
        "inside": 1,         # 0: inject zero, nothing to read
        "row": 12,           # accumulator row
        "pass_first": 1, "pass_last": 1,     # first, last pixel of a pass
        "group_first": 1, "group_last": 1,   # its pass is the group's first, last
        "command_last": 1,   # its pass is the command's last
    }
)


class Window(wiring.Component):
    """Walks output groups, input groups, kernel rows and columns and the pixels of each pass.

    Latency: one cycle from a command to its first pixel. Throughput: one pixel a cycle, across
    passes, groups and commands that wait, since a command is taken in the cycle of the last pixel.
    Addresses are sums, kept modulo 2**16; no multiplier.

    Members
    -------
    i: Prepared commands. ``current``: the command whose pixels are shown.
    o: Pixels.
    """

    i: In(stream.Signature(Prepared))
    o: Out(stream.Signature(Pixel))
    current: Out(Prepared)

    def elaborate(self, platform):
        m = Module()
        c, d = self.current.command, self.current.derived
        busy, group, in_group, ky, kx = (
            Signal(), Signal(10), Signal(12), Signal(6), Signal(6))
        # The tap being streamed, and the start of its kernel row, input group and output group.
        tap, tap_row, tap_plane, tap_group = (Signal(16, name=f"word_{n}") for n in
                                              ("tap", "tap_row", "tap_plane", "tap_group"))
        tap_y, tap_x = Signal(signed(20)), Signal(signed(20))
        pixel = self.o.payload
        last_kx, last_ky = kx + 1 == c.kw, ky + 1 == c.kh
        last_in, last_out = in_group + 1 == c.in_groups, group + 1 == c.out_groups
        wrap_in, wrap_out, step, next_pass = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            wrap_in.eq(last_kx & last_ky),
            wrap_out.eq(wrap_in & last_in),
            self.o.valid.eq(busy),
            step.eq(self.o.valid & self.o.ready),
            next_pass.eq(step & pixel.pass_last),
            pixel.group_first.eq((in_group == 0) & (ky == 0) & (kx == 0)),
            pixel.group_last.eq(wrap_out),
            pixel.command_last.eq(wrap_out & last_out),
            self.i.ready.eq(~busy | (next_pass & pixel.command_last)),
        ]
        new, e, f = Signal(Prepared), Signal.like(self.current.derived), None
        m.d.comb += [new.eq(self.i.payload), e.eq(self.i.payload.derived)]
        f = new.command
        new_tap, new_x, new_y, start = Signal(16), Signal(signed(20)), Signal(signed(20)), Signal()
        with m.If(self.i.valid & self.i.ready):
            m.d.comb += [start.eq(1), new_tap.eq(e.origin), new_x.eq(f.x0), new_y.eq(f.y0)]
            m.d.sync += [self.current.eq(self.i.payload), busy.eq(1)]
            m.d.sync += [x.eq(0) for x in (group, in_group, ky, kx)]
            m.d.sync += [x.eq(e.origin) for x in (tap_row, tap_plane, tap_group)]
        with m.Elif(next_pass):
            m.d.comb += [start.eq(1), new_x.eq(c.x0), new_y.eq(c.y0)]
            m.d.sync += kx.eq(kx + 1)
            with m.If(~last_kx):
                m.d.comb += [new_tap.eq(tap + d.tap_x), new_x.eq(tap_x + c.dx), new_y.eq(tap_y)]
            with m.Else():
                m.d.sync += [kx.eq(0), ky.eq(ky + 1), tap_row.eq(new_tap)]
                with m.If(~last_ky):
                    m.d.comb += [new_tap.eq(tap_row + d.tap_y), new_y.eq(tap_y + c.dy)]
                with m.Else():
                    m.d.sync += [ky.eq(0), in_group.eq(in_group + 1), tap_plane.eq(new_tap)]
                    m.d.comb += new_tap.eq(tap_plane + c.plane)
                    with m.If(last_in):
                        m.d.comb += new_tap.eq(tap_group + c.advance)
                        m.d.sync += [in_group.eq(0), group.eq(group + 1), tap_group.eq(new_tap)]
                        with m.If(last_out):
                            m.d.sync += busy.eq(0)
        with m.If(start):
            m.d.sync += [tap.eq(new_tap), tap_x.eq(new_x), tap_y.eq(new_y)]
        self._pixels(m, start, step, new_tap, new_x, new_y, tap, tap_x)
        return m

    def _pixels(self, m, start, step, new_tap, new_x, new_y, tap, tap_x):
        """Walk the pixels of a pass: along the output row, wrapping into the next."""
        c, d, pixel = self.current.command, self.current.derived, self.o.payload
        row, column = Signal(12), Signal(14)
        y, x, word, line = Signal(signed(21)), Signal(signed(21)), Signal(16), Signal(16)
        fresh = self.i.valid & self.i.ready
        first_column, first_word, first_x = Signal(20), Signal(16), Signal(14)
        m.d.comb += [first_column.eq(d.first_column), first_word.eq(d.first_word),
                     first_x.eq(c.first_x)]
        with m.If(fresh):
            m.d.comb += [
                first_column.eq(self.i.payload.derived.first_column),
                first_word.eq(self.i.payload.derived.first_word),
                first_x.eq(self.i.payload.command.first_x),
            ]
        m.d.comb += [
            pixel.row.eq(row),
            pixel.address.eq(word),
            pixel.inside.eq((y >= 0) & (y < c.height) & (x >= 0) & (x < c.width)),
            pixel.pass_first.eq(row == 0),
            pixel.pass_last.eq(row + 1 == c.pixels),
        ]
        with m.If(start):
            m.d.sync += [
                row.eq(0), column.eq(first_x), y.eq(new_y), x.eq(new_x + first_column),
                word.eq(new_tap + first_word), line.eq(new_tap),
            ]
        with m.Elif(step):
            m.d.sync += [row.eq(row + 1), column.eq(column + 1), x.eq(x + c.sx),
                         word.eq(word + d.step_x)]
            with m.If(column + 1 == c.out_width):
                m.d.sync += [column.eq(0), x.eq(tap_x), y.eq(y + c.sy),
                             line.eq(line + d.step_y), word.eq(line + d.step_y)]
