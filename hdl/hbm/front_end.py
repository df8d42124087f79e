# SPDX-License-Identifier: Apache-2.0
"""From line requests to columns of banks, and the check of reads against queued writes."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.config import Hbm
from hdl.hbm.address import hashed, locate
from hdl.hbm.packets import (
    HASH_BITS,
    WriteItem,
    column_layout,
    line_read,
    line_write,
    read_item,
)


def _columns(m, i, o, halves):
    """Send the columns of the line at ``i`` in ``halves`` order; returns the half being sent."""
    second, half, both = Signal(), Signal(), Signal()
    m.d.comb += [
        both.eq(halves.all()),
        half.eq(Mux(both, second, halves[1])),
        i.ready.eq(o.ready & (~both | second)),
    ]
    with m.If(o.valid & o.ready):
        m.d.sync += second.eq(both & ~second)
    return half


class ReadFrontEnd(wiring.Component):
    """Splits line reads into column reads; a column that may have a queued write waits.

    Latency 0; one column per cycle. The line is taken with its last column.

    Members
    -------
    i: `LineRead`. ``o``: Column reads.
    hash: Filter index of the column offered. ``hit``: The filter's answer in the same cycle.
    conflict: A read waits for writes to drain.
    """

    def __init__(self, hbm: Hbm):
        self._hbm = hbm
        super().__init__(
            {
                "i": In(stream.Signature(line_read(hbm.ecc))),
                "o": Out(stream.Signature(column_layout(hbm, read_item(hbm.ecc)))),
                "hash": Out(HASH_BITS), "hit": In(1), "conflict": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        line, o = self.i.payload, self.o
        half = Signal()
        gated = stream.Signature(1).create()
        m.d.comb += [
            gated.valid.eq(o.valid), gated.ready.eq(o.ready & ~self.hit),
            half.eq(_columns(m, self.i, gated, Cat(line.words[:2].any(), line.words[2:].any()))),
        ]
        address = Cat(half, line.line)
        where = locate(self._hbm, address)
        m.d.comb += [
            self.hash.eq(hashed(address)),
            self.conflict.eq(self.i.valid & self.hit),
            o.valid.eq(self.i.valid & ~self.hit),
            o.payload.row.eq(where["row"]),
            o.payload.bank.eq(where["bank"]),
            o.payload.column.eq(where["column"]),
            o.payload.item.words.eq(Mux(half, line.words[2:], line.words[:2])),
            o.payload.item.index.eq(address[:3]),
            o.payload.item.tag.eq(line.tag),
        ]
        if self._hbm.ecc:
            m.d.comb += o.payload.item.patch.eq(line.patch)
        return m


class WriteFrontEnd(wiring.Component):
    """Splits line writes into column writes.

    Latency 0; one column per cycle. The line is taken with its last column.

    Members
    -------
    i: `LineWrite`. ``o``: Column writes. ``enable``: Columns may be sent.
    """

    def __init__(self, hbm: Hbm):
        self._hbm = hbm
        super().__init__(
            {
                "i": In(stream.Signature(line_write(hbm.ecc))),
                "o": Out(stream.Signature(column_layout(hbm, WriteItem))),
                "enable": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        line, o = self.i.payload, self.o
        half = Signal()
        gated = stream.Signature(1).create()
        m.d.comb += [
            gated.valid.eq(o.valid), gated.ready.eq(o.ready & self.enable),
            half.eq(_columns(m, self.i, gated, line.halves)),
        ]
        address = Cat(half, line.line)
        where = locate(self._hbm, address)
        m.d.comb += [
            o.valid.eq(self.i.valid & self.enable),
            o.payload.row.eq(where["row"]),
            o.payload.bank.eq(where["bank"]),
            o.payload.column.eq(where["column"]),
            o.payload.item.half.eq(half),
            o.payload.item.slot.eq(line.slot),
            o.payload.item.hash.eq(hashed(address)),
        ]
        return m


class ConflictFilter(wiring.Component):
    """Counts queued writes by address hash: zero means that no write to the column is queued.

    A counting Bloom filter with one hash. ``hit`` may be true for another column with the same
    hash, never false for the same one. Clears itself after reset; ``ready`` tells when writes may
    come.

    Members
    -------
    check, hit: Combinational look-up. ``pending``: Any write is queued.
    add, add_hash: A write enters the queue. ``remove``, ``remove_hash``: A write was issued.
    """

    def __init__(self, writes: int):
        self._writes = writes
        super().__init__(
            {
                "ready": Out(1), "pending": In(1), "check": In(HASH_BITS), "hit": Out(1),
                "add": In(1), "add_hash": In(HASH_BITS),
                "remove": In(1), "remove_hash": In(HASH_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.counts = counts = Memory(
            shape=range(self._writes + 1), depth=1 << HASH_BITS, init=[])
        up, down = counts.write_port(), counts.write_port()
        look, of_add, of_remove = (counts.read_port(domain="comb") for _ in range(3))
        clear, same = Signal(HASH_BITS + 1), Signal()
        m.d.comb += [
            self.ready.eq(clear[-1]),
            look.addr.eq(self.check),
            self.hit.eq(self.pending & (look.data != 0)),
            of_add.addr.eq(self.add_hash), of_remove.addr.eq(self.remove_hash),
            same.eq(self.add & self.remove & (self.add_hash == self.remove_hash)),
            up.addr.eq(Mux(self.ready, self.add_hash, clear[:-1])),
            up.data.eq(Mux(self.ready, of_add.data + 1, 0)),
            up.en.eq(~self.ready | (self.add & ~same)),
            down.addr.eq(self.remove_hash), down.data.eq(of_remove.data - 1),
            down.en.eq(self.remove & ~same),
        ]
        m.d.sync += clear.eq(clear + ~self.ready)
        return m
