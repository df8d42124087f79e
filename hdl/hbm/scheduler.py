# SPDX-License-Identifier: Apache-2.0
"""The scheduler: a row and a column command per cycle from the heads of the bank queues."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.config import Hbm
from emu.hbm_timing import BANKS
from hdl.hbm.packets import STAMP_BITS, RowKind
from hdl.hbm.pick import KEY_BITS, Oldest, key, lowest, one_hot_index

HEADS = {"waiting": BANKS, "hit": BANKS, "stamp": STAMP_BITS}


class Scheduler(wiring.Component):
    """First ready, first come, first served among bank heads (FR-FCFS; Rixner et al., ISCA 2000).

    Combinational from this cycle's vectors to this cycle's commands. In read mode only reads are
    served, in write mode only writes. The column command is the oldest head whose row is open and
    whose timing allows it; the row command opens or closes for the oldest head that needs it. A
    bank's queue is in order, so an access that waits for a row is never overtaken in its own bank
    and every head becomes the oldest in the end: no starvation.

    ``in_order`` serves only the oldest access of the mode. ``fr_fcfs_cap`` puts banks that have
    sent ``row_hit_cap`` columns since their activate behind all other ready banks.

    When the mode's own accesses need no row command, rows are prepared for the other mode in banks
    that this mode does not want (``ahead``), and then rows are closed by the page policy: ``open``
    never, ``closed`` when nothing waiting hits, ``timeout`` when also unused for ``page_timeout``
    cycles (checked for one bank per cycle).

    Members
    -------
    write_mode: Serve writes. ``ahead``: Prepare rows for the other mode.
    taken: Refresh has the row bus. ``room``: The words of a read would find room.
    reads_*, writes_*: Heads of the two `BankQueues`. ``*_push``, ``*_bank``: An arrival.
    open, may_*: As in `hdl.hbm.timers.Timers`. ``claimed``: Banks not to be used.
    row_valid, row_kind, row_bank, row_write: The row command, and whose head it serves.
    column_valid, column_bank: The column command, of the mode's kind.
    """

    def __init__(self, hbm: Hbm):
        self._hbm = hbm
        members = {
            "write_mode": In(1), "ahead": In(1), "taken": In(1), "room": In(1),
            "claimed": In(BANKS), "open": In(BANKS),
            "may_activate": In(BANKS), "may_precharge": In(BANKS), "may_read": In(BANKS),
            "may_write": In(BANKS),
            "row_valid": Out(1), "row_kind": Out(RowKind), "row_bank": Out(range(BANKS)),
            "row_write": Out(1),
            "column_valid": Out(1), "column_bank": Out(range(BANKS)),
        }
        for side in ("reads", "writes"):
            members |= {f"{side}_{name}": In(width) for name, width in HEADS.items()}
            members |= {
                f"{side}_stamps": In(STAMP_BITS).array(BANKS),
                f"{side}_push": In(1), f"{side}_bank": In(range(BANKS)),
            }
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        write, free = self.write_mode, ~self.claimed
        waiting, hit, allowed = Signal(BANKS), Signal(BANKS), Signal(BANKS)
        ready, needs, flip = Signal(BANKS), Signal(BANKS), Signal()
        m.submodules.column = column = Oldest()
        m.submodules.row = row = Oldest()
        m.d.comb += [
            waiting.eq(Mux(write, self.writes_waiting, self.reads_waiting) & free),
            hit.eq(Mux(write, self.writes_hit, self.reads_hit)),
            allowed.eq(waiting),
            ready.eq(allowed & hit & Mux(
                write, self.may_write, Mux(self.room, self.may_read, 0))),
            needs.eq(allowed & (self.may_activate | (self.may_precharge & ~hit))),
            flip.eq(~Mux(write, self.writes_stamp[-1], self.reads_stamp[-1])),
            column.ready.eq(ready),
            row.ready.eq(needs),
            self.column_valid.eq(column.found),
            self.column_bank.eq(column.bank),
        ]
        for bank in range(BANKS):
            stamp = Signal(STAMP_BITS, name=f"stamp_{bank}")
            age = Signal(KEY_BITS, name=f"age_{bank}")
            m.d.comb += [
                stamp.eq(Mux(write, self.writes_stamps[bank], self.reads_stamps[bank])),
                age.eq(key(bank, stamp, flip)),
                column.keys[bank].eq(age), row.keys[bank].eq(age),
            ]
        if self._hbm.scheduler == "in_order":
            m.d.comb += allowed.eq(waiting & self._first(m))
        elif self._hbm.scheduler == "fr_fcfs_cap":
            fresh = Signal(BANKS)
            m.d.comb += [
                fresh.eq(ready & ~self._capped(m)),
                column.ready.eq(Mux(fresh.any(), fresh, ready)),
            ]
        self._rows(m, row, waiting)
        return m

    def _rows(self, m, row, waiting):
        """The row command: own heads, then the other mode's, then the page policy."""
        write, other, other_hit = self.write_mode, Signal(BANKS), Signal(BANKS)
        others, closing = Signal(BANKS), Signal(BANKS)
        spare_bank, bit = Signal(range(BANKS)), Signal(BANKS)
        m.d.comb += [
            other.eq(Mux(write, self.reads_waiting & ~self.writes_waiting,
                         self.writes_waiting & ~self.reads_waiting)),
            other_hit.eq(Mux(write, self.reads_hit, self.writes_hit)),
            others.eq(Mux(self.ahead, other & ~self.claimed
                          & (self.may_activate | (self.may_precharge & ~other_hit)), 0)),
            closing.eq(self._closing(m)),
            bit.eq(lowest(Mux(others.any(), others, closing))),
            spare_bank.eq(one_hot_index(bit)),
        ]
        with m.If(row.found):
            m.d.comb += [self.row_bank.eq(row.bank), self.row_write.eq(write)]
        with m.Else():
            m.d.comb += [self.row_bank.eq(spare_bank), self.row_write.eq(~write)]
        m.d.comb += [
            self.row_valid.eq((row.found | others.any() | closing.any()) & ~self.taken),
            self.row_kind.eq(Mux(self.open.bit_select(self.row_bank, 1),
                                 RowKind.PRECHARGE, RowKind.ACTIVATE)),
        ]

    def _closing(self, m):
        """Banks that the page policy closes now."""
        if self._hbm.page_policy == "open":
            return 0
        unused = Signal(BANKS)
        m.d.comb += unused.eq(
            self.may_precharge & ~self.claimed
            & ~(self.reads_waiting & self.reads_hit) & ~(self.writes_waiting & self.writes_hit)
        )
        if self._hbm.page_policy == "closed":
            return unused
        m.submodules.used = used = Memory(shape=16, depth=BANKS, init=[])
        mark, opened = used.write_port(), used.write_port()
        look = used.read_port(domain="comb")
        now, expired = Signal(16), Signal(BANKS)
        act = self.row_valid & (self.row_kind == RowKind.ACTIVATE)
        m.d.comb += [
            mark.addr.eq(self.column_bank), mark.data.eq(now), mark.en.eq(self.column_valid),
            opened.addr.eq(self.row_bank), opened.data.eq(now), opened.en.eq(act),
            look.addr.eq(now[:4]),
        ]
        late = ((now - look.data)[:16] >= self._hbm.page_timeout) & self.open.bit_select(now[:4], 1)
        m.d.sync += [now.eq(now + 1), expired.eq(Mux(late, 1 << now[:4], 0))]
        return unused & expired

    def _first(self, m):
        """The bank of the oldest access of the mode: an order queue for each mode."""
        firsts = []
        for name, depth, push, bank, turn in (
            ("reads", self._hbm.read_queue, self.reads_push, self.reads_bank, ~self.write_mode),
            ("writes", self._hbm.write_queue, self.writes_push, self.writes_bank, self.write_mode),
        ):
            m.submodules[f"{name}_order"] = order = Memory(shape=4, depth=depth, init=[])
            write, read = order.write_port(), order.read_port(domain="comb")
            head = Signal(range(depth), name=f"{name}_head")
            tail = Signal(range(depth), name=f"{name}_tail")
            m.d.comb += [
                write.addr.eq(tail), write.data.eq(bank), write.en.eq(push), read.addr.eq(head),
            ]
            m.d.sync += [tail.eq(tail + push), head.eq(head + (self.column_valid & turn))]
            firsts.append(Mux(getattr(self, f"{name}_waiting").any(), 1 << read.data, 0))
        return Mux(self.write_mode, firsts[1], firsts[0])

    def _capped(self, m):
        """Banks that have sent ``row_hit_cap`` columns since their activate."""
        m.submodules.runs = runs = Memory(shape=8, depth=BANKS, init=[])
        write, read = runs.write_port(), runs.read_port(domain="comb")
        started, capped = Signal(BANKS), Signal(BANKS)
        run, row_bit, column_bit = Signal(8), Signal(BANKS), Signal(BANKS)
        m.d.comb += [
            read.addr.eq(self.column_bank),
            # The first column after an activate starts the count.
            run.eq(Mux(started.bit_select(self.column_bank, 1), read.data, 0) + 1),
            write.addr.eq(self.column_bank), write.data.eq(run), write.en.eq(self.column_valid),
            row_bit.eq(Mux(self.row_valid, 1 << self.row_bank, 0)),
            column_bit.eq(Mux(self.column_valid, 1 << self.column_bank, 0)),
        ]
        m.d.sync += [
            started.eq((started & ~row_bit) | column_bit),
            capped.eq((capped & ~row_bit)
                      | Mux(run >= self._hbm.row_hit_cap, column_bit, 0)),
        ]
        return capped


