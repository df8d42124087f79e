# SPDX-License-Identifier: Apache-2.0
"""Reads a page out of its frame in HBM."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from emu.config import SEGMENT_WORDS, Storage
from hdl.packets import DownFlit, Kind, ReqFlit
from hdl.storage.packets import FRAME_BITS, index_bits, page_word


class PageReader(wiring.Component):
    """Requests a page's segments, one a cycle; its words come in any order and are never refused.

    Latency: the first request in the cycle after ``start``; ``done`` in the cycle of the last word.

    Parameters
    ----------
    storage: Size of a page. ``x``: What the channel calls this reader.

    Members
    -------
    start, frame: Begin; only while not ``busy``.
    request: To the channel. ``down``, ``down_valid``: a flit from it, perhaps for another.
    word, word_valid: A word of the page. ``done``: It was the last.
    """

    def __init__(self, storage: Storage, x: int):
        self._storage, self._x = storage, x
        super().__init__(
            {
                "start": In(1), "frame": In(FRAME_BITS), "busy": Out(1), "done": Out(1),
                "request": Out(stream.Signature(ReqFlit)),
                "down": In(DownFlit), "down_valid": In(1),
                "word": Out(page_word(storage)), "word_valid": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        segment_bits = SEGMENT_WORDS.bit_length() - 1
        width = index_bits(self._storage)
        segment, frame, asking = Signal(width - segment_bits), Signal(FRAME_BITS), Signal()
        arrived = Signal(width)
        flit, reply = self.request.payload, self.down.reply
        first = Cat(Const(0, segment_bits), segment)
        m.d.comb += [
            self.request.valid.eq(asking),
            flit.address.eq(Cat(first, frame)),
            flit.last.eq(SEGMENT_WORDS - 1),
            flit.reply.kind.eq(Kind.DATA),
            flit.reply.address.eq(first),
            flit.reply.rect.x0.eq(self._x), flit.reply.rect.x1.eq(self._x),
            flit.reply.source_x.eq(self._x),
            self.word_valid.eq(
                self.down_valid & (reply.kind == Kind.DATA) & (reply.rect.x0 == self._x)),
            self.word.data.eq(self.down.data),
            self.word.index.eq(reply.address),
            self.done.eq(self.word_valid & arrived.all()),
        ]
        m.d.sync += arrived.eq(arrived + self.word_valid)
        with m.If(self.request.valid & self.request.ready):
            m.d.sync += [segment.eq(segment + 1), asking.eq(~segment.all())]
        with m.If(self.done):
            m.d.sync += self.busy.eq(0)
        with m.If(self.start):
            m.d.sync += [frame.eq(self.frame), asking.eq(1), self.busy.eq(1)]
        return m
