# SPDX-License-Identifier: Apache-2.0
"""From accumulators to scratchpad words: bias, requantise, residual, table."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import Config
from hdl.compute.drain_command import DrainCommand
from hdl.compute.drain_reader import DrainReader
from hdl.compute.requantise import Requantiser
from hdl.compute.residual import ResidualAdder
from hdl.compute.row_issuer import RowIssuer
from hdl.compute.tables import LookupTable
from hdl.compute.word_writer import WordWriter
from hdl.fifo import Fifo
from hdl.packets import WORD_BITS
from hdl.ports import ScratchpadRead, ScratchpadWrite

AccumulatorRead = wiring.Signature(
    {"enable": Out(1), "row": Out(12), "half": Out(1), "data": In(data.ArrayLayout(32, 16))}
)
"""Read client of the accumulators: ``data`` belongs to the row enabled in the cycle before."""


class Drain(wiring.Component):
    """Turns one accumulator half into output words, one `DrainCommand` after another.

    Per pixel p: ``c = requantise(acc[p] + bias)``; with a residual ``c = clamp(rne(f32((a -
    residual_a_zero) * residual_scale + T[byte of c])))``, a the word at ``residual + p*out_step``
    (with ``residual_indexes`` a and c change places; the output may be written over the residual);
    with a table ``c = table[byte of c]``; c goes to word ``out + p*out_step``. With ``out_int32``
    lanes 4q .. 4q+3 of ``acc[p] + bias`` go to word ``out + p*out_step + q`` instead. Bits equal
    those of `emu.requantise`.

    Throughput: a pixel in 16 / requantise_lanes cycles (4 for int32), less where the ports refuse.
    Latency: 8 cycles from an accumulator row to its write request, 12 with a residual. A command
    costs 9 cycles for its parameters and up to 80 for its tables before its first row. The
    pipeline itself never stalls: a row is read only when its output word has room in the queue.

    Parameters
    ----------
    config: The machine.

    Members
    -------
    command: Commands.
    accumulator: The accumulators' drain port.
    read, write: Scratchpad ports.
    drained: Pulse: the last row of a command was read in the cycle before; its half is free.
    done: Pulse: the last word of a command is in the scratchpad.
    busy: A command is in the drain.
    """

    def __init__(self, config: Config):
        self._lanes = config.core.requantise_lanes
        self._depth = 8 if self._lanes == 8 else 16
        super().__init__(
            {
                "command": In(stream.Signature(DrainCommand)),
                "accumulator": Out(AccumulatorRead),
                "read": Out(ScratchpadRead),
                "write": Out(ScratchpadWrite),
                "drained": Out(1),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.reader = reader = DrainReader()
        m.submodules.issuer = issuer = RowIssuer(self._lanes, self._depth)
        m.submodules.requantiser = requantiser = Requantiser(self._lanes)
        m.submodules.table = table = LookupTable(8, self._lanes)
        m.submodules.writer = writer = WordWriter(self._lanes, self._depth)
        connect(m, wiring.flipped(self.command), reader.command)
        connect(m, reader.read, wiring.flipped(self.read))
        connect(m, reader.start, issuer.start)
        connect(m, writer.write, wiring.flipped(self.write))
        current = issuer.current

        def lanes(values, step):
            """The lanes of ``values`` that belong to a read's ``step`` of its pixel."""
            bits = values.as_value()
            if self._lanes == 16:
                return bits
            return Mux(Mux(current.out_int32, step[1], step[0]), bits[256:], bits[:256])

        steps = issuer.steps
        m.d.comb += [
            self.accumulator.enable.eq(issuer.enable),
            self.accumulator.row.eq(issuer.row),
            self.accumulator.half.eq(issuer.half),
            reader.in_use.eq(issuer.in_use),
            reader.quiet.eq(issuer.quiet),
            requantiser.valid.eq(issuer.operand),
            requantiser.stop.eq(current.out_int32),
            requantiser.acc.eq(lanes(self.accumulator.data, steps[0])),
            requantiser.bias.eq(lanes(reader.bias, steps[0])),
            requantiser.scale.eq(lanes(reader.scale, steps[2])),
            requantiser.zero.eq(current.out_zero),
            requantiser.low.eq(current.clip_low),
            requantiser.high.eq(current.clip_high),
            table.write.eq(reader.table),
            table.row.eq(reader.row),
            table.word.eq(reader.word),
        ]
        bytes_out, bytes_valid = self._residual(m, reader, issuer, requantiser)
        totals, word = requantiser.total.as_value(), steps[1] if self._lanes == 16 else steps[1][0]
        m.d.comb += [
            table.index.eq(bytes_out),
            writer.start.eq(reader.start.valid & reader.start.ready),
            writer.address.eq(reader.start.payload.out),
            writer.step.eq(current.out_step),
            writer.wide.eq(current.out_int32),
            writer.part_valid.eq(bytes_valid),
            writer.part.eq(Mux(current.table_valid, table.entry.as_value(), bytes_out)),
            writer.total_valid.eq(requantiser.total_valid),
            writer.total.eq(totals.word_select(word, WORD_BITS)),
            writer.final.eq(issuer.final),
            issuer.queued.eq(writer.queued),
            issuer.written.eq(writer.written),
            self.drained.eq(issuer.drained),
            self.done.eq(writer.done),
            self.busy.eq(~self.command.ready | issuer.in_use | ~issuer.quiet | writer.busy),
        ]
        return m

    def _residual(self, m, reader, issuer, requantiser):
        """The residual stage; returns (bytes, valid) of what follows it."""
        m.submodules.addends = addends = LookupTable(32, self._lanes)
        m.submodules.adder = adder = ResidualAdder(self._lanes)
        m.submodules.residuals = residuals = Fifo(WORD_BITS, self._depth)
        current = issuer.current
        active, high, last = Signal(), Signal(), Signal()
        swap, other = current.residual_indexes, Signal(8 * self._lanes)
        reserved = Signal(range(self._depth + 1))  # words requested and not yet consumed
        words = residuals.o.payload
        m.d.comb += [
            active.eq(current.residual_valid & ~current.out_int32),
            last.eq(high if self._lanes == 8 else 1),
            addends.write.eq(reader.residual_table),
            addends.row.eq(reader.row),
            addends.word.eq(reader.word),
            other.eq(Mux(high, words[64:], words[:64]) if self._lanes == 8 else words),
            addends.index.eq(Mux(swap, other, requantiser.y.as_value())),
            reader.room.eq(reserved != self._depth),
            issuer.requested.eq(reader.requested),
            residuals.i.valid.eq(reader.residual),
            residuals.i.payload.eq(reader.word),
            residuals.o.ready.eq(adder.valid & last),
            adder.valid.eq(requantiser.y_valid & active),
            adder.a.eq(Mux(swap, requantiser.y.as_value(), other)),
            adder.a_signed.eq(current.residual_signed),
            adder.a_zero.eq(current.residual_a_zero),
            adder.addend.eq(addends.entry),
            adder.scale.eq(current.residual_scale),
            adder.low.eq(current.residual_low),
            adder.high.eq(current.residual_high),
        ]
        m.d.sync += [
            high.eq(high ^ adder.valid),
            reserved.eq(reserved + reader.requested - residuals.o.ready),
        ]
        valid = Mux(active, adder.y_valid, requantiser.y_valid)
        return Mux(active, adder.y.as_value(), requantiser.y.as_value()), valid
