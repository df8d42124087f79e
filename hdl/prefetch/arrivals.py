# SPDX-License-Identifier: Apache-2.0
"""Counting of the words of parameter blocks as they arrive."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.config import BLOCK_WORDS
from hdl.packets import SPAD_BITS
from hdl.ports import FrameArrival
from hdl.prefetch.frames import FRAMES

FRAME_SHIFT = BLOCK_WORDS.bit_length() - 1


class ArrivalCounter(wiring.Component):
    """Counts the words in each frame; every word carries its block's number and length.

    A word for a frame that awaits none begins a residence: a follower learns of a block in this
    way. Combinational; the counts are valid from 64 cycles after reset on, and every complete block
    leaves its count at 0.

    Members
    -------
    arrival: A word was written.
    base: Scratchpad address of frame 0.
    filling: Frames that await words.
    begin, completed: The word is the first of an unannounced block; the last of its block.
    frame: Of the word.
    """

    def __init__(self):
        super().__init__(
            {
                "arrival": In(FrameArrival), "base": In(SPAD_BITS), "filling": In(FRAMES),
                "begin": Out(1), "completed": Out(1), "frame": Out(6),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.counts = counts = Memory(shape=9, depth=FRAMES, init=[])
        write, read = counts.write_port(), counts.read_port(domain="comb")
        sweep, words, arrived = Signal(range(FRAMES + 1)), Signal(9), Signal(9)
        arrival = self.arrival
        offset = Signal(FRAME_SHIFT + len(self.frame))

        m.d.comb += [
            offset.eq(arrival.address - self.base),
            self.frame.eq(offset[FRAME_SHIFT:]),
            words.eq((arrival.tiles + 1) * arrival.tile_words),
            read.addr.eq(self.frame),
            arrived.eq(read.data + 1),
            self.begin.eq(arrival.valid & ~self.filling.bit_select(self.frame, 1)),
            self.completed.eq(arrival.valid & (arrived == words)),
            write.en.eq(arrival.valid | ~sweep[-1]),
            write.addr.eq(Mux(sweep[-1], self.frame, sweep)),
            write.data.eq(Mux(self.completed | ~sweep[-1], 0, arrived)),
        ]
        with m.If(~sweep[-1]):
            m.d.sync += sweep.eq(sweep + 1)
        return m
