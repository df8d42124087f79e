# SPDX-License-Identifier: Apache-2.0
"""Choosing one bank of sixteen."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.hbm_timing import BANKS
from hdl.hbm.packets import STAMP_BITS


class Oldest(wiring.Component):
    """The ready bank whose head arrived first. Combinational.

    A tree of minima over {not ready, arrival number, bank}. Arrival numbers are modulo 2**10;
    ``flip`` (the top bit of the next arrival number, inverted) makes the last 512 compare in order.

    Members
    -------
    ready: Candidates. ``stamps``: Their arrival numbers. ``flip``: See above.
    found: Some bank is ready. ``bank``: The oldest.
    """

    def __init__(self):
        super().__init__(
            {
                "ready": In(BANKS), "stamps": In(STAMP_BITS).array(BANKS), "flip": In(1),
                "found": Out(1), "bank": Out(range(BANKS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        keys = []
        for bank in range(BANKS):
            key = Signal(STAMP_BITS + 5, name=f"key_{bank}")
            stamp = self.stamps[bank]
            # All ones if not ready: stamps of empty queues are never looked at.
            m.d.comb += key.eq(Mux(
                self.ready[bank],
                Cat(Const(bank, 4), stamp[:-1], stamp[-1] ^ self.flip, Const(0, 1)),
                (1 << STAMP_BITS + 5) - 1,
            ))
            keys.append(key)
        while len(keys) > 1:
            level = []
            for left, right in zip(keys[::2], keys[1::2], strict=True):
                least = Signal(STAMP_BITS + 5, name=f"least_{len(keys)}_{len(level)}")
                m.d.comb += least.eq(Mux(right < left, right, left))
                level.append(least)
            keys = level
        m.d.comb += [self.found.eq(self.ready.any()), self.bank.eq(keys[0][:4])]
        return m


def one_hot_index(vector):
    """Number of the one bit set in a 16-bit vector."""
    return Cat(
        (vector & sum(1 << i for i in range(BANKS) if i >> bit & 1)).any() for bit in range(4)
    )


def lowest(vector):
    """The lowest bit set, alone."""
    return vector & (~vector + 1)[:len(vector)]
