# SPDX-License-Identifier: Apache-2.0
"""Dispatch: each command, in order, to its queue, the parameter store or an index register."""

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from emu import isa
from emu.isa import Opcode
from hdl.packets import COMMANDS, WORD_BITS
from hdl.sequencer.indexes import IndexRegisters, pieces

QUEUES = len(isa.Queue)
LayerCommand = COMMANDS[Opcode.LAYER]
"""What the parameter store gets: the bits of a LAYER command, or of FRAMES, PIN or UNPIN."""


class Dispatcher(wiring.Component):
    """Takes a word a cycle; the first word of a command decides where all eight go.

    A full queue blocks the stream. FRAMES and UNPIN take blocks away that an earlier COMPUTE may
    still want, so they wait until the compute queue is idle. A command for the parameter store is
    taken by it before the next one is looked at. END waits for every queue and signal. A word
    reaches its queue in the cycle in which it is taken.

    Members
    -------
    i: Words of commands.
    exhausted: The stream has no more commands; without END that is an error.
    word, push: The next word, index added, and which queues take it.
    room, idle: Of each queue.
    settled: No signal is on its way.
    layer_command: For the parameter store.
    done: END has passed; stays up.
    error: Sticky: an unknown opcode, or no END.
    dispatched: A command but END was dispatched.
    stalled: The head command but END cannot be dispatched in this cycle.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(stream.Signature(WORD_BITS)),
                "exhausted": In(1),
                "word": Out(WORD_BITS), "push": Out(QUEUES),
                "room": In(QUEUES), "idle": In(QUEUES), "settled": In(1),
                "layer_command": Out(stream.Signature(LayerCommand)),
                "done": Out(1), "error": Out(1), "dispatched": Out(1), "stalled": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.indexes = indexes = IndexRegisters()
        count, first, taken = Signal(3), Signal(), Signal()
        opcode, kept_opcode = Signal(4), Signal(4)
        target, new_target, kept_target = Signal(QUEUES), Signal(QUEUES), Signal(QUEUES)
        free, accept, known, finish = Signal(), Signal(), Signal(), Signal()
        layer = self.layer_command

        m.d.comb += [
            first.eq(count == 0),
            opcode.eq(Mux(first, self.i.payload[:4], kept_opcode)),
            target.eq(Mux(first, new_target, kept_target)),
            free.eq(indexes.ready & ~layer.valid & ~self.done & ~self.error),
            self.i.ready.eq(~first | (accept & free)),
            taken.eq(self.i.valid & self.i.ready),
            self.word.eq(indexes.o),
            self.push.eq(Mux(taken, target, 0)),
            self.dispatched.eq(taken & (count == isa.COMMAND_WORDS - 1)),
            self.stalled.eq(self.i.valid & first & free & ~accept & (opcode != Opcode.END)),
        ]
        self._decode(m, new_target, accept, known, finish)
        self._collect(m, indexes, opcode, count, taken)
        with m.If(taken):
            m.d.sync += count.eq(count + 1)
            with m.If(first):
                m.d.sync += [kept_opcode.eq(opcode), kept_target.eq(new_target)]
        with m.If(first & free):
            with m.If(self.i.valid):
                m.d.sync += [self.done.eq(finish), self.error.eq(~known)]
            with m.Elif(self.exhausted):
                m.d.sync += self.error.eq(1)
        return m

    def _decode(self, m, target, accept, known, finish):
        """What a first word asks for: its queue (one bit, or none) and whether it can go on now."""
        ((_, low, _, width),) = pieces(Opcode.SYNC, "queue")
        m.d.comb += known.eq(1)
        with m.Switch(self.i.payload[:4]):
            for opcode, queue in isa.QUEUE_OF.items():
                with m.Case(opcode):
                    m.d.comb += [target.eq(1 << queue), accept.eq(self.room[queue])]
            with m.Case(Opcode.SYNC):
                m.d.comb += [
                    target.eq(Const(1, QUEUES) << self.i.payload[low : low + width]),
                    accept.eq((target & self.room).any()),
                ]
            with m.Case(Opcode.FRAMES, Opcode.UNPIN):
                m.d.comb += accept.eq(self.idle[isa.Queue.COMPUTE])
            with m.Case(Opcode.LAYER, Opcode.PIN, Opcode.SET, Opcode.ADD):
                m.d.comb += accept.eq(1)
            with m.Case(Opcode.END):
                m.d.comb += finish.eq(self.idle.all() & self.settled)
            with m.Default():
                m.d.comb += known.eq(0)

    def _collect(self, m, indexes, opcode, count, taken):
        """Gather commands that no queue takes; the eighth word sends them on their way."""
        bits, layer = Signal(LayerCommand.size), self.layer_command
        change = data.View(COMMANDS[Opcode.SET], bits[: COMMANDS[Opcode.SET].size])
        with m.Switch(opcode):
            with m.Case(Opcode.LAYER, Opcode.FRAMES, Opcode.PIN, Opcode.UNPIN):
                with m.If(self.dispatched):
                    m.d.sync += layer.valid.eq(1)
                self._keep(m, bits, count, taken)
            with m.Case(Opcode.SET, Opcode.ADD):
                m.d.comb += indexes.change.eq(self.dispatched)
                self._keep(m, bits, count, taken)
        with m.If(layer.valid & layer.ready):
            m.d.sync += layer.valid.eq(0)
        m.d.comb += [
            layer.payload.eq(bits),
            indexes.i.eq(self.i.payload),
            indexes.count.eq(count),
            indexes.opcode.eq(opcode),
            indexes.taken.eq(taken),
            indexes.add.eq(opcode == Opcode.ADD),
            indexes.register.eq(change.register),
            indexes.value.eq(change.value),
        ]

    def _keep(self, m, bits, count, taken):
        with m.If(taken), m.Switch(count):
            for index in range(-(-LayerCommand.size // WORD_BITS)):
                with m.Case(index):
                    part = bits[index * WORD_BITS : (index + 1) * WORD_BITS]
                    m.d.sync += part.eq(self.i.payload)
