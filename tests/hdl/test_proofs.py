# SPDX-License-Identifier: Apache-2.0
"""Proofs of small machines the rest stands on; each has a broken copy that must fail its proof.

The same broken copy must also be caught by simulation under random inputs, so that a proof is no
substitute for a bench that does not look.
"""

import pytest
from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data

from emu.hbm_timing import Timing
from hdl.compute.requantise import RequantiseLane
from hdl.fifo import Fifo
from hdl.hbm.packets import RowKind
from hdl.hbm.timers import Timers
from hdl.mesh.arbiter import AgeArbiter, RoundRobinArbiter, WeightedArbiter
from hdl.mesh.queues import QueuePointers
from hdl.mesh.router import Router
from hdl.packets import Dest
from tests.hdl.proofs import Property, broken, holds_for, prove, survives


def accept(prop: Property, bad: Property, tmp_path, check=prove, **options) -> None:
    """The property is proved; its broken twin fails the proof and the simulation."""
    assert all(survives(prop, 150, seed) for seed in range(10))
    assert check(prop, tmp_path, **options)
    assert not all(survives(bad, 150, seed) for seed in range(40))
    assert not check(bad, tmp_path, **options)


class FifoKeepsOrder(Property):
    """Levels count items, and one item, any, comes out with its value when its turn is there."""

    def __init__(self, fifo=Fifo, depth: int = 3):
        super().__init__()
        self.fifo = fifo(4, depth)

    def build(self, m: Module) -> None:
        fifo = self.fifo
        memory = self.inside(m, fifo).submodules.memory
        push, pop = Signal(), Signal()
        m.d.comb += [
            fifo.i.valid.eq(self.free("valid", 1)), fifo.i.payload.eq(self.free("payload", 4)),
            fifo.o.ready.eq(self.free("ready", 1)),
            push.eq(fifo.i.valid & fifo.i.ready), pop.eq(fifo.o.valid & fifo.o.ready),
        ]
        level = Signal(3)
        m.d.sync += level.eq(level + push - pop)
        watch = self.free("watch", 1)
        watched, kept, ahead = Signal(), Signal(4), Signal(3)
        with m.If(push & watch & ~watched):
            m.d.sync += [watched.eq(1), kept.eq(fifo.i.payload), ahead.eq(level - pop)]
        with m.Elif(watched & pop):
            m.d.sync += [ahead.eq(ahead - 1), watched.eq(ahead != 0)]
        self.claim(fifo.level == level)
        self.claim(level <= fifo.depth)
        self.claim(fifo.o.valid == (level != 0))
        self.claim(fifo.i.ready == (level != fifo.depth))
        self.claim(~watched | (ahead < level))
        self.claim(~(watched & (ahead == 0)) | (fifo.o.payload == kept))
        # What makes it inductive: the watched item lies where its turn will come.
        head, tail = memory.read_ports[0].addr, memory.write_ports[0].addr
        look = memory.read_port(domain="comb")
        m.d.comb += look.addr.eq(head + ahead)
        self.claim((tail - head)[: len(head)] == level[: len(head)])
        self.claim(~watched | (look.data == kept))


def test_fifo(tmp_path):
    bad = broken(Fifo, "elaborate", "self.level != self._depth", "self.level != self._depth + 1")
    accept(FifoKeepsOrder(), FifoKeepsOrder(bad), tmp_path)


class PointersAreCredits(Property):
    """Per queue: pushes less pops is the level; head and tail are that far apart."""

    def __init__(self, pointers=QueuePointers):
        super().__init__()
        self.pointers = pointers(2, 3)

    def build(self, m: Module) -> None:
        p = self.pointers
        self.inside(m, p)
        push, pop = Signal(2), Signal(2)
        m.d.comb += [
            push.eq(self.free("push", 2) & p.ready), pop.eq(self.free("pop", 2) & p.valid),
            p.push.eq(push), p.pop.eq(pop),
        ]
        for queue in range(2):
            level = Signal(3, name=f"level_{queue}")
            m.d.sync += level.eq(level + push[queue] - pop[queue])
            self.claim(level <= 3)
            self.claim(Cat(plane[queue] for plane in p._level) == level)
            self.claim(p.valid[queue] == (level != 0))
            self.claim(p.ready[queue] == (level != 3))
            self.claim((p.tail(queue) - p.head(queue))[:2] == level[:2])


def test_queue_pointers(tmp_path):
    bad = broken(QueuePointers, "elaborate", "up & plane, down & ~plane",
                 "up & plane, down & plane")
    accept(PointersAreCredits(), PointersAreCredits(bad), tmp_path)


class ArbiterIsFair(Property):
    """One is granted whenever somebody requests, the grant stays until it is taken, and a request
    waits for at most ``turns`` of others, if that is not None."""

    COUNT = 3

    def __init__(self, arbiter=RoundRobinArbiter, turns: int | None = None):
        super().__init__()
        self.arbiter, self.turns = arbiter(self.COUNT), turns

    def build(self, m: Module) -> None:
        a = self.arbiter
        self.inside(m, a)
        count = self.COUNT
        requests, taken, pending = Signal(count), self.free("taken", 1), Signal(count)
        m.d.comb += [  # a request stays until it is taken
            requests.eq(self.free("requests", count) | pending),
            a.requests.eq(requests), a.taken.eq(taken),
        ]
        if isinstance(a, WeightedArbiter):
            m.d.comb += a.weights.eq(Cat(Const(k + 1, 8) for k in range(count)))
        held = Signal(count)
        m.d.sync += [
            pending.eq(requests & ~Mux(taken, a.grant, 0)), held.eq(Mux(taken, 0, a.grant)),
        ]
        if isinstance(a, WeightedArbiter):
            self.claim(a._held == held)
            self.claim((held & ~pending) == 0)
            self.claim((held & (held - 1))[:count] == 0)
        self.claim((a.grant & ~requests) == 0)
        self.claim((a.grant & (a.grant - 1))[:count] == 0)
        self.claim((a.grant == 0) == (requests == 0))
        self.claim((held == 0) | (a.grant == held))
        if self.turns is None:
            return
        for k in range(count):
            waits = Signal(5, name=f"waits_{k}")
            lost = taken & requests[k] & ~a.grant[k] & (a.grant != 0)
            with m.If(~requests[k] | (taken & a.grant[k])):
                m.d.sync += waits.eq(0)
            with m.Elif(lost):
                m.d.sync += waits.eq(waits + 1)
            self.claim(waits <= self.turns)


@pytest.mark.parametrize("arbiter", [RoundRobinArbiter, AgeArbiter, WeightedArbiter])
def test_arbiters_grant_one_and_keep_it(tmp_path, arbiter):
    old, new = {
        RoundRobinArbiter: ("Mux(first.any(), first, self.requests)", "self.requests | first"),
        AgeArbiter: ("self.requests[i]\n", "self.requests[i - 1]\n"),
        WeightedArbiter: ("Mux(held.any(), held, pick)", "pick"),
    }[arbiter]
    bad = broken(arbiter, "elaborate", old, new)
    accept(ArbiterIsFair(arbiter), ArbiterIsFair(bad), tmp_path)


@pytest.mark.parametrize("arbiter", [RoundRobinArbiter, AgeArbiter])
def test_arbiters_starve_nobody(tmp_path, arbiter):
    old, new = {
        RoundRobinArbiter: ("Mux(self.taken, below | self.grant, below)", "below"),
        AgeArbiter: ("order.eq(waiting[i])", "order.eq(1)"),
    }[arbiter]
    bad = broken(arbiter, "elaborate", old, new)
    accept(ArbiterIsFair(arbiter, 2), ArbiterIsFair(bad, 2), tmp_path)


def test_weighted_arbiter_starves_nobody(tmp_path):
    """Weights 1, 2, 3: from reset on, for 18 cycles, nobody waits for ten turns of others."""
    bad = broken(WeightedArbiter, "elaborate", "Mux(first.any(), first, eligible)", "eligible",
                 "self.grant[k] & self.taken & now.any()", "0")
    accept(ArbiterIsFair(WeightedArbiter, 9), ArbiterIsFair(bad, 9), tmp_path, check=holds_for,
           cycles=18)


_Flit = data.StructLayout({"tag": 1, "dest": Dest})


class RouterLosesNothing(Property):
    """The west router of a 2x1 mesh: one flit, any, leaves by each output that its rectangle asks
    for, once, by no other, and within `PATIENCE` cycles in which both outputs are ready."""

    PATIENCE = 8

    def __init__(self, router=Router):
        super().__init__()
        self.router = router(_Flit, "x_first", cols=2, rows=1, depth=2)

    def build(self, m: Module) -> None:
        r = self.router
        self.inside(m, r)
        m.d.comb += [r.x.eq(0), r.y.eq(0)]
        used = Signal()
        missing = {name: Signal(name=f"missing_{name}") for name in ("core", "east")}
        for name in ("east", "core"):  # at most one of both is tagged
            tagged = self.inputs.get("tag_east", Const(0)) & self.inputs.get("valid_east", Const(0))
            taken = self._offer(m, name, used, ~tagged)
            rect = getattr(r, f"in_{name}").payload.dest.rect
            with m.If(taken):
                m.d.sync += missing["core"].eq(rect.x0 == 0)
                if name == "core":
                    m.d.sync += missing["east"].eq(rect.x1 == 1)
        age = Signal(range(self.PATIENCE + 2))
        ready = [self.free(f"ready_{name}", 1) for name in missing]
        for go, (name, lacks) in zip(ready, missing.items(), strict=True):
            out = getattr(r, f"out_{name}")
            m.d.comb += out.ready.eq(go)
            leaves = Signal(name=f"leaves_{name}")
            m.d.comb += leaves.eq(out.valid & go & out.payload.tag)
            with m.If(leaves):
                m.d.sync += lacks.eq(0)
            self.claim(~leaves | lacks)
        for name in ("north", "south", "west"):
            self.claim(~getattr(r, f"out_{name}").valid)
        with m.If((missing["core"] | missing["east"]) & ready[0] & ready[1]):
            m.d.sync += age.eq(age + 1)
        self.claim(age <= self.PATIENCE)

    def _offer(self, m, name, used, allowed):
        """A free stream into input ``name``; the first tagged flit of all is the watched one."""
        port = getattr(self.router, f"in_{name}")
        held, kept = Signal(name=f"held_{name}"), Signal(_Flit.size, name=f"kept_{name}")
        flit = data.View(_Flit, Signal(_Flit.size, name=f"flit_{name}"))
        x0, x1 = self.free(f"x0_{name}", 1), self.free(f"x1_{name}", 1)
        taken = Signal(name=f"taken_{name}")
        m.d.comb += [
            flit.tag.eq(self.free(f"tag_{name}", 1) & ~used & allowed),
            # What comes from the east has a column here.
            flit.dest.rect.x0.eq(x0 & x1 if name == "core" else 0), flit.dest.rect.x1.eq(x1),
            port.payload.eq(Mux(held, kept, flit.as_value())),
            port.valid.eq(held | self.free(f"valid_{name}", 1)),
            taken.eq(port.valid & port.ready & port.payload.tag),
        ]
        m.d.sync += [held.eq(port.valid & ~port.ready), kept.eq(port.payload)]
        with m.If(port.valid & port.payload.tag):
            m.d.sync += used.eq(1)
        return taken


def test_router(tmp_path):
    bad = broken(Router, "elaborate", "(served | Cat(leaves))", "Cat(leaves)")
    accept(RouterLosesNothing(), RouterLosesNothing(bad), tmp_path, check=holds_for, cycles=12)


class RequantiserSaturates(Property):
    """Bytes stay within their limits whatever comes in, and what is beyond a limit becomes it.

    The first is claimed for every scale, the second for powers of two of at least 1, whose products
    are shifts. Scale, zero point and limits are constant.
    """

    def __init__(self, lane=RequantiseLane):
        super().__init__()
        self.lane = lane()

    def build(self, m: Module) -> None:
        lane = self.lane
        self.inside(m, lane)
        exponent, fraction = self._constant(m, "exponent", 8), self._constant(m, "fraction", 23)
        plain, is_signed = self._constant(m, "plain", 1), self._constant(m, "is_signed", 1)
        zero, low, high = (self._constant(m, name, 8) for name in ("zero", "low", "high"))
        self.given((exponent != 0) & (exponent != 255))
        values = []
        for byte, port in ((zero, lane.zero), (low, lane.low), (high, lane.high)):
            value = Signal(signed(9))
            m.d.comb += [value.eq(Mux(is_signed, byte.as_signed(), byte)), port.eq(value)]
            values.append(value)
        self.given(values[1] <= values[2])
        acc, bias = self.free("acc", 32), self.free("bias", 32)
        m.d.comb += [
            lane.enable.eq(0b11111), lane.acc.eq(acc), lane.bias.eq(bias),
            lane.scale.eq(Cat(Mux(plain, 0, fraction), exponent, Const(0, 1))),
        ]
        total = Signal(signed(32))
        m.d.comb += total.eq(acc + bias)
        above, below, full = Signal(5), Signal(5), Signal(5)
        m.d.sync += [
            above.eq(Cat(total >= 512, above)), below.eq(Cat(total <= -512, below)),
            full.eq(Cat(Const(1, 1), full)),
        ]
        y = Signal(signed(9))
        m.d.comb += y.eq(Mux(is_signed, lane.y.as_signed(), lane.y))
        large = full[4] & plain & (exponent >= 127)
        self.claim(~full[4] | ((y >= values[1]) & (y <= values[2])))
        self.claim(~(large & above[4]) | (y == values[2]))
        self.claim(~(large & below[4]) | (y == values[1]))

    def _constant(self, m, name, bits):
        """An input that keeps its first value."""
        value, kept, known = self.free(name, bits), Signal(bits), Signal()
        m.d.sync += [kept.eq(Mux(known, kept, value)), known.eq(1)]
        return Mux(known, kept, value)[:bits]


def test_requantiser(tmp_path):
    bad = broken(RequantiseLane, "elaborate", "negative[1].eq(negative[0])", "negative[1].eq(0)")
    good = RequantiserSaturates()
    assert all(survives(good, 300, seed) for seed in range(8))
    assert prove(good, tmp_path, 8)
    assert not all(survives(RequantiserSaturates(bad), 300, seed) for seed in range(8))
    assert not prove(RequantiserSaturates(bad), tmp_path, 8)


SHORT = Timing(
    cl=3, cwl=2, rcd_rd=3, rcd_wr=4, rp=3, ras=4, rc=8, rrd_s=2, rrd_l=3, faw=9, ccd_s=2, ccd_l=3,
    wtr_s=1, wtr_l=2, rtp=3, wr=1, rfc=6, rfc_pb=5, rref_d=3, refi=50,
)
"""Every kind of delay, short enough for a solver."""
BANK = 5


class BankIsLegal(Property):
    """No command that `Timers` allows breaks a rule of its own bank: tRCD, tRAS, tRC, tRP, tRTP,
    tWR, tRFC, tRFCpb, and whether a row is open."""

    def __init__(self, timers=Timers, refresh: bool = True):
        super().__init__()
        self.timers, self.refresh = timers(SHORT), refresh

    def build(self, m: Module) -> None:
        t = self.timers
        self.inside(m, t)
        kinds = [RowKind.ACTIVATE, RowKind.PRECHARGE, RowKind.PRECHARGE_ALL, RowKind.REFRESH_ALL]
        kinds += [RowKind.REFRESH_BANK] * self.refresh
        wish, write = self.free("kind", range(len(kinds))), self.free("write", 1)
        # Any banks; random ones are often this one.
        bank = Mux(self.free("here", 1), BANK, self.free("bank", 4))[:4]
        column_bank = Mux(self.free("column_here", 1), BANK, self.free("column_bank", 4))[:4]
        may = Signal()
        with m.Switch(wish):
            for number, kind in enumerate(kinds):
                with m.Case(number):
                    m.d.comb += [t.row_kind.eq(kind), may.eq({
                        RowKind.ACTIVATE: t.activate.bit_select(bank, 1),
                        RowKind.PRECHARGE: t.precharge.bit_select(bank, 1),
                        RowKind.PRECHARGE_ALL: t.precharge_all,
                        RowKind.REFRESH_ALL: t.refresh_all,
                        RowKind.REFRESH_BANK: t.refresh_bank.bit_select(bank, 1),
                    }[kind])]
        m.d.comb += [
            t.row_bank.eq(bank), t.row_valid.eq(self.free("row", 1) & may),
            t.column_bank.eq(column_bank), t.column_write.eq(write),
            t.column_valid.eq(self.free("column", 1)
                              & Mux(write, t.write, t.read).bit_select(column_bank, 1)),
        ]
        self._rules(m, t)

    def _rules(self, m, t) -> None:
        def row(kind, whole=False):
            return t.row_valid & (t.row_kind == kind) & (whole | (t.row_bank == BANK))

        here = t.column_valid & (t.column_bank == BANK)
        events = {
            "act": row(RowKind.ACTIVATE),
            "pre": row(RowKind.PRECHARGE) | row(RowKind.PRECHARGE_ALL, True),
            "read": here & ~t.column_write, "write": here & t.column_write,
            "ref": row(RowKind.REFRESH_BANK), "ref_all": row(RowKind.REFRESH_ALL, True),
        }
        since = {}
        for name, event in events.items():
            since[name] = Signal(4, init=15, name=f"since_{name}")
            m.d.sync += since[name].eq(Mux(event, 1, Mux(since[name] == 15, 15, since[name] + 1)))
        is_open = Signal()
        with m.If(events["act"]):
            m.d.sync += is_open.eq(1)
        with m.Elif(events["pre"]):
            m.d.sync += is_open.eq(0)
        rested = (
            (since["pre"] >= SHORT.rp) & (since["act"] >= SHORT.rc)
            & (since["ref"] >= SHORT.rfc_pb) & (since["ref_all"] >= SHORT.rfc)
        )
        closing = (
            (since["act"] >= SHORT.ras) & (since["read"] >= SHORT.rtp)
            & (since["write"] >= SHORT.write_to_precharge)
        )
        self.claim(is_open == t.open[BANK])
        for event in (events["act"], events["ref"], events["ref_all"]):
            self.claim(~event | (~is_open & rested))
        self.claim(~row(RowKind.PRECHARGE) | is_open)
        self.claim(~(events["pre"] & is_open) | closing)
        self.claim(~events["read"] | (is_open & (since["act"] >= SHORT.rcd_rd)))
        self.claim(~events["write"] | (is_open & (since["act"] >= SHORT.rcd_wr)))


@pytest.mark.parametrize("refresh", [False, True])
def test_bank_machine(tmp_path, refresh):
    """For ever without refreshes of single banks; with them, whose queue of ends induction cannot
    see the past of, from reset on for 14 cycles."""
    bad = broken(Timers, "elaborate", "acts.busy_ras | reads.busy_rtp", "reads.busy_rtp")
    options = {"check": holds_for, "cycles": 14} if refresh else {"steps": 20}
    accept(BankIsLegal(refresh=refresh), BankIsLegal(bad, refresh=refresh), tmp_path, **options)
