# SPDX-License-Identifier: Apache-2.0
"""The words that an operation on rows reads, in the order in which it uses them."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.isa import VectorOp
from hdl.fifo import Fifo
from hdl.packets import SPAD_BITS, WORD_BITS
from hdl.ports import ScratchpadRead
from hdl.vector.walker import VectorCommand

QUEUE_DEPTH = 4
TABLE_WORDS = 64
PARAMETERS = 8
"""Words of a group's normalisation parameters."""


class RowFetcher(wiring.Component):
    """Reads a command's table, then for each row its words once for every pass over them.

    SOFTMAX: 64 table words; a row's words three times. Norms: the words once, then each followed by
    its group's parameters. TOP_K: once. Latency: three cycles from ``start`` to the first word.
    Throughput: a word a cycle; it reads ahead of use as far as the queue of four words goes.

    Members
    -------
    start, command: Begin; the command is held until its last word was taken.
    read: Scratchpad port.
    o: Stream of words.
    """

    start: In(1)
    command: In(VectorCommand)
    read: Out(ScratchpadRead)
    o: Out(stream.Signature(WORD_BITS))

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = Fifo(WORD_BITS, QUEUE_DEPTH)
        connect(m, queue.o, wiring.flipped(self.o))
        c, request = self.command, self.read.request
        active, table, flying, step = Signal(), Signal(), Signal(), Signal()
        row, word, parameter = Signal(SPAD_BITS), Signal(SPAD_BITS), Signal(SPAD_BITS)
        turn, group, pixel, sub = Signal(2), Signal(12), Signal(16), Signal(4)
        softmax, norm = c.op == VectorOp.SOFTMAX, Signal()
        last_sub, last_group, last_turn = Signal(), Signal(), Signal()
        m.d.comb += [
            norm.eq((c.op == VectorOp.LAYER_NORM) | (c.op == VectorOp.RMS_NORM)),
            last_sub.eq(~norm | (turn == 0) | (sub == PARAMETERS)),
            last_group.eq(last_sub & (group == c.groups - 1)),
            last_turn.eq(last_group & (turn == Mux(softmax, 2, norm))),
            request.valid.eq(active & (queue.level + flying < QUEUE_DEPTH)),
            request.payload.eq(Mux(table | (sub != 0), parameter, word)),
            step.eq(request.valid & request.ready),
            queue.i.valid.eq(flying),
            queue.i.payload.eq(self.read.data),
        ]
        m.d.sync += flying.eq(step)
        with m.If(step & (table | (sub != 0))):
            m.d.sync += parameter.eq(parameter + 1)
        with m.If(step & table):
            m.d.sync += table.eq(parameter + 1 != (c.table + TABLE_WORDS)[:SPAD_BITS])
        with m.Elif(step):
            m.d.sync += sub.eq(Mux(last_sub, 0, sub + 1))
            with m.If(last_sub):
                m.d.sync += [group.eq(group + 1), word.eq(word + c.plane)]
            with m.If(last_group):
                m.d.sync += [group.eq(0), word.eq(row), turn.eq(turn + 1), parameter.eq(c.table)]
            with m.If(last_turn):
                m.d.sync += [turn.eq(0), row.eq(row + c.step), word.eq(row + c.step),
                             pixel.eq(pixel + 1), active.eq(pixel != c.pixels - 1)]
        with m.If(self.start):
            m.d.sync += [active.eq(1), table.eq(softmax), row.eq(c.base), word.eq(c.base),
                         parameter.eq(c.table), turn.eq(0), group.eq(0), pixel.eq(0), sub.eq(0)]
        return m
