# SPDX-License-Identifier: Apache-2.0
"""Fetching of the command stream: the directory word, then the commands, ahead of dispatch."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu import isa
from emu.config import SEGMENT_WORDS
from hdl.packets import ADDRESS_BITS, SPAD_BITS, WORD_BITS, HbmRequest, Kind

SEGMENTS = 4
"""Segments of 16 words, two commands each, that the buffer holds."""
DIRECTORY_SLOT = SEGMENTS * SEGMENT_WORDS
"""Buffer slot, behind all others, to which the directory word is addressed."""
COUNT_BITS = 32

CommandWord = data.StructLayout({"address": SPAD_BITS, "data": WORD_BITS})
"""A word that answers a COMMAND request, for buffer slot ``address``."""


class CommandFetch(wiring.Component):
    """Reads directory word ``index`` of HBM, then the commands it names, and gives them in order.

    The words of a request may arrive in any order. A segment is requested only when its slots are
    free and, in the last one, only the words of real commands. Latency: two cycles from a segment's
    last word to its first command word. Throughput: one word a cycle.

    Members
    -------
    x, y: This tile.
    index: Word of HBM that holds {stream base 28 bits at bit 0, commands 32 bits at bit 32}.
    start: Begin (level or pulse).
    request: Reads of at most 16 words, each in one segment.
    command_word: The answers; always ready.
    o: Words of the commands in stream order, eight a command.
    exhausted: Every command of the stream was given.
    """

    def __init__(self):
        super().__init__(
            {
                "x": In(4), "y": In(4), "index": In(8), "start": In(1),
                "request": Out(stream.Signature(HbmRequest)),
                "command_word": In(stream.Signature(CommandWord)),
                "o": Out(stream.Signature(WORD_BITS)),
                "exhausted": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=WORD_BITS, depth=DIRECTORY_SLOT, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        arrival = self.command_word
        segments = range(SEGMENTS)
        tail, head = Signal(range(SEGMENTS)), Signal(range(DIRECTORY_SLOT))
        held = [Signal(name=f"held_{s}") for s in segments]
        missing = [Signal(5, name=f"missing_{s}") for s in segments]
        address = Signal(ADDRESS_BITS)
        unrequested, ungiven = Signal(COUNT_BITS), Signal(COUNT_BITS)
        running, asked, sent = Signal(), Signal(), Signal()
        half = Signal()  # the last segment holds one command
        full, is_held = Signal(), Signal()

        m.d.comb += [
            self._reply(),
            arrival.ready.eq(1),
            write.addr.eq(arrival.payload.address),
            write.data.eq(arrival.payload.data),
            write.en.eq(arrival.valid & (arrival.payload.address < DIRECTORY_SLOT)),
            read.addr.eq(head),
            self.o.payload.eq(read.data),
            self.o.valid.eq(full & (ungiven != 0)),
            half.eq(unrequested == 1),
            sent.eq(self.request.valid & self.request.ready),
            self.exhausted.eq(running & (ungiven == 0)),
        ]
        with m.Switch(head[4:]):
            for s in segments:
                with m.Case(s):
                    m.d.comb += full.eq(held[s] & (missing[s] == 0))
        with m.Switch(tail):
            for s in segments:
                with m.Case(s):
                    m.d.comb += is_held.eq(held[s])

        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.next = "DIRECTORY"
            with m.State("DIRECTORY"):
                m.d.comb += [
                    self.request.valid.eq(~asked),
                    self.request.payload.address.eq(self.index),
                    self.request.payload.reply.address.eq(DIRECTORY_SLOT),
                ]
                m.d.sync += asked.eq(asked | sent)
                with m.If(arrival.valid):
                    m.d.sync += [
                        address.eq(arrival.payload.data),
                        Cat(unrequested, ungiven).eq(arrival.payload.data[32:64].replicate(2)),
                        running.eq(1),
                    ]
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += [
                    self.request.valid.eq((unrequested != 0) & ~is_held),
                    self.request.payload.address.eq(address),
                    self.request.payload.last[3].eq(~half),
                    self.request.payload.last[:3].eq(isa.COMMAND_WORDS - 1),
                    self.request.payload.reply.address.eq(tail << 4),
                ]
                with m.If(sent):
                    m.d.sync += [
                        address.eq(address + SEGMENT_WORDS),
                        unrequested.eq(unrequested - Cat(half, ~half)),
                        tail.eq(tail + 1),
                    ]
                with m.If(self.o.valid & self.o.ready):
                    m.d.sync += head.eq(head + 1)
                    with m.If(head[:3] == isa.COMMAND_WORDS - 1):
                        m.d.sync += ungiven.eq(ungiven - 1)
                self._segments(m, held, missing, sent & running, tail, half, head)
        return m

    def _segments(self, m, held, missing, sent, tail, half, head):
        """Arrival counts: set on request, lowered by each word; freed with the last word given."""
        arrival = self.command_word
        for s in range(SEGMENTS):
            with m.If(sent & (tail == s)):
                m.d.sync += [held[s].eq(1), missing[s].eq(Cat(0, 0, 0, half, ~half))]
            with m.If(arrival.valid & (arrival.payload.address[4:6] == s)):
                m.d.sync += missing[s].eq(missing[s] - 1)
            with m.If(self.o.valid & self.o.ready & (head == (s + 1) * SEGMENT_WORDS - 1)):
                m.d.sync += held[s].eq(0)

    def _reply(self):
        """Where the words go back to: this tile alone."""
        reply = self.request.payload.reply
        return [
            reply.kind.eq(Kind.COMMAND),
            reply.rect.x0.eq(self.x), reply.rect.x1.eq(self.x),
            reply.rect.y0.eq(self.y), reply.rect.y1.eq(self.y),
            reply.source_x.eq(self.x), reply.source_y.eq(self.y),
        ]
