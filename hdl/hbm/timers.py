# SPDX-License-Identifier: Apache-2.0
"""All timing constraints of a pseudo-channel as bit vectors: which bank may take which command now.

Every constraint is a constant delay after a command, so instead of a counter per bank and rule
there is one history of commands per rule, read at the delay: what falls out of it is free again.
The state is a few vectors of 16 bits whatever the number of rules.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from emu.hbm_timing import BANKS, GROUPS, Timing
from hdl.hbm.packets import RowKind


class Hold(wiring.Component):
    """Banks that had an event less than a delay ago.

    A bank that starts in cycle t is busy from t + 1 to t + delay - 1.

    Parameters
    ----------
    delays: Name to delay in cycles, at least 3.
    repeats: A bank may start again while busy; then the last start counts. One delay only.

    Members
    -------
    start, bank: The event. ``busy_<name>``: 16 bits, one per bank.
    """

    def __init__(self, *, repeats: bool = False, **delays: int):
        if min(delays.values()) < 3:
            raise ValueError(f"Hold delay must be at least 3, not {min(delays.values())}")
        if repeats and len(delays) != 1:
            raise ValueError("Hold with repeats has one delay")
        self._delays, self._repeats = delays, repeats
        super().__init__(
            {"start": In(1), "bank": In(range(BANKS))}
            | {f"busy_{name}": Out(BANKS) for name in delays}
        )

    def elaborate(self, platform):
        m = Module()
        longest = max(self._delays.values())
        bits = ceil_log2(longest)
        m.submodules.history = history = Memory(shape=range(BANKS), depth=1 << bits, init=[])
        write = history.write_port()
        now, started = Signal(bits), Signal(longest)
        begin = Signal(BANKS)
        m.d.sync += [now.eq(now + 1), started.eq(Cat(self.start, started))]
        m.d.comb += [
            write.addr.eq(now), write.data.eq(self.bank),
            write.en.eq(self.start),
            begin.eq(Mux(self.start, 1 << self.bank, 0)),
        ]
        if self._repeats:
            m.submodules.last = last = Memory(shape=bits, depth=BANKS, init=[])
            mark, latest = last.write_port(), last.read_port(domain="comb")
            m.d.comb += [mark.addr.eq(self.bank), mark.data.eq(now), mark.en.eq(self.start)]
        for name, delay in self._delays.items():
            read = history.read_port(domain="comb")
            end, busy = Signal(BANKS, name=f"end_{name}"), getattr(self, f"busy_{name}")
            over = Signal(name=f"over_{name}")
            m.d.comb += [
                read.addr.eq(now - (delay - 1)),
                over.eq(started[delay - 2]),
                end.eq(Mux(over, 1 << read.data, 0)),
            ]
            if self._repeats:
                m.d.comb += [
                    latest.addr.eq(read.data),
                    over.eq(started[delay - 2] & (latest.data == read.addr)),
                ]
            with m.If(self.start | over):
                m.d.sync += busy.eq((busy & ~end) | begin)
        return m


class LongHold(wiring.Component):
    """As `Hold` with one long delay: a queue of those that are busy, at most 16.

    Starts come from banks that are not busy. Cheaper than a history of every cycle.

    Members
    -------
    start, bank: The event. ``busy``: 16 bits, one per bank.
    """

    def __init__(self, delay: int):
        self._delay = delay
        super().__init__({"start": In(1), "bank": In(range(BANKS)), "busy": Out(BANKS)})

    def elaborate(self, platform):
        m = Module()
        bits = ceil_log2(self._delay + 1)
        m.submodules.queue = queue = Memory(shape=bits + 4, depth=BANKS, init=[])
        write, read = queue.write_port(), queue.read_port(domain="comb")
        now, head, tail = Signal(bits), Signal(range(BANKS)), Signal(range(BANKS))
        over, begin, end = Signal(), Signal(BANKS), Signal(BANKS)
        m.d.sync += now.eq(now + 1)
        m.d.comb += [
            write.addr.eq(tail), write.en.eq(self.start),
            write.data.eq(Cat(self.bank, (now + self._delay - 1)[:bits])),
            read.addr.eq(head),
            over.eq(self.busy.any() & (read.data[4:] == now)),
            begin.eq(Mux(self.start, 1 << self.bank, 0)),
            end.eq(Mux(over, 1 << read.data[:4], 0)),
        ]
        with m.If(self.start | over):
            m.d.sync += [
                self.busy.eq((self.busy & ~end) | begin),
                tail.eq(tail + self.start), head.eq(head + over),
            ]
        return m


class Recent(wiring.Component):
    """Whether the last few cycles had an event, for several windows.

    An event in cycle t blocks window n in cycles t + 1 to t + n - 1.

    Members
    -------
    start: ``lanes`` bits, one event each. ``within_<name>``: ``lanes`` bits.
    """

    def __init__(self, *, lanes: int = 1, **windows: int):
        self._lanes, self._windows = lanes, windows
        super().__init__(
            {"start": In(lanes)} | {f"within_{name}": Out(lanes) for name in windows}
        )

    def elaborate(self, platform):
        m = Module()
        lanes, longest = self._lanes, max(self._windows.values()) - 1
        past = Signal(lanes * longest)
        m.d.sync += past.eq(Cat(self.start, past))
        for name, window in self._windows.items():
            # Lane k of all cycles in the window: a strided slice of one shift register.
            m.d.comb += getattr(self, f"within_{name}").eq(
                Cat((past[:lanes * (window - 1)] & self._comb(k, window)).any()
                    for k in range(lanes))
            )
        return m

    def _comb(self, lane: int, window: int) -> Const:
        value = sum(1 << self._lanes * i + lane for i in range(window - 1))
        return Const(value, self._lanes * (window - 1))


def spread(groups):
    """Four group bits to sixteen bank bits."""
    return Cat(groups[bank // (BANKS // GROUPS)] for bank in range(BANKS))


class Timers(wiring.Component):
    """Which command each bank may take in this cycle under the rules of ``timing``.

    Commands are given in the cycle in which they are decided; the outputs of the next cycle know
    them. Covers tRCD, tRP, tRAS, tRC, tRRD, tFAW, tCCD, tWTR, tRTP, tWR, tRTW, tRFC, tRFCpb,
    tRREFD.

    Members
    -------
    row_valid, row_kind, row_bank: The row command of this cycle.
    column_valid, column_write, column_bank: The column command of this cycle.
    open: Banks with an open row.
    activate, precharge, read, write, refresh_bank: Banks that may take it, 16 bits each.
    precharge_all, refresh_all: The whole channel may.
    """

    def __init__(self, timing: Timing):
        self._timing = timing
        super().__init__(
            {
                "row_valid": In(1), "row_kind": In(RowKind), "row_bank": In(range(BANKS)),
                "column_valid": In(1), "column_write": In(1), "column_bank": In(range(BANKS)),
                "open": Out(BANKS),
                "activate": Out(BANKS), "precharge": Out(BANKS), "read": Out(BANKS),
                "write": Out(BANKS), "refresh_bank": Out(BANKS),
                "precharge_all": Out(1), "refresh_all": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        t = self._timing
        act, pre, refresh = Signal(), Signal(), Signal()
        m.d.comb += [
            act.eq(self.row_valid & (self.row_kind == RowKind.ACTIVATE)),
            pre.eq(self.row_valid & (self.row_kind == RowKind.PRECHARGE)),
            refresh.eq(self.row_valid & (self.row_kind == RowKind.REFRESH_BANK)),
        ]
        m.submodules.after_activate = acts = Hold(
            rcd_rd=t.rcd_rd, rcd_wr=t.rcd_wr, ras=t.ras, rc=t.rc)
        m.submodules.after_precharge = pres = Hold(rp=t.rp)
        m.submodules.after_refresh = refreshes = LongHold(t.rfc_pb)
        m.submodules.after_read = reads = Hold(rtp=t.rtp, repeats=True)
        m.submodules.after_write = writes = Hold(wr=t.write_to_precharge, repeats=True)
        column_read, column_write = Signal(), Signal()
        m.d.comb += [
            column_read.eq(self.column_valid & ~self.column_write),
            column_write.eq(self.column_valid & self.column_write),
        ]
        for hold, start, bank in (
            (acts, act, self.row_bank), (pres, pre, self.row_bank),
            (refreshes, refresh, self.row_bank), (reads, column_read, self.column_bank),
            (writes, column_write, self.column_bank),
        ):
            m.d.comb += [hold.start.eq(start), hold.bank.eq(bank)]

        row_ok, pause = self._row_limits(m, act, refresh)
        read_ok, write_ok = self._column_limits(m, column_read, column_write)
        closed_ok = Signal(BANKS)
        m.d.comb += [
            closed_ok.eq(~(self.open | pres.busy_rp | acts.busy_rc | refreshes.busy)),
            self.activate.eq(Mux(pause, 0, closed_ok & row_ok & Mux(self._faw_full, 0, 0xFFFF))),
            self.refresh_bank.eq(Mux(pause, 0, closed_ok & row_ok)),
            self.refresh_all.eq(closed_ok.all() & ~pause),
            self.precharge.eq(self.open & ~(acts.busy_ras | reads.busy_rtp | writes.busy_wr)),
            self.precharge_all.eq(self.precharge == self.open),
            self.read.eq(self.open & ~acts.busy_rcd_rd & read_ok),
            self.write.eq(self.open & ~acts.busy_rcd_wr & write_ok),
        ]
        with m.If(act):
            m.d.sync += self.open.eq(self.open | (1 << self.row_bank))
        with m.Elif(pre):
            m.d.sync += self.open.eq(self.open & ~(1 << self.row_bank))
        with m.Elif(self.row_valid & (self.row_kind == RowKind.PRECHARGE_ALL)):
            m.d.sync += self.open.eq(0)
        return m

    def _row_limits(self, m, act, refresh):
        """Banks not kept from ACT and REFpb by neighbours, and a pause of the whole channel."""
        t, group = self._timing, self.row_bank >> 2
        m.submodules.row_groups = groups = Recent(lanes=GROUPS, rrd_l=t.rrd_l)
        m.submodules.row_any = any_act = Recent(rrd_s=t.rrd_s)
        m.submodules.refresh_any = any_refresh = Recent(rref_d=t.rref_d)
        m.d.comb += [
            groups.start.eq((act | refresh) << group),
            any_act.start.eq(act),
            any_refresh.start.eq(refresh),
        ]
        # Activates of the last faw - 1 cycles.
        past, recent = Signal(t.faw - 1), Signal(range(t.faw + 1))
        self._faw_full = Signal()
        m.d.sync += [past.eq(Cat(act, past)), recent.eq(recent + act - past[-1])]
        m.d.comb += self._faw_full.eq(recent >= 4)
        # All-bank commands: one down counter, the longer of what is left and what begins.
        left, pause, ok = Signal(range(t.rfc)), Signal(), Signal(BANKS)
        with m.If(self.row_valid & (self.row_kind == RowKind.REFRESH_ALL)):
            m.d.sync += left.eq(t.rfc - 1)
        with m.Elif(self.row_valid & (self.row_kind == RowKind.PRECHARGE_ALL)):
            m.d.sync += left.eq(Mux(left > t.rp, left - 1, t.rp - 1))
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        m.d.comb += [
            pause.eq((left != 0) | any_act.within_rrd_s | any_refresh.within_rref_d),
            ok.eq(~spread(groups.within_rrd_l)),
        ]
        return ok, pause

    def _column_limits(self, m, column_read, column_write):
        """Banks whose group and whose data bus can take a read, and a write."""
        t, group = self._timing, self.column_bank >> 2
        m.submodules.column_groups = groups = Recent(lanes=GROUPS, ccd_l=t.ccd_l)
        m.submodules.write_groups = write_groups = Recent(lanes=GROUPS, wtr_l=t.write_to_read_l)
        m.submodules.column_any = any_column = Recent(ccd_s=max(t.ccd_s, t.bl))
        m.submodules.write_any = any_write = Recent(wtr_s=t.write_to_read_s)
        m.submodules.read_any = any_read = Recent(rtw=t.read_to_write)
        m.d.comb += [
            groups.start.eq(self.column_valid << group),
            write_groups.start.eq(column_write << group),
            any_column.start.eq(self.column_valid),
            any_write.start.eq(column_write),
            any_read.start.eq(column_read),
        ]
        read_ok, write_ok = Signal(BANKS), Signal(BANKS)
        m.d.comb += [
            read_ok.eq(Mux(any_column.within_ccd_s | any_write.within_wtr_s, 0,
                           ~spread(groups.within_ccd_l | write_groups.within_wtr_l))),
            write_ok.eq(Mux(any_column.within_ccd_s | any_read.within_rtw, 0,
                            ~spread(groups.within_ccd_l))),
        ]
        return read_ok, write_ok
