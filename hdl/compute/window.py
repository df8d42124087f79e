# SPDX-License-Identifier: Apache-2.0
"""The window generator: which activation word each pixel of each pass needs."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from emu.isa import WeightMode
from hdl.compute.command import Prepared

Pixel = data.StructLayout(
    {
        "address": 16,
        "inside": 1,         # 0: inject zero, nothing to read
        "row": 12,           # accumulator row
        "emits": 1,          # 0: only for later words of its row (mode ROW_TAP)
        "fresh": 1,          # the first word of its output row
        "pass_first": 1, "pass_last": 1,     # first, last pixel of a pass
        "group_first": 1, "group_last": 1,   # its pass is the group's first, last
        "command_last": 1,   # its pass is the command's last
    }
)


class Window(wiring.Component):
    """Walks output groups, input groups, kernel rows and columns and the pixels of each pass.

    In mode ROW_TAP a pass walks every input column from a row's first tap to its last; a word is
    an output pixel's if it is the third of one. Words left of the input are left out.

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
        begins, fill, waiting = Signal(), Signal(2), Signal(6)
        tapped, row_tapped = Signal(), Signal()
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
            pixel.emits.eq(~tapped | (waiting == 0)),
            pixel.pass_first.eq(begins),
            pixel.pass_last.eq(pixel.emits & (row + 1 == c.pixels)),
            tapped.eq(c.w_mode == WeightMode.ROW_TAP),
            row_tapped.eq(Mux(fresh, self.i.payload.command.w_mode == WeightMode.ROW_TAP, tapped)),
        ]
        # Where a row starts: its column, its word, and how many words of its first pixel's three
        # lie left of the input, at most two: they need not be read.
        start_x, start_word, left, stride = (
            Signal(signed(21)), Signal(16), Signal(2), Signal(16))
        m.d.comb += [
            start_x.eq(Mux(start, new_x + first_column, tap_x)),
            start_word.eq(Mux(start, new_tap + first_word, line + d.step_y)),
            stride.eq(Mux(fresh, self.i.payload.command.step, c.step)),
        ]
        with m.If(row_tapped & (start_x < 0)):
            m.d.comb += left.eq(Mux(start_x == -1, 1, 2))
        m.d.comb += fill.eq(2 - left)
        begin_x = (start_x + left)[:21].as_signed()
        begin_word = (start_word + Mux(left[0], stride, 0) + Mux(left[1], stride << 1, 0))[:16]
        with m.If(start):
            m.d.sync += [
                row.eq(0), column.eq(first_x), y.eq(new_y), x.eq(begin_x), word.eq(begin_word),
                line.eq(new_tap), begins.eq(1), pixel.fresh.eq(1), waiting.eq(fill),
            ]
        with m.Elif(step):
            m.d.sync += [begins.eq(0), pixel.fresh.eq(0)]
            with m.If(tapped):
                m.d.sync += [x.eq(x + 1), word.eq(word + c.step),
                             waiting.eq(Mux(pixel.emits, c.sx - 1, waiting - 1))]
            with m.Else():
                m.d.sync += [x.eq(x + c.sx), word.eq(word + d.step_x)]
            with m.If(pixel.emits):
                m.d.sync += [row.eq(row + 1), column.eq(column + 1)]
                with m.If(column + 1 == c.out_width):
                    m.d.sync += [column.eq(0), x.eq(begin_x), y.eq(y + c.sy), word.eq(begin_word),
                                 line.eq(line + d.step_y), pixel.fresh.eq(1), waiting.eq(fill)]
