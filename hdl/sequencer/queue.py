# SPDX-License-Identifier: Apache-2.0
"""One command queue: waits, hands commands to the engine, signals when they are done."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from emu import isa
from hdl.fifo import Fifo
from hdl.packets import COMMANDS, WORD_BITS, Header, Rect
from hdl.ports import WaitOp

MARK_BIT = COMMANDS[isa.Opcode.SYNC]["mark"].offset
IN_FLIGHT = 4
"""Commands whose engine has taken them and whose signals are not yet sent."""

QueueSignal = data.StructLayout({"sem": isa.SEM_BITS, "rect": Rect, "local": 1})
"""A signal to send; ``local`` if its rectangle is this tile alone."""
_Signal = data.StructLayout({"valid": 1, **dict(QueueSignal.members.items())})
_Record = data.StructLayout({"sync": 1, "signals": data.ArrayLayout(_Signal, isa.SIGNALS)})


class CommandQueue(wiring.Component):
    """Commands of one engine, in order.

    A command lies in a memory and moves into the head register word by word; its waits begin when
    its first word is there. Latency from the last word written to ``command``: as many cycles as
    the layout has words, plus one. Throughput: one command in that time.

    Parameters
    ----------
    layout: Of the engine's command, header first.
    depth: Commands held, the head register apart.

    Members
    -------
    x, y: This tile.
    push, word: ``word`` is the next word of a command, eight a command. Only if ``room``.
    room: A whole command fits.
    wait: Waits of the head, one after another; those of count 0 are skipped.
    command: To the engine, when the head's waits have passed. Not SYNC.
    done: From the engine: its oldest command is complete.
    signal: Signals of complete commands, in order.
    idle: No command is held or in flight.
    mark: A SYNC that marks the beginning of a step passes.
    """

    def __init__(self, layout, depth: int):
        if depth < 1:
            raise ValueError(f"CommandQueue depth must be at least 1, not {depth!r}")
        self._layout, self._depth = layout, depth
        super().__init__(
            {
                "x": In(4), "y": In(4),
                "push": In(1), "word": In(WORD_BITS), "room": Out(1),
                "wait": Out(stream.Signature(WaitOp)),
                "command": Out(stream.Signature(layout)),
                "done": In(1),
                "signal": Out(stream.Signature(QueueSignal)),
                "idle": Out(1), "mark": Out(1),
            }
        )

    @property
    def words(self) -> int:
        """Words of a command that the engine's layout needs."""
        return -(-self._layout.size // WORD_BITS)

    def elaborate(self, platform):
        m = Module()
        slot_bits = ceil_log2(self._depth)
        rows = isa.COMMAND_WORDS << slot_bits
        m.submodules.memory = memory = Memory(shape=WORD_BITS, depth=rows, init=[])
        m.submodules.flight = flight = Fifo(_Record, IN_FLIGHT)
        write, read = memory.write_port(), memory.read_port(domain="comb")
        tail = Signal(3 + slot_bits)
        slot, level = Signal(max(slot_bits, 1)), Signal(range(self._depth + 1))
        loaded, step = Signal(range(self.words + 1)), Signal(range(isa.WAITS + 1))
        head = Signal(self._layout)
        header = data.View(Header, Signal(Header.size))
        written, popped, load = Signal(), Signal(), Signal()
        ready, taken, is_sync = Signal(), Signal(), Signal()

        m.d.comb += [
            header.as_value().eq(head.as_value()[: Header.size]),
            self.room.eq(level != self._depth),
            write.addr.eq(tail),
            write.data.eq(self.word),
            write.en.eq(self.push),
            written.eq(self.push & (tail[:3] == isa.COMMAND_WORDS - 1)),
            read.addr.eq(Cat(Cat(loaded, Const(0, 3))[:3], slot[:slot_bits])),
            load.eq((level != 0) & (loaded != self.words)),
            popped.eq(load & (loaded == self.words - 1)),
            is_sync.eq(header.opcode == isa.Opcode.SYNC),
            ready.eq((loaded == self.words) & (step == isa.WAITS) & flight.i.ready),
            self.command.valid.eq(ready & ~is_sync),
            self.command.payload.eq(head),
            taken.eq(ready & (is_sync | self.command.ready)),
            self.mark.eq(taken & is_sync & head.as_value()[MARK_BIT]),
            self.idle.eq((level == 0) & (loaded == 0) & (flight.level == 0)),
        ]
        m.d.sync += level.eq(level + written - popped)
        with m.If(self.push):
            m.d.sync += tail.eq(tail + 1)
        with m.If(popped):
            m.d.sync += slot.eq(slot + 1)
        with m.If(load):
            m.d.sync += loaded.eq(loaded + 1)
            self._load(m, head, loaded, read.data)
        with m.If(taken):
            m.d.sync += [loaded.eq(0), step.eq(0)]
        self._waits(m, header, loaded != 0, step)
        self._flight(m, flight, header, taken, is_sync)
        return m

    def _load(self, m, head, loaded, word):
        """Move one word of the queue's oldest command into the head register."""
        bits = head.as_value()
        with m.Switch(loaded):
            for index in range(self.words):
                with m.Case(index):
                    part = bits[index * WORD_BITS : (index + 1) * WORD_BITS]
                    m.d.sync += part.eq(word)

    def _waits(self, m, header, present, step):
        """Present the head's waits one after another."""
        with m.Switch(step):
            for index in range(isa.WAITS):
                with m.Case(index):
                    count = header[f"wait{index}_count"]
                    m.d.comb += [
                        self.wait.payload.sem.eq(header[f"wait{index}_sem"]),
                        self.wait.payload.count.eq(count),
                        self.wait.valid.eq(present & (count != 0)),
                    ]
                    with m.If(present & ((count == 0) | self.wait.ready)):
                        m.d.sync += step.eq(step + 1)

    def _flight(self, m, flight, header, taken, is_sync):
        """Keep the signals of commands in flight; send them when the command is done."""
        m.d.comb += [flight.i.valid.eq(taken), flight.i.payload.sync.eq(is_sync)]
        for index in range(isa.SIGNALS):
            signal, rect = flight.i.payload.signals[index], header[f"signal{index}_rect"]
            m.d.comb += [
                signal.valid.eq(header[f"signal{index}_valid"]),
                signal.sem.eq(header[f"signal{index}_sem"]),
                signal.rect.eq(rect),
                signal.local.eq(
                    (rect.x0 == self.x) & (rect.x1 == self.x)
                    & (rect.y0 == self.y) & (rect.y1 == self.y)
                ),
            ]
        record, sent = flight.o.payload, Signal()
        finished = Signal(range(IN_FLIGHT + 2))
        first, second = record.signals
        complete, use_first, last = Signal(), Signal(), Signal()
        m.d.comb += [
            complete.eq(flight.o.valid & (record.sync | (finished != 0))),
            use_first.eq(first.valid & ~sent),
            self.signal.valid.eq(complete & (use_first | second.valid)),
            last.eq(~(use_first & second.valid)),
            flight.o.ready.eq(complete & (~self.signal.valid | (self.signal.ready & last))),
        ]
        chosen = data.View(_Signal, Signal(_Signal.size))
        with m.If(use_first):
            m.d.comb += chosen.eq(first)
        with m.Else():
            m.d.comb += chosen.eq(second)
        for name in QueueSignal.members:
            m.d.comb += self.signal.payload[name].eq(chosen[name])
        m.d.sync += finished.eq(finished + self.done - (flight.o.ready & ~record.sync))
        with m.If(self.signal.valid & self.signal.ready):
            m.d.sync += sent.eq(~last)
