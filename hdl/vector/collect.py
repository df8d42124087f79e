# SPDX-License-Identifier: Apache-2.0
"""A list of one number's places. So an expert's tile gathers its own tokens, and knows how many."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from emu.isa import ABSENT, VectorOp
from hdl.packets import SPAD_BITS, WORD_BITS
from hdl.ports import ScratchpadRead, ScratchpadWrite
from hdl.vector.walker import VectorCommand

COLLECT_OPERATIONS = (VectorOp.COLLECT,)
PLACES = 4
"""Of a word."""
ENTRY_BITS = 32
NOTHING = Const(-1, WORD_BITS)
"""Four entries that are `ABSENT`."""


class CollectEngine(wiring.Component):
    """Runs COLLECT of `emu.isa.VectorOp`, one command at a time.

    Where the ports refuse nothing it takes 2*pixels + 2*groups + 5 cycles, and one for each word
    that is filled up or left empty.

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
        self._near, self._left = Signal(SPAD_BITS), Signal(16)
        self._place, self._pixel = Signal(ENTRY_BITS), Signal(16)
        self._filled, self._words = Signal(range(PLACES)), Signal(12)
        self._rows, self._block, self._turn = Signal(16), Signal(14), Signal(6)
        self._places = Signal(WORD_BITS, init=NOTHING.value)
        self._sources = Signal(WORD_BITS, init=NOTHING.value)
        given, request = self.command.payload, self.read.request
        m.d.comb += [request.payload.eq(self._near), self.command.ready.eq(~self.busy)]
        m.d.sync += self.done.eq(0)
        with m.FSM():
            with m.State("IDLE"), m.If(self.command.valid & self.command.ready):
                m.d.sync += [
                    self._command.eq(given), self.busy.eq(1), self._near.eq(given.base),
                    self._left.eq(given.pixels), self._place.eq(0), self._pixel.eq(0),
                    self._filled.eq(0), self._words.eq(0), self._rows.eq(0), self._block.eq(0),
                    self._turn.eq(0),
                ]
                m.next = "LOOK_UP"
            with m.State("LOOK_UP"):
                m.d.comb += request.valid.eq(1)
                with m.If(request.ready):
                    m.next = "TAKE"
            self._take(m)
            self._lists(m)
            self._ends(m)
        return m

    def _take(self, m):
        """A word of the list: whether the number is there, and whether this copy has it."""
        c, word = self._command, self.read.data
        hits = Cat((c.k > j) & (word.word_select(j, ENTRY_BITS) == c.channels)
                   for j in range(PLACES))
        first = Mux(hits[0], 0, Mux(hits[1], 1, Mux(hits[2], 2, 3)))
        place, takes = Signal(ENTRY_BITS), Signal()
        m.d.comb += [
            place.eq(self._place + first),
            takes.eq(hits.any() & (self._turn == c.kw) & (self._words != c.groups)),
        ]
        with m.State("TAKE"):
            m.d.sync += [
                self._near.eq(self._near + c.step), self._left.eq(self._left - 1),
                self._place.eq(self._place + c.k), self._pixel.eq(self._pixel + 1),
            ]
            m.next = "LOOK_UP"
            with m.If(self._left == 1):
                m.next = "FILL"
            with m.If(hits.any()):
                self._next_block(m)
            with m.If(takes):
                source = Mux(c.b_mode[0], place, self._pixel)
                for j in range(PLACES):
                    with m.If(self._filled == j):
                        m.d.sync += [self._places.word_select(j, ENTRY_BITS).eq(place),
                                     self._sources.word_select(j, ENTRY_BITS).eq(source)]
                m.d.sync += [self._filled.eq(self._filled + 1), self._rows.eq(self._rows + 1)]
                with m.If(self._filled == PLACES - 1):
                    m.next = "PLACES"

    def _next_block(self, m):
        """Whose the next row is: blocks go to the copies in turn."""
        c = self._command
        m.d.sync += self._block.eq(self._block + 1)
        with m.If(self._block + 1 == c.height):
            m.d.sync += [self._block.eq(0),
                         self._turn.eq(Mux(self._turn + 1 == c.kh, 0, self._turn + 1))]

    def _lists(self, m):
        """Four rows' words, and empty ones up to the end of the lists."""
        c, write = self._command, self.write.request
        with m.State("PLACES"):
            m.d.comb += [write.valid.eq(1), write.payload.data.eq(self._places),
                         write.payload.address.eq(c.b_base + self._words)]
            with m.If(write.ready):
                m.next = "SOURCES"
        with m.State("SOURCES"):
            m.d.comb += [write.valid.eq(1), write.payload.data.eq(self._sources),
                         write.payload.address.eq(c.table + self._words)]
            with m.If(write.ready):
                m.d.sync += [self._words.eq(self._words + 1), self._filled.eq(0),
                             self._places.eq(NOTHING), self._sources.eq(NOTHING)]
                m.next = "LOOK_UP"
                with m.If(self._left == 0):
                    m.next = "FILL"
        with m.State("FILL"):
            m.next = "PLACES"
            with m.If(self._words == c.groups):
                m.next = "NUMBER"

    def _ends(self, m):
        """The number, if there is a row, and how many there are."""
        c, write = self._command, self.write.request
        with m.State("NUMBER"):
            m.d.comb += [
                write.valid.eq(1), write.payload.address.eq(c.out),
                write.payload.data.eq(Mux(self._rows.any(), c.channels,
                                          Const(ABSENT, ENTRY_BITS))),
            ]
            with m.If(write.ready):
                m.next = "COUNT"
        with m.State("COUNT"):
            m.d.comb += [write.valid.eq(1), write.payload.address.eq(c.out + 1),
                         write.payload.data.eq(self._rows)]
            with m.If(write.ready):
                m.d.sync += [self.done.eq(1), self.busy.eq(0)]
                m.next = "IDLE"


__all__ = ["COLLECT_OPERATIONS", "CollectEngine"]
