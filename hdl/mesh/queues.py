# SPDX-License-Identifier: Apache-2.0
"""Pointers of a router's input queues."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2


class QueuePointers(wiring.Component):
    """Head, tail and level of several queues of equal depth; what they hold lies elsewhere.

    Levels and heads are bit-sliced: ``head_0`` is bit 0 of every queue's head, and so on. The gates
    are those of separate counters, but a simulator steps all queues with one operation per slice.

    Latency: what was pushed in cycle t is valid in t + 1. ``valid`` and ``ready`` depend on the
    level alone.

    Parameters
    ----------
    queues: How many.
    depth: Items that each holds, at least 1.

    Members
    -------
    push, pop: A bit per queue; only where ``ready``, ``valid``.
    valid, ready: A bit per queue: there is a head; there is room.
    head_K: Bit K of the slots to read, a bit per queue.
    tail_N: Slot that queue N writes next.
    """

    def __init__(self, queues: int, depth: int):
        self._queues, self._depth = queues, depth
        self._bits = max(1, ceil_log2(depth))
        super().__init__(
            {
                "push": In(queues), "pop": In(queues),
                "valid": Out(queues), "ready": Out(queues),
                **{f"head_{k}": Out(queues) for k in range(self._bits)},
                **{f"tail_{n}": Out(self._bits) for n in range(queues)},
            }
        )

    @property
    def slots(self) -> int:
        """Slots of a queue: ``depth`` rounded up to a power of two."""
        return 1 << self._bits

    @property
    def heads(self) -> list[Signal]:
        """``head_0``, ``head_1``, ..."""
        return [getattr(self, f"head_{k}") for k in range(self._bits)]

    def head(self, queue: int):
        """Slot of the head of ``queue``."""
        return Cat(plane[queue] for plane in self.heads)

    def tail(self, queue: int) -> Signal:
        """Slot that ``queue`` writes next."""
        return getattr(self, f"tail_{queue}")

    def elaborate(self, platform):
        m = Module()
        level = [Signal(self._queues, name=f"level_{k}") for k in range(self._depth.bit_length())]
        self._level = level  # proofs look at it
        up, down = Signal(self._queues), Signal(self._queues)
        m.d.comb += [up.eq(self.push & ~self.pop), down.eq(self.pop & ~self.push)]
        some, missing = Const(0, self._queues), Const(0, self._queues)
        for k, plane in enumerate(level):
            some |= plane
            missing |= ~plane if self._depth >> k & 1 else plane
        m.d.comb += [self.valid.eq(some), self.ready.eq(missing)]

        for plane in level:
            m.d.sync += plane.eq(plane ^ (up | down))
            up, down = up & plane, down & ~plane  # carry and borrow
        carry = self.pop
        for plane in self.heads:
            m.d.sync += plane.eq(plane ^ carry)
            carry = carry & plane
        for queue in range(self._queues):
            with m.If(self.push[queue]):
                m.d.sync += self.tail(queue).eq(self.tail(queue) + 1)
        return m
