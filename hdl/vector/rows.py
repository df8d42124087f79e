# SPDX-License-Identifier: Apache-2.0
"""Operations on the channels of each pixel: softmax, normalisation, the k largest."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.isa import VectorOp
from hdl.compute.word_writer import WordWriter
from hdl.packets import SPAD_BITS
from hdl.ports import ScratchpadRead, ScratchpadWrite
from hdl.vector.normalise import LANES as NORM_LANES
from hdl.vector.normalise import NormLanes, RootReciprocal
from hdl.vector.row_fetch import TABLE_WORDS, RowFetcher
from hdl.vector.row_reduce import RowReducer
from hdl.vector.softmax import LANES, SoftmaxLanes
from hdl.vector.top_list import TopList
from hdl.vector.walker import VectorCommand

DEPTH = 12
"""Words queued for the write port."""
ROW_OPERATIONS = (VectorOp.SOFTMAX, VectorOp.LAYER_NORM, VectorOp.RMS_NORM, VectorOp.TOP_K)


class RowEngine(wiring.Component):
    """Runs the row operations of `emu.isa.VectorOp`, one command and one row at a time.

    Bits equal those of `emu.vector_model`. Cycles of a row of g groups, where the ports refuse
    nothing: SOFTMAX 5*g + 28, norms 10*g + 74 and 0 to 22 for the root's scale, TOP_K 16*g + 8; a
    softmax command 70 more for its table.

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
        m.submodules.fetcher = fetcher = RowFetcher()
        m.submodules.reducer = self._reducer = RowReducer()
        m.submodules.softmax = self._softmax = SoftmaxLanes()
        m.submodules.reciprocal = self._root = RootReciprocal()
        m.submodules.norm = self._norm = NormLanes()
        m.submodules.top = self._top = TopList()
        m.submodules.writer = self._writer = writer = WordWriter(LANES, DEPTH)
        connect(m, writer.write, wiring.flipped(self.write))
        connect(m, fetcher.read, wiring.flipped(self.read))
        self._command = c = Signal(VectorCommand)
        self._softmaxes, self._norms, self._tops = (
            c.op == VectorOp.SOFTMAX, Signal(), c.op == VectorOp.TOP_K
        )
        self._word, self._pop = fetcher.o, Signal()
        # Of the row: pixel, group to be taken, part of it, lanes not taken, words not yet queued.
        self._pixel, self._group, self._part = Signal(16), Signal(12), Signal(4)
        self._left, self._unqueued = Signal(17), Signal(12)
        self._clear, self._room = Signal(), Signal()
        self._unwritten, self._promise = Signal(range(DEPTH + 1)), Signal()
        idle, accept = Signal(init=1), Signal()
        m.d.comb += [
            self.command.ready.eq(idle),
            accept.eq(self.command.valid & idle),
            self._norms.eq((c.op == VectorOp.LAYER_NORM) | (c.op == VectorOp.RMS_NORM)),
            fetcher.command.eq(c),
            fetcher.o.ready.eq(self._pop),
            self._room.eq(self._unwritten != DEPTH),
            self.done.eq(writer.done),
            self.busy.eq(~idle),
        ]
        m.d.sync += [
            fetcher.start.eq(accept),
            self._unwritten.eq(self._unwritten + self._promise - writer.written),
        ]
        with m.If(accept):
            m.d.sync += [c.eq(self.command.payload), idle.eq(0), self._pixel.eq(0),
                         self._group.eq(0)]
        with m.If(writer.done):
            m.d.sync += idle.eq(1)
        self._lanes(m)
        self._output(m)
        self._control(m, accept)
        return m

    def _lanes(self, m):
        """Constants of the command and the row, and the bytes of a part."""
        c, reducer, softmax, norm = self._command, self._reducer, self._softmax, self._norm
        root, word = self._root, self._word.payload
        held, offsets = Signal(128), Signal(128)
        self._held, self._offsets, self._factor = held, offsets, c.scale0[:9]
        lanes = Cat(self._left > lane for lane in range(16))
        part = self._part[:1]
        m.d.comb += [
            reducer.clear.eq(self._clear), reducer.word.eq(word), reducer.lanes.eq(lanes),
            reducer.is_signed.eq(c.a_signed), reducer.zero.eq(c.a_zero),
            reducer.raw.eq(self._softmaxes),
            softmax.word.eq(word), softmax.row.eq(self._group[:6]), softmax.clear.eq(self._clear),
            softmax.bytes.eq(word.word_select(part, 8 * LANES)),
            softmax.lanes.eq(lanes.word_select(part, LANES)),
            softmax.maximum.eq(reducer.maximum), softmax.factor.eq(self._factor),
            root.count.eq(c.channels), root.total.eq(reducer.total),
            root.squares.eq(reducer.squares), root.epsilon.eq(Cat(c.scale0, c.scale1)),
            norm.count.eq(c.channels), norm.total.eq(reducer.total), norm.t.eq(root.t),
            norm.s.eq(root.s), norm.a_zero.eq(c.a_zero), norm.gains.eq(word),
            norm.offsets.eq(offsets), norm.bytes.eq(held[: 8 * NORM_LANES]),
        ]
        for unit in (softmax, norm):
            m.d.comb += [unit.is_signed.eq(c.a_signed), unit.zero.eq(c.out_zero),
                         unit.low.eq(c.clip_low), unit.high.eq(c.clip_high)]
        for unit in (root, norm):
            m.d.comb += unit.centred.eq(c.op == VectorOp.LAYER_NORM)
        byte = word.word_select(self._part, 8)
        m.d.comb += self._top.value.eq(Cat(byte[:7], byte[7] ^ c.a_signed))
        m.d.comb += self._top.clear.eq(self._clear)

    def _output(self, m):
        """Parts of output words to the writer; lanes beyond the channels become the zero point."""
        c, writer, softmax, norm = self._command, self._writer, self._softmax, self._norm
        left, y, low, odd = Signal(17), Signal(8 * LANES), Signal(8 * NORM_LANES), Signal()
        self._out_left = left
        with m.If(norm.y_valid):
            m.d.sync += [low.eq(norm.y.as_value()), odd.eq(~odd)]
        m.d.comb += [
            y.eq(Mux(self._norms, Cat(low, norm.y.as_value()), softmax.y.as_value())),
            writer.part_valid.eq(softmax.y_valid | (norm.y_valid & odd)),
            writer.part.eq(Cat(
                Mux(left > lane, y.word_select(lane, 8), c.out_zero[:8]) for lane in range(LANES)
            )),
            writer.step.eq(c.out_group),
            writer.wide.eq(self._tops),
        ]
        with m.If(writer.part_valid):
            m.d.sync += left.eq(Mux(left > LANES, left - LANES, 0))
        with m.If(writer.queued):
            m.d.sync += self._unqueued.eq(self._unqueued - 1)

    def _take(self, m, last_part):
        """Go on to the next part of a word, or from its ``last_part`` to the next word.

        Returns (the word is used up, it was the row's last).
        """
        used, last = Signal(), Signal()
        m.d.comb += [
            used.eq(self._part == last_part), last.eq(self._group == self._command.groups - 1)
        ]
        m.d.sync += self._part.eq(Mux(used, 0, self._part + 1))
        with m.If(used):
            m.d.sync += [self._group.eq(Mux(last, 0, self._group + 1)),
                         self._left.eq(Mux(self._left > 16, self._left - 16, 0))]
        return used, used & last

    def _control(self, m, accept):
        c, writer = self._command, self._writer
        row, channels, last_pixel = Signal(SPAD_BITS), Signal(17), Signal()
        m.d.comb += [
            channels.eq(c.channels + Mux(c.causal & self._softmaxes, self._pixel, 0)),
            last_pixel.eq(self._pixel == c.pixels - 1),
            writer.final.eq(last_pixel & (self._unqueued == 1)),
        ]
        with m.FSM(name="phase"):
            with m.State("IDLE"), m.If(accept):
                m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.sync += row.eq(c.out)
                m.next = "ROW"
                with m.If(self._softmaxes):
                    m.next = "TABLE"
            with m.State("TABLE"), m.If(self._word.valid):
                m.d.comb += [self._pop.eq(1), self._softmax.write.eq(1)]
                m.d.sync += self._group.eq(self._group + 1)
                with m.If(self._group == TABLE_WORDS - 1):
                    m.d.sync += self._group.eq(0)
                    m.next = "ROW"
            with m.State("ROW"):
                m.d.comb += [self._clear.eq(1), writer.start.eq(1), writer.address.eq(row)]
                m.d.sync += [self._left.eq(channels), self._out_left.eq(channels),
                             self._part.eq(0), self._unqueued.eq(c.groups)]
                m.next = "REDUCE"
                with m.If(self._tops):
                    m.next = "SCAN"
            self._reduce(m, channels)
            self._apply(m)
            self._list(m, row)
            with m.State("FINISH"), m.If(self._unqueued == 0):
                m.d.sync += [row.eq(row + c.out_step), self._pixel.eq(self._pixel + 1)]
                m.next = "ROW"
                with m.If(last_pixel):
                    m.next = "IDLE"

    def _reduce(self, m, channels):
        """First pass over a row, and softmax's second one."""
        with m.State("REDUCE"), m.If(self._word.valid):
            m.d.comb += [self._pop.eq(1), self._reducer.valid.eq(1)]
            _, last = self._take(m, 0)
            with m.If(last):
                m.next = "REDUCED"
        with m.State("REDUCED"), m.If(~self._reducer.busy):
            m.d.sync += self._left.eq(channels)
            m.next = "SUM"
            with m.If(self._norms):
                m.d.comb += self._root.start.eq(1)
                m.next = "ROOT"
        with m.State("ROOT"), m.If(self._root.done):
            m.next = "APPLY_NORM"
        with m.State("SUM"), m.If(self._word.valid):
            m.d.comb += [self._softmax.valid.eq(1), self._softmax.summing.eq(1)]
            used, last = self._take(m, 16 // LANES - 1)
            m.d.comb += self._pop.eq(used)
            with m.If(last):
                m.next = "SUMMED"
        with m.State("SUMMED"), m.If(~self._softmax.busy):
            m.d.sync += self._left.eq(channels)
            m.next = "APPLY_SOFTMAX"

    def _apply(self, m):
        """Last pass: a word begun only when it has room in the queue."""
        begin = self._part == 0
        with m.State("APPLY_SOFTMAX"), m.If(self._word.valid & (~begin | self._room)):
            m.d.comb += [self._softmax.valid.eq(1), self._promise.eq(begin)]
            used, last = self._take(m, 16 // LANES - 1)
            m.d.comb += self._pop.eq(used)
            with m.If(last):
                m.next = "FINISH"
        # A word, then four times the offsets and the gains of four lanes.
        with m.State("APPLY_NORM"), m.If(self._word.valid & (~begin | self._room)):
            m.d.comb += [self._pop.eq(1), self._promise.eq(begin)]
            with m.If(begin):
                m.d.sync += self._held.eq(self._word.payload)
            with m.Elif(self._part[0]):
                m.d.sync += self._offsets.eq(self._word.payload)
            with m.Else():
                m.d.comb += self._norm.valid.eq(1)
                m.d.sync += self._held.eq(self._held >> 8 * NORM_LANES)
            _, last = self._take(m, 8)
            with m.If(last):
                m.next = "FINISH"

    def _list(self, m, row):
        """TOP_K: a row a byte at a time, then its words one by one."""
        c, writer, top = self._command, self._writer, self._top
        numbers = top.numbers.as_value()
        second, third = c.k > 4, Signal(2)
        m.d.comb += third.eq(second + 1)
        words = Signal(2)
        m.d.comb += words.eq(1 + second + c.b_mode.any())
        flipped = Signal(64)
        m.d.comb += flipped.eq(top.values.as_value() ^ Cat(
            Cat(0, 0, 0, 0, 0, 0, 0, c.a_signed) for _ in range(8)
        ))
        wanted = [c.k > k for k in range(8)]
        index_words = [
            Cat(
                Cat(Mux(wanted[4 * w + j], numbers.word_select(4 * w + j, 16), 0), Const(0, 16))
                for j in range(4)
            )
            for w in range(2)
        ]
        value_word = Cat(Mux(wanted[k], flipped.word_select(k, 8), 0) for k in range(8))
        values = c.b_mode.any() & (self._group == third)
        with m.State("SCAN"), m.If(self._word.valid):
            m.d.comb += top.valid.eq(self._left > self._part)
            used, last = self._take(m, 15)
            m.d.comb += self._pop.eq(used)
            with m.If(last):
                m.d.sync += [self._unqueued.eq(words), self._group.eq(0)]
                m.next = "PLACE"
        with m.State("PLACE"), m.If(self._room):
            m.d.comb += [
                writer.start.eq(1),
                writer.address.eq(
                    Mux(values, c.b_base + self._pixel * c.b_step, row + self._group)
                ),
            ]
            m.next = "EMIT"
        with m.State("EMIT"):
            m.d.comb += [
                writer.total_valid.eq(1),
                self._promise.eq(1),
                writer.total.eq(
                    Mux(values, value_word, Mux(self._group[0], index_words[1], index_words[0]))
                ),
            ]
            m.d.sync += self._group.eq(self._group + 1)
            m.next = "PLACE"
            with m.If(self._group == words - 1):
                m.d.sync += self._group.eq(0)
                m.next = "FINISH"
