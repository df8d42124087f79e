# SPDX-License-Identifier: Apache-2.0
"""Adders beside a pseudo-channel: rows of a table are summed here, and only the sum leaves.

As in RecNMP (Ke et al., ISCA 2020) and TensorDIMM (Kwon et al., MICRO 2019) the adders see a row
before it is on any shared wire; here they sit between a channel and its port of the mesh.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from emu.config import Config
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.packets import WORD_BITS, Kind, Reply

LANES = 16
SUM_BITS = 15
"""Of a lane: 128 rows of int8."""
ROW_WORDS = 8
"""Of sums: two banks of four."""
SLOT_BITS = 9
"""Of a slot's number: 16 x 16 tiles, two each."""
COUNT_BITS = 11

SumWord = data.StructLayout({"data": WORD_BITS, "reply": Reply})
Line = data.ArrayLayout(signed(SUM_BITS), LANES)
Open = data.StructLayout({"expected": COUNT_BITS, "words": 4, "reply": Reply})


class RowSums(wiring.Component):
    """Sums of rows by lane, one sum at a time for each tile and one on its way out.

    A row is announced by ``open`` before its words come, in any order and mixed with those of
    others. When all words of a sum whose last row was announced are there, it leaves: of 16 lanes
    s two words, s >> 7 and s & 127, first lane group first. An int4 word holds two lane groups:
    its low nibbles are the first.

    Latency: three cycles from the last word to the first of the sum. Throughput: a word a cycle in
    and a word a cycle out, at once; between two sums two cycles.

    Parameters
    ----------
    config: The machine: every tile has two slots.

    Members
    -------
    reply, words: A row: from which tile, what becomes of the sum (``block`` bit 0: its last row;
        bit 1: int4), its words, at most 8 of int8 or 4 of int4. ``room``: It may be announced.
        ``slot``: Of its sum. ``open``: It is announced now.
    add, add_slot, index, data, int4: Word ``index`` of a row; never refused.
    o: Words of sums.
    idle: No sum is open or on its way.

    Counters
    --------
    rows, row_words, sum_words: Rows summed, their words, words that left.
    """

    def __init__(self, config: Config):
        self._x_bits = max(1, ceil_log2(config.mesh.cols))
        self._slots = 1 << self._x_bits + max(1, ceil_log2(config.mesh.rows)) + 1
        super().__init__(
            {
                "reply": In(Reply), "words": In(5), "room": Out(1), "slot": Out(SLOT_BITS),
                "open": In(1), "add": In(1), "add_slot": In(SLOT_BITS), "index": In(4),
                "data": In(WORD_BITS), "int4": In(1), "o": Out(stream.Signature(SumWord)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bits = ceil_log2(self._slots)
        m.submodules.opened = opened = Memory(shape=Open, depth=self._slots, init=[])
        m.submodules.done = done = Fifo(bits, self._slots)
        banks = []
        for k in range(2):
            m.submodules[f"bank{k}"] = bank = Memory(shape=Line, depth=4 * self._slots, init=[])
            banks.append(bank)
        busy, closed = Signal(self._slots), Signal(self._slots)
        self._announce(m, opened, busy, closed, bits)
        written = self._accumulate(m, opened, closed, banks, done, bits)
        self._send(m, opened, busy, closed, banks, done, written)
        m.d.comb += self.idle.eq(~busy.any())
        count(m, "rows", self.open)
        count(m, "row_words", self.add)
        count(m, "sum_words", self.o.valid & self.o.ready)
        return m

    def _announce(self, m, opened, busy, closed, bits):
        """Rows that will come: how many words the open sum of a tile awaits."""
        second = Signal(self._slots // 2)
        read, write = opened.read_port(domain="comb"), opened.write_port()
        tile = Signal(bits - 1)
        is_open = Signal()
        m.d.comb += [
            tile.eq(Cat(self.reply.source_x[: self._x_bits], self.reply.source_y)),
            self.slot.eq(Cat(second.bit_select(tile, 1), tile)),
            read.addr.eq(self.slot), write.addr.eq(self.slot), write.en.eq(self.open),
            is_open.eq(busy.bit_select(self.slot, 1) & ~closed.bit_select(self.slot, 1)),
            self.room.eq(~busy.bit_select(self.slot, 1) | is_open),
            write.data.expected.eq(Mux(is_open, read.data.expected, 0) + self.words),
            write.data.words.eq(Mux(self.reply.block[1], self.words << 1, self.words)),
            write.data.reply.eq(self.reply),
        ]
        with m.If(self.open):
            m.d.sync += busy.bit_select(self.slot, 1).eq(1)
            with m.If(self.reply.block[0]):
                m.d.sync += [
                    closed.bit_select(self.slot, 1).eq(1),
                    second.bit_select(tile, 1).eq(~second.bit_select(tile, 1)),
                ]

    def _accumulate(self, m, opened, closed, banks, done, bits):
        """Read, add, write: a word a cycle, in two."""
        m.submodules.arrived = arrived = Memory(
            shape=COUNT_BITS, depth=self._slots, init=[])
        seen = Signal(ROW_WORDS * self._slots)
        so_far, more = arrived.read_port(domain="comb"), arrived.write_port()
        expected = opened.read_port(domain="comb")
        slot, mine, number = Signal(bits), Signal(ROW_WORDS), Signal(COUNT_BITS)
        line, touched = Signal(2), Signal(2)
        m.d.comb += [
            slot.eq(self.add_slot), so_far.addr.eq(slot), more.addr.eq(slot),
            expected.addr.eq(slot), mine.eq(seen.word_select(slot, ROW_WORDS)),
            number.eq(Mux(mine.any(), so_far.data, 0) + 1),
            more.data.eq(number), more.en.eq(self.add),
            line.eq(Mux(self.int4, self.index, self.index >> 1)),
            touched.eq(Mux(self.int4, 3, Mux(self.index[0], 2, 1))),
            done.i.valid.eq(self.add & closed.bit_select(slot, 1)
                            & (number == expected.data.expected)),
            done.i.payload.eq(slot),
        ]
        with m.If(done.i.valid):
            m.d.sync += seen.word_select(slot, ROW_WORDS).eq(0)
        with m.Elif(self.add):
            m.d.sync += seen.word_select(slot, ROW_WORDS).eq(mine | (touched << (line << 1)))
        value, nibbles = Signal(WORD_BITS, reset_less=True), Signal()
        with m.If(self.add):
            m.d.sync += [value.eq(self.data), nibbles.eq(self.int4)]
        ports = []
        for k, bank in enumerate(banks):
            write = bank.write_port()
            before = bank.read_port(transparent_for=(write,))
            ports.append(write)
            first = Signal(name=f"first{k}")
            m.d.comb += [before.addr.eq(Cat(line, slot)), before.en.eq(self.add & touched[k])]
            m.d.sync += write.en.eq(before.en)
            with m.If(before.en):
                m.d.sync += [write.addr.eq(before.addr), first.eq(~mine.bit_select(
                    (line << 1) + k, 1))]
            for lane in range(LANES):
                byte = value[8 * lane : 8 * lane + 8]
                added = Mux(nibbles, byte[4 * k : 4 * k + 4].as_signed(), byte.as_signed())
                m.d.comb += write.data[lane].eq(Mux(first, 0, before.data[lane]) + added)
        return ports

    def _send(self, m, opened, busy, closed, banks, done, written):
        """Finished sums, word by word, high part and low part."""
        slot, word = done.o.payload, Signal(range(ROW_WORDS))
        following, fetch, low, there = Signal(range(ROW_WORDS)), Signal(), Signal(), Signal()
        last, part, step = Signal(), Signal(Line), Signal()
        info = opened.read_port(domain="comb")
        found = []
        for k, (bank, write) in enumerate(zip(banks, written, strict=True)):
            read = bank.read_port(transparent_for=(write,))
            m.d.comb += [read.addr.eq(Cat(following[1:], slot)),
                         read.en.eq(fetch & (following[0] == k))]
            found.append(read.data)
        out, reply = self.o.payload, info.data.reply
        m.d.comb += [
            info.addr.eq(slot),
            part.eq(Mux(word[0], found[1].as_value(), found[0].as_value())),
            self.o.valid.eq(there),
            step.eq(there & self.o.ready),
            last.eq(word == info.data.words - 1),
            following.eq(Mux(there, word + 1, 0)),
            fetch.eq(Mux(there, step & low, done.o.valid)),
            done.o.ready.eq(step & low & last),
            out.reply.eq(reply),
            out.reply.kind.eq(Kind.DATA), out.reply.block.eq(0),
            out.reply.address.eq(reply.address + Cat(low, word)),
            out.data.eq(Mux(
                low, Cat(Cat(part[lane][:7], 0) for lane in range(LANES)),
                Cat(part[lane][7:] for lane in range(LANES)))),
        ]
        with m.If(~there):
            m.d.sync += [there.eq(done.o.valid), word.eq(0), low.eq(0)]
        with m.Elif(step):
            m.d.sync += low.eq(~low)
            with m.If(low):
                m.d.sync += [word.eq(word + 1), there.eq(~last)]
        with m.If(done.o.ready):
            m.d.sync += [busy.bit_select(slot, 1).eq(0), closed.bit_select(slot, 1).eq(0)]


__all__ = ["RowSums"]
