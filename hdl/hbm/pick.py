# SPDX-License-Identifier: Apache-2.0
"""Choosing one bank of sixteen."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.hbm_timing import BANKS
from hdl.hbm.packets import STAMP_BITS

KEY_BITS = STAMP_BITS + 4


def key(bank: int, stamp, flip):
    """What `Oldest` compares: the arrival number, then the bank.

    Arrival numbers are modulo 2**10; ``flip`` (the top bit of the next arrival number, inverted)
    makes the last 512 compare in order.
    """
    return Cat(Const(bank, 4), stamp[:-1], stamp[-1] ^ flip)


class Oldest(wiring.Component):
    """The ready bank whose head arrived first. Combinational: a tree of minima.

    Members
    -------
    ready: Candidates. ``keys``: Their keys, see `key`.
    found: Some bank is ready. ``bank``: The oldest.
    """

    def __init__(self):
        super().__init__(
            {
                "ready": In(BANKS), "keys": In(KEY_BITS).array(BANKS),
                "found": Out(1), "bank": Out(range(BANKS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # All ones if not ready: stamps of empty queues are never looked at.
        keys = [Mux(self.ready[bank], self.keys[bank], (2 << KEY_BITS) - 1)
                for bank in range(BANKS)]
        while len(keys) > 1:
            level = []
            for left, right in zip(keys[::2], keys[1::2], strict=True):
                a, b, least = (
                    Signal(KEY_BITS + 1, name=f"{name}_{len(keys)}_{len(level)}")
                    for name in ("left", "right", "least")
                )
                m.d.comb += [a.eq(left), b.eq(right), least.eq(Mux(b < a, b, a))]
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
