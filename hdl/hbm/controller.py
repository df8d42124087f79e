# SPDX-License-Identifier: Apache-2.0
"""The controller of one HBM pseudo-channel: line requests in, DRAM commands and words out."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from emu.config import Hbm
from emu.hbm_timing import BANKS, TIMINGS
from hdl.counter import count
from hdl.hbm.bank_queues import BankQueues
from hdl.hbm.data_path import ReadPath, WritePath
from hdl.hbm.front_end import ConflictFilter, ReadFrontEnd, WriteFrontEnd
from hdl.hbm.mode import Mode
from hdl.hbm.packets import (
    BeatAddress,
    ReadWord,
    RowKind,
    WriteItem,
    line_read,
    line_write,
    phy,
    read_item,
)
from hdl.hbm.partial_writes import PartialWrites
from hdl.hbm.refresher import Refresher
from hdl.hbm.scheduler import Scheduler
from hdl.hbm.timers import Timers
from hdl.packets import WORD_BITS


class HbmController(wiring.Component):
    """Reads and writes 64-byte lines of a pseudo-channel; one row and one column command a cycle.

    front end (address map, split) -> queues per bank -> scheduler -> commands, one cycle later on
    ``phy``. A read of an idle channel with its row open: first word at ``words`` cl + 4 cycles
    after the line was offered. Peak: one column in two cycles, 16 bytes per cycle.

    Words come in any order. A read accepted after a write was accepted returns what that write
    wrote (or a later one): it waits in the front end while a column with the same hash is queued.

    With ``hbm.ecc`` words are corrected on their way from the DRAM, one cycle later, and written
    with check bits; masked writes read their columns first, see `PartialWrites`.

    Members
    -------
    read, write: Streams of `LineRead` and `LineWrite`. A write is *queued*, for every later read to
        see, when it is transferred.
    words: Words read.
    fetch, beat, write_data, write_mask: In a cycle with ``fetch`` the word ``beat`` of the write
        buffer goes to the DRAM; the buffer answers in the same cycle.
    starved: The write buffer has no room: drain writes. ``phy``: To the DRAM.
    idle: Nothing is queued or on its way.
    entering: With ``debug``: a column read enters its queue.

    Parameters
    ----------
    hbm: The pseudo-channel. ``debug``: For benches: adds ``entering``.

    Counters
    --------
    reads, writes (columns), row_hits (columns other than the first after an activate), activates,
    precharges (banks closed), refreshes, data_cycles, conflict_stalls, read_queue_stalls,
    write_queue_stalls, turnarounds.
    """

    FRONT_END_DELAY = 2
    """Cycles from the acceptance of a column of an idle channel to its first command on ``phy``."""

    def __init__(self, hbm: Hbm, *, debug: bool = False):
        self._hbm, self._debug = hbm, debug
        super().__init__(
            {
                "read": In(stream.Signature(line_read(False))),
                "write": In(stream.Signature(line_write(hbm.ecc))),
                "words": Out(stream.Signature(ReadWord)),
                "fetch": Out(1), "beat": Out(BeatAddress),
                "write_data": In(WORD_BITS), "write_mask": In(16),
                "starved": In(1), "phy": Out(phy(hbm.ecc)), "idle": Out(1),
            } | ({"entering": Out(1)} if debug else {})
        )

    def elaborate(self, platform):
        m = Module()
        hbm, timing = self._hbm, TIMINGS[self._hbm.timing]
        m.submodules.reads = self._reads = BankQueues(
            hbm, read_item(hbm.ecc), hbm.read_queue)
        m.submodules.writes = self._writes = BankQueues(hbm, WriteItem, hbm.write_queue)
        m.submodules.timers = self._timers = Timers(timing)
        m.submodules.refresher = self._refresher = Refresher(
            timing, hbm.refresh, hbm.postponed)
        m.submodules.scheduler = self._scheduler = Scheduler(hbm)
        m.submodules.mode = self._mode = Mode(hbm)
        m.submodules.read_path = self._read_path = ReadPath(timing.cl + 1, hbm)
        m.submodules.write_path = self._write_path = WritePath(
            timing.cwl + 1 - hbm.ecc)
        self._front_ends(m)
        self._decide(m)
        self._refresh(m)
        self._issue(m)
        self._paths(m)
        self._count(m)
        if self._debug:
            entering = self._reads.enqueue
            own = entering.payload.item.patch if self._hbm.ecc else 0
            m.d.comb += self.entering.eq(entering.valid & entering.ready & ~own)
        return m

    def _front_ends(self, m):
        hbm, reads, writes = self._hbm, self._reads, self._writes
        m.submodules.read_front = front = self._read_front = ReadFrontEnd(hbm)
        m.submodules.write_front = write_front = WriteFrontEnd(hbm)
        m.submodules.filter = queued = ConflictFilter(hbm.write_queue)
        if hbm.ecc:
            m.submodules.partial = partial = self._partial = PartialWrites()
            connect(m, flipped(self.read), partial.read)
            connect(m, flipped(self.write), partial.i)
            connect(m, partial.o_read, front.i)
            connect(m, partial.o, write_front.i)
        else:
            connect(m, flipped(self.read), front.i)
            connect(m, flipped(self.write), write_front.i)
        connect(m, front.o, reads.enqueue)
        connect(m, write_front.o, writes.enqueue)
        m.d.comb += [
            write_front.enable.eq(queued.ready),
            queued.pending.eq(writes.level != 0),
            queued.check.eq(front.hash),
            front.hit.eq(queued.hit),
            queued.add.eq(writes.enqueue.valid & writes.enqueue.ready),
            queued.add_hash.eq(write_front.o.payload.item.hash),
            queued.remove.eq(writes.pop),
            queued.remove_hash.eq(writes.pop_item.hash),
            self._mode.reads.eq(reads.waiting.any()),
            self._mode.level.eq(writes.level), self._mode.banks.eq(writes.waiting),
            self._mode.conflict.eq(front.conflict), self._mode.starved.eq(self.starved),
        ]

    def _decide(self, m):
        """State into the scheduler."""
        s, timers = self._scheduler, self._timers
        m.d.comb += [
            s.write_mode.eq(self._mode.write), s.ahead.eq(self._mode.ahead),
            s.room.eq(self._read_path.room),
            s.taken.eq(self._refresher.valid), s.claimed.eq(self._refresher.claimed),
            s.open.eq(timers.open),
            s.may_activate.eq(timers.activate), s.may_precharge.eq(timers.precharge),
            s.may_read.eq(timers.read), s.may_write.eq(timers.write),
        ]
        for side, queues in (("reads", self._reads), ("writes", self._writes)):
            for name in ("waiting", "hit", "stamp"):
                m.d.comb += getattr(s, f"{side}_{name}").eq(getattr(queues, name))
            m.d.comb += [
                getattr(s, f"{side}_push").eq(queues.enqueue.valid & queues.enqueue.ready),
                getattr(s, f"{side}_bank").eq(queues.enqueue.payload.bank),
            ]
            for bank in range(BANKS):
                m.d.comb += getattr(s, f"{side}_stamps")[bank].eq(queues.stamps[bank])

    def _refresh(self, m):
        refresher, timers = self._refresher, self._timers
        m.d.comb += [
            refresher.busy.eq(self._reads.waiting | self._writes.waiting),
            refresher.open.eq(timers.open),
            refresher.may_precharge.eq(timers.precharge),
            refresher.may_refresh.eq(timers.refresh_bank),
            refresher.may_precharge_all.eq(timers.precharge_all),
            refresher.may_refresh_all.eq(timers.refresh_all),
        ]

    def _issue(self, m):
        """This cycle's commands to state and queues, and through a register to the DRAM."""
        s, refresher, timers = self._scheduler, self._refresher, self._timers
        reads, writes, write = self._reads, self._writes, self._mode.write
        row = self._row = Signal(self.phy.row.shape())
        column = self._column = Signal(self.phy.column.shape())
        with m.If(refresher.valid):
            m.d.comb += [row.kind.eq(refresher.kind), row.bank.eq(refresher.bank)]
        with m.Else():
            m.d.comb += [row.kind.eq(s.row_kind), row.bank.eq(s.row_bank)]
        with m.If(s.row_write):
            m.d.comb += row.row.eq(writes.row)
        with m.Else():
            m.d.comb += row.row.eq(reads.row)
        with m.If(write):
            m.d.comb += column.column.eq(writes.pop_column)
        with m.Else():
            m.d.comb += column.column.eq(reads.pop_column)
        m.d.comb += [
            row.valid.eq(s.row_valid | refresher.valid),
            column.valid.eq(s.column_valid),
            column.write.eq(write),
            column.bank.eq(s.column_bank),
            timers.row_valid.eq(row.valid), timers.row_kind.eq(row.kind),
            timers.row_bank.eq(row.bank),
            timers.column_valid.eq(column.valid), timers.column_write.eq(write),
            timers.column_bank.eq(column.bank),
            reads.pop.eq(column.valid & ~write), writes.pop.eq(column.valid & write),
        ]
        for queues in (reads, writes):
            m.d.comb += [
                queues.pop_bank.eq(s.column_bank),
                queues.row_bank.eq(row.bank), queues.opened.eq(row.row),
                queues.row_valid.eq(row.valid), queues.row_kind.eq(row.kind),
                queues.open.eq(timers.open),
            ]
        m.d.sync += [self.phy.row.valid.eq(row.valid), self.phy.column.valid.eq(column.valid)]
        with m.If(row.valid):
            m.d.sync += self.phy.row.eq(row)
        with m.If(column.valid):
            m.d.sync += self.phy.column.eq(column)

    def _paths(self, m):
        read, write = self._read_path, self._write_path
        connect(m, read.o, flipped(self.words))
        m.d.comb += [
            read.issue.eq(self._reads.pop), read.item.eq(self._reads.pop_item),
            read.bus.eq(self.phy.read_data),
            write.issue.eq(self._writes.pop), write.item.eq(self._writes.pop_item),
            self.fetch.eq(write.fetch), self.beat.eq(write.beat),
            self.idle.eq(
                (self._reads.level == 0) & (self._writes.level == 0) & read.idle & write.idle
                & ~self.read.valid & ~self.write.valid
            ),
        ]
        if not self._hbm.ecc:
            m.d.comb += [
                self.phy.write_data.eq(self.write_data), self.phy.write_mask.eq(self.write_mask),
            ]
            return
        partial = self._partial
        m.d.comb += [
            read.check.eq(self.phy.read_check),
            partial.patch.eq(read.patch), partial.patch_beat.eq(read.patch_beat),
            partial.patch_data.eq(read.patch_data),
            partial.fetch.eq(self.fetch), partial.beat.eq(self.beat),
            partial.data.eq(self.write_data), partial.mask.eq(self.write_mask),
            self.phy.write_data.eq(partial.o_data), self.phy.write_mask.eq(partial.o_check),
        ]

    def _count(self, m):
        row, column, before = self._row, self._column, Signal()
        reads, writes, fresh = self._reads, self._writes, Signal(BANKS)
        act = row.valid & (row.kind == RowKind.ACTIVATE)
        refresh = (row.kind == RowKind.REFRESH_ALL) | (row.kind == RowKind.REFRESH_BANK)
        closed = Signal(range(BANKS + 1))
        with m.If(row.valid & (row.kind == RowKind.PRECHARGE)):
            m.d.comb += closed.eq(1)
        if self._hbm.refresh == "all_bank":
            with m.Elif(row.valid & (row.kind == RowKind.PRECHARGE_ALL)):
                m.d.comb += closed.eq(sum(self._timers.open[bank] for bank in range(BANKS)))
        m.d.sync += fresh.eq(
            (fresh & ~Mux(column.valid, 1 << column.bank, 0)) | Mux(act, 1 << row.bank, 0)
        )
        m.d.sync += before.eq(self._mode.write)
        for name, amount in {
            "reads": reads.pop,
            "writes": writes.pop,
            "row_hits": column.valid & ~fresh.bit_select(column.bank, 1),
            "activates": act,
            "precharges": closed,
            "refreshes": row.valid & refresh,
            "data_cycles": column.valid << 1,
            "conflict_stalls": self._read_front.conflict,
            "read_queue_stalls": reads.enqueue.valid & ~reads.enqueue.ready,
            "write_queue_stalls": writes.enqueue.valid & ~writes.enqueue.ready,
            "turnarounds": before != self._mode.write,
        }.items():
            count(m, name, amount)
