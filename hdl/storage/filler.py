# SPDX-License-Identifier: Apache-2.0
"""Writes pages that come from storage into their frames in HBM."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from emu.config import Storage
from hdl.fifo import Fifo
from hdl.packets import Kind, UpFlit
from hdl.storage.packets import CACHE, FRAME_BITS, frame_word


class PageFiller(wiring.Component):
    """Words to write flits, one a cycle; a page is filled when all its words are acknowledged.

    Pages come one after another, so their acknowledgements do too.

    Members
    -------
    words: From the device. ``write``: To the channel.
    acknowledged: How many of the words written the channel acknowledges in this cycle.
    filled: Frames whose page is complete: every later read of the channel sees it.
    idle: No page is partly written, none waits in ``filled``.

    Parameters
    ----------
    storage: Size of a page.
    """

    def __init__(self, storage: Storage):
        self._storage = storage
        super().__init__(
            {
                "words": In(stream.Signature(frame_word(storage))),
                "write": Out(stream.Signature(UpFlit)),
                "acknowledged": In(8),
                "filled": Out(stream.Signature(FRAME_BITS)), "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        size = self._storage.page_words
        m.submodules.written = written = Fifo(FRAME_BITS, 4)
        m.submodules.complete = complete = Fifo(FRAME_BITS, 4)
        words, write = self.words, self.write
        acked, whole, begun = Signal(range(4 * size)), Signal(), Signal()
        last = words.payload.index.all()
        go = Signal()
        m.d.comb += [
            go.eq(~last | written.i.ready),
            write.valid.eq(words.valid & go),
            words.ready.eq(write.ready & go),
            write.payload.data.eq(words.payload.data),
            write.payload.kind.eq(Kind.WRITE),
            write.payload.address.eq(Cat(words.payload.index, words.payload.frame)),
            write.payload.mask.eq(0xFFFF),
            write.payload.source_x.eq(CACHE),
            written.i.valid.eq(words.valid & words.ready & last),
            written.i.payload.eq(words.payload.frame),
            whole.eq((acked >= size) & written.o.valid & complete.i.ready),
            written.o.ready.eq(whole),
            complete.i.valid.eq(whole),
            complete.i.payload.eq(written.o.payload),
            self.idle.eq(~begun & ~written.o.valid & ~complete.o.valid & ~words.valid),
        ]
        wiring.connect(m, complete.o, wiring.flipped(self.filled))
        m.d.sync += acked.eq(acked + self.acknowledged - Mux(whole, size, 0))
        with m.If(words.valid & words.ready):
            m.d.sync += begun.eq(~last)
        return m
