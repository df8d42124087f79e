# SPDX-License-Identifier: Apache-2.0
"""Column accesses waiting for their banks: one queue per bank in shared memories."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.config import Hbm
from emu.hbm_timing import BANKS, COLUMN_BITS, row_bits
from hdl.hbm.packets import STAMP_BITS, RowKind, column_layout
from hdl.hbm.pool import Pool


class BankQueues(wiring.Component):
    """Sixteen queues in one pool of entries; the scheduler sees the heads.

    An access enqueued in cycle t is visible from t + 1. One may enter and one may leave per cycle.
    Queues are linked lists, so that any bank may use all entries. ``hit`` is kept by comparing a
    row only when a head or an open row changes, never all banks at once.

    Parameters
    ----------
    hbm: Gives the row width.
    item: Layout of what an access carries beside its address.
    capacity: Entries, a power of two.

    Members
    -------
    enqueue: Stream of `column_layout`. ``level``: Accesses waiting.
    waiting: Banks with a head. ``hit``: Banks whose head's row is open (meaningless if not
        waiting).
    stamps: Arrival number of each head, modulo 2**10; ``stamp`` is that of the next arrival.
    pop, pop_bank: Remove that bank's head; ``pop_column`` and ``pop_item`` are its contents.
    row_bank: Bank of the row command; ``row`` is the row of that bank's head.
    row_valid, row_kind, opened: The row command given in this cycle; ``opened`` is the activated
        row.
    open: Banks with an open row.
    """

    def __init__(self, hbm: Hbm, item: data.Layout, capacity: int):
        self._rows, self._item, self._capacity = row_bits(hbm), item, capacity
        self._column = column_layout(hbm, item)
        super().__init__(
            {
                "enqueue": In(stream.Signature(self._column)),
                "level": Out(range(capacity + 1)),
                "waiting": Out(BANKS), "hit": Out(BANKS),
                "stamps": Out(STAMP_BITS).array(BANKS), "stamp": Out(STAMP_BITS),
                "pop": In(1), "pop_bank": In(range(BANKS)),
                "pop_column": Out(COLUMN_BITS), "pop_item": Out(item),
                "row_bank": In(range(BANKS)), "row": Out(self._rows),
                "row_valid": In(1), "row_kind": In(RowKind), "opened": In(self._rows),
                "open": In(BANKS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.pool = pool = Pool(self._capacity)
        push = Signal()
        m.d.comb += [
            self.enqueue.ready.eq(pool.available),
            push.eq(self.enqueue.valid & pool.available),
            pool.take.eq(push),
            pool.give.eq(self.pop),
            self.level.eq(self._capacity - pool.free),
        ]
        self._lists(m, pool, push)
        self._entries(m, pool, push)
        self._hits(m)
        m.d.sync += self.stamp.eq(self.stamp + push)
        return m

    def _lists(self, m, pool, push):
        """Heads, tails and links: who leaves (slot), who becomes head (entering, next)."""
        slots = range(self._capacity)
        bank, pop_bank = self.enqueue.payload.bank, self.pop_bank
        m.submodules.heads = heads = Memory(shape=slots, depth=BANKS, init=[])
        m.submodules.tails = tails = Memory(shape=slots, depth=BANKS, init=[])
        m.submodules.links = links = Memory(shape=slots, depth=self._capacity, init=[])
        head, tail = heads.read_port(domain="comb"), tails.read_port(domain="comb")
        enter, advance = heads.write_port(), heads.write_port()
        end, append = tails.write_port(), links.write_port()
        last, link = tails.read_port(domain="comb"), links.read_port(domain="comb")
        row_head = heads.read_port(domain="comb")
        self._slot, self._next, self._row_slot = head.data, link.data, row_head.data
        self._entering, self._more = Signal(), Signal()
        emptied = Signal(BANKS)
        m.d.comb += [
            head.addr.eq(pop_bank),
            last.addr.eq(pop_bank),
            tail.addr.eq(bank),
            link.addr.eq(head.data),
            row_head.addr.eq(self.row_bank),
            pool.given.eq(head.data),
            self._more.eq(self.pop & (head.data != last.data)),
            emptied.eq(Mux(self.pop & ~self._more, 1 << pop_bank, 0)),
            self._entering.eq(push & ~(self.waiting & ~emptied).bit_select(bank, 1)),
            enter.addr.eq(bank), enter.data.eq(pool.slot), enter.en.eq(self._entering),
            advance.addr.eq(pop_bank), advance.data.eq(link.data), advance.en.eq(self._more),
            end.addr.eq(bank), end.data.eq(pool.slot), end.en.eq(push),
            append.addr.eq(tail.data), append.data.eq(pool.slot),
            append.en.eq(push & ~self._entering),
        ]
        m.d.sync += self.waiting.eq((self.waiting & ~emptied) | Mux(push, 1 << bank, 0))

    def _entries(self, m, pool, push):
        """Contents and arrival numbers, those of heads in a memory of their own."""
        payload = self.enqueue.payload
        what = data.StructLayout({"item": self._item, "column": COLUMN_BITS})
        m.submodules.items = items = Memory(shape=what, depth=self._capacity, init=[])
        m.submodules.rows = rows = Memory(
            shape=self._rows + STAMP_BITS, depth=self._capacity, init=[])
        m.submodules.head_stamps = stamps = Memory(shape=STAMP_BITS, depth=BANKS, init=[])
        item, row_word = items.write_port(), rows.write_port()
        item_read, following = items.read_port(domain="comb"), rows.read_port(domain="comb")
        row_read = rows.read_port(domain="comb")
        enter, advance = stamps.write_port(), stamps.write_port()
        next_stamp = Signal(STAMP_BITS)
        self._next_row = Signal(self._rows)
        m.d.comb += [
            item.addr.eq(pool.slot), item.en.eq(push),
            item.data.item.eq(payload.item), item.data.column.eq(payload.column),
            row_word.addr.eq(pool.slot), row_word.en.eq(push),
            row_word.data[:self._rows].eq(payload.row),
            row_word.data[self._rows:].eq(self.stamp),
            item_read.addr.eq(self._slot),
            self.pop_item.eq(item_read.data.item),
            self.pop_column.eq(item_read.data.column),
            following.addr.eq(self._next),
            self._next_row.eq(following.data[:self._rows]),
            next_stamp.eq(following.data[self._rows:]),
            row_read.addr.eq(self._row_slot),
            self.row.eq(row_read.data[:self._rows]),
            enter.addr.eq(payload.bank), enter.data.eq(self.stamp), enter.en.eq(self._entering),
            advance.addr.eq(self.pop_bank), advance.data.eq(next_stamp),
            advance.en.eq(self._more),
        ]
        for bank in range(BANKS):
            read = stamps.read_port(domain="comb")
            m.d.comb += [read.addr.eq(bank), self.stamps[bank].eq(read.data)]

    def _hits(self, m):
        """``hit`` changes with an entering head, a head exposed by a pop, an open or close."""
        payload = self.enqueue.payload
        m.submodules.open_rows = open_rows = Memory(shape=self._rows, depth=BANKS, init=[])
        write = open_rows.write_port()
        of_enter, of_pop = (open_rows.read_port(domain="comb") for _ in range(2))
        act, same, is_open = Signal(), Signal(), Signal()
        entered, exposed, activated, closed = (Signal(BANKS) for _ in range(4))
        at_row = Signal(BANKS)
        pre = Signal()
        m.d.comb += [
            act.eq(self.row_valid & (self.row_kind == RowKind.ACTIVATE)),
            pre.eq(self.row_valid & (self.row_kind == RowKind.PRECHARGE)),
            write.addr.eq(self.row_bank), write.data.eq(self.opened), write.en.eq(act),
            of_enter.addr.eq(payload.bank), of_pop.addr.eq(self.pop_bank),
            # An access that enters while its bank opens or closes is compared with what comes.
            same.eq(self.row_bank == payload.bank),
            is_open.eq(Mux(same & act, 1, self.open.bit_select(payload.bank, 1) & ~(same & pre))),
            entered.eq(Mux(self._entering, 1 << payload.bank, 0)),
            exposed.eq(Mux(self._more, 1 << self.pop_bank, 0)),
            at_row.eq(1 << self.row_bank),
            activated.eq(Mux(act, at_row, 0)),
            closed.eq(Mux(pre, at_row, 0)),
        ]
        enter_hit, pop_hit, row_hit = Signal(), Signal(), Signal()
        m.d.comb += [
            enter_hit.eq(is_open & (payload.row == Mux(same & act, self.opened, of_enter.data))),
            pop_hit.eq(self._next_row == of_pop.data),
            row_hit.eq(self.row == self.opened),
        ]
        m.d.sync += self.hit.eq(
            (self.hit & ~(entered | exposed | activated | closed))
            | (Mux(enter_hit, entered, 0))
            | (Mux(pop_hit, exposed, 0))
            | (Mux(row_hit, activated & ~entered, 0))
        )
        with m.If(self.row_valid & (self.row_kind == RowKind.PRECHARGE_ALL)):
            m.d.sync += self.hit.eq(0)

