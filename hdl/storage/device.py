# SPDX-License-Identifier: Apache-2.0
"""A storage device: page reads and writes in a queue, latency, bandwidth."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from emu.config import Storage
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.macro import MacroLibrary
from hdl.packets import WORD_BITS
from hdl.storage import cells
from hdl.storage.packets import (
    FRAME_BITS,
    PAGE_BITS,
    TIME_BITS,
    StorageControl,
    StorageRequest,
    frame_word,
    index_bits,
    page_word,
)

Read = data.StructLayout({"page": PAGE_BITS, "frame": FRAME_BITS, "due": TIME_BITS})


class StorageDevice(wiring.Component):
    """Reads and writes pages of a medium that serves one page at a time.

    The medium begins a read ``latency`` cycles after it was accepted, or when it has done what was
    accepted before, and needs ``page_cycles``. Then the words leave, one a cycle, while the medium
    reads the next page. Reads are answered in their order. A write needs the medium for
    ``page_cycles`` too, but is taken at once: its words follow its request, one a cycle, and are
    seen by every read accepted later; no page is to be written while a read of it waits. Times are
    those of ``now``, which may leap while nothing happens.

    Parameters
    ----------
    storage: Sizes; latency and bandwidth are inputs.

    Members
    -------
    control: `StorageControl`. ``now``: The time, below 2**32.
    request: `StorageRequest`. ``writes``: Words of the page that is being written, in any order.
    words: Words read. ``asleep``: The oldest read is due at ``due``. ``pending``: There is one.
    number: Names the files of the cells. ``dump``: A rising edge saves them.

    Raises
    ------
    TypeError: When elaborated for anything but Verilog: the cells are Verilog.

    Counters
    --------
    page_reads, page_writes, read_words, write_words, queue_stalls.
    """

    def __init__(self, storage: Storage):
        self._storage = storage
        super().__init__(
            {
                "control": In(StorageControl), "now": In(TIME_BITS),
                "request": In(stream.Signature(StorageRequest)),
                "writes": In(stream.Signature(page_word(storage))),
                "words": Out(stream.Signature(frame_word(storage))),
                "asleep": Out(1), "pending": Out(1), "due": Out(TIME_BITS), "dump": In(1),
                "number": In(8),
            }
        )

    def elaborate(self, platform):
        if not isinstance(platform, MacroLibrary):
            raise TypeError("StorageDevice holds Verilog cells: use hdl.verilog.generate")
        m = Module()
        platform.add_source(cells.NAME, cells.verilog(self._storage))
        m.submodules.queue = queue = Fifo(Read, self._storage.queue)
        writing, target = Signal(), Signal(PAGE_BITS)
        self._accept(m, queue, writing, target)
        self._serve(m, queue, writing, target)
        return m

    def _accept(self, m, queue, writing, target):
        """The medium's time is given out in the order of acceptance."""
        request, free = self.request, Signal(TIME_BITS)
        begin, ahead, end = Signal(TIME_BITS), Signal(TIME_BITS), Signal(TIME_BITS)
        taken = Signal()
        m.d.comb += [
            request.ready.eq(~writing & queue.i.ready),
            taken.eq(request.valid & request.ready),
            ahead.eq(self.now + Mux(request.payload.write, 0, self.control.latency)),
            begin.eq(Mux(free > ahead, free, ahead)),
            end.eq(begin + self.control.page_cycles),
            queue.i.valid.eq(taken & ~request.payload.write),
            queue.i.payload.page.eq(request.payload.page),
            queue.i.payload.frame.eq(request.payload.frame),
            queue.i.payload.due.eq(end),
        ]
        with m.If(taken):
            m.d.sync += [free.eq(end), target.eq(request.payload.page)]
        count(m, "page_reads", taken & ~request.payload.write)
        count(m, "page_writes", taken & request.payload.write)
        count(m, "queue_stalls", request.valid & ~request.ready & ~writing)
        with m.If(taken & request.payload.write):
            m.d.sync += writing.eq(1)

    def _serve(self, m, queue, writing, target):
        """Words of the oldest read that is due, and of the write being taken."""
        width = index_bits(self._storage)
        index, left, read_data = Signal(width), Signal(width), Signal(WORD_BITS)
        size, head, words = len(target) + width, queue.o, self.words
        address = Cat(index, head.payload.page)[:size]
        place = Cat(self.writes.payload.index, target)
        top = (self._storage.pages * self._storage.page_words).bit_length() - 1
        sent, stored = words.valid & words.ready, self.writes.valid & self.writes.ready
        m.submodules.medium = cells.instance(
            self.number, self.dump, address[:top], read_data, stored, place[:top],
            self.writes.payload.data)
        m.d.comb += [
            self.due.eq(head.payload.due),
            self.pending.eq(head.valid),
            self.asleep.eq(head.valid & (self.now < head.payload.due)),
            words.valid.eq(head.valid & (self.now >= head.payload.due)),
            words.payload.data.eq(read_data),
            words.payload.index.eq(index),
            words.payload.frame.eq(head.payload.frame),
            head.ready.eq(sent & index.all()),
            self.writes.ready.eq(writing),
        ]
        m.d.sync += index.eq(index + sent)
        with m.If(stored):
            m.d.sync += [left.eq(left + 1), writing.eq(~left.all())]
        count(m, "read_words", sent)
        count(m, "write_words", stored)
