# SPDX-License-Identifier: Apache-2.0
"""Between the mesh's reads and an HBM channel: constants lie in storage, frames of HBM cache them.

It is `hdl.storage.tier` for a client that reads a few words at a time, many reads at once.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from emu.config import Storage
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.hbm.packets import LINE_BITS
from hdl.packets import ReqFlit, UpFlit
from hdl.ports import PrefetchControl
from hdl.storage.device import StorageDevice
from hdl.storage.packets import (
    FRAME_BITS,
    PAGE_BITS,
    TIME_BITS,
    Region,
    StorageControl,
    index_bits,
)
from hdl.storage.page_cache import PageCache
from hdl.storage.translation import FramePins, RecentPages, RegionMap

PagerControl = wiring.Signature(
    {
        "storage": Out(StorageControl), "prefetch": Out(PrefetchControl),
        "first": Out(LINE_BITS), "last": Out(LINE_BITS), "base": Out(LINE_BITS),
        "describe": Out(1), "region": Out(Region),
    }
)
"""A pager's registers. ``first``, ``last``: lines of the channel that the device holds, the second
beyond its end. ``base``: where frame 0 lies, in pages from the channel's first word on.
``describe``, ``region``: store a region; the next may follow after as many cycles as it has pages,
and two."""


class Pager(wiring.Component):
    """Translates reads of lines ``first`` to ``last`` to reads of the frame that holds their page.

    Other reads go through. A read whose page was lately looked up goes through as well; any other
    waits until the page cache has the page, and meanwhile those that need not wait pass it, but no
    second one that does. A frame is refilled only when the last word of every read from it has been
    read: the channel lets later writes overtake earlier reads. A page is read a few words at a
    time, and several are at a time: the last few are not given up for a prefetch.

    Latency: a cycle for reads that go through; four more for a page that is there but was not
    looked up lately, if the page cache is idle. Throughput: one read a cycle.

    Parameters
    ----------
    storage: Sizes of the device, its pages, and the queue.

    Members
    -------
    control: `PagerControl`, the same from the first read on.
    number: Names the file of the device's cells.
    request: Reads of the mesh, each within a segment of 16 words.
    o, paged, frame: Reads of the channel; whether they read a frame, and which.
    release, released: The last word of a read of a frame has been read.
    write: Fills. ``acknowledged``: How many of their words are in the channel's write queue now.
    store, store_line: The mesh writes this line.
    idle: No read is here. ``error``: Sticky: the mesh wrote a constant or read beyond the device.

    Counters
    --------
    direct_reads, paged_reads: Reads that go to HBM, and to frames.
    miss_cycles: Cycles in which a read waits for its page.
    blocked_cycles: Cycles in which others wait behind it.
    """

    def __init__(self, storage: Storage):
        self._storage = storage
        super().__init__(
            {
                "control": In(PagerControl), "number": In(8),
                "request": In(stream.Signature(ReqFlit)),
                "o": Out(stream.Signature(ReqFlit)), "paged": Out(1), "frame": Out(FRAME_BITS),
                "release": In(1), "released": In(FRAME_BITS),
                "write": Out(stream.Signature(UpFlit)), "acknowledged": In(8),
                "store": In(1), "store_line": In(LINE_BITS),
                "idle": Out(1), "error": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.device = self._device = StorageDevice(self._storage)
        m.submodules.cache = self._cache = PageCache(self._storage, piecemeal=True)
        m.submodules.recent = self._recent = RecentPages()
        m.submodules.pins = self._pins = FramePins()
        m.submodules.regions = self._regions = RegionMap()
        m.submodules.queue = self._queue = Fifo(ReqFlit, 2)
        connect(m, flipped(self.request), self._queue.i)
        self._connect(m)
        self._translate(m)
        return m

    def _connect(self, m):
        """Device, cache and what surrounds them."""
        device, cache, control = self._device, self._cache, self.control
        now, index = Signal(TIME_BITS), index_bits(self._storage)
        connect(m, cache.storage, device.request)
        connect(m, cache.writes, device.writes)
        connect(m, device.words, cache.words)
        connect(m, flipped(control.storage), cache.control)
        connect(m, flipped(control.storage), device.control)
        connect(m, flipped(control.prefetch), cache.prefetch)
        m.d.sync += now.eq(now + 1)
        m.d.comb += [
            device.now.eq(now), device.number.eq(self.number),
            *(part.describe.eq(control.describe) for part in (cache, self._regions)),
            *(part.region.eq(control.region) for part in (cache, self._regions)),
            cache.acknowledged.eq(self.acknowledged),
            self.write.valid.eq(cache.write.valid), cache.write.ready.eq(self.write.ready),
            self.write.payload.eq(cache.write.payload),
            self.write.payload.address.eq(
                cache.write.payload.address + (control.base << index)),
        ]

    def _is_constant(self, line):
        return (line >= self.control.first) & (line < self.control.last)

    def _place(self, m, address, name):
        """(is a constant, page, place in it, lies beyond the device) of a word of the channel."""
        index = index_bits(self._storage)
        paged, offset = Signal(name=f"{name}_paged"), Signal(len(address), name=f"{name}_offset")
        pages = self._storage.pages
        m.d.comb += [paged.eq(self._is_constant(address[2:])),
                     offset.eq(address - (self.control.first << 2))]
        page = offset[index:]
        return paged, page[:PAGE_BITS], offset[:index], page >= pages

    def _translate(self, m):
        cache, recent, pins, head = self._cache, self._recent, self._pins, self._queue.o
        paged, page, index, beyond = self._place(m, head.payload.address, "head")
        # The read that waits for its page, and whether it has it.
        waiting, granted, got = Signal(), Signal(), Signal(FRAME_BITS)
        late = Signal(data.StructLayout(
            {"flit": ReqFlit, "page": PAGE_BITS, "index": index_bits(self._storage)}))
        lookup, hit, frame, place = cache.lookup, Signal(), Signal(FRAME_BITS), Signal.like(index)
        looked, sent, through = Signal(), Signal(), Signal()
        m.d.comb += [
            recent.page.eq(page),
            hit.eq(recent.hit & ~(cache.claimed & (cache.victim == recent.frame))),
            through.eq(head.valid & (~paged | hit) & ~granted),
            self.o.valid.eq(granted | through),
            self.o.payload.eq(Mux(granted, late.flit, head.payload)),
            self.paged.eq(granted | paged),
            frame.eq(Mux(granted, got, recent.frame)), place.eq(Mux(granted, late.index, index)),
            self.frame.eq(frame),
            sent.eq(self.o.valid & self.o.ready),
            head.ready.eq(Mux(paged & ~hit, ~waiting, ~granted & self.o.ready)),
            lookup.valid.eq(waiting & ~granted & pins.ready),
            lookup.payload.page.eq(late.page),
            self._regions.page.eq(late.page), lookup.payload.region.eq(self._regions.owner),
            looked.eq(lookup.valid & lookup.ready),
            recent.put.eq(looked), recent.put_page.eq(late.page), recent.put_frame.eq(cache.frame),
            recent.forget.eq(cache.storage.valid & cache.storage.ready
                             & ~cache.storage.payload.write),
            recent.forget_frame.eq(cache.victim),
            pins.take.eq(sent & self.paged), pins.taken.eq(frame),
            pins.give.eq(self.release), pins.given.eq(self.released),
            pins.frame.eq(cache.victim),
            recent.frames.eq(self.control.storage.frames), recent.asked.eq(cache.victim),
            cache.kept.eq(recent.kept),
            cache.held.eq(pins.held | (granted & (got == cache.victim))),
            cache.release.eq(self.release),
            self.idle.eq(~head.valid & ~waiting),
        ]
        with m.If(self.paged):
            m.d.comb += self.o.payload.address.eq(
                Cat(place, frame) + (self.control.base << len(place)))
        with m.If(granted & self.o.ready):
            m.d.sync += [waiting.eq(0), granted.eq(0)]
        with m.If(looked):
            m.d.sync += [granted.eq(1), got.eq(cache.frame)]
        with m.If(head.valid & paged & ~hit & ~waiting):
            m.d.sync += [
                waiting.eq(1), late.flit.eq(head.payload), late.page.eq(page),
                late.index.eq(index),
            ]
        with m.If((head.valid & paged & beyond)
                  | (self.store & self._is_constant(self.store_line))):
            m.d.sync += self.error.eq(1)
        count(m, "direct_reads", sent & ~self.paged)
        count(m, "paged_reads", sent & self.paged)
        count(m, "miss_cycles", waiting & ~granted)
        count(m, "blocked_cycles", head.valid & ~head.ready & waiting & ~granted)
