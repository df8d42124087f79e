# SPDX-License-Identifier: Apache-2.0
"""Data of issued columns: what is on the data bus when."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hdl.fifo import Fifo
from hdl.hbm.packets import BeatAddress, ReadItem, ReadWord, WriteItem
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

    A word is at ``o`` one cycle after it was on the bus. ``room`` counts words of columns issued,
    so that the queue never overflows; it is given in advance for a whole column.

    Parameters
    ----------
    delay: From ``issue`` to the first word on ``bus``.

    Members
    -------
    issue, item: A column read is issued. ``room``: One may be.
    bus: The DRAM's data. ``o``: Words. ``idle``: No word is on its way.
    """

    def __init__(self, delay: int):
        self._delay = delay
        super().__init__(
            {
                "issue": In(1), "item": In(ReadItem), "room": Out(1), "bus": In(WORD_BITS),
                "o": Out(stream.Signature(ReadWord)), "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.flight = flight = Delayed(ReadItem, self._delay)
        m.submodules.words = words = Fifo(ReadWord, ROOM)
        free, taken = Signal(range(ROOM + 1), init=ROOM), Signal(2)
        item = flight.o
        m.d.comb += [
            flight.start.eq(self.issue), flight.item.eq(self.item),
            words.i.valid.eq(flight.valid & item.words.bit_select(flight.beat, 1)),
            words.i.payload.data.eq(self.bus),
            words.i.payload.tag.eq(item.tag),
            words.i.payload.index.eq(Cat(flight.beat, item.index)),
            self.room.eq(free >= 2),
            self.idle.eq(free == ROOM),
        ]
        with m.If(self.issue):
            m.d.comb += taken.eq(self.item.words[0] + self.item.words[1])
        m.d.sync += free.eq(free - taken + (self.o.valid & self.o.ready))
        wiring.connect(m, words.o, wiring.flipped(self.o))
        return m


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
