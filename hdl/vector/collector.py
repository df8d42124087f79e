# SPDX-License-Identifier: Apache-2.0
"""Reads the taps of one output word after another and reduces them lane by lane."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
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
        "group": 12,
        "pixel": 16,
    }
)


class Collector(wiring.Component):
    """One `Collected` for each output word of a command, in order.

    A word costs as many cycles as it has taps (read or skipped), one for b, and two more, where
    the port refuses nothing and ``o`` is taken at once.

    Members
    -------
    start, command: Begin; the command is held until ``ended``.
    two: Each word has a b word.
    sums: Compute ``sums`` (otherwise they are arbitrary).
    read: Scratchpad port.
    o: Reduced words. A window without a tap inside gives the type's minimum and the sum 0.
    ended: Every word was given to ``o``.
    """

    start: In(1)
    command: In(VectorCommand)
    two: In(1)
    sums: In(1)
    read: Out(ScratchpadRead)
    o: Out(stream.Signature(Collected))
    ended: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.walker = walker = WindowWalker()
        c, request = self.command, self.read.request
        waiting = Signal()  # the last step of a word was taken, the word was not
        m.d.comb += [
            walker.start.eq(self.start),
            walker.command.eq(c),
            walker.two.eq(self.two),
            request.valid.eq(walker.valid & walker.inside & ~waiting),
            request.payload.eq(walker.address),
            walker.advance.eq(~waiting & (request.ready | ~walker.inside)),
            self.ended.eq(walker.ended & ~waiting),
        ]
        tag = Signal(data.StructLayout({"valid": 1, "inside": 1, "first": 1, "last": 1, "b": 1}))
        step = walker.valid & walker.advance
        m.d.sync += [
            tag.valid.eq(step), tag.inside.eq(walker.inside), tag.first.eq(walker.first),
            tag.last.eq(walker.last), tag.b.eq(walker.is_b),
            waiting.eq((waiting | (step & walker.last)) & ~(self.o.valid & self.o.ready)),
            self.o.valid.eq(
                (self.o.valid & ~self.o.ready) | (tag.valid & tag.last)
            ),
        ]
        word = self.o.payload
        with m.If(step & walker.first):
            m.d.sync += [word.group.eq(walker.group), word.pixel.eq(walker.pixel)]
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
        have = self.o.payload.a[8 * lane : 8 * lane + 8]
        new = self.read.data[8 * lane : 8 * lane + 8]
        larger = tag.inside & (tag.first | ((new ^ flip) > (have ^ flip)))
        return Mux(larger, new, Mux(tag.first, flip, have))
