# SPDX-License-Identifier: Apache-2.0
"""Assembles a drain's output words, gives them their addresses and writes them."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.counter import count
from hdl.fifo import Fifo
from hdl.packets import SPAD_BITS, WORD_BITS
from hdl.ports import ScratchpadWrite


class WordWriter(wiring.Component):
    """Queues 16-byte words made of ``lanes`` bytes at a time, or of four int32, and writes them.

    Pixel p goes to ``address + p * step``, its int32 words to that plus 0..3. Never refuses: who
    feeds it keeps at most ``depth`` words unwritten.

    Parameters
    ----------
    lanes: Bytes of a part: 4, 8 or 16.
    depth: Words queued.

    Members
    -------
    start, address: A command begins; word of its pixel 0.
    step: Words from pixel to pixel, constant in a command.
    wide: Words come from ``total``, four a pixel.
    part_valid, part: The next bytes, low lanes first.
    total_valid, total: The next int32 word.
    final: The word queued now is the command's last.
    write: Scratchpad port.
    queued, written: A word entered the queue; left it.
    done: Pulse: a command's last word is in the scratchpad.
    busy: A word is queued.
    """

    def __init__(self, lanes: int, depth: int):
        self._lanes, self._depth = lanes, depth
        super().__init__(
            {
                "start": In(1), "address": In(SPAD_BITS), "step": In(SPAD_BITS), "wide": In(1),
                "part_valid": In(1), "part": In(8 * lanes),
                "total_valid": In(1), "total": In(WORD_BITS), "final": In(1),
                "write": Out(ScratchpadWrite),
                "queued": Out(1), "written": Out(1), "done": Out(1), "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shape = data.StructLayout({"data": WORD_BITS, "address": SPAD_BITS, "last": 1})
        m.submodules.queue = queue = Fifo(shape, self._depth)
        whole, word, parts = Signal(), self.part, 16 // self._lanes
        if parts == 1:
            m.d.comb += whole.eq(self.part_valid)
        else:
            held_parts, held = Signal(range(parts)), Signal(WORD_BITS - len(self.part))
            m.d.comb += whole.eq(self.part_valid & (held_parts == parts - 1))
            word = Cat(held, self.part)
            with m.If(self.part_valid):  # parts is a power of two: the count wraps by itself
                m.d.sync += [held_parts.eq(held_parts + 1), held.eq(word[len(self.part) :])]

        pixel, quarter = Signal(SPAD_BITS), Signal(2)
        request = self.write.request
        m.d.comb += [
            self.queued.eq(Mux(self.wide, self.total_valid, whole)),
            queue.i.valid.eq(self.queued),
            queue.i.payload.data.eq(Mux(self.wide, self.total, word)),
            queue.i.payload.address.eq(pixel + quarter),
            queue.i.payload.last.eq(self.final),
            request.valid.eq(queue.o.valid),
            request.payload.data.eq(queue.o.payload.data),
            request.payload.address.eq(queue.o.payload.address),
            queue.o.ready.eq(request.ready),
            self.written.eq(request.valid & request.ready),
            self.busy.eq(queue.o.valid | self.done),
        ]
        with m.If(self.queued):
            with m.If(self.wide & (quarter != 3)):
                m.d.sync += quarter.eq(quarter + 1)
            with m.Else():
                m.d.sync += [quarter.eq(0), pixel.eq(pixel + self.step)]
        with m.If(self.start):
            m.d.sync += [pixel.eq(self.address), quarter.eq(0)]
        m.d.sync += self.done.eq(self.written & queue.o.payload.last)
        count(m, "words", self.written)
        return m
