# SPDX-License-Identifier: Apache-2.0
"""Reading of one parameter block from HBM, a segment piece at a time."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from emu.config import SEGMENT_WORDS
from hdl.packets import ADDRESS_BITS, SPAD_BITS, HbmRequest, Kind, Rect

BlockRead = data.StructLayout(
    {
        "address": ADDRESS_BITS, "scratchpad": SPAD_BITS, "rect": Rect,
        "block": 12, "tiles": 4, "tile_words": 5,
    }
)
"""Read the block of ``(tiles + 1) * tile_words`` words at ``address`` into all of ``rect``."""


class BlockReader(wiring.Component):
    """Turns each block into requests that stay within a segment. One request a cycle.

    Members
    -------
    x, y: This tile.
    i: Blocks; ready when the one before is requested.
    request: FRAME requests. The first comes a cycle after the block.
    """

    def __init__(self):
        super().__init__(
            {
                "x": In(4), "y": In(4),
                "i": In(stream.Signature(BlockRead)),
                "request": Out(stream.Signature(HbmRequest)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        job, left = Signal(BlockRead), Signal(9)
        room, piece = Signal(5), Signal(5)
        request, reply = self.request.payload, self.request.payload.reply
        m.d.comb += [
            self.i.ready.eq(left == 0),
            self.request.valid.eq(left != 0),
            room.eq(SEGMENT_WORDS - job.address[:4]),
            piece.eq(Mux(left < room, left, room)),
            request.address.eq(job.address),
            request.last.eq(piece - 1),
            reply.kind.eq(Kind.FRAME),
            reply.rect.eq(job.rect),
            reply.address.eq(job.scratchpad),
            reply.block.eq(job.block),
            reply.tiles.eq(job.tiles),
            reply.tile_words.eq(job.tile_words),
            reply.source_x.eq(self.x),
            reply.source_y.eq(self.y),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                job.eq(self.i.payload),
                left.eq((self.i.payload.tiles + 1) * self.i.payload.tile_words),
            ]
        with m.If(self.request.valid & self.request.ready):
            m.d.sync += [
                job.address.eq(job.address + piece),
                job.scratchpad.eq(job.scratchpad + piece),
                left.eq(left - piece),
            ]
        return m
