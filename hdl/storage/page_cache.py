# SPDX-License-Identifier: Apache-2.0
"""HBM as a cache of storage pages: tags, fills, evictions, write-backs, prefetching."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from emu.config import Storage
from hdl.counter import count
from hdl.packets import DownFlit, ReqFlit, UpFlit
from hdl.ports import PrefetchControl
from hdl.prefetch.policy import DISTANCE_BITS
from hdl.storage.filler import PageFiller
from hdl.storage.packets import (
    CACHE,
    FRAME_BITS,
    PAGE_BITS,
    PageRef,
    Region,
    StorageControl,
    StorageRequest,
    frame_word,
    page_word,
)
from hdl.storage.pointer import PagePointer
from hdl.storage.reader import PageReader

TURN_BITS = 12
SLACK = 4
"""Lookups of small tables, and of pages that are read by turns, between two of the stream order."""

FrameState = data.StructLayout(
    {
        "page": PAGE_BITS, "valid": 1,
        "complete": 1,     # all words are there
        "used": 1,         # somebody has looked it up
        "prefetched": 1,   # fetched before anybody did
        "dirty": 1,
        "turn": TURN_BITS,  # prefetched: the lookup, by number, that was to use it
    }
)


class State(enum.Enum, shape=3):
    """What the controller does."""

    SWEEP = 0
    """After reset: no frame holds a page."""
    IDLE = 1
    CHECK = 2
    """Is the page of a lookup or candidate there?"""
    RING = 3
    """Find it a frame."""
    CLEAN = 4
    """Write the frame's old page back."""
    FETCH = 5
    """Request the page."""
    COMPLETE = 6
    """A page has arrived."""
    FLUSH = 7
    """Write back what is dirty, frame by frame."""


class PageCache(wiring.Component):
    """Tags of the pages that frames of HBM hold, a ring of frames, and one controller for all.

    A table entry only names a frame; the frame's state says whether it holds that page. The client
    says which frames it reads (``held``) and when it has done with one (``release``). Frames are
    refilled in ring order, or each time from a random frame on once all are filled; held ones,
    pages on their way and prefetched pages whose turn has not come are passed over; a lookup may
    replace one of the latter after a fruitless turn, and waits for a word or a release if there is
    none. Pages that the client has not done with (``kept``) are passed over too, and replaced by
    lookups alone, after a second fruitless turn. The turn of a page that was prefetched d pages
    ahead is d lookups later: if it is not used then, the program went another way. If pages are
    read ``piecemeal`` only the first lookup of each fetched page counts, it is `SLACK` more, and
    prefetches reach half of the frames ahead, since other pages are still being read.
    A dirty page is written back before its frame is refilled, and nothing else is decided
    meanwhile.

    Latency: a lookup of a page that is there takes two cycles if the controller is idle; a
    candidate two cycles, and one for each frame passed over if it is fetched. Arrivals go before
    lookups, lookups before candidates.

    Parameters
    ----------
    storage: Sizes; how many frames there are is an input.
    piecemeal: The client looks the same pages up again and again, several at a time.

    Members
    -------
    control, prefetch, exact: Registers, see `PagePointer`. ``describe``, ``region``: likewise.
    lookup: `PageRef`; transferred when the page is there, in ``frame``.
    victim, held: The client reads frame ``victim``, or is about to: it must not be refilled.
    kept: The client is likely to read frame ``victim`` again soon.
    claimed: ``victim`` is about to be refilled: the client must not begin to read it now.
    release: A frame is no longer held.
    acknowledged: Words of fills that the channel has acknowledged in this cycle.
    peek, peek_valid, peek_reference: The client's next references.
    request, write, down: To and from the channel: `ReqFlit`, `UpFlit`, and `DownFlit`, never
        refused, those of others too.
    storage, writes, words: To and from the `StorageDevice`.
    flush: Write back all dirty pages while there is no lookup; ``flushed`` when that is done.
    unused: Frames with prefetched pages that nobody has looked up.
    quiet: Nothing happens before a word comes from storage, or the client acts.

    Counters
    --------
    lookups, hits (at once), demand_fetches, late (a lookup waited for a page that was prefetched),
    prefetches, useful, useless (evicted unused), fills (pages that arrived), evictions,
    write_backs.
    """

    def __init__(self, storage: Storage, piecemeal: bool = False):
        self._storage, self._piecemeal = storage, piecemeal
        self._slack = SLACK if piecemeal else 0
        super().__init__(
            {
                "control": In(StorageControl), "prefetch": In(PrefetchControl), "exact": In(1),
                "describe": In(1), "region": In(Region),
                "lookup": In(stream.Signature(PageRef)), "frame": Out(FRAME_BITS),
                "victim": Out(FRAME_BITS), "held": In(1), "kept": In(1),
                "claimed": Out(1), "release": In(1),
                "peek": Out(DISTANCE_BITS), "peek_valid": In(1), "peek_reference": In(PageRef),
                "request": Out(stream.Signature(ReqFlit)),
                "write": Out(stream.Signature(UpFlit)),
                "down": In(DownFlit), "down_valid": In(1), "acknowledged": In(8),
                "storage": Out(stream.Signature(StorageRequest)),
                "writes": Out(stream.Signature(page_word(storage))),
                "words": In(stream.Signature(frame_word(storage))),
                "flush": In(1), "flushed": Out(1), "quiet": Out(1), "unused": Out(FRAME_BITS + 1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.pointer = self._pointer = PagePointer(self._piecemeal)
        m.submodules.filler = self._filler = PageFiller(self._storage)
        m.submodules.cleaner = self._cleaner = PageReader(self._storage, CACHE)
        m.submodules.table = self._table = Memory(shape=FRAME_BITS, depth=1 << PAGE_BITS, init=[])
        m.submodules.frames = self._frames = Memory(
            shape=FrameState, depth=1 << FRAME_BITS, init=[])
        self._state = Signal(State)
        # The page in question, whether a lookup asks for it, and whether it is examined anew.
        self._reference, self._demand, self._again = Signal(PageRef), Signal(), Signal(init=1)
        self._victim, self._turned = Signal(FRAME_BITS), Signal(FRAME_BITS + 2)
        self._sweep = Signal(PAGE_BITS + 1)
        self._missed = Signal()
        # A kept page was passed over; a lookup found no frame; a frame was released since the
        # search for one began.
        self._passed, self._stuck, self._released = Signal(), Signal(), Signal()
        self._looked = Signal(TURN_BITS)
        self._random, self._filled = Signal(16, init=1), Signal(FRAME_BITS + 1)
        # No candidate finds a frame until something changes.
        self._full, self._flushing = Signal(), Signal()
        self._ports(m)
        self._connect(m)
        with m.Switch(self._state):
            for state, body in (
                (State.SWEEP, self._do_sweep), (State.IDLE, self._do_idle),
                (State.CHECK, self._do_check), (State.RING, self._do_ring),
                (State.CLEAN, self._do_clean), (State.FETCH, self._do_fetch),
                (State.COMPLETE, self._do_complete), (State.FLUSH, self._do_flush),
            ):
                with m.Case(state):
                    body(m)
        with m.If(self.release):
            m.d.sync += [self._released.eq(1), self._full.eq(0), self._stuck.eq(0)]
            with m.If(self._stuck):
                m.d.sync += self._again.eq(1)
        self._count(m)
        return m

    def _ports(self, m):
        """Views of table and frames. ``_seen``: the frame that the state looks at."""
        self._name, self._put = self._table.read_port(domain="comb"), self._table.write_port()
        self._view, self._keep = self._frames.read_port(domain="comb"), self._frames.write_port()
        self._seen, seen, kept = Signal(FRAME_BITS), self._view.data, self._keep.data
        self._there = Signal()
        checking = self._state == State.CHECK
        m.d.comb += [
            self._name.addr.eq(self._reference.page),
            self._seen.eq(Mux(checking, self._name.data, self._victim)),
            self._view.addr.eq(self._seen), self._keep.addr.eq(self._seen),
            kept.eq(seen),
            self._there.eq(seen.valid & (seen.page == self._reference.page)),
            self._put.addr.eq(self._reference.page), self._put.data.eq(self._victim),
        ]

    def _connect(self, m):
        pointer, filler, cleaner = self._pointer, self._filler, self._cleaner
        connect(m, flipped(self.prefetch), pointer.prefetch)
        connect(m, flipped(self.words), filler.words)
        connect(m, filler.write, flipped(self.write))
        connect(m, cleaner.request, flipped(self.request))
        m.d.comb += [cleaner.down.eq(self.down), cleaner.down_valid.eq(self.down_valid)]
        for name in ("exact", "describe", "region", "peek_valid", "peek_reference"):
            m.d.comb += getattr(pointer, name).eq(getattr(self, name))
        m.d.comb += [
            self.peek.eq(pointer.peek), filler.acknowledged.eq(self.acknowledged),
            self.victim.eq(self._victim),
            self.claimed.eq((self._state == State.CLEAN) | (self._state == State.FETCH)),
            pointer.frames.eq(self.control.frames >> self._piecemeal),
            pointer.unused.eq(self.unused),
            pointer.reference.eq(self.lookup.payload),
            self.writes.valid.eq(cleaner.word_valid), self.writes.payload.eq(cleaner.word),
            cleaner.frame.eq(self._victim),
            self.storage.payload.frame.eq(self._victim),
            self.frame.eq(self._seen),
        ]

    def _do_sweep(self, m):
        swept = self._sweep == (1 << PAGE_BITS) - 1
        m.d.comb += [
            self._put.addr.eq(self._sweep), self._put.data.eq(0), self._put.en.eq(1),
            self._keep.addr.eq(self._sweep), self._keep.data.eq(0), self._keep.en.eq(1),
        ]
        m.d.sync += self._sweep.eq(self._sweep + 1)
        with m.If(swept):
            m.d.sync += [self._state.eq(State.IDLE), self._victim.eq(0)]

    def _do_idle(self, m):
        asked = self.lookup.valid & self._again
        # A full queue keeps candidates waiting, never an unlucky lookup or arrival.
        proposed = self._pointer.valid & ~self._full & self.storage.ready & ~self.flush
        m.d.comb += self.quiet.eq(
            ~self._filler.filled.valid & self._filler.idle & ~asked & ~proposed
            & ~self._pointer.moving & (~self.flush | self.flushed))
        with m.If(self._filler.filled.valid):
            m.d.sync += self._state.eq(State.COMPLETE)
        with m.Elif(asked):
            m.d.comb += self._pointer.enter.eq(~self._missed)
            m.d.sync += [
                self._reference.eq(self.lookup.payload), self._demand.eq(1), self._again.eq(0),
                self._state.eq(State.CHECK),
            ]
        with m.Elif(proposed):
            m.d.sync += [
                self._reference.page.eq(self._pointer.page), self._demand.eq(0),
                self._state.eq(State.CHECK),
            ]
        with m.Elif(self.flush & ~self.lookup.valid & ~self.flushed):
            m.d.sync += [
                self._state.eq(State.FLUSH), self._turned.eq(0), self._flushing.eq(1)]

    def _do_check(self, m):
        seen, kept = self._view.data, self._keep.data
        self._grant, self._useful, self._wait = Signal(), Signal(), Signal()
        m.d.sync += [self._state.eq(State.IDLE), self._turned.eq(0), self._passed.eq(0)]
        with m.If(self._demand):
            m.d.sync += self._missed.eq(1)
            with m.If(~self._there):
                m.d.sync += [self._state.eq(State.RING), self._released.eq(0)]
            with m.Elif(seen.complete):
                m.d.comb += [
                    self._grant.eq(1), self.lookup.ready.eq(1), self._keep.en.eq(1),
                    self._useful.eq(seen.prefetched & ~seen.used),
                    kept.used.eq(1), kept.dirty.eq(seen.dirty | self._reference.write),
                ]
                m.d.sync += [self._missed.eq(0), self._again.eq(1), self._full.eq(0)]
            with m.Else():
                m.d.comb += self._wait.eq(~self._missed & seen.prefetched)
        with m.Elif(self._there):
            m.d.comb += self._pointer.step.eq(1)
        with m.Elif(self._pointer.fetch):
            m.d.sync += self._state.eq(State.RING)
        with m.Else():
            m.d.comb += self._pointer.refuse.eq(1)

    def _do_ring(self, m):
        """The next frame that may be refilled."""
        seen, frames = self._view.data, self.control.frames
        free, spare, gone = Signal(), Signal(), Signal(TURN_BITS)
        last, kept = Signal(range(3 << FRAME_BITS)), self.kept & (self._turned < 2 * frames)
        m.d.comb += [
            spare.eq(self._demand & (self._turned >= frames)),
            # One more: while a lookup waits, it is not counted yet.
            gone.eq(self._looked - seen.turn - 2),
            free.eq(~seen.valid | (seen.complete & ~self.held & ~kept
                                   & (seen.used | ~gone[-1] | spare))),
            last.eq(Mux(self._passed, 3 * frames, 2 * frames)),
        ]
        with m.If(free):
            m.d.sync += self._state.eq(Mux(seen.valid & seen.dirty, State.CLEAN, State.FETCH))
        with m.Else():
            self._next(m)
            m.d.sync += [self._turned.eq(self._turned + 1),
                         self._passed.eq(self._passed | self.kept)]
            urgent = self._filler.filled.valid | (self.lookup.valid & self._again)
            with m.If(self._demand & (self._turned == last)):
                # All frames await words or are held: try again when one is not.
                retry = self._released | self.release
                m.d.sync += [
                    self._state.eq(State.IDLE), self._again.eq(retry), self._stuck.eq(~retry)]
            with m.Elif(~self._demand & (urgent | (self._turned == frames))):
                m.d.sync += [self._state.eq(State.IDLE), self._full.eq(~urgent)]

    def _next(self, m):
        last = self._victim + 1 >= self.control.frames
        m.d.sync += self._victim.eq(Mux(last, 0, self._victim + 1))

    def _jump(self, m):
        """After a fetch the next search begins at a random frame: an xorshift register steps."""
        frames, any_frame = self.control.frames, Signal(FRAME_BITS)
        steps = [self._random]
        for shift in (7, -9, 8):
            before = steps[-1]
            moved = before << shift if shift > 0 else before >> -shift
            steps.append(before ^ moved[:16])
        m.d.comb += any_frame.eq((steps[-1] * frames) >> 16)
        m.d.sync += self._random.eq(steps[-1])
        with m.If(self._filled + 1 < frames):
            m.d.sync += self._filled.eq(self._filled + 1)
        with m.Elif(self.control.random):
            m.d.sync += self._victim.eq(any_frame)

    def _do_clean(self, m):
        """Request the write, then read the frame."""
        seen, cleaner = self._view.data, self._cleaner
        self._cleaning, self._cleaned = Signal(), Signal()
        m.d.comb += [
            self.storage.payload.write.eq(1), self.storage.payload.page.eq(seen.page),
            self.storage.valid.eq(~self._cleaning),
        ]
        with m.If(self.storage.valid & self.storage.ready):
            m.d.comb += cleaner.start.eq(1)
            m.d.sync += self._cleaning.eq(1)
        with m.If(cleaner.done):
            m.d.comb += [
                self._cleaned.eq(1), self._keep.en.eq(1), self._keep.data.dirty.eq(0)]
            m.d.sync += [
                self._cleaning.eq(0),
                self._state.eq(Mux(self._flushing, State.FLUSH, State.FETCH)),
            ]

    def _do_fetch(self, m):
        seen, kept = self._view.data, self._keep.data
        self._fetched, self._evicted, self._useless = Signal(), Signal(), Signal()
        m.d.comb += [
            self.storage.valid.eq(1), self.storage.payload.page.eq(self._reference.page)]
        with m.If(self.held):
            # Since the ring was searched its client began to read it.
            m.d.comb += self.storage.valid.eq(0)
            m.d.sync += self._state.eq(State.RING)
        with m.Elif(self.storage.ready):
            m.d.comb += [
                self._fetched.eq(1), self._evicted.eq(seen.valid),
                self._useless.eq(seen.valid & seen.prefetched & ~seen.used),
                self._put.en.eq(1), self._keep.en.eq(1), kept.eq(0),
                kept.page.eq(self._reference.page), kept.valid.eq(1),
                kept.prefetched.eq(~self._demand),
                kept.turn.eq(
                    self._looked + Mux(self._demand, 1, self._pointer.distance + self._slack)),
                self._pointer.step.eq(~self._demand),
            ]
            self._next(m)
            self._jump(m)
            m.d.sync += self._state.eq(State.IDLE)

    def _do_complete(self, m):
        filled = self._filler.filled
        m.d.comb += [
            self._view.addr.eq(filled.payload), self._keep.addr.eq(filled.payload),
            self._keep.en.eq(1), self._keep.data.complete.eq(1), filled.ready.eq(1),
        ]
        m.d.sync += [
            self._again.eq(1), self._full.eq(0), self._stuck.eq(0), self._state.eq(State.IDLE)]

    def _do_flush(self, m):
        seen = self._view.data
        with m.If(self._turned == self.control.frames):
            m.d.sync += [
                self.flushed.eq(1), self._flushing.eq(0), self._state.eq(State.IDLE)]
        with m.Elif(seen.valid & seen.dirty):
            m.d.sync += self._state.eq(State.CLEAN)
        with m.Else():
            self._next(m)
            m.d.sync += self._turned.eq(self._turned + 1)

    def _count(self, m):
        asked = self._grant
        counted = asked & ~self._view.data.used if self._piecemeal else asked
        m.d.sync += self._looked.eq(self._looked + counted)
        began = self._fetched & ~self._demand
        wasted = self._useless
        m.d.sync += self.unused.eq(self.unused + began - self._useful - wasted)
        for name, amount in {
            "lookups": asked,
            "hits": asked & ~self._missed,
            "demand_fetches": self._fetched & self._demand,
            "late": self._wait,
            "prefetches": began,
            "useful": self._useful,
            "useless": wasted,
            "fills": self._filler.filled.valid & self._filler.filled.ready,
            "evictions": self._evicted,
            "write_backs": self._cleaned,
        }.items():
            count(m, name, amount)
