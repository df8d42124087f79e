# SPDX-License-Identifier: Apache-2.0
"""Lists of numbers: which occur, and where each is. So experts are fetched once for all tokens."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from emu.isa import ABSENT, VectorOp
from hdl.packets import SPAD_BITS, WORD_BITS
from hdl.ports import ScratchpadRead, ScratchpadWrite
from hdl.vector.walker import VectorCommand

ROUTE_OPERATIONS = (VectorOp.DISTINCT, VectorOp.PLACES, VectorOp.RETAIN, VectorOp.SORT)
MOST = 16
"""Numbers are below this: a bit each in the table of those that occur."""
PLACES = 4
"""Of a word."""
ENTRY_BITS = 32


class RouteEngine(wiring.Component):
    """Runs DISTINCT, RETAIN, PLACES and SORT of `emu.isa.VectorOp`, one command at a time.

    Where the ports refuse nothing DISTINCT takes 2*pixels + groups + 2 cycles, RETAIN 2*pixels +
    6*groups + 5, PLACES 2*pixels + 4 and one for each word written; SORT 2*pixels + 3, 2*pixels for
    each number that occurs, 2 for each block and up to 3 for each four rows.

    Members
    -------
    command: Commands; ready when idle.
    done: Pulse: the command's last word is in the scratchpad.
    read, write: Scratchpad ports.
    busy: A command is in the engine.
    """

    command: In(stream.Signature(VectorCommand))
    done: Out(1)
    read: Out(ScratchpadRead)
    write: Out(ScratchpadWrite)
    busy: Out(1)

    def elaborate(self, platform):
        m = Module()
        self._command = Signal(VectorCommand)
        self._pixel, self._out, self._near = Signal(16), Signal(SPAD_BITS), Signal(SPAD_BITS)
        self._present, self._left = Signal(MOST), Signal(12)
        self._needed, self._slot, self._next = Signal(MOST), Signal(range(MOST)), Signal(5)
        self._number, self._entries = Signal(ENTRY_BITS), Signal(WORD_BITS)
        self._filled, self._place = Signal(range(PLACES)), Signal(ENTRY_BITS)
        self._sources, self._rows = Signal(WORD_BITS), Signal(14)
        self._at_place, self._at_source = Signal(SPAD_BITS), Signal(SPAD_BITS)
        self._ends = Signal()
        given, request, busy = self.command.payload, self.read.request, Signal()
        m.d.comb += [
            request.payload.eq(self._near), self.busy.eq(busy),
            self.write.request.payload.address.eq(self._out),
            self.command.ready.eq(~busy),
        ]
        m.d.sync += self.done.eq(0)
        self._nowhere, self._lowest = self._behind_all(m), self._lowest_present(m)
        with m.FSM():
            with m.State("IDLE"), m.If(self.command.valid & self.command.ready):
                m.d.sync += [
                    self._command.eq(given), busy.eq(1), self._pixel.eq(0), self._present.eq(0),
                    self._out.eq(given.out), self._near.eq(given.base), self._filled.eq(0),
                    self._place.eq(0), self._left.eq(given.groups),
                    self._at_place.eq(given.b_base), self._at_source.eq(given.table),
                ]
                m.next = "FETCH"
                with m.If(given.op == VectorOp.PLACES):
                    m.d.sync += self._near.eq(given.b_base)
                    m.next = "NUMBER"
            with m.State("NUMBER"):
                m.d.comb += request.valid.eq(1)
                with m.If(request.ready):
                    m.next = "KEEP"
            with m.State("KEEP"):
                m.d.sync += [self._number.eq(self.read.data[:ENTRY_BITS]),
                             self._near.eq(self._command.base)]
                m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += request.valid.eq(1)
                with m.If(request.ready):
                    m.d.sync += self._near.eq(self._near + self._command.step)
                    m.next = "TAKE"
            self._take(m)
            self._numbers(m, busy)
            self._places(m, busy)
            self._held(m)
            self._retain(m, busy)
            self._sort(m, busy)
            self._sorted(m)
        return m

    def _take(self, m):
        """A word of the list: numbers that occur, or where one is."""
        c, word = self._command, self.read.data
        wanted = [c.k > j for j in range(PLACES)]
        numbers = [word.word_select(j, ENTRY_BITS) for j in range(PLACES)]
        found = Const(0, MOST)
        for number, want in zip(numbers, wanted, strict=True):
            found = found | Mux(want, (Const(1, MOST) << number[:4])[:MOST], 0)
        everything = ((Const(1, MOST + 1) << c.channels[:5]) - 1)[:MOST]
        hits = Cat(want & (number == self._number)
                   for number, want in zip(numbers, wanted, strict=True))
        nowhere, place = self._nowhere, self._place
        first, one = Signal(2), Signal(ENTRY_BITS)
        m.d.comb += first.eq(Mux(hits[0], 0, Mux(hits[1], 1, Mux(hits[2], 2, 3))))
        m.d.comb += one.eq(Mux(hits.any(), place + first, nowhere))
        each = [Mux(hits[j], place + j, nowhere)[:ENTRY_BITS] for j in range(PLACES)]
        last, full = Signal(), Signal()
        count = Mux(c.b_mode[0], c.k, 1)
        m.d.comb += [last.eq(self._pixel == c.pixels - 1), full.eq(self._filled + count >= PLACES)]
        with m.State("TAKE"):
            m.d.sync += [self._pixel.eq(self._pixel + 1), self._place.eq(place + c.k)]
            m.next = "FETCH"
            with m.If(c.op != VectorOp.PLACES):
                occurs = Mux(c.causal, everything, self._present | found)
                m.d.sync += [self._present.eq(occurs), self._needed.eq(occurs)]
                with m.If(last):
                    m.next = "NUMBERS"
                    with m.If(c.op == VectorOp.RETAIN):
                        m.d.sync += self._near.eq(c.table)
                        m.next = "POINTER"
                    with m.If(c.op == VectorOp.SORT):
                        m.next = "BLOCK"
            with m.Else():
                for j in range(PLACES):
                    with m.If(self._filled == j):
                        m.d.sync += self._entries[ENTRY_BITS * j :].eq(Mux(
                            c.b_mode[0], Cat(*each), Cat(one, *[nowhere] * (PLACES - 1))))
                m.d.sync += self._filled.eq(self._filled + count)
                with m.If(full | last):
                    m.next = "PLACES"

    def _behind_all(self, m):
        """Entry of what is not there: behind all places."""
        nowhere = Signal(ENTRY_BITS)
        c = self._command
        with m.Switch(c.k):
            for k in range(1, PLACES + 1):
                with m.Case(k):
                    m.d.comb += nowhere.eq(c.pixels * k)
        return nowhere

    def _lowest_present(self, m):
        lowest = Signal(range(MOST))
        with m.Switch(self._needed):
            for k in range(MOST):
                with m.Case("-" * (MOST - 1 - k) + "1" + "0" * k):
                    m.d.comb += lowest.eq(k)
        return lowest

    def _numbers(self, m, busy):
        """The numbers that occur, lowest first."""
        with m.State("NUMBERS"):
            m.d.comb += [
                self.write.request.valid.eq(1),
                self.write.request.payload.data.eq(
                    Mux(self._needed.any(), self._lowest, Const(ABSENT, ENTRY_BITS))),
            ]
            with m.If(self.write.request.ready):
                m.d.sync += [
                    self._needed.eq(self._needed & (self._needed - 1)),
                    self._out.eq(self._out + 1), self._left.eq(self._left - 1),
                ]
                with m.If(self._left == 1):
                    m.d.sync += [self.done.eq(1), busy.eq(0)]
                    m.next = "IDLE"

    def _places(self, m, busy):
        """A word of entries."""
        with m.State("PLACES"):
            m.d.comb += [self.write.request.valid.eq(1),
                         self.write.request.payload.data.eq(self._entries)]
            with m.If(self.write.request.ready):
                m.d.sync += [self._out.eq(self._out + 1), self._filled.eq(0)]
                m.next = "FETCH"
                with m.If(self._pixel == self._command.pixels):
                    m.d.sync += [self.done.eq(1), busy.eq(0)]
                    m.next = "IDLE"

    def _holds(self):
        """Whether the slot just read holds a number that occurs."""
        number = self.read.data[:ENTRY_BITS]
        return (number < MOST) & self._present.bit_select(number[:4], 1)

    def _held(self, m):
        """RETAIN: where to begin, and what is needed that no slot holds."""
        c, request, number = self._command, self.read.request, self.read.data[:4]
        with m.State("POINTER"):
            m.d.comb += request.valid.eq(1)
            with m.If(request.ready):
                m.next = "BEGIN"
        with m.State("BEGIN"):
            m.d.sync += [self._slot.eq(number), self._next.eq(number), self._near.eq(c.b_base)]
            m.next = "HELD"
        with m.State("HELD"):
            m.d.comb += request.valid.eq(1)
            with m.If(request.ready):
                m.d.sync += [self._near.eq(self._near + 1), self._left.eq(self._left - 1)]
                m.next = "LOOK"
        with m.State("LOOK"):
            with m.If(self._holds()):
                m.d.sync += self._needed.eq(self._needed & ~(Const(1, MOST) << number)[:MOST])
            m.next = "HELD"
            with m.If(self._left == 0):
                m.d.sync += [self._left.eq(c.groups), self._near.eq(c.b_base + self._slot)]
                m.next = "SLOT"

    def _retain(self, m, busy):
        """RETAIN: slot by slot from the pointer on: the number it holds, what it awaits."""
        c, request, write = self._command, self.read.request, self.write.request
        absent, after = Const(ABSENT, ENTRY_BITS), Signal(5)
        m.d.comb += after.eq(Mux(self._slot + 1 == c.groups, 0, self._slot + 1))
        with m.State("SLOT"):
            m.d.comb += request.valid.eq(1)
            with m.If(request.ready):
                m.next = "CHOOSE"
        with m.State("CHOOSE"):
            number = self.read.data[:ENTRY_BITS]
            takes = ~self._holds() & self._needed.any()
            m.d.sync += [
                self._number.eq(Mux(takes, self._lowest, number)),
                self._out.eq(c.b_base + self._slot),
                self._entries[:ENTRY_BITS].eq(Mux(takes, self._lowest, absent)),
            ]
            with m.If(takes):
                m.d.sync += [self._needed.eq(self._needed & (self._needed - 1)),
                             self._next.eq(after)]
            m.next = "HOLD"
        with m.State("HOLD"):
            m.d.comb += [write.valid.eq(1), write.payload.data.eq(self._number)]
            with m.If(write.ready):
                m.d.sync += self._out.eq(c.out + self._slot)
                m.next = "AWAIT"
        with m.State("AWAIT"):
            m.d.comb += [write.valid.eq(1),
                         write.payload.data.eq(self._entries[:ENTRY_BITS])]
            with m.If(write.ready):
                m.d.sync += [self._slot.eq(after), self._near.eq(c.b_base + after),
                             self._left.eq(self._left - 1)]
                m.next = "SLOT"
                with m.If(self._left == 1):
                    m.d.sync += self._out.eq(c.table)
                    m.next = "KEEP_POINTER"
        with m.State("KEEP_POINTER"):
            m.d.comb += [write.valid.eq(1), write.payload.data.eq(self._next)]
            with m.If(write.ready):
                m.d.sync += [self.done.eq(1), busy.eq(0)]
                m.next = "IDLE"

    def _sort(self, m, busy):
        """SORT: the next number's block, and its words of the list."""
        c, request, write = self._command, self.read.request, self.write.request
        word = self.read.data
        hits = Cat((c.k > j) & (word.word_select(j, ENTRY_BITS) == self._number)
                   for j in range(PLACES))
        full, place = Signal(), Signal(ENTRY_BITS)
        first = Mux(hits[0], 0, Mux(hits[1], 1, Mux(hits[2], 2, 3)))
        m.d.comb += [full.eq(self._rows == c.height), place.eq(self._place + first)]
        with m.State("BLOCK"):
            m.d.sync += [
                self._ends.eq(~self._needed.any()), self._pixel.eq(0), self._place.eq(0),
                self._near.eq(c.base), self._needed.eq(self._needed & (self._needed - 1)),
                self._number.eq(Mux(self._needed.any(), self._lowest, Const(ABSENT, ENTRY_BITS))),
            ]
            m.next = "HEAD"
        with m.State("HEAD"):
            with m.If(self._left == 0):
                m.d.sync += [self.done.eq(1), busy.eq(0)]
                m.next = "IDLE"
            with m.Else():
                m.d.comb += [write.valid.eq(1), write.payload.data.eq(self._number)]
                with m.If(write.ready):
                    m.d.sync += [self._out.eq(self._out + 1), self._left.eq(self._left - 1),
                                 self._rows.eq(0)]
                    m.next = "LOOK_UP"
                    with m.If(self._ends):
                        m.next = "FILL"
        with m.State("LOOK_UP"):
            m.d.comb += request.valid.eq(1)
            with m.If(request.ready):
                m.next = "ROW"
        with m.State("ROW"):
            m.next = "LOOK_UP"
            with m.If(hits.any() & full):  # the same word again, for another block
                m.next = "HEAD"
            with m.Else():
                m.d.sync += [
                    self._near.eq(self._near + c.step), self._pixel.eq(self._pixel + 1),
                    self._place.eq(self._place + c.k),
                ]
                with m.If(self._pixel == c.pixels - 1):
                    m.d.sync += self._ends.eq(1)
                    m.next = "FILL"
                with m.If(hits.any()):
                    self._append(m, place, Mux(c.b_mode[0], place, self._pixel))
                    with m.If(self._filled == PLACES - 1):
                        m.next = "ROW_PLACES"

    def _append(self, m, place, source):
        """A row, behind those of the word that is made."""
        for j in range(PLACES):
            with m.If(self._filled == j):
                m.d.sync += [self._entries.word_select(j, ENTRY_BITS).eq(place),
                             self._sources.word_select(j, ENTRY_BITS).eq(source)]
        m.d.sync += [self._filled.eq(self._filled + 1), self._rows.eq(self._rows + 1)]

    def _sorted(self, m):
        """SORT: four rows' words, and rows without a place up to the end of a block."""
        write, c = self.write.request, self._command
        with m.State("FILL"):
            with m.If(self._rows == c.height):
                m.next = "BLOCK"
            with m.Else():
                for j in range(PLACES):
                    # The last entry is always empty: a comparison would be constant.
                    with m.If(self._filled <= j if j < PLACES - 1 else 1):
                        m.d.sync += [self._entries.word_select(j, ENTRY_BITS).eq(self._nowhere),
                                     self._sources.word_select(j, ENTRY_BITS).eq(0)]
                m.d.sync += [self._filled.eq(0),
                             self._rows.eq(self._rows + PLACES - self._filled)]
                m.next = "ROW_PLACES"
        with m.State("ROW_PLACES"):
            m.d.comb += [write.valid.eq(1), write.payload.address.eq(self._at_place),
                         write.payload.data.eq(self._entries)]
            with m.If(write.ready):
                m.d.sync += self._at_place.eq(self._at_place + 1)
                m.next = "ROW_SOURCES"
        with m.State("ROW_SOURCES"):
            m.d.comb += [write.valid.eq(1), write.payload.address.eq(self._at_source),
                         write.payload.data.eq(self._sources)]
            with m.If(write.ready):
                m.d.sync += self._at_source.eq(self._at_source + 1)
                m.next = "LOOK_UP"
                with m.If(self._ends):
                    m.next = "FILL"


__all__ = ["ROUTE_OPERATIONS", "RouteEngine"]
