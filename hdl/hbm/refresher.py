# SPDX-License-Identifier: Apache-2.0
"""Refresh: keeps the debt of refreshes and takes the row bus when one is due."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.hbm_timing import BANKS, Timing
from hdl.hbm.packets import RowKind
from hdl.hbm.pick import lowest, one_hot_index


class Refresher(wiring.Component):
    """Refreshes every bank once in ``timing.refi`` cycles on average, up to ``postponed`` late.

    ``all_bank``: waits for an idle channel, or until ``postponed`` are owed, then stops all banks,
    closes them and refreshes, and again as long as the channel stays idle. ``per_bank``: owes each
    bank in turn, refreshes banks without waiting accesses first and others only when they owe one
    less than ``postponed``, one at a time. ``none``: never.

    Members
    -------
    busy: Banks with waiting accesses. ``open``, ``may_*``: As in `hdl.hbm.timers.Timers`.
    claimed: Banks that take no other command: known in the cycle before they are touched.
    valid, kind, bank: A row command given in this cycle; legal and never refused.
    """

    def __init__(self, timing: Timing, mode: str, postponed: int = 8):
        if mode not in ("none", "all_bank", "per_bank"):
            raise ValueError(f"Refresher mode must be none, all_bank or per_bank, not {mode!r}")
        if not 1 <= postponed <= 8:
            raise ValueError(f"Refresher postponed must be 1 to 8, not {postponed!r}")
        self._timing, self._mode, self._postponed = timing, mode, postponed
        super().__init__(
            {
                "busy": In(BANKS), "open": In(BANKS), "may_precharge": In(BANKS),
                "may_refresh": In(BANKS), "may_precharge_all": In(1), "may_refresh_all": In(1),
                "claimed": Out(BANKS),
                "valid": Out(1), "kind": Out(RowKind), "bank": Out(range(BANKS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        if self._mode == "all_bank":
            self._all_bank(m)
        elif self._mode == "per_bank":
            self._per_bank(m)
        return m

    def _tick(self, m, parts: int):
        """A pulse ``parts`` times in ``refi`` cycles, without drift."""
        refi = self._timing.refi
        phase, tick = Signal(range(refi + parts)), Signal()
        m.d.comb += tick.eq(phase >= refi - parts)
        m.d.sync += phase.eq(Mux(tick, phase + parts - refi, phase + parts))
        return tick

    def _all_bank(self, m):
        tick, owed, done, claim = self._tick(m, 1), Signal(4), Signal(), Signal()
        again, idle = Signal(), Signal()
        m.d.comb += idle.eq(~self.busy.any())
        m.d.sync += owed.eq(owed + tick - done)
        # Waiting for the end of one refresh to give the next: not if somebody comes meanwhile.
        with m.If(claim & again & ~idle & (owed < self._postponed)):
            m.d.sync += [claim.eq(0), again.eq(0)]
        with m.Elif(claim):
            with m.If(self.open.any()):
                m.d.comb += [
                    self.valid.eq(self.may_precharge_all), self.kind.eq(RowKind.PRECHARGE_ALL),
                ]
            with m.Else():
                m.d.comb += [
                    done.eq(self.may_refresh_all),
                    self.valid.eq(done), self.kind.eq(RowKind.REFRESH_ALL),
                ]
                with m.If(done):
                    m.d.sync += [claim.eq((owed > 1) & idle), again.eq((owed > 1) & idle)]
        with m.Elif((owed >= self._postponed) | ((owed != 0) & idle)):
            m.d.sync += claim.eq(1)
        m.d.comb += self.claimed.eq(Mux(claim, (1 << BANKS) - 1, 0))

    def _per_bank(self, m):
        tick, turn = self._tick(m, BANKS), Signal(range(BANKS))
        claim, done = Signal(), Signal()
        owes, must = Signal(BANKS), Signal(BANKS)
        m.submodules.debts = debts = Memory(shape=4, depth=BANKS, init=[])
        grow, shrink = debts.write_port(), debts.write_port()
        before, debt = debts.read_port(domain="comb"), debts.read_port(domain="comb")
        owed, turn_bit, bank_bit = Signal(4), Signal(BANKS), Signal(BANKS)
        both, limit = Signal(), max(self._postponed - 1, 1)
        m.d.comb += [
            before.addr.eq(turn), debt.addr.eq(self.bank),
            # The debt of a bank that owes nothing is not in the memory.
            owed.eq(Mux(owes.bit_select(turn, 1), before.data, 0)),
            both.eq(tick & done & (turn == self.bank)),
            grow.addr.eq(turn), grow.data.eq(owed + 1), grow.en.eq(tick & ~both),
            shrink.addr.eq(self.bank), shrink.data.eq(debt.data - 1), shrink.en.eq(done & ~both),
            turn_bit.eq(Mux(tick & ~both, 1 << turn, 0)),
            bank_bit.eq(Mux(done & ~both, 1 << self.bank, 0)),
        ]
        m.d.sync += [
            turn.eq(turn + tick),
            owes.eq((owes | turn_bit) & ~Mux(debt.data == 1, bank_bit, 0)),
            must.eq((must | Mux(owed + 1 >= limit, turn_bit, 0))
                    & ~Mux(debt.data == limit, bank_bit, 0)),
        ]
        self._claim(m, claim, done, owes, must)

    def _claim(self, m, claim, done, owes, must):
        """One bank at a time: stop it, close it, refresh it."""
        wanted, after = Signal(BANKS), Signal(BANKS)
        idle, bank = Signal(BANKS), Signal(range(BANKS))
        m.d.comb += [
            idle.eq(owes & ~self.busy),
            wanted.eq(Mux(must.any(), must, idle)),
            # Round the banks, so that refreshes spread.
            after.eq(wanted & ~((2 << bank) - 1)),
            self.bank.eq(bank),
            self.claimed.eq(Mux(claim, 1 << bank, 0)),
        ]
        with m.If(claim):
            with m.If((self.open & self.claimed).any()):
                m.d.comb += [
                    self.valid.eq((self.may_precharge & self.claimed).any()),
                    self.kind.eq(RowKind.PRECHARGE),
                ]
            with m.Else():
                m.d.comb += [
                    done.eq((self.may_refresh & self.claimed).any()),
                    self.valid.eq(done), self.kind.eq(RowKind.REFRESH_BANK),
                ]
                m.d.sync += claim.eq(~done)
        with m.Elif(wanted.any()):
            m.d.sync += [
                claim.eq(1),
                bank.eq(one_hot_index(lowest(Mux(after.any(), after, wanted)))),
            ]
