# SPDX-License-Identifier: Apache-2.0
"""A scratchpad at the edge: one memory for all tiles, spread over the channels' ports.

It is the rival of memory inside the tiles: the same SRAM in one place, behind the mesh instead of
in front of it, so that what it holds needs no HBM but still every link to whoever reads it.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.config import Config
from hdl.counter import count
from hdl.hbm.packets import LINE_BITS, TAG_BITS, LineRead, ReadWord
from hdl.packets import WORD_BITS

LINE_WORDS = 4
ROW_LINES = 16
"""Lines whose presence one word of memory tells: cleared in one cycle after reset."""


class EdgeScratchpad(wiring.Component):
    """Holds a channel's lines from ``first`` on, as many as fit, from their first read on.

    A read whose words are all there is answered from here, a word a cycle from the second cycle on,
    while others wait behind it; every other read goes on to the controller, and what comes back
    is kept. So the initial load is the first reader's. Nothing ever leaves, and what is kept must
    not be written: ``error``. In the first cycles, one for sixteen lines, nothing is kept.

    Latency: none for reads that go on and for words that come back; two cycles to a word from here,
    which goes before others.

    Parameters
    ----------
    config: ``hbm.edge_kib`` over all channels.

    Members
    -------
    first: Line of the channel that the region begins at.
    lines: Reads from the mesh. ``read``: those that go on to the controller.
    words: From the controller. ``o``: to the mesh.
    written, line: A line is written now.
    error: Sticky: one that is kept was.

    Counters
    --------
    edge_words, kept_words: Words answered from here; words kept.
    """

    def __init__(self, config: Config):
        self._lines = config.hbm.edge_kib * 1024 // (16 * LINE_WORDS * config.hbm.channels)
        super().__init__(
            {
                "first": In(LINE_BITS),
                "lines": In(stream.Signature(LineRead)),
                "read": Out(stream.Signature(LineRead)),
                "words": In(stream.Signature(ReadWord)),
                "o": Out(stream.Signature(ReadWord)),
                "written": In(1), "line": In(LINE_BITS), "error": Out(1), "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bits = max(1, (self._lines - 1).bit_length())
        m.submodules.store = store = Memory(
            shape=WORD_BITS, depth=LINE_WORDS << bits, init=[])
        m.submodules.present = present = Memory(
            shape=data.ArrayLayout(1, LINE_WORDS * ROW_LINES),
            depth=max(1, self._lines // ROW_LINES), init=[])
        m.submodules.segments = segments = Memory(shape=LINE_BITS - 2, depth=1 << TAG_BITS, init=[])
        self._cleared = Signal()
        self._reads(m, bits, store, present, segments)
        self._fills(m, bits, store, present, segments)
        return m

    def _place(self, m, line, name):
        """(line is in the region, where)."""
        offset = Signal(LINE_BITS, name=f"{name}_offset")
        inside = Signal(name=f"{name}_inside")
        m.d.comb += [offset.eq(line - self.first),
                     inside.eq((line >= self.first) & (offset < self._lines))]
        return inside, offset

    def _reads(self, m, bits, store, present, segments):
        line, there = self.lines.payload, present.read_port(domain="comb")
        inside, offset = self._place(m, line.line, "read")
        segment = segments.write_port()
        hit, busy, fetched, take = Signal(), Signal(), Signal(), Signal()
        found, going = Signal(LINE_WORDS), Signal()
        held, left, word = Signal(LineRead), Signal(LINE_WORDS), Signal(2)
        base, out, tag, index = Signal(bits), Signal(ReadWord), Signal(TAG_BITS), Signal(4)
        read = store.read_port()
        m.d.comb += [
            there.addr.eq(offset[4:bits]),
            found.eq(there.data.as_value().word_select(offset[:4], LINE_WORDS)),
            hit.eq(self._cleared & inside & ~(line.words & ~found).any() & ~going),
            self.read.payload.eq(line),
            self.read.valid.eq(self.lines.valid & ~hit),
            self.lines.ready.eq(Mux(hit, ~busy, self.read.ready)),
            segment.addr.eq(line.tag), segment.data.eq(line.line[2:]),
            segment.en.eq(self.read.valid & self.read.ready),
            read.addr.eq(Cat(word, base)), read.en.eq(take),
            take.eq(busy & (~fetched | self.o.ready)),
            out.data.eq(read.data), out.tag.eq(tag), out.index.eq(index),
            self.idle.eq(~busy & ~fetched),
        ]
        # A read that was offered to the controller stays there: half of it may have gone.
        m.d.sync += going.eq(self.read.valid & ~self.read.ready)
        for k in reversed(range(LINE_WORDS)):
            with m.If(left[k]):
                m.d.comb += word.eq(k)
        with m.If(self.lines.valid & hit & ~busy):
            m.d.sync += [busy.eq(1), held.eq(line), left.eq(line.words), base.eq(offset[:bits])]
        with m.Elif(take):
            rest = left & (left - 1)
            m.d.sync += [left.eq(rest), busy.eq(rest != 0)]
        with m.If(take):
            m.d.sync += [fetched.eq(1), tag.eq(held.tag), index.eq(Cat(word, held.line[:2]))]
        with m.Elif(self.o.ready):
            m.d.sync += fetched.eq(0)
        m.d.comb += [
            self.o.valid.eq(fetched | self.words.valid),
            self.o.payload.eq(Mux(fetched, out, self.words.payload)),
            self.words.ready.eq(~fetched & self.o.ready),
        ]
        count(m, "edge_words", fetched & self.o.ready)

    def _fills(self, m, bits, store, present, segments):
        word, look = self.words.payload, segments.read_port(domain="comb")
        line = Cat(word.index[2:], look.data)
        inside, offset = self._place(m, line, "fill")
        fill = Signal()
        clear = Signal(range(2 * present.depth) if present.depth > 1 else 2)
        write, mark = store.write_port(), present.write_port(granularity=1)
        m.d.comb += [
            look.addr.eq(word.tag),
            self._cleared.eq(clear[-1]),
            fill.eq(self._cleared & self.words.valid & self.words.ready & inside),
            write.addr.eq(Cat(word.index[:2], offset[:bits])), write.data.eq(word.data),
            write.en.eq(fill),
            mark.addr.eq(Mux(self._cleared, offset[4:bits], clear)),
            mark.data.as_value().eq(Mux(self._cleared, ~0, 0)),
            mark.en.eq(Mux(self._cleared, Mux(fill, 1 << Cat(word.index[:2], offset[:4]), 0), ~0)),
        ]
        m.d.sync += clear.eq(clear + ~self._cleared)
        written, _ = self._place(m, self.line, "written")
        with m.If(self.written & written):
            m.d.sync += self.error.eq(1)
        count(m, "kept_words", fill)
