# SPDX-License-Identifier: Apache-2.0
"""Masked writes under ECC: read, merge, write, because the check bits are over whole words."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.counter import count
from hdl.hbm.ecc import WORD_CHECK_BITS, word_parity
from hdl.hbm.packets import SLOT_BITS, BeatAddress, line_read, line_write
from hdl.packets import WORD_BITS


class PartialWrites(wiring.Component):
    """Holds a masked write until the rest of its columns has been read.

    One write at a time: those behind it wait, so what was read cannot be overtaken by a write. The
    read goes through the front end as any other and waits there for queued writes to its columns.
    Whole writes pass at once; reads of others pass when this has none.

    Members
    -------
    i, o: Writes. ``read``, ``o_read``: Reads of others; all reads.
    patch, patch_beat, patch_data: A word has been read for the write that waits.
    fetch, beat, data, mask: A word of the write buffer and its byte mask, as the bus wants it.
    o_data, o_check: That word, merged with what was read, and its check bits, one cycle later.

    Counters
    --------
    merged_writes: Columns that were read first. ``stall_cycles``: A write waited for them.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(stream.Signature(line_write(True))),
                "o": Out(stream.Signature(line_write(True))),
                "read": In(stream.Signature(line_read(False))),
                "o_read": Out(stream.Signature(line_read(True))),
                "patch": In(1), "patch_beat": In(BeatAddress), "patch_data": In(WORD_BITS),
                "fetch": In(1), "beat": In(BeatAddress), "data": In(WORD_BITS), "mask": In(16),
                "o_data": Out(WORD_BITS), "o_check": Out(WORD_CHECK_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        asked, left, whole = Signal(), Signal(3), Signal()
        partial, ask = self.i.payload.partial, Signal()
        m.d.comb += [
            whole.eq(~partial.any() | (asked & (left == 0))),
            self.o.valid.eq(self.i.valid & whole),
            self.o.payload.eq(self.i.payload),
            self.i.ready.eq(self.o.ready & whole),
            ask.eq(self.i.valid & partial.any() & ~asked),
        ]
        taken = self._reads(m, ask)
        with m.If(taken):
            m.d.sync += [asked.eq(1), left.eq(Mux(partial.all(), 4, 2))]
        with m.Elif(self.patch):
            m.d.sync += left.eq(left - 1)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += asked.eq(0)
        self._merge(m)
        count(m, "merged_writes", Mux(taken, partial[0] + partial[1], 0))
        count(m, "stall_cycles", self.i.valid & ~whole)
        return m

    def _reads(self, m, ask):
        """Give way to our own read, but never between the two columns of a line."""
        o, line = self.o_read, self.i.payload
        held, before, ours = Signal(), Signal(), Signal()
        m.d.comb += ours.eq(Mux(held, before, ask))
        m.d.sync += [held.eq(o.valid & ~o.ready), before.eq(ours)]
        with m.If(ours):
            m.d.comb += [
                o.valid.eq(ask), o.payload.line.eq(line.line), o.payload.tag.eq(line.slot),
                o.payload.words.eq(Cat(bit.replicate(2) for bit in line.partial)),
                o.payload.patch.eq(1),
            ]
        with m.Else():
            m.d.comb += [
                o.valid.eq(self.read.valid), self.read.ready.eq(o.ready),
                o.payload.line.eq(self.read.payload.line), o.payload.tag.eq(self.read.payload.tag),
                o.payload.words.eq(self.read.payload.words),
            ]
        return ours & o.valid & o.ready

    def _merge(self, m):
        """What was read, and where the mask is set what the write buffer holds."""
        m.submodules.old = old = Memory(shape=WORD_BITS, depth=4 << SLOT_BITS, init=[])
        keep, read = old.write_port(), old.read_port(domain="comb")
        chosen, merged = Signal(WORD_BITS), Signal(WORD_BITS)
        m.d.comb += [
            keep.addr.eq(self.patch_beat), keep.data.eq(self.patch_data), keep.en.eq(self.patch),
            read.addr.eq(self.beat),
            chosen.eq(Cat(bit.replicate(8) for bit in self.mask)),
            self.o_check.eq(word_parity(self.o_data)),
            merged.eq((self.data & chosen) | (read.data & ~chosen)),
        ]
        with m.If(self.fetch):
            m.d.sync += self.o_data.eq(merged)
