# SPDX-License-Identifier: Apache-2.0
"""Data of issued columns: what is on the data bus when."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from emu.config import Hbm
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.hbm.ecc import WORD_CHECK_BITS, Corrector, Injector
from hdl.hbm.packets import BeatAddress, ReadWord, WriteItem, read_item
from hdl.packets import WORD_BITS

ROOM = 32
"""Words of the response queue: more than a read's latency, so that it never limits the rate."""


class Delayed(wiring.Component):
    """Two beats, ``delay`` and ``delay`` + 1 cycles after each start, with the item of the start.

    Starts are at least two cycles apart.

    Members
    -------
    start, item: The event. ``valid``, ``beat``, ``o``: A beat of the item ``o``.
    """

    def __init__(self, shape, delay: int):
        self._shape, self._delay = shape, delay
        super().__init__(
            {"start": In(1), "item": In(shape), "valid": Out(1), "beat": Out(1), "o": Out(shape)}
        )

    def elaborate(self, platform):
        m = Module()
        bits = ceil_log2(self._delay + 2)
        m.submodules.items = items = Memory(shape=self._shape, depth=1 << bits, init=[])
        write, read = items.write_port(), items.read_port(domain="comb")
        now, started = Signal(bits), Signal(self._delay + 1)
        m.d.sync += [now.eq(now + 1), started.eq(Cat(self.start, started))]
        m.d.comb += [
            write.addr.eq(now), write.data.eq(self.item), write.en.eq(self.start),
            self.beat.eq(started[self._delay]),
            self.valid.eq(started[self._delay - 1] | self.beat),
            read.addr.eq(now - self._delay - self.beat),
            self.o.eq(read.data),
        ]
        return m


class ReadPath(wiring.Component):
    """Takes the wanted words of each read from the bus and queues them for the mesh.

    A word is at ``o`` one cycle after it was on the bus, with ECC two. ``room`` counts words of
    columns issued, so that the queue never overflows; it is given in advance for a whole column.

    Parameters
    ----------
    delay: From ``issue`` to the first word on ``bus``.
    hbm: With ``hbm.ecc`` words are corrected, and those read for a masked write go to ``patch``.

    Members
    -------
    issue, item: A column read is issued. ``room``: One may be.
    bus: The DRAM's data. ``o``: Words. ``idle``: No word is on its way.
    check: With ECC, the check bits of ``bus``. ``patch``, ``patch_beat``, ``patch_data``: A word
        for a masked write.

    Counters
    --------
    With ECC, of the code words wanted: corrected, uncorrectable.
    """

    def __init__(self, delay: int, hbm: Hbm):
        self._delay, self._hbm = delay, hbm
        more = {
            "check": In(WORD_CHECK_BITS), "patch": Out(1), "patch_beat": Out(BeatAddress),
            "patch_data": Out(WORD_BITS),
        }
        super().__init__(
            {
                "issue": In(1), "item": In(read_item(hbm.ecc)), "room": Out(1),
                "bus": In(WORD_BITS), "o": Out(stream.Signature(ReadWord)), "idle": Out(1),
            } | (more if hbm.ecc else {})
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.flight = flight = Delayed(
            read_item(self._hbm.ecc), self._delay)
        m.submodules.words = words = Fifo(ReadWord, ROOM)
        free, taken = Signal(range(ROOM + 1), init=ROOM), Signal(2)
        item = flight.o
        m.d.comb += [
            flight.start.eq(self.issue), flight.item.eq(self.item),
            self.room.eq(free >= 2),
            self.idle.eq(free == ROOM),
        ]
        wanted, index = item.words.bit_select(flight.beat, 1), Cat(flight.beat, item.index)
        if self._hbm.ecc:
            self._correct(m, words.i, flight.valid & wanted, item, index)
        else:
            m.d.comb += [
                words.i.valid.eq(flight.valid & wanted),
                words.i.payload.data.eq(self.bus),
                words.i.payload.tag.eq(item.tag),
                words.i.payload.index.eq(index),
            ]
        reading = ~self.item.patch if self._hbm.ecc else 1
        with m.If(self.issue & reading):
            m.d.comb += taken.eq(self.item.words[0] + self.item.words[1])
        m.d.sync += free.eq(free - taken + (self.o.valid & self.o.ready))
        wiring.connect(m, words.o, wiring.flipped(self.o))
        return m

    def _correct(self, m, o, valid, item, index):
        """Through the corrector into a register, and from there to the mesh or to a write."""
        m.submodules.corrector = corrector = Corrector()
        data, check = self.bus, self.check
        if self._hbm.injection:
            m.submodules.injector = injector = Injector(*self._hbm.injection)
            m.d.comb += [
                injector.valid.eq(valid), injector.data.eq(data), injector.check.eq(check),
            ]
            data, check = injector.o, injector.o_check
        came, patch = Signal(), Signal()
        m.d.comb += [
            corrector.data.eq(data), corrector.check.eq(check),
            o.valid.eq(came & ~patch),
            self.patch.eq(came & patch),
            self.patch_data.eq(o.payload.data),
            # Write buffer addresses name the column within its line.
            self.patch_beat.beat.eq(o.payload.index[0]),
            self.patch_beat.half.eq(o.payload.index[1]),
            self.patch_beat.slot.eq(o.payload.tag),
        ]
        m.d.sync += came.eq(valid)
        with m.If(valid):
            m.d.sync += [
                patch.eq(item.patch), o.payload.data.eq(corrector.o), o.payload.tag.eq(item.tag),
                o.payload.index.eq(index),
            ]
        for name in ("corrected", "uncorrectable"):
            bits = getattr(corrector, name)
            count(m, name, Mux(valid, sum(bits[i] for i in range(len(bits))), 0))


class WritePath(wiring.Component):
    """Fetches the words of each write from the write buffer when the bus needs them.

    Members
    -------
    issue, item: A column write is issued. ``fetch``, ``beat``: A word is on the bus now; its
    place in the write buffer, which answers in the same cycle. ``idle``: None will be.
    """

    def __init__(self, delay: int):
        self._delay = delay
        super().__init__(
            {
                "issue": In(1), "item": In(WriteItem), "fetch": Out(1), "beat": Out(BeatAddress),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shape = BeatAddress
        m.submodules.flight = flight = Delayed(shape, self._delay)
        left = Signal(range(self._delay + 3))
        m.d.comb += [
            flight.start.eq(self.issue),
            flight.item.half.eq(self.item.half),
            flight.item.slot.eq(self.item.slot),
            self.fetch.eq(flight.valid),
            self.beat.eq(flight.o),
            self.beat.beat.eq(flight.beat),
            self.idle.eq(left == 0),
        ]
        with m.If(self.issue):
            m.d.sync += left.eq(self._delay + 2)
        with m.Elif(~self.idle):
            m.d.sync += left.eq(left - 1)
        return m
