# SPDX-License-Identifier: Apache-2.0
"""Assembles 16-byte writes of many tiles into 64-byte lines."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect

from hdl.fifo import Fifo
from hdl.hbm.packets import LINE_BITS, SLOT_BITS, BeatAddress, line_write
from hdl.hbm.pool import Pool
from hdl.hbm.requests import Ack
from hdl.packets import WORD_BITS, UpFlit

SLOTS = 1 << SLOT_BITS
WAYS = 4
FULL = 16
"""A line is flushed after this many writes at the latest."""

def write_flit(fills: bool) -> data.StructLayout:
    """`UpFlit`; with ``fills`` also whether it comes from storage: all other numbers are tiles'."""
    return data.StructLayout(UpFlit.members | {"fill": 1}) if fills else UpFlit


def ack_layout(fills: bool) -> data.StructLayout:
    """`Ack`; with ``fills`` also whether storage is to have it."""
    return data.StructLayout(Ack.members | {"fill": 1}) if fills else Ack


def flushed_layout(ecc: bool, fills: bool) -> data.StructLayout:
    """A line to write and whom to acknowledge how many words."""
    return data.StructLayout({"write": line_write(ecc), "ack": ack_layout(fills)})


Way = data.StructLayout({"source": 9, "line": LINE_BITS, "slot": SLOT_BITS, "words": 5})


class WriteAssembler(wiring.Component):
    """Four lines being assembled, each of one source tile, in a write buffer of 64 lines.

    A write goes straight to its place in the buffer: one per cycle, as long as its source stays in
    its line. A line is flushed (its descriptor sent, its data stays) when all its bytes are
    written, when its source writes another line (one more cycle), when ``last`` is set, after 16
    writes, or when a fifth source needs its place. The buffer's line is free again when all its
    columns were fetched.

    Members
    -------
    i: `write_flit`. ``o``: Flushed lines: what to write and whom to acknowledge how many words.
    fetch, beat, data, mask: A word is fetched for the DRAM; the buffer answers in the same cycle.
    idle: Nothing is being assembled or waits at ``o``. ``starved``: The buffer is full.

    Parameters
    ----------
    ecc: Lines tell which of their columns are not written whole.
    fills: Storage is a source too.
    """

    def __init__(self, ecc: bool = False, fills: bool = False):
        self._ecc, self._fills = ecc, fills
        self._flit, self._flushed_layout = write_flit(fills), flushed_layout(ecc, fills)
        super().__init__(
            {
                "i": In(stream.Signature(self._flit)),
                "o": Out(stream.Signature(self._flushed_layout)),
                "fetch": In(1), "beat": In(BeatAddress), "data": Out(WORD_BITS), "mask": Out(16),
                "idle": Out(1), "starved": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.input = incoming = Fifo(self._flit, 2)
        m.submodules.flushed = self._flushed = Fifo(self._flushed_layout, 4)
        m.submodules.pool = self._pool = Pool(SLOTS)
        connect(m, wiring.flipped(self.i), incoming.i)
        connect(m, self._flushed.o, wiring.flipped(self.o))
        valid = Signal(WAYS)
        m.d.comb += [
            self.idle.eq(~(valid.any() | incoming.o.valid | self.o.valid)),
            self.starved.eq(~self._pool.available),
        ]
        self._buffer(m, incoming.o)
        self._release(m)
        self._assemble(m, incoming.o, valid)
        return m

    def _buffer(self, m, flit):
        """Data and byte masks; the ports that take a write and answer a fetch."""
        m.submodules.words = words = Memory(shape=WORD_BITS, depth=4 * SLOTS, init=[])
        m.submodules.masks = masks = Memory(shape=64, depth=SLOTS, init=[])
        write, read = words.write_port(), words.read_port(domain="comb")
        before = words.read_port(domain="comb")
        keep, old = masks.write_port(), masks.read_port(domain="comb")
        mask = masks.read_port(domain="comb")
        self._slot, self._taken, self._new = Signal(SLOT_BITS), Signal(), Signal()
        self._mask, chosen = Signal(64), Signal(WORD_BITS)
        part, payload = flit.payload.address[:2], flit.payload
        m.d.comb += [
            write.addr.eq(Cat(part, self._slot)),
            # Merging costs less simulation time than sixteen write enables.
            before.addr.eq(write.addr),
            write.data.eq((payload.data & chosen) | (before.data & ~chosen)),
            write.en.eq(self._taken),
            chosen.eq(Cat(bit.replicate(8) for bit in payload.mask)),
            old.addr.eq(self._slot),
            self._mask.eq(Mux(self._new, 0, old.data)
                          | Mux(self._taken, payload.mask << Cat(Const(0, 4), part), 0)),
            keep.addr.eq(self._slot), keep.data.eq(self._mask), keep.en.eq(self._taken),
            read.addr.eq(Cat(self.beat.beat, self.beat.half, self.beat.slot)),
            self.data.eq(read.data),
            mask.addr.eq(self.beat.slot),
            self.mask.eq(mask.data.word_select(Cat(self.beat.beat, self.beat.half), 16)),
        ]

    def _release(self, m):
        """A slot is free when the last beat of its last column was fetched."""
        m.submodules.left = left = Memory(shape=1, depth=SLOTS, init=[])
        start, less = left.write_port(), left.write_port()
        more = left.read_port(domain="comb")
        done, flushed = Signal(), self._flushed.i
        m.d.comb += [
            more.addr.eq(self.beat.slot),
            done.eq(self.fetch & self.beat.beat),
            start.addr.eq(flushed.payload.write.slot),
            start.data.eq(flushed.payload.write.halves.all()),
            start.en.eq(flushed.valid & flushed.ready),
            less.addr.eq(self.beat.slot), less.data.eq(0), less.en.eq(done & more.data),
            self._pool.give.eq(done & ~more.data), self._pool.given.eq(self.beat.slot),
        ]

    def _assemble(self, m, flit, valid):
        """What becomes of the write at the head of the input."""
        payload, pool, flushed = flit.payload, self._pool, self._flushed
        fill = payload.fill if self._fills else Const(0, 1)
        source, line = Cat(payload.source_x, payload.source_y, fill), payload.address[2:]
        m.submodules.ways = ways = Memory(shape=Way, depth=WAYS, init=[])
        keep, look = ways.write_port(), ways.read_port(domain="comb")
        match, way = Signal(WAYS), look.data
        for number in range(WAYS):
            compare = ways.read_port(domain="comb")
            m.d.comb += [
                compare.addr.eq(number),
                match[number].eq(valid[number] & (compare.data.source == source)),
            ]
        known, merge, room, chosen = Signal(), Signal(), Signal(), Signal(range(WAYS))
        victim, complete, flush = Signal(range(WAYS)), Signal(), Signal()
        words, place = Signal(5), Signal(WAYS)
        m.d.comb += [
            known.eq(match.any()),
            chosen.eq(Mux(known, Cat(match[1] | match[3], match[2] | match[3]), victim)),
            look.addr.eq(chosen), keep.addr.eq(chosen), place.eq(1 << chosen),
            merge.eq(known & (way.line == line)),
            room.eq(flushed.i.ready),
            self._new.eq((valid & place) == 0),
            self._slot.eq(Mux(self._new, pool.slot, way.slot)),
            words.eq(Mux(self._new, 0, way.words) + 1),
            # Flushes need room in the descriptor queue: any write waits until there is some.
            self._taken.eq(flit.valid & room & Mux(self._new, pool.available, merge)),
            flit.ready.eq(room & Mux(self._new, pool.available, merge)),
            complete.eq(self._taken & (payload.last | self._mask.all() | (words == FULL))),
            # A known source in another line, or an unknown one whose place is occupied.
            flush.eq(flit.valid & ~self._new & ~merge),
        ]
        self._flush(m, payload, way, words, complete, flush)
        m.d.comb += [
            keep.data.source.eq(source), keep.data.line.eq(line),
            keep.data.slot.eq(self._slot), keep.data.words.eq(words),
            keep.en.eq(self._taken),
        ]
        with m.If(self._taken & ~complete):
            m.d.sync += valid.eq(valid | place)
        with m.Elif(complete | (flush & room)):
            m.d.sync += valid.eq(valid & ~place)
        # Places are taken in turn, empty or not: a source that stays silent loses its place.
        with m.If(self._taken & self._new & ~known):
            m.d.sync += victim.eq(victim + 1)
        m.d.comb += pool.take.eq(self._taken & self._new)

    def _flush(self, m, payload, way, words, complete, flush):
        """Descriptor of a line that is complete with this write, or that must make room."""
        o = self._flushed.i
        halves = Signal(2)
        m.d.comb += [
            o.valid.eq(complete | flush),
            halves.eq(Cat(self._mask[:32].any(), self._mask[32:].any())),
            o.payload.write.slot.eq(self._slot),
            o.payload.write.halves.eq(Mux(halves.any(), halves, 1)),
            o.payload.write.line.eq(Mux(complete, payload.address[2:], way.line)),
            o.payload.ack.x.eq(Mux(complete, payload.source_x, way.source[:4])),
            o.payload.ack.y.eq(Mux(complete, payload.source_y, way.source[4:8])),
            o.payload.ack.words.eq(Mux(complete, words, way.words)),
        ]
        if self._fills:
            m.d.comb += o.payload.ack.fill.eq(Mux(complete, payload.fill, way.source[8]))
        if self._ecc:
            whole = Cat(self._mask[:32].all(), self._mask[32:].all())
            m.d.comb += o.payload.write.partial.eq(o.payload.write.halves & ~whole)
