# SPDX-License-Identifier: Apache-2.0
"""Pooling and element-wise operators on words in the scratchpad."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import Config
from emu.isa import VectorOp
from hdl.compute.requantise import Requantiser
from hdl.compute.residual import ResidualAdder
from hdl.compute.tables import LookupTable
from hdl.compute.word_writer import WordWriter
from hdl.ports import ScratchpadRead, ScratchpadWrite
from hdl.vector.collector import SUM_BITS, Collector
from hdl.vector.loader import TableLoader
from hdl.vector.walker import VectorCommand

LANES = 8
"""Lanes that multiply or add: a word takes two cycles there, as its two operands do to be read."""
DEPTH = 8
"""Words queued for the write port."""
ELEMENT_OPERATIONS = (
    VectorOp.MAX_POOL, VectorOp.SUM_POOL, VectorOp.ADD, VectorOp.MULTIPLY, VectorOp.TABLE
)


class ElementEngine(wiring.Component):
    """Runs the element-wise and pooling `VECTOR` commands, one at a time.

    a is the window of `hdl.vector.walker.WindowWalker`, b the second operand; output pixel p of
    group g goes to word ``out + g*out_group + p*out_step``. Bits equal those of `emu.requantise`:

    - MAX_POOL: largest tap. SUM_POOL: ``requantise(sum(tap - a_zero), scale0)``; taps outside the
      image are skipped by both.
    - ADD: ``clamp(rne(f32((a - a_zero) * scale0 + T[byte of b])))``, T float32[256] at ``table``.
    - MULTIPLY: ``requantise((a - a_zero) * (b - b_zero), scale0)``.
    - TABLE: ``table[byte of a]``.

    b_mode 2 takes lane 0 of b's word for all lanes. `requantise` clamps to ``clip_low ..
    clip_high`` and uses ``out_zero``. A tap of ADD, MULTIPLY or TABLE outside the image reads as
    the type's minimum: windows of element-wise operators lie inside.

    Throughput: a word in as many cycles as it has taps and b words, at least two if it is not
    MAX_POOL or TABLE; less where the ports refuse. A command costs about 20 cycles, and one for
    each word of its table.

    Parameters
    ----------
    config: The machine.

    Members
    -------
    command: Commands; ready when idle.
    done: Pulse: the command's last word is in the scratchpad.
    read, write: Scratchpad ports.
    busy: A command is in the engine.
    error: Sticky: a command named an operation that is not built; it did nothing.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "command": In(stream.Signature(VectorCommand)),
                "done": Out(1),
                "read": Out(ScratchpadRead),
                "write": Out(ScratchpadWrite),
                "error": Out(1), "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.loader = loader = TableLoader()
        m.submodules.collector = collector = Collector()
        m.submodules.writer = writer = WordWriter(16, DEPTH)
        connect(m, writer.write, wiring.flipped(self.write))
        command, new = Signal(VectorCommand), self.command.payload
        idle, loading, refused = Signal(init=1), Signal(), Signal()
        known, accept = Signal(), self.command.valid & idle
        begin = loading & ~loader.busy & ~loader.start
        m.d.comb += [
            self.command.ready.eq(idle),
            known.eq(Cat(new.op == op for op in ELEMENT_OPERATIONS).any()),
            loader.base.eq(command.table),
            loader.words.eq(Mux(command.op == VectorOp.ADD, 64, 16)),
            collector.start.eq(begin),
            collector.command.eq(command),
            collector.two.eq(
                (command.op == VectorOp.ADD) | (command.op == VectorOp.MULTIPLY)
            ),
            collector.sums.eq(command.op == VectorOp.SUM_POOL),
            self.done.eq(writer.done | refused),
        ]
        m.d.sync += [
            loader.start.eq(accept & ((new.op == VectorOp.ADD) | (new.op == VectorOp.TABLE))),
            refused.eq(accept & ~known),
        ]
        with m.If(accept):
            m.d.sync += command.eq(new)
            with m.If(known):
                m.d.sync += [idle.eq(0), loading.eq(1)]
            with m.Else():
                m.d.sync += self.error.eq(1)
        with m.If(begin):
            m.d.sync += loading.eq(0)
        with m.If(writer.done):
            m.d.sync += idle.eq(1)
        for client in (loader, collector):
            mine = loader.busy if client is loader else ~loader.busy
            m.d.comb += [
                client.read.request.ready.eq(self.read.request.ready & mine),
                client.read.data.eq(self.read.data),
            ]
        m.d.comb += [
            self.read.request.valid.eq(loader.read.request.valid | collector.read.request.valid),
            self.read.request.payload.eq(
                Mux(loader.busy, loader.read.request.payload, collector.read.request.payload)
            ),
        ]
        whole = Signal()  # all lanes of a word at once
        m.d.comb += whole.eq((command.op == VectorOp.MAX_POOL) | (command.op == VectorOp.TABLE))
        operand, issue = self._halves(m, command, collector, writer, whole)
        self._lanes(m, command, collector, operand, issue, loader, writer)
        self._place(m, command, begin, writer)
        m.d.comb += self.busy.eq(~idle | refused)
        return m

    def _halves(self, m, c, collector, writer, whole):
        """The operands of `LANES` lanes, a word's low half first; returns (a, b, sums), valid."""
        promised, began, upper = Signal(range(DEPTH + 1)), Signal(), Signal()
        now, held = [collector.o.a, collector.o.b, collector.o.sums.as_value()], []
        m.d.sync += [
            promised.eq(promised + collector.begun - writer.written),
            began.eq(collector.begun),
            upper.eq(collector.o_valid & ~whole),
        ]
        # Words of one read would follow each other faster than their halves.
        m.d.comb += collector.room.eq((promised != DEPTH) & (whole | ~began))
        for index, word in enumerate(now):
            held.append(Signal(len(word) // 2, name=f"upper{index}", reset_less=True))
            with m.If(collector.o_valid & ~whole):
                m.d.sync += held[-1].eq(word[len(word) // 2 :])
        a, b, sums = (
            Mux(upper, high, word[: len(word) // 2])
            for high, word in zip(held, now, strict=True)
        )
        first, broadcast = Signal(8), Signal(8)  # lane 0 of b, for both halves
        m.d.comb += broadcast.eq(Mux(upper, first, collector.o.b[:8]))
        with m.If(collector.o_valid):
            m.d.sync += first.eq(collector.o.b)
        b = Mux(c.b_mode == 2, broadcast.replicate(LANES), b)
        return (a, b, sums), (collector.o_valid & ~whole) | upper

    def _lanes(self, m, c, collector, operand, issue, loader, writer):
        """Requantise, add, look up or pass, and give words to the writer."""
        m.submodules.requantiser = requantiser = Requantiser(LANES)
        m.submodules.adder = adder = ResidualAdder(LANES)
        m.submodules.bytes = table = LookupTable(8, 16)
        m.submodules.floats = floats = LookupTable(32, LANES)
        adds = c.op == VectorOp.ADD
        a, b, sums = Signal(8 * LANES), Signal(8 * LANES), Signal(SUM_BITS * LANES)
        m.d.comb += [
            *(signal.eq(value) for signal, value in zip((a, b, sums), operand, strict=True)),
            requantiser.valid.eq(issue & ~adds),
            requantiser.zero.eq(c.out_zero),
            requantiser.low.eq(c.clip_low),
            requantiser.high.eq(c.clip_high),
            adder.valid.eq(issue & adds),
            adder.a.eq(a),
            adder.a_signed.eq(c.a_signed),
            adder.a_zero.eq(c.a_zero),
            adder.scale.eq(c.scale0),
            adder.low.eq(c.clip_low),
            adder.high.eq(c.clip_high),
            adder.addend.eq(floats.entry),
            floats.index.eq(b),
            table.index.eq(collector.o.a),
        ]
        for memory, op in ((table, VectorOp.TABLE), (floats, VectorOp.ADD)):
            m.d.comb += [
                memory.write.eq(loader.write & (c.op == op)),
                memory.row.eq(loader.row),
                memory.word.eq(self.read.data),
            ]
        for lane in range(LANES):
            terms = []
            for word, is_signed, zero in ((a, c.a_signed, c.a_zero), (b, c.b_signed, c.b_zero)):
                byte = word[8 * lane : 8 * lane + 8]
                terms.append(Cat(byte, byte[7] & is_signed).as_signed() - zero)
            total = sums.word_select(lane, SUM_BITS).as_signed()
            # A name for the 24 bits: extended in place, bits of one word would feed each other.
            term = Signal(signed(SUM_BITS), name=f"term_{lane}")
            m.d.comb += [
                term.eq(Mux(c.op == VectorOp.SUM_POOL, total, terms[0] * terms[1])),
                requantiser.acc[lane].eq(term),
                requantiser.scale[lane].eq(c.scale0),
            ]
        low, odd, y, y_valid = Signal(8 * LANES), Signal(), Signal(8 * LANES), Signal()
        m.d.comb += [
            y.eq(Mux(adds, adder.y.as_value(), requantiser.y.as_value())),
            y_valid.eq(Mux(adds, adder.y_valid, requantiser.y_valid)),
        ]
        with m.If(y_valid):
            m.d.sync += [low.eq(y), odd.eq(~odd)]
        plain = Mux(c.op == VectorOp.TABLE, table.entry.as_value(), collector.o.a)
        halves = (c.op != VectorOp.TABLE) & (c.op != VectorOp.MAX_POOL)
        m.d.comb += [
            writer.part.eq(Mux(halves, Cat(low, y), plain)),
            writer.part_valid.eq(Mux(halves, y_valid & odd, collector.o_valid)),
        ]

    def _place(self, m, c, begin, writer):
        """Give the writer each group's first word, the next one when a group is queued."""
        pixel, group, group_word = Signal(16), Signal(12), Signal(len(c.out))
        turn, next_word = Signal(), Signal(len(c.out))
        m.d.comb += [
            turn.eq(writer.queued & (pixel == c.pixels - 1)),
            next_word.eq(Mux(begin, c.out, group_word + c.out_group)),
            writer.start.eq(begin | turn),
            writer.address.eq(next_word),
            writer.step.eq(c.out_step),
            writer.final.eq(turn & (group == c.groups - 1)),
        ]
        with m.If(writer.queued):
            m.d.sync += pixel.eq(Mux(turn, 0, pixel + 1))
        with m.If(begin | turn):
            m.d.sync += [group_word.eq(next_word), group.eq(Mux(begin, 0, group + 1))]
