# SPDX-License-Identifier: Apache-2.0
"""An independent check of every DRAM command against the timing set.

Shares nothing with the controller: it watches the command bus and keeps the time of the last
command of each kind per bank, per group and for the channel, and compares distances when a command
comes.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.hbm_timing import BANKS, GROUPS, Timing
from hdl.hbm.packets import ColumnBus, RowBus, RowKind

LATEST = 9
"""Average refresh intervals between two refreshes of a bank at most: eight may be postponed."""
TIME_BITS = 32
"""A simulation is shorter than 2**32 cycles."""


class Rule(enum.Enum, shape=5):
    """The rule that a command broke."""

    NONE = 0
    ACTIVATE_OPEN = 1
    COLUMN_CLOSED = 2
    REFRESH_OPEN = 3
    RC = 4
    RP = 5
    RRD_L = 6
    RRD_S = 7
    FAW = 8
    RFC = 9
    RFC_PB = 10
    RREF_D = 11
    RAS = 12
    RTP = 13
    WR = 14
    RCD = 15
    CCD_L = 16
    CCD_S = 17
    WTR_L = 18
    WTR_S = 19
    RTW = 20
    SAME_CYCLE = 21
    UNKNOWN = 22
    REFRESH_LATE = 23


class Times(wiring.Component):
    """Time since the last event of each of ``depth`` things.

    Members
    -------
    mark, index: The event. ``now``: The time.
    look, ask: Note how long ago the last event of ``ask`` was: ``age``, in the next cycle; all
        ones if there was none. An event of the same cycle does not count.
    """

    def __init__(self, depth: int):
        self._depth = depth
        super().__init__(
            {
                "mark": In(1), "index": In(range(depth)), "now": In(TIME_BITS),
                "look": In(1), "ask": In(range(depth)), "age": Out(TIME_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.times = times = Memory(shape=TIME_BITS, depth=self._depth, init=[])
        write, read = times.write_port(), times.read_port(domain="comb")
        seen = Signal(self._depth)
        m.d.comb += [
            write.addr.eq(self.index), write.data.eq(self.now), write.en.eq(self.mark),
            read.addr.eq(self.ask),
        ]
        with m.If(self.mark):
            m.d.sync += seen.eq(seen | (1 << self.index))
        with m.If(self.look):
            m.d.sync += self.age.eq(
                Mux(seen.bit_select(self.ask, 1), self.now - read.data, ~0))
        return m


class Checker(wiring.Component):
    """Raises ``error`` for good at the first illegal command and tells which rule it broke.

    Latency: three cycles. Checks the bank states (open, closed) and tRCD, tRP, tRAS, tRC, tRRD,
    tFAW, tCCD, tWTR, tRTW, tRTP, tWR, tRFC, tRFCpb, tRREFD. A row and a column command for the same
    bank in the same cycle is illegal. Works only when there is a command: the ages it needs are
    noted in the command's cycle, compared in the next. Under ``refresh`` also the time between
    two refreshes of a bank; one that never comes is found up to 1024 cycles late.

    Parameters
    ----------
    timing: The timing set. ``refresh``: "none", "all_bank" or "per_bank".

    Members
    -------
    row, column: The command bus. ``error``, ``rule``: The first violation.
    violated: Some rule was broken by the commands of two cycles before, the first time or not.
    """

    def __init__(self, timing: Timing, refresh: str = "none"):
        self._timing, self._refresh = timing, refresh
        super().__init__(
            {
                "row": In(RowBus), "column": In(ColumnBus), "error": Out(1), "rule": Out(Rule),
                "violated": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self._now = Signal(TIME_BITS)
        m.d.sync += self._now.eq(self._now + 1)
        self._events(m)
        self._states(m)
        broken = []
        for side, rules in (("row", self._row_rules(m)), ("column", self._column_rules(m))):
            bus = getattr(self, side)
            noted, bits = Signal(name=f"{side}_noted"), Signal(len(rules), name=f"{side}_broken")
            m.d.sync += noted.eq(bus.valid)
            with m.If(noted):
                m.d.sync += bits.eq(Cat(condition for _, condition in rules))
            with m.Else():
                m.d.sync += bits.eq(0)
            broken += [(rule, bits[i]) for i, (rule, _) in enumerate(rules)]
        broken.append((Rule.REFRESH_LATE, self._missed(m)))
        m.d.comb += self.violated.eq(Cat(bit for _, bit in broken).any())
        with m.If(~self.error & self.violated):
            m.d.sync += self.error.eq(1)
            for rule, bit in reversed(broken):
                with m.If(bit):
                    m.d.sync += self.rule.eq(rule)
        return m

    def _events(self, m):
        row, column = self.row, self.column
        self._is = {}
        for name, condition in {
            "act": row.valid & (row.kind == RowKind.ACTIVATE),
            "pre": row.valid & (row.kind == RowKind.PRECHARGE),
            "prea": row.valid & (row.kind == RowKind.PRECHARGE_ALL),
            "refab": row.valid & (row.kind == RowKind.REFRESH_ALL),
            "refpb": row.valid & (row.kind == RowKind.REFRESH_BANK),
            "rd": column.valid & ~column.write,
            "wr": column.valid & column.write,
        }.items():
            self._is[name] = Signal(name=f"is_{name}")
            m.d.comb += self._is[name].eq(condition)

    def _states(self, m):
        """Open banks, and what the rules need to know of them one cycle later."""
        on, row, column = self._is, self.row, self.column
        is_open, target = Signal(BANKS), Signal(BANKS)
        m.d.comb += target.eq(1 << row.bank)
        with m.If(on["act"]):
            m.d.sync += is_open.eq(is_open | target)
        with m.If(on["pre"]):
            m.d.sync += is_open.eq(is_open & ~target)
        with m.If(on["prea"]):
            m.d.sync += is_open.eq(0)
        # Names ending in "1" belong to the cycle before, the command's.
        self._kind1, self._open1, self._any1 = Signal(RowKind), Signal(), Signal()
        self._same1, self._write1, self._column_open1 = Signal(), Signal(), Signal()
        both = column.valid & ((column.bank == row.bank) | on["prea"] | on["refab"])
        with m.If(row.valid):
            m.d.sync += [
                self._kind1.eq(row.kind), self._open1.eq((is_open & target).any()),
                self._any1.eq(is_open.any()), self._same1.eq(both),
            ]
        with m.If(column.valid):
            m.d.sync += [
                self._write1.eq(column.write),
                self._column_open1.eq(is_open.bit_select(column.bank, 1)),
            ]

    def _age(self, m, name, event, depth, index, look, ask):
        m.submodules[name] = times = Times(depth)
        m.d.comb += [
            times.mark.eq(event), times.index.eq(index), times.now.eq(self._now),
            times.look.eq(look), times.ask.eq(ask),
        ]
        return times.age

    def _last(self, m, name, event, look):
        """Age of the channel's last ``event``, noted with ``look``."""
        return self._age(m, f"last_{name}", event, 1, 0, look, 0)

    def _row_rules(self, m):
        t, on, bank, look = self._timing, self._is, self.row.bank, self.row.valid
        group, column = bank >> 2, self.column
        act = self._age(m, "bank_act", on["act"], BANKS, bank, look, bank)
        pre = self._age(m, "bank_pre", on["pre"], BANKS, bank, look, bank)
        read = self._age(m, "bank_read", on["rd"], BANKS, column.bank, look, bank)
        write = self._age(m, "bank_write", on["wr"], BANKS, column.bank, look, bank)
        refresh = self._age(m, "bank_refresh", on["refpb"], BANKS, bank, look, bank)
        group_row = self._age(
            m, "group_row", on["act"] | on["refpb"], GROUPS, group, look, group)
        last = {name: self._last(m, name, on[name], look)
                for name in ("act", "pre", "rd", "wr", "prea", "refab", "refpb")}
        kind, is_open = self._kind1, self._open1
        activate, refpb = kind == RowKind.ACTIVATE, kind == RowKind.REFRESH_BANK
        starting, refab = activate | refpb, kind == RowKind.REFRESH_ALL
        closing = (kind == RowKind.PRECHARGE) & is_open
        every = (kind == RowKind.PRECHARGE_ALL) & self._any1
        recovery = t.cwl + t.bl + t.wr
        since = Signal(TIME_BITS)  # the bank's last refresh, or the beginning of time
        m.d.comb += since.eq(self._now - 1)
        age, condition = (last["refab"], refab) if self._refresh == "all_bank" else (refresh, refpb)
        late = condition & (Mux(age.all(), since, age) > LATEST * t.refi)
        return [
            (Rule.UNKNOWN, kind.as_value() > RowKind.REFRESH_BANK.value),
            (Rule.ACTIVATE_OPEN, activate & is_open),
            (Rule.REFRESH_OPEN, (refpb & is_open) | (refab & self._any1)),
            (Rule.RC, (starting & (act < t.rc)) | (refab & (last["act"] < t.rc))),
            (Rule.RP, (starting & ((pre < t.rp) | (last["prea"] < t.rp)))
             | (refab & ((last["pre"] < t.rp) | (last["prea"] < t.rp)))),
            (Rule.RRD_L, starting & (group_row < t.rrd_l)),
            (Rule.RRD_S, starting & (last["act"] < t.rrd_s)),
            (Rule.FAW, activate & (self._fourth_last(m) < t.faw)),
            (Rule.RFC, (starting | refab) & (last["refab"] < t.rfc)),
            (Rule.RFC_PB, (starting & (refresh < t.rfc_pb))
             | (refab & (last["refpb"] < t.rfc_pb))),
            (Rule.RREF_D, starting & (last["refpb"] < t.rref_d)),
            (Rule.RAS, (closing & (act < t.ras)) | (every & (last["act"] < t.ras))),
            (Rule.RTP, (closing & (read < t.rtp)) | (every & (last["rd"] < t.rtp))),
            (Rule.WR, (closing & (write < recovery)) | (every & (last["wr"] < recovery))),
            (Rule.SAME_CYCLE, self._same1),
            *([] if self._refresh == "none" else [(Rule.REFRESH_LATE, late)]),
        ]

    def _missed(self, m):
        """A refresh that does not come: one bank's last is looked at every 64 cycles."""
        on, late = self._is, Signal()
        if self._refresh == "none":
            return late
        every = self._refresh == "all_bank"
        turn, look = self._now[6:10], self._now[:6] == 0
        age = self._age(
            m, "missed", on["refab"] if every else on["refpb"], 1 if every else BANKS,
            0 if every else self.row.bank, look, 0 if every else turn)
        looked = Signal()
        m.d.sync += looked.eq(look)
        m.d.comb += late.eq(
            looked & (Mux(age.all(), self._now - 1, age) > LATEST * self._timing.refi))
        return late

    def _fourth_last(self, m):
        """Age of the activate four before this one: a ring of the times of the last four."""
        turn = Signal(2)
        with m.If(self._is["act"]):
            m.d.sync += turn.eq(turn + 1)
        return self._age(m, "faw", self._is["act"], 4, turn, self.row.valid, turn)

    def _column_rules(self, m):
        t, on, bank, look = self._timing, self._is, self.column.bank, self.column.valid
        group = bank >> 2
        act = self._age(m, "column_act", on["act"], BANKS, self.row.bank, look, bank)
        group_read = self._age(m, "group_read", on["rd"], GROUPS, group, look, group)
        group_write = self._age(m, "group_write", on["wr"], GROUPS, group, look, group)
        read = self._last(m, "read", on["rd"], look)
        write = self._last(m, "write", on["wr"], look)
        writes, reads = self._write1, ~self._write1
        ccd_s = max(t.bl, t.ccd_s)
        return [
            (Rule.COLUMN_CLOSED, ~self._column_open1),
            (Rule.RCD, act < Mux(writes, t.rcd_wr, t.rcd_rd)),
            (Rule.CCD_L, Mux(writes, group_write, group_read) < t.ccd_l),
            (Rule.CCD_S, Mux(writes, write, read) < ccd_s),
            (Rule.WTR_L, reads & (group_write < t.cwl + t.bl + t.wtr_l)),
            (Rule.WTR_S, reads & (write < t.cwl + t.bl + t.wtr_s)),
            (Rule.RTW, writes & (read < t.cl + t.bl + t.bubble - t.cwl)),
        ]
