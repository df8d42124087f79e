# SPDX-License-Identifier: Apache-2.0
"""Where the next parameter block lies: one lookup in flight, its answer held until it is used."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.packets import SPAD_BITS
from hdl.ports import BlockLookup, BlockRef, BlockRelease


class BlockFinder(wiring.Component):
    """Looks blocks up ahead of their use and releases them after it.

    A lookup of a block is held back while that block is being released, so that the parameter
    store sees the end of one use before the beginning of the next. Latency: none from ``wanted`` to
    the request, none from the answer to ``found``; a release is sent in the cycle after ``done``.

    Members
    -------
    wanted, target: Block ``target`` is or will be needed next; both stay until ``take``.
    found, address: ``target`` is resident at ``address``, now or since an earlier cycle.
    take: If ``found``, the answer is used and forgotten.
    done, current: The last word of ``current`` was read: release it.
    """

    wanted: In(1)
    target: In(BlockRef)
    found: Out(1)
    address: Out(SPAD_BITS)
    take: In(1)
    done: In(1)
    current: In(BlockRef)
    lookup: Out(BlockLookup)
    release: Out(BlockRelease)

    def elaborate(self, platform):
        m = Module()
        request = self.lookup.request
        held, held_address, answered, releasing = Signal(), Signal(SPAD_BITS), Signal(), Signal()
        released = self.release.payload
        m.d.comb += [
            releasing.eq(
                self.release.valid & (released.layer == self.target.layer)
                & (released.block == self.target.block)
            ),
            request.valid.eq(self.wanted & ~held & ~releasing),
            request.payload.eq(self.target),
            answered.eq(request.valid & request.ready),
            self.found.eq(held | answered),
            self.address.eq(Mux(held, held_address, self.lookup.address)),
        ]
        m.d.sync += held.eq(self.found & ~self.take)
        with m.If(answered):
            m.d.sync += held_address.eq(self.lookup.address)
        m.d.sync += self.release.valid.eq(self.done)
        with m.If(self.done):
            m.d.sync += [released.layer.eq(self.current.layer),
                         released.block.eq(self.current.block)]
        return m
