# SPDX-License-Identifier: Apache-2.0
"""Arbiters of a shared output: which of several requesters goes next.

All have the same members, so that a router takes any of them. A grant, once given, stays until it
is taken, which keeps the payload behind it stable.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.errors import UserError


def _lowest(bits):
    """``bits`` with only its lowest set bit."""
    return (bits & (~bits + 1))[: len(bits)]


class Arbiter(wiring.Component):
    """What arbiters have in common.

    Latency: ``grant`` is combinational in ``requests``. Throughput: a grant every cycle.

    Parameters
    ----------
    requesters: How many, at least 1.

    Members
    -------
    requests: Who wants to go. A request stays up until it is granted and taken.
    taken: The one granted goes in this cycle.
    grant: One-hot, or 0 if nobody requests. Never depends on ``taken``.

    Raises
    ------
    ValueError: If ``requesters`` is less than 1.
    """

    def __init__(self, requesters: int):
        if requesters < 1:
            raise ValueError(f"requesters must be at least 1, not {requesters!r}")
        self._requesters = requesters
        super().__init__({"requests": In(requesters), "taken": In(1), "grant": Out(requesters)})

    @property
    def requesters(self) -> int:
        return self._requesters


class RoundRobinArbiter(Arbiter):
    """The next requester above the one that went last; strongly fair."""

    def elaborate(self, platform):
        m = Module()
        if self._requesters == 1:
            m.d.comb += self.grant.eq(self.requests)
            return m
        favoured = Signal(self._requesters)  # ones from the first in turn upwards
        first, pick = Signal(self._requesters), Signal(self._requesters)
        below = Signal(self._requesters)
        m.d.comb += [
            first.eq(self.requests & favoured),
            pick.eq(Mux(first.any(), first, self.requests)),
            self.grant.eq(_lowest(pick)),
            below.eq(self.grant - 1),
        ]
        # A grant not taken is first in turn in the next cycle, so it stays.
        with m.If(self.requests.any()):
            m.d.sync += favoured.eq(~Mux(self.taken, below | self.grant, below))
        return m


class AgeArbiter(Arbiter):
    """The oldest request first, by the cycle in which it rose at this output.

    Requesters are kept in a total order, one bit per pair: those who wait move, in their order,
    ahead of those who do not. Such a stable partition of a total order is a total order again.
    """

    def elaborate(self, platform):
        m = Module()
        count = self._requesters
        waiting = Signal(count)
        m.d.comb += waiting.eq(Mux(self.taken, self.requests & ~self.grant, self.requests))
        ahead = {}  # ahead[i, j]: i goes before j
        for i in range(count):
            for j in range(i + 1, count):
                order = Signal(init=1, name=f"ahead_{i}_{j}")
                ahead[i, j], ahead[j, i] = order, ~order
                with m.If(waiting[i] ^ waiting[j]):
                    m.d.sync += order.eq(waiting[i])
        m.d.comb += self.grant.eq(
            Cat(
                self.requests[i]
                & ~Cat(self.requests[j] & ahead[j, i] for j in range(count) if j != i).any()
                for i in range(count)
            )
        )
        return m


class WeightedArbiter(Arbiter):
    """Weighted round robin under lasting contention, plain round robin without.

    Once several have requested for more than ``patience`` cycles on end, each goes as often in a
    round as its weight says; the round ends when nobody who requests has a turn left, so the output
    never waits. Where the weights are the numbers of sources behind each input, every source of a
    saturated output gets the same share, however far away it is. Short queues are served in turn,
    which keeps latency low up to saturation.

    Members
    -------
    weights: `WEIGHT_BITS` a requester, at least 1 each, constant in operation.
    patience: To be changed before elaboration; 0: always weighted.
    """

    def __init__(self, requesters: int):
        super().__init__(requesters)
        self.weights = Signal(WEIGHT_BITS * requesters)
        self.patience = PATIENCE

    def elaborate(self, platform):
        m = Module()
        count, requests = self._requesters, self.requests
        if count == 1:
            m.d.comb += self.grant.eq(requests)
            return m
        left = [Signal(WEIGHT_BITS, name=f"left_{k}") for k in range(count)]
        streak = Signal(range(self.patience + 1))
        contended, strict, renew = Signal(), Signal(), Signal()
        entitled, eligible = Signal(count), Signal(count)
        self._held = held = Signal(count)  # proofs look at it
        favoured, first, pick = Signal(count), Signal(count), Signal(count)
        m.d.comb += [
            contended.eq((requests & (requests - 1))[:count].any()),
            strict.eq(streak == self.patience),
            entitled.eq(requests & Cat(each.any() for each in left)),
            renew.eq(strict & ~entitled.any()),
            eligible.eq(Mux(strict & ~renew, entitled, requests)),
            first.eq(eligible & favoured),
            pick.eq(_lowest(Mux(first.any(), first, eligible))),
            self.grant.eq(Mux(held.any(), held, pick)),
        ]
        m.d.sync += held.eq(Mux(self.taken, 0, self.grant))
        with m.If(~contended):
            m.d.sync += streak.eq(0)
        with m.Elif(~strict):
            m.d.sync += streak.eq(streak + 1)
        with m.If(requests.any()):
            for k, each in enumerate(left):
                weight = self.weights[WEIGHT_BITS * k : WEIGHT_BITS * (k + 1)]
                now = Mux(renew, weight, each)
                m.d.sync += each.eq(now - (self.grant[k] & self.taken & now.any()))
        with m.If(self.grant.any() & self.taken):  # the next in turn is above who goes now
            m.d.sync += favoured.eq(~((self.grant - 1) | self.grant))
        return m


PATIENCE = 1
WEIGHT_BITS = 8
ARBITERS = {"round_robin": RoundRobinArbiter, "age": AgeArbiter, "weighted": WeightedArbiter}
"""By the name in ``mesh.arbiter``."""


def make_arbiter(name: str, requesters: int) -> Arbiter:
    """The arbiter called ``name``.

    Raises
    ------
    UserError
        If there is none.
    """
    if name not in ARBITERS:
        raise UserError(f"mesh.arbiter must be one of {', '.join(ARBITERS)}, not {name!r}")
    return ARBITERS[name](requesters)
