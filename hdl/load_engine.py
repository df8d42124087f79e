# SPDX-License-Identifier: Apache-2.0
"""LOAD commands as read requests to HBM."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import SEGMENT_WORDS
from hdl.counter import count
from hdl.move_loops import LENGTH_BITS, MoveCommand, MoveLoops, Side
from hdl.packets import ADDRESS_BITS, SPAD_BITS, HbmRequest, Kind
from hdl.ports import Credit, ScratchpadRead


class LoadEngine(wiring.Component):
    """Cuts each run of a LOAD at segment borders and asks for the pieces.

    Latency: a request two cycles after its command, without an index list. Throughput:
    one request a cycle, whether runs are long or short; two cycles between commands. A command is
    done when its last request has been taken; one that moves nothing is done at once, in order.
    Counters: ``words`` requested, ``refused`` cycles.

    Members
    -------
    x, y: This tile: the source that answers name.
    command: Stream of LOAD commands; the next may be given before the one before is done.
    done: One cycle per command, in order.
    request: To the network interface.
    credit: Words of runs whose list entry is `ABSENT`, which count as arrived on their semaphore.
    read: Scratchpad port for index lists.
    busy: A command is in the engine.
    """

    def __init__(self):
        super().__init__(
            {
                "x": In(4),
                "y": In(4),
                "command": In(stream.Signature(MoveCommand)),
                "done": Out(1),
                "request": Out(stream.Signature(HbmRequest)),
                "credit": Out(stream.Signature(Credit)),
                "read": Out(ScratchpadRead),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.loops = loops = MoveLoops(sums=True)
        connect(m, wiring.flipped(self.command), loops.command)
        connect(m, loops.read, wiring.flipped(self.read))

        active, end, side = Signal(), Signal(), Signal(Side)
        near, far, left = Signal(SPAD_BITS), Signal(ADDRESS_BITS), Signal(LENGTH_BITS)
        room, words = Signal(range(SEGMENT_WORDS + 1)), Signal(range(SEGMENT_WORDS + 1))
        fits, nothing, taken, finish = Signal(), Signal(), Signal(), Signal()
        absent = Signal()
        request, row = self.request.payload, Signal(3)
        m.d.comb += [
            request.reply.kind.eq(Mux(row[2], Kind.SUM, Kind.DATA)),
            request.reply.block.eq(Mux(row[2], row[:2], 0)),
            room.eq(SEGMENT_WORDS - far[:4]),
            fits.eq(left <= room),
            words.eq(Mux(fits, left[:5], room)),
            nothing.eq((left == 0) | (absent & ~side.has_sem)),
            self.request.valid.eq(active & ~nothing & ~absent),
            self.credit.valid.eq(active & ~nothing & absent),
            self.credit.payload.sem.eq(side.sem),
            self.credit.payload.words.eq(left),
            request.address.eq(far),
            request.last.eq(words - 1),
            request.reply.rect.eq(side.rect),
            request.reply.address.eq(near),
            request.reply.has_sem.eq(side.has_sem),
            request.reply.sem.eq(side.sem),
            request.reply.source_x.eq(self.x),
            request.reply.source_y.eq(self.y),
            taken.eq(self.request.valid & self.request.ready),
            finish.eq(active & Mux(
                absent, nothing | self.credit.ready, fits & (nothing | self.request.ready))),
            loops.o.ready.eq(~active | finish),
        ]
        with m.If(loops.o.ready):
            m.d.sync += active.eq(loops.o.valid)
            with m.If(loops.o.valid):
                run = loops.o.payload
                m.d.sync += [near.eq(run.near), far.eq(run.far), left.eq(run.length)]
                m.d.sync += [end.eq(run.end), side.eq(run.side), absent.eq(run.absent)]
                m.d.sync += row.eq(Cat(run.close, run.int4, run.sum))
        with m.Elif(taken):
            m.d.sync += [near.eq(near + words), far.eq(far + words), left.eq(left - words)]
        m.d.sync += self.done.eq(finish & end)

        m.d.comb += self.busy.eq(~self.command.ready | active | self.done)
        count(m, "words", Mux(taken, words, 0))
        count(m, "refused", self.request.valid & ~self.request.ready)
        return m
