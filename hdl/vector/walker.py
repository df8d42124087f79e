# SPDX-License-Identifier: Apache-2.0
"""The order in which a vector command reads its words."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.isa import Opcode
from hdl.packets import COMMANDS, SPAD_BITS

VectorCommand = COMMANDS[Opcode.VECTOR]


class WindowWalker(wiring.Component):
    """Visits, for each group, output pixel, ky and kx, the word of the tap, then that of b.

    Tap (ky, kx) of output pixel (oy, ox) lies at y = y0 + oy*sy + ky, x = x0 + ox*sx + kx; its word
    is ``base + g*plane + y*row + x*step``. The first output pixel is (0, first_x); columns wrap to
    the next row after ``out_width``. b is at ``b_base + g*b_plane + p*b_step`` (mode 0), without
    the last term (mode 1: one word for all pixels) or without the middle one (mode 2: one for all
    groups). Three cycles from ``start`` to the first step, then a step a cycle.

    Members
    -------
    start, command: Begin; the command is held until ``ended``.
    two: Each word needs a b word.
    advance: The step offered is taken.
    valid: A step is offered.
    address: Its word.
    inside: The tap is inside the image (b words always are); others are not to be read.
    first, last: First, last step of an output word.
    is_b: The step is the b word.
    group, pixel: Output word the step belongs to.
    ended: All steps were taken.
    """

    start: In(1)
    command: In(VectorCommand)
    two: In(1)
    advance: In(1)
    valid: Out(1)
    address: Out(SPAD_BITS)
    inside: Out(1)
    first: Out(1)
    last: Out(1)
    is_b: Out(1)
    group: Out(12)
    pixel: Out(16)
    ended: Out(1, init=1)

    def elaborate(self, platform):
        m = Module()
        c = self.command
        setup = Signal(2)
        with m.If(self.start):
            m.d.sync += [setup.eq(1), self.ended.eq(0), self.group.eq(0)]
        # Strides of an output pixel; words of tap (0, 0) of pixels (0, 0) and (0, first_x).
        self._column_step, self._row_step = Signal(SPAD_BITS), Signal(SPAD_BITS)
        self._corner, self._start = Signal(SPAD_BITS), Signal(SPAD_BITS)
        self._start_x = Signal(signed(17))
        with m.If(setup == 1):
            m.d.sync += [
                setup.eq(2),
                self._column_step.eq(c.sx * c.step),
                self._row_step.eq(c.sy * c.row),
                self._corner.eq(c.base + c.y0 * c.row + c.x0 * c.step),
                self._start_x.eq(c.x0 + c.first_x * c.sx),
            ]
        with m.If(setup == 2):
            m.d.sync += [
                setup.eq(3),
                self._start.eq(self._corner + c.first_x * self._column_step),
            ]
        with m.If(setup == 3):
            m.d.sync += [setup.eq(0), self.valid.eq(1)]

        tap_x, tap_y = Signal(signed(17)), Signal(signed(17))
        tap, kx, ky = Signal(SPAD_BITS), Signal(6), Signal(6)
        last_tap, last_pixel, last_group = Signal(), Signal(), Signal()
        b_word = Signal(SPAD_BITS)
        m.d.comb += [
            last_tap.eq((kx == c.kw - 1) & (ky == c.kh - 1)),
            last_pixel.eq(self.pixel == c.pixels - 1),
            last_group.eq(self.group == c.groups - 1),
            self.first.eq((kx == 0) & (ky == 0) & ~self.is_b),
            self.last.eq(self.is_b | (last_tap & ~self.two)),
            self.address.eq(Mux(self.is_b, b_word, tap)),
            self.inside.eq(
                self.is_b
                | ((tap_x >= 0) & (tap_x < c.width) & (tap_y >= 0) & (tap_y < c.height))
            ),
        ]
        with m.If(self.valid & self.advance & ~self.last):
            m.d.sync += self.is_b.eq(last_tap)
        next_word = self.valid & self.advance & self.last
        with m.If(next_word & last_pixel):
            m.d.sync += self.group.eq(self.group + 1)
            with m.If(last_group):
                m.d.sync += [self.valid.eq(0), self.ended.eq(1)]
        restart = (setup == 3) | (next_word & last_pixel)
        self._taps(m, tap, tap_x, tap_y, kx, ky, last_tap, next_word, restart, setup == 3)
        self._b_words(m, b_word, next_word, restart, setup == 3)
        return m

    def _taps(self, m, tap, tap_x, tap_y, kx, ky, last_tap, next_word, restart, whole):
        """Tap words and coordinates by addition alone."""
        c = self.command
        word, line, row = Signal(SPAD_BITS), Signal(SPAD_BITS), Signal(SPAD_BITS)
        x, y, column = Signal(signed(17)), Signal(signed(17)), Signal(14)
        offset, moved = Signal(SPAD_BITS), Signal(SPAD_BITS)  # of the group's first word
        wrap = column == c.out_width - 1
        new_x, new_y, new_word = Signal(signed(17)), Signal(signed(17)), Signal(SPAD_BITS)
        m.d.comb += [
            moved.eq(Mux(whole, 0, offset + c.plane)),
            new_x.eq(Mux(restart, self._start_x, Mux(wrap, c.x0, x + c.sx))),
            new_y.eq(Mux(restart, c.y0, Mux(wrap, y + c.sy, y))),
            new_word.eq(
                Mux(
                    restart, self._start + moved,
                    Mux(wrap, line + self._row_step, word + self._column_step),
                )
            ),
        ]
        # line: word of tap (0, 0) of column 0 in this output row; row: of tap (ky, 0).
        with m.If(restart):
            m.d.sync += [
                offset.eq(moved), self.pixel.eq(0), column.eq(c.first_x),
                line.eq(self._corner + moved),
            ]
        with m.Elif(next_word):
            m.d.sync += [self.pixel.eq(self.pixel + 1), column.eq(Mux(wrap, 0, column + 1))]
            with m.If(wrap):
                m.d.sync += line.eq(new_word)
        with m.If(restart | next_word):
            m.d.sync += [
                x.eq(new_x), y.eq(new_y), word.eq(new_word), tap.eq(new_word), row.eq(new_word),
                tap_x.eq(new_x), tap_y.eq(new_y), kx.eq(0), ky.eq(0), self.is_b.eq(0),
            ]
        with m.Elif(self.valid & self.advance & ~last_tap):
            with m.If(kx == c.kw - 1):
                m.d.sync += [
                    kx.eq(0), ky.eq(ky + 1), tap_x.eq(x), tap_y.eq(tap_y + 1),
                    row.eq(row + c.row), tap.eq(row + c.row),
                ]
            with m.Else():
                m.d.sync += [kx.eq(kx + 1), tap_x.eq(tap_x + 1), tap.eq(tap + c.step)]

    def _b_words(self, m, b_word, next_word, restart, whole):
        c = self.command
        b_group, new = Signal(SPAD_BITS), Signal(SPAD_BITS)
        m.d.comb += new.eq(Mux(whole, c.b_base, b_group + Mux(c.b_mode == 2, 0, c.b_plane)))
        with m.If(restart):
            m.d.sync += [b_group.eq(new), b_word.eq(new)]
        with m.Elif(next_word & (c.b_mode != 1)):
            m.d.sync += b_word.eq(b_word + c.b_step)
