# SPDX-License-Identifier: Apache-2.0
"""Signatures between the parts of a tile. Directions are the client's (`Out` leaves the client)."""

from amaranth.hdl import Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from emu.isa import SEM_BITS, WAIT_BITS
from hdl.packets import SPAD_BITS, WORD_BITS, Rect

ScratchpadRead = wiring.Signature(
    {"request": Out(stream.Signature(SPAD_BITS)), "data": In(WORD_BITS)}
)
"""Read client: ``data`` belongs to the request that was transferred in the cycle before."""



def share(m, port, first, second):
    """Two `ScratchpadRead` clients on one ``port``: the first before the second, except that a
    refused request stays: payloads are stable."""
    refused, kept, pick = Signal(), Signal(), Signal()
    request = port.request
    m.d.comb += [
        pick.eq(Mux(refused, kept, first.request.valid)),
        request.valid.eq(Mux(pick, first.request.valid, second.request.valid)),
        request.payload.eq(Mux(pick, first.request.payload, second.request.payload)),
        first.request.ready.eq(pick & request.ready),
        second.request.ready.eq(~pick & request.ready),
        first.data.eq(port.data),
        second.data.eq(port.data),
    ]
    m.d.sync += [refused.eq(request.valid & ~request.ready), kept.eq(pick)]


WriteWord = data.StructLayout({"data": WORD_BITS, "address": SPAD_BITS})

ScratchpadWrite = wiring.Signature({"request": Out(stream.Signature(WriteWord))})
"""Write client: the word is in the bank from the cycle after the transfer on."""

WaitOp = data.StructLayout({"sem": SEM_BITS, "count": WAIT_BITS})
SignalOp = data.StructLayout({"sem": SEM_BITS, "rect": Rect})

Credit = data.StructLayout({"sem": SEM_BITS, "words": 16})

Arrival = wiring.Signature({"valid": Out(1), "sem": Out(SEM_BITS)})
"""One increment; never refused."""

BlockRef = data.StructLayout({"layer": 6, "block": 12, "last": 1})
"""Block ``block`` (0 is the layer's first) of layer descriptor ``layer``. ``last`` (lookups only):
a release of this use follows (not ``w_keep``): the next lookup of the block is a new use."""

BlockLookup = wiring.Signature(
    {"request": Out(stream.Signature(BlockRef)), "address": In(SPAD_BITS)}
)
"""``ready`` rises when the whole block is resident; ``address`` is then its frame's first word."""

BlockRelease = wiring.Signature({"valid": Out(1), "payload": Out(BlockRef)})
"""The compute engine will not read this block again in this use; never refused."""

FrameArrival = wiring.Signature(
    {
        "valid": Out(1),
        "address": Out(SPAD_BITS),   # scratchpad address of the word written
        "block": Out(12),
        "tiles": Out(4),             # minus 1
        "tile_words": Out(5),
    }
)
"""A FRAME word was written; never refused."""

FrameRelease = wiring.Signature({"valid": Out(1), "frame": Out(6)})
"""A follower released a frame; never refused."""


PrefetchControl = wiring.Signature({"policy": Out(3), "depth": Out(6), "threshold": Out(8)})
"""The prefetch policy's registers: chip inputs, so that one program image serves every policy."""
