# SPDX-License-Identifier: Apache-2.0
"""The timing checker by mutation: each rule at its limit is legal, one cycle less is not.

Also the controller's timers against the checker: whatever the timers allow, the checker accepts.
"""

from dataclasses import replace

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from emu.config import Hbm, load_config
from emu.hbm_timing import TIMINGS
from hdl.hbm import array
from hdl.hbm.channel import HbmChannel
from hdl.hbm.checker import Checker, Rule
from hdl.hbm.packets import RowKind
from hdl.hbm.pool import Pool
from hdl.hbm.refresher import Refresher
from hdl.hbm.timers import Hold, Timers

ACT, PRE, PREA, REFAB, REFPB = RowKind
A, B = TIMINGS["hbm2_a"], TIMINGS["hbm2_b"]


def run_checker(timing, commands, refresh="none"):
    """Rule (or NONE) that ``commands`` (cycle, command, bank) break; RD and WR are strings."""
    dut = Checker(timing, refresh)
    by_cycle = {}
    for cycle, command, bank in commands:
        by_cycle.setdefault(cycle, []).append((command, bank))

    async def bench(ctx):
        for cycle in range(max(by_cycle) + 4):
            row, column = 0, {"valid": 0}
            for command, bank in by_cycle.get(cycle, ()):
                if not isinstance(command, str):
                    # As bits: there are numbers that are no RowKind.
                    kind = command if isinstance(command, int) else command.value
                    row = 1 | kind << 1 | bank << 4 | 1 << 8
                else:
                    column = {"valid": 1, "write": command == "WR", "bank": bank, "column": 0}
            ctx.set(dut.row.as_value(), row)
            ctx.set(dut.column, column)
            await ctx.tick()
        result.append(Rule(ctx.get(dut.rule)) if ctx.get(dut.error) else Rule.NONE)

    result = []
    simulator = Simulator(dut)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    return result[0]


def opened(*banks, step=8):
    return [(step * i, ACT, bank) for i, bank in enumerate(banks)]


LIMITS = {
    # rule: (timing, commands before, last command and bank, its earliest legal cycle)
    "rc": (Rule.RC, B, [(0, ACT, 0), (34, PRE, 0)], ACT, 0, 48),
    "rp": (Rule.RP, A, [(0, ACT, 0), (40, PRE, 0)], ACT, 0, 54),
    "rp_all": (Rule.RP, A, [(0, ACT, 0), (40, PREA, 0)], ACT, 5, 54),
    "rp_refresh": (Rule.RP, A, [(0, ACT, 0), (40, PRE, 0)], REFAB, 0, 54),
    "rc_refresh": (Rule.RC, B, [(0, ACT, 0), (34, PRE, 0)], REFPB, 0, 48),
    "rc_refresh_all": (Rule.RC, B, [(0, ACT, 7), (34, PRE, 7)], REFAB, 0, 48),
    "rp_refresh_bank": (Rule.RP, A, [(0, ACT, 0), (40, PRE, 0)], REFPB, 0, 54),
    "rp_all_refresh": (Rule.RP, A, [(0, ACT, 0), (40, PREA, 0)], REFAB, 0, 54),
    "rp_all_refresh_bank": (Rule.RP, A, [(0, ACT, 0), (40, PREA, 0)], REFPB, 9, 54),
    "rrd_l_refresh": (Rule.RRD_L, B, [(0, ACT, 0)], REFPB, 1, 6),
    "rrd_s_refresh": (Rule.RRD_S, B, [(0, ACT, 0)], REFPB, 4, 4),
    "rfc_refresh": (Rule.RFC, A, [(0, REFAB, 0)], REFAB, 0, 260),
    "rfc_refresh_bank": (Rule.RFC, A, [(0, REFAB, 0)], REFPB, 7, 260),
    "rfc_pb_refresh": (Rule.RFC_PB, A, [(0, REFPB, 3)], REFPB, 3, 160),
    "rfc_pb_refresh_all": (Rule.RFC_PB, A, [(0, REFPB, 3)], REFAB, 0, 160),
    "rtp_all": (Rule.RTP, B, [*opened(0, 4), (42, "RD", 4)], PREA, 0, 48),
    "wr_all": (Rule.WR, A, [*opened(0, 4), (22, "WR", 0)], PREA, 0, 45),
    "ccd_l_write": (Rule.CCD_L, A, [*opened(0, 1), (40, "WR", 0)], "WR", 1, 44),
    "ccd_s_read": (Rule.CCD_S, A, [*opened(0, 4), (40, "RD", 0)], "RD", 4, 42),
    "rrd_l": (Rule.RRD_L, B, [(0, ACT, 0)], ACT, 1, 6),
    "rrd_s": (Rule.RRD_S, B, [(0, ACT, 0)], ACT, 4, 4),
    "faw": (Rule.FAW, B, [(0, ACT, 0), (4, ACT, 4), (8, ACT, 8), (12, ACT, 12)], ACT, 1, 30),
    "rfc": (Rule.RFC, A, [(0, REFAB, 0)], ACT, 3, 260),
    "rfc_pb": (Rule.RFC_PB, A, [(0, REFPB, 3)], ACT, 3, 160),
    "rref_d": (Rule.RREF_D, A, [(0, REFPB, 3)], ACT, 8, 8),
    "rref_d_refresh": (Rule.RREF_D, A, [(0, REFPB, 3)], REFPB, 8, 8),
    "ras": (Rule.RAS, A, [(0, ACT, 0)], PRE, 0, 34),
    "ras_all": (Rule.RAS, A, opened(0, 5), PREA, 0, 42),
    "rtp": (Rule.RTP, B, [(0, ACT, 0), (40, "RD", 0)], PRE, 0, 46),
    "wr": (Rule.WR, A, [(0, ACT, 0), (20, "WR", 0)], PRE, 0, 43),
    "rcd_read": (Rule.RCD, A, [(0, ACT, 0)], "RD", 0, 14),
    "rcd_write": (Rule.RCD, A, [(0, ACT, 0)], "WR", 0, 12),
    "ccd_l": (Rule.CCD_L, A, [*opened(0, 1), (40, "RD", 0)], "RD", 1, 44),
    "ccd_s": (Rule.CCD_S, A, [*opened(0, 4), (40, "WR", 0)], "WR", 4, 42),
    "wtr_l": (Rule.WTR_L, A, [*opened(0, 1), (40, "WR", 0)], "RD", 1, 55),
    "wtr_s": (Rule.WTR_S, A, [*opened(0, 4), (40, "WR", 0)], "RD", 4, 53),
    "rtw": (Rule.RTW, B, [*opened(0, 4), (40, "RD", 0)], "WR", 4, 54),
}


@pytest.mark.parametrize("name", LIMITS)
def test_checker_limits(name):
    rule, timing, before, command, bank, earliest = LIMITS[name]
    assert run_checker(timing, [*before, (earliest, command, bank)]) == Rule.NONE
    assert run_checker(timing, [*before, (earliest - 1, command, bank)]) == rule


LATER = {
    # rule: (commands before, last command and bank, its latest legal cycle), refi of 100
    "bank": ("per_bank", [(20 * bank, REFPB, bank) for bank in range(16)], REFPB, 2, 940),
    "bank_first": ("per_bank", [], REFPB, 0, 900),
    "all": ("all_bank", [(0, REFAB, 0)], REFAB, 0, 900),
    "all_first": ("all_bank", [], REFAB, 0, 900),
}


@pytest.mark.parametrize("name", LATER)
def test_checker_wants_refreshes(name):
    refresh, before, command, bank, latest = LATER[name]
    timing = replace(A, refi=100)
    for cycle, found in ((latest, Rule.NONE), (latest + 1, Rule.REFRESH_LATE)):
        assert run_checker(timing, [*before, (cycle, command, bank)], refresh) == found


@pytest.mark.parametrize("refresh", ["per_bank", "all_bank"])
def test_checker_misses_a_refresh_that_never_comes(refresh):
    timing, idle = replace(A, refi=100), [(2100, PRE, 0)]
    others = [(c + 10 * bank, REFPB, bank) for c in range(0, 2000, 500) for bank in range(15)]
    assert run_checker(timing, idle, refresh) == Rule.REFRESH_LATE
    assert run_checker(timing, [*others, *idle], "per_bank") == Rule.REFRESH_LATE
    assert run_checker(timing, idle, "none") == Rule.NONE


@pytest.mark.parametrize(
    "rule, commands",
    [
        (Rule.ACTIVATE_OPEN, [(0, ACT, 0), (100, ACT, 0)]),
        (Rule.COLUMN_CLOSED, [(0, ACT, 0), (50, "RD", 1)]),
        (Rule.COLUMN_CLOSED, [(0, ACT, 0), (50, PRE, 0), (51, "RD", 0)]),
        (Rule.REFRESH_OPEN, [(0, ACT, 0), (100, REFPB, 0)]),
        (Rule.REFRESH_OPEN, [(0, ACT, 0), (100, REFAB, 0)]),
        (Rule.SAME_CYCLE, [(0, ACT, 0), (50, PRE, 0), (50, "RD", 0)]),
        (Rule.SAME_CYCLE, [(0, ACT, 0), (50, PREA, 9), (50, "RD", 0)]),
        (Rule.UNKNOWN, [(0, ACT, 0), (50, 5, 0)]),
    ],
)
def test_checker_states(rule, commands):
    assert run_checker(A, commands) == rule


def test_hold_counts_the_last_start():
    dut = Hold(repeats=True, rtp=5)
    seen = []

    async def bench(ctx):
        for cycle in range(14):
            ctx.set(dut.start, cycle in (0, 3))
            ctx.set(dut.bank, 9)
            seen.append(ctx.get(dut.busy_rtp) >> 9 & 1)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    assert seen == [0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("timing", [A, B], ids=["a", "b"])
def test_timers_never_allow_what_the_checker_refuses(timing):
    """Random commands among those allowed, as dense as possible: no violation, every kind seen."""
    m = Module()
    m.submodules.timers = timers = Timers(timing)
    m.submodules.checker = checker = Checker(timing)
    m.d.comb += [
        checker.row.valid.eq(timers.row_valid), checker.row.kind.eq(timers.row_kind),
        checker.row.bank.eq(timers.row_bank), checker.column.valid.eq(timers.column_valid),
        checker.column.write.eq(timers.column_write), checker.column.bank.eq(timers.column_bank),
    ]
    rng, kinds = np.random.default_rng(5), {}

    def banks(mask):
        return [bank for bank in range(16) if mask >> bank & 1]

    async def bench(ctx):
        for cycle in range(6000):
            calm = cycle % 1500 > 1200  # close everything for an all-bank refresh now and then
            write = cycle // 40 % 2
            allowed = banks(ctx.get(timers.write if write else timers.read))
            columns = [] if calm or rng.random() < 0.2 else allowed
            column = int(rng.choice(columns)) if columns else 16
            ctx.set(timers.column_valid, column < 16)
            ctx.set(timers.column_write, write)
            ctx.set(timers.column_bank, column & 15)
            options = [(PRE, b) for b in banks(ctx.get(timers.precharge)) if b != column]
            if not calm:
                options = options[:1] + [(ACT, b) for b in banks(ctx.get(timers.activate))]
                if rng.random() < 0.05:
                    options += [(REFPB, b) for b in banks(ctx.get(timers.refresh_bank))]
            elif ctx.get(timers.open) == 0 and ctx.get(timers.refresh_all):
                options = [(REFAB, 0)]
            elif ctx.get(timers.precharge_all) and ctx.get(timers.open) and rng.random() < 0.5:
                options = [(PREA, 0)]
            ctx.set(timers.row_valid, bool(options))
            if options:
                kind, bank = options[int(rng.integers(len(options)))]
                ctx.set(timers.row_kind, kind)
                ctx.set(timers.row_bank, bank)
                kinds[kind] = kinds.get(kind, 0) + 1
            if column < 16:
                kinds[write] = kinds.get(write, 0) + 1
            await ctx.tick()
            assert not ctx.get(checker.error), Rule(ctx.get(checker.rule))

    simulator = Simulator(m)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    assert len(kinds) == 7 and min(kinds.values()) >= 1 and sum(kinds.values()) > 2000


def test_pool_hands_each_number_to_one_holder():
    dut, rng = Pool(8), np.random.default_rng(3)
    held, taken = set(), 0

    async def bench(ctx):
        nonlocal taken
        for _ in range(500):
            take = bool(ctx.get(dut.available)) and rng.random() < 0.6
            give = bool(held) and rng.random() < 0.5
            ctx.set(dut.take, take)
            ctx.set(dut.give, give)
            if give:
                number = int(rng.choice(sorted(held)))
                ctx.set(dut.given, number)
                held.remove(number)
            if take:
                number = ctx.get(dut.slot)
                assert number not in held
                held.add(number)
                taken += 1
            await ctx.tick()
            assert ctx.get(dut.free) == 8 - len(held)

    simulator = Simulator(dut)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    assert taken > 100


def make(kind, *args, **settings):
    """A component that is never elaborated."""
    part = kind.__new__(kind)
    part._MustUse__silence = True
    part.__init__(*args, **settings)
    return part


def test_errors_name_the_problem():
    with pytest.raises(ValueError, match="Pool size must be a power of two of at least 2, not 6"):
        make(Pool, 6)
    with pytest.raises(ValueError, match="mode must be none, all_bank or per_bank, not 'often'"):
        make(Refresher, A, "often")
    with pytest.raises(ValueError, match="Hold delay must be at least 3, not 2"):
        make(Hold, rp=2)
    with pytest.raises(TypeError, match=r"use hdl\.verilog\.generate"):
        make(HbmChannel, load_config()).elaborate(None)


def test_array_text_has_the_size_and_the_inverse_map():
    text = array.verilog(Hbm(mib=32, address_map="M2"))
    assert "localparam WORDS = 2097152;" in text and "@" not in text.replace("@(posedge", "")
    assert "b[1], b[0], c[4], c[3], c[2], c[1], g[1], g[0], c[0], 1'b0}" in text
