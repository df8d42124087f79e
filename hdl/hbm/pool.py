# SPDX-License-Identifier: Apache-2.0
"""Numbers to hand out and take back."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class Pool(wiring.Component):
    """Hands out numbers 0 to ``size`` - 1, each to one holder at a time.

    One number may be taken and one given back per cycle; a number given back can be taken from the
    next cycle on. A ring of free numbers, filled lazily so that its memory needs no initial value.

    Parameters
    ----------
    size: A power of two, at least 2.

    Members
    -------
    available: ``slot`` can be taken. ``take``: take it (only while available).
    give, given: Give number ``given`` back.
    free: Numbers not handed out.
    """

    def __init__(self, size: int):
        if size < 2 or size & (size - 1):
            raise ValueError(f"Pool size must be a power of two of at least 2, not {size!r}")
        self._size = size
        super().__init__(
            {
                "available": Out(1),
                "slot": Out(range(size)),
                "take": In(1),
                "give": In(1),
                "given": In(range(size)),
                "free": Out(range(size + 1), init=size),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.ring = ring = Memory(shape=range(self._size), depth=self._size, init=[])
        write, read = ring.write_port(), ring.read_port(domain="comb")
        head, tail = Signal(range(self._size)), Signal(range(self._size))
        fresh = Signal(init=1)

        m.d.comb += [
            write.addr.eq(tail),
            write.data.eq(self.given),
            write.en.eq(self.give),
            read.addr.eq(head),
            # The first round hands out 0, 1, 2, ... by counting.
            self.slot.eq(Mux(fresh, head, read.data)),
            self.available.eq(self.free != 0),
        ]
        m.d.sync += self.free.eq(self.free - self.take + self.give)
        with m.If(self.give):
            m.d.sync += tail.eq(tail + 1)
        with m.If(self.take):
            m.d.sync += head.eq(head + 1)
            with m.If(head == self._size - 1):
                m.d.sync += fresh.eq(0)
        return m
