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


ARBITERS = {"round_robin": RoundRobinArbiter, "age": AgeArbiter}
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
