# SPDX-License-Identifier: Apache-2.0
"""An independent check of every DRAM command against the timing set.

Shares nothing with the controller: it watches the command bus and keeps the time of the last
command of each kind per bank, per group and for the channel, and compares distances when a command
comes.
"""

from itertools import pairwise

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.hbm_timing import BANKS, GROUPS, Timing
from hdl.hbm.packets import ColumnBus, RowBus, RowKind

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


class Times(wiring.Component):
    """Time of the last event of each of ``depth`` things.

    Members
    -------
    mark, index: The event. ``now``: The time.
    ask: Whose age: ``age`` is ``now`` - its last event, or all ones if there was none.
    """

    def __init__(self, depth: int):
        self._depth = depth
        super().__init__(
            {
                "mark": In(1), "index": In(range(depth)), "now": In(TIME_BITS),
                "ask": In(range(depth)), "age": Out(TIME_BITS),
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
            self.age.eq(Mux(seen.bit_select(self.ask, 1), self.now - read.data, ~0)),
        ]
        with m.If(self.mark):
            m.d.sync += seen.eq(seen | (1 << self.index))
        return m


class Checker(wiring.Component):
    """Raises ``error`` for good at the first illegal command and tells which rule it broke.

    Latency: one cycle. Checks the bank states (open, closed) and tRCD, tRP, tRAS, tRC, tRRD, tFAW,
    tCCD, tWTR, tRTW, tRTP, tWR, tRFC, tRFCpb, tRREFD. A row and a column command for the same bank
    in the same cycle is illegal.

    Members
    -------
    row, column: The command bus. ``error``, ``rule``, ``time``: First violation and its cycle.
    """

    def __init__(self, timing: Timing):
        self._timing = timing
        super().__init__(
            {
                "row": In(RowBus), "column": In(ColumnBus),
                "error": Out(1), "rule": Out(Rule), "time": Out(TIME_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self._now = Signal(TIME_BITS)
        m.d.sync += self._now.eq(self._now + 1)
        self._events(m)
        self._open = Signal(BANKS)
        row, opened = self.row, Signal(BANKS)
        m.d.comb += opened.eq(1 << row.bank)
        with m.If(self._is["act"]):
            m.d.sync += self._open.eq(self._open | opened)
        with m.If(self._is["pre"]):
            m.d.sync += self._open.eq(self._open & ~opened)
        with m.If(self._is["prea"]):
            m.d.sync += self._open.eq(0)
        row_broken = self._first(m, "row_broken", self._row_rules(m))
        column_broken = self._first(m, "column_broken", self._column_rules(m))
        broken = Signal(Rule)
        m.d.comb += broken.eq(Mux(row_broken != Rule.NONE, row_broken, column_broken))
        with m.If(~self.error & (broken != Rule.NONE)):
            m.d.sync += [self.error.eq(1), self.rule.eq(broken), self.time.eq(self._now)]
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

    def _age(self, m, name, event, depth, index, ask):
        m.submodules[name] = times = Times(depth)
        m.d.comb += [
            times.mark.eq(event), times.index.eq(index), times.now.eq(self._now), times.ask.eq(ask),
        ]
        return times.age

    def _last(self, m, name, event):
        """Age of the channel's last ``event``, all ones if there was none."""
        time, seen = Signal(TIME_BITS, name=f"time_{name}"), Signal(name=f"seen_{name}")
        age = Signal(TIME_BITS, name=f"age_{name}")
        with m.If(event):
            m.d.sync += [time.eq(self._now), seen.eq(1)]
        m.d.comb += age.eq(Mux(seen, self._now - time, ~0))
        return age

    def _first(self, m, name, rules):
        """The first of ``rules`` (rule, broken) that is broken."""
        result = Signal(Rule, name=name)
        for rule, broken in reversed(rules):
            with m.If(broken):
                m.d.comb += result.eq(rule)
        return result

    def _row_rules(self, m):
        t, on, bank, group = self._timing, self._is, self.row.bank, self.row.bank >> 2
        column = self.column
        act = self._age(m, "bank_act", on["act"], BANKS, bank, bank)
        pre = self._age(m, "bank_pre", on["pre"], BANKS, bank, bank)
        read = self._age(m, "bank_read", on["rd"], BANKS, column.bank, bank)
        write = self._age(m, "bank_write", on["wr"], BANKS, column.bank, bank)
        refresh = self._age(m, "bank_refresh", on["refpb"], BANKS, bank, bank)
        group_act = self._age(m, "group_row", on["act"] | on["refpb"], GROUPS, group, group)
        any_act, any_pre = self._last(m, "act", on["act"]), self._last(m, "pre", on["pre"])
        any_read, any_write = self._last(m, "rd_all", on["rd"]), self._last(m, "wr_all", on["wr"])
        all_pre, all_refresh = self._last(m, "prea", on["prea"]), self._last(m, "ref", on["refab"])
        any_refpb = self._last(m, "refpb", on["refpb"])
        is_open, closing, starting = Signal(), Signal(), Signal()
        every, any_open = Signal(), Signal()
        m.d.comb += [
            is_open.eq(self._open.bit_select(bank, 1)),
            any_open.eq(self._open.any()),
            closing.eq(on["pre"] & is_open),
            every.eq(on["prea"] & any_open),
            starting.eq(on["act"] | on["refpb"]),
        ]
        refab = on["refab"]
        return [
            (Rule.UNKNOWN, self.row.valid & (self.row.kind.as_value() > 4)),
            (Rule.ACTIVATE_OPEN, on["act"] & is_open),
            (Rule.REFRESH_OPEN, (on["refpb"] & is_open) | (refab & any_open)),
            (Rule.RC, (starting & (act < t.rc)) | (refab & (any_act < t.rc))),
            (Rule.RP, (starting & ((pre < t.rp) | (all_pre < t.rp)))
             | (refab & ((any_pre < t.rp) | (all_pre < t.rp)))),
            (Rule.RRD_L, starting & (group_act < t.rrd_l)),
            (Rule.RRD_S, starting & (any_act < t.rrd_s)),
            (Rule.FAW, on["act"] & (self._fourth_last(m) < t.faw)),
            (Rule.RFC, (starting | refab) & (all_refresh < t.rfc)),
            (Rule.RFC_PB, (starting & (refresh < t.rfc_pb)) | (refab & (any_refpb < t.rfc_pb))),
            (Rule.RREF_D, starting & (any_refpb < t.rref_d)),
            (Rule.RAS, (closing & (act < t.ras)) | (every & (any_act < t.ras))),
            (Rule.RTP, (closing & (read < t.rtp)) | (every & (any_read < t.rtp))),
            (Rule.WR, (closing & (write < t.cwl + t.bl + t.wr))
             | (every & (any_write < t.cwl + t.bl + t.wr))),
            (Rule.SAME_CYCLE, self.column.valid & self.row.valid
             & ((self.column.bank == bank) | on["prea"] | refab)),
        ]

    def _fourth_last(self, m):
        """Age of the activate before the last three."""
        stamps = [Signal(TIME_BITS, name=f"faw_{i}") for i in range(4)]
        seen, age = Signal(3), Signal(TIME_BITS)
        with m.If(self._is["act"]):
            m.d.sync += [new.eq(old) for old, new in pairwise([self._now, *stamps])]
            m.d.sync += seen.eq(Mux(seen == 4, 4, seen + 1))
        m.d.comb += age.eq(Mux(seen == 4, self._now - stamps[3], ~0))
        return age

    def _column_rules(self, m):
        t, on, bank, group = self._timing, self._is, self.column.bank, self.column.bank >> 2
        is_open, any_column = Signal(), self.column.valid
        act = self._age(m, "column_act", on["act"], BANKS, self.row.bank, bank)
        group_read = self._age(m, "group_read", on["rd"], GROUPS, group, group)
        group_write = self._age(m, "group_write", on["wr"], GROUPS, group, group)
        any_read, any_write = self._last(m, "rd", on["rd"]), self._last(m, "wr", on["wr"])
        m.d.comb += is_open.eq(self._open.bit_select(bank, 1))
        same = Mux(self.column.write, group_write, group_read)
        near = Mux(self.column.write, any_write, any_read)
        rcd = Mux(self.column.write, t.rcd_wr, t.rcd_rd)
        return [
            (Rule.COLUMN_CLOSED, any_column & ~is_open),
            (Rule.RCD, any_column & (act < rcd)),
            (Rule.CCD_L, any_column & (same < t.ccd_l)),
            (Rule.CCD_S, any_column & (near < max(t.bl, t.ccd_s))),
            (Rule.WTR_L, on["rd"] & (group_write < t.cwl + t.bl + t.wtr_l)),
            (Rule.WTR_S, on["rd"] & (any_write < t.cwl + t.bl + t.wtr_s)),
            (Rule.RTW, on["wr"] & (any_read < t.cl + t.bl + t.bubble - t.cwl)),
        ]
