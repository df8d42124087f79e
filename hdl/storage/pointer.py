# SPDX-License-Identifier: Apache-2.0
"""The prefetch pointer of the page cache: candidates in stream order, under the tile's policies."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.ports import PrefetchControl
from hdl.prefetch.policy import DISTANCE_BITS
from hdl.prefetch.registry import PolicySelect
from hdl.storage.packets import FRAME_BITS, PAGE_BITS, REGION_BITS, PageRef, Region

FARTHEST = (1 << DISTANCE_BITS) - 1
HOPS = (1 << REGION_BITS) - 1


class PagePointer(wiring.Component):
    """Proposes the pages after the last lookup: of its region in order, then of the child.

    `hdl.prefetch.unit.PrefetchUnit` in a second geometry, with pages for blocks and regions for
    layers. The owner looks the candidate up and says ``step`` (it is there or being fetched) or, if
    the policy does not let it be fetched, ``refuse``: then an optional region that was entered by
    crossing is passed over, and before any other page the pointer stops until the next lookup. It
    also stops as many pages ahead as there are frames, at most 126. If pages are read ``piecemeal``
    lookups of regions of one page (biases, scales, tables) do not set the pointer: they come late,
    when weights behind them are in use or done with. Policies see ``frames`` and
    ``unused`` saturated at 127.

    With ``exact`` candidates are not the program's regions but the client's own next references
    (``peek`` ahead of the current one): what an oracle knows.

    Latency: a candidate in the cycle after ``enter`` or ``step``, later by one for each region
    crossed. Throughput: one candidate a cycle.

    Parameters
    ----------
    piecemeal: See above.

    Members
    -------
    prefetch, frames, exact: Registers. ``describe``, ``region``: Store a region.
    enter, reference: A lookup sets the pointer behind its page.
    valid, page, distance: The candidate, and how many pages behind the lookup. ``fetch``: The
        policy lets it be fetched. ``step``, ``refuse``: The owner's answer. ``moving``: Between
        regions.
    unused: Frames with prefetched pages that nobody has looked up.
    peek: References ahead, for ``peek_valid``, ``peek_reference`` at once.
    """

    def __init__(self, piecemeal: bool = False):
        self._piecemeal = piecemeal
        super().__init__(
            {
                "prefetch": In(PrefetchControl), "frames": In(FRAME_BITS + 1), "exact": In(1),
                "describe": In(1), "region": In(Region),
                "enter": In(1), "reference": In(PageRef),
                "valid": Out(1), "page": Out(PAGE_BITS), "fetch": Out(1),
                "distance": Out(DISTANCE_BITS),
                "step": In(1), "refuse": In(1), "moving": Out(1),
                "unused": In(FRAME_BITS + 1),
                "peek": Out(DISTANCE_BITS), "peek_valid": In(1), "peek_reference": In(PageRef),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.policy = policy = PolicySelect()
        m.submodules.regions = regions = Memory(shape=Region, depth=1 << REGION_BITS, init=[])
        write, here = regions.write_port(), regions.read_port(domain="comb")
        entered = regions.read_port(domain="comb")
        running, crossing = Signal(), Signal()
        number, home = Signal(REGION_BITS), Signal(REGION_BITS)
        page, distance = Signal(PAGE_BITS), self.distance
        hops, inside, near = Signal(REGION_BITS), Signal(), Signal()
        region = here.data

        m.d.comb += [
            write.en.eq(self.describe), write.addr.eq(self.region.region),
            write.data.eq(self.region),
            here.addr.eq(Mux(self.exact, self.peek_reference.region, number)),
            entered.addr.eq(self.reference.region),
            near.eq((distance != FARTHEST) & (distance < self.frames)),
            inside.eq(~region.scattered & (page < region.pages)),
            self.peek.eq(distance),
            self.valid.eq(running & near & Mux(self.exact, self.peek_valid, inside)),
            self.page.eq(Mux(self.exact, self.peek_reference.page, region.first + page)),
            self.moving.eq(running & near & ~self.exact & ~inside),
            policy.distance.eq(distance),
            policy.crossing.eq(Mux(
                self.exact, self.peek_reference.region != home, crossing)),
            policy.frequency.eq(region.frequency),
            policy.frames.eq(Mux(self.frames > FARTHEST, FARTHEST, self.frames)),
            policy.unused.eq(Mux(self.unused > FARTHEST, FARTHEST, self.unused)),
            self.fetch.eq(policy.fetch),
        ]
        for name in ("policy", "threshold", "depth"):
            m.d.comb += getattr(policy, name).eq(getattr(self.prefetch, name))
        passed = self.refuse & crossing & region.optional & ~self.exact
        with m.If(self.moving | passed):
            m.d.sync += [
                number.eq(region.child), page.eq(0), crossing.eq(1), hops.eq(hops + 1),
                # A loop of regions of which none is wanted.
                running.eq(hops != HOPS),
            ]
        with m.Elif(self.refuse):
            m.d.sync += running.eq(0)
        with m.If(self.step):
            m.d.sync += [page.eq(page + 1), distance.eq(distance + 1), hops.eq(0)]
        enter = self.enter
        if self._piecemeal:
            enter = self.enter & (entered.data.pages != 1)
        with m.If(enter):
            m.d.sync += [
                running.eq(1), crossing.eq(0), distance.eq(1), hops.eq(0),
                number.eq(self.reference.region), home.eq(self.reference.region),
                page.eq(self.reference.page - entered.data.first + 1),
            ]
        return m
