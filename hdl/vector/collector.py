# SPDX-License-Identifier: Apache-2.0
"""Reads the taps of one output word after another and reduces them lane by lane."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.packets import WORD_BITS
from hdl.ports import ScratchpadRead
from hdl.vector.walker import VectorCommand, WindowWalker

SUM_BITS = 24
"""Bits of a window sum: 63 * 63 taps of at most 10 bits."""

Collected = data.StructLayout(
    {
        "a": WORD_BITS,                            # maximum of the taps, byte by byte
        "b": WORD_BITS,
        "sums": data.ArrayLayout(signed(SUM_BITS), 16),  # of tap - a_zero
    }
)


class Collector(wiring.Component):
    """One `Collected` for each output word of a command, in order.

    A word costs as many cycles as it has taps (read or skipped), and one for b, where the port
    refuses nothing and there is room. It is given two cycles after its last read.

    Members
    -------
    start, command: Begin; the command is held until ``ended``.
    two: Each word has a b word.
    sums: Compute ``sums`` (otherwise they are arbitrary).
    room: A word may be begun; it is not refused later.
    begun: One is, in this cycle.
    read: Scratchpad port.
    o_valid, o: Reduced word, for one cycle. A window without a tap inside gives the type's minimum
        and the sum 0.
    """

    start: In(1)
    command: In(VectorCommand)
    two: In(1)
    sums: In(1)
    room: In(1)
    begun: Out(1)
    read: Out(ScratchpadRead)
    o_valid: Out(1)
    o: Out(Collected)

    def elaborate(self, platform):
        m = Module()
        m.submodules.walker = walker = WindowWalker()
        c, request = self.command, self.read.request
        go, step = Signal(), Signal()
        m.d.comb += [
            walker.start.eq(self.start),
            walker.command.eq(c),
            walker.two.eq(self.two),
            go.eq(walker.valid & (~walker.first | self.room)),
            request.valid.eq(go & walker.inside),
            request.payload.eq(walker.address),
            step.eq(go & (request.ready | ~walker.inside)),
            walker.advance.eq(step),
            self.begun.eq(step & walker.first),
        ]
        tag = Signal(data.StructLayout({"valid": 1, "inside": 1, "first": 1, "last": 1, "b": 1}))
        m.d.sync += [
            tag.valid.eq(step), tag.inside.eq(walker.inside), tag.first.eq(walker.first),
            tag.last.eq(walker.last), tag.b.eq(walker.is_b),
            self.o_valid.eq(tag.valid & tag.last),
        ]
        word = self.o
        with m.If(tag.valid & tag.b):
            m.d.sync += word.b.eq(self.read.data)
        with m.If(tag.valid & ~tag.b & (tag.inside | tag.first)):
            m.d.sync += word.a.eq(Cat(self._largest(m, tag, lane) for lane in range(16)))
        with m.If(tag.valid & ~tag.b & (tag.inside | tag.first) & self.sums):
            for lane in range(16):
                byte = self.read.data[8 * lane : 8 * lane + 8]
                value = Cat(byte, byte[7] & c.a_signed).as_signed() - c.a_zero
                before = Mux(tag.first, 0, word.sums[lane])
                m.d.sync += word.sums[lane].eq(before + Mux(tag.inside, value, 0))
        return m

    def _largest(self, m, tag, lane):
        """Byte of the running maximum; bytes compare as unsigned once a sign bit is turned over."""
        flip = Cat(0, 0, 0, 0, 0, 0, 0, self.command.a_signed)
        have = self.o.a[8 * lane : 8 * lane + 8]
        new = self.read.data[8 * lane : 8 * lane + 8]
        larger = tag.inside & (tag.first | ((new ^ flip) > (have ^ flip)))
        return Mux(larger, new, Mux(tag.first, flip, have))
