# SPDX-License-Identifier: Apache-2.0
"""When a pseudo-channel reads and when it writes."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.config import Hbm
from emu.hbm_timing import BANKS


class Mode(wiring.Component):
    """Reads first; writes drain in bursts, because every turn of the bus costs some twenty cycles.

    Writes begin when ``hbm.drain_start`` are queued, when a read waits for one of them, when the
    write buffer is full, or when no read waits. A burst of the first kinds goes on until
    ``hbm.write_low`` are left, or the queue is a quarter full with all writes in one bank group,
    which then sends only every tCCD_L (and until the write that a read waits for). One of the last
    kind ends with the next read.

    Parameters
    ----------
    hbm: Gives the write queue and its watermarks.

    Members
    -------
    reads: Some read waits. ``level``: Writes waiting, ``banks`` where.
    conflict: A read waits for a write. ``starved``: The write buffer has no room.
    write: Write mode. ``ahead``: The other mode is near enough to open its rows.
    """

    def __init__(self, hbm: Hbm):
        self._hbm, writes = hbm, hbm.write_queue
        super().__init__(
            {
                "reads": In(1), "level": In(range(writes + 1)), "banks": In(BANKS),
                "conflict": In(1), "starved": In(1),
                "write": Out(1), "ahead": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        urgent, must, slow, groups = Signal(), Signal(), Signal(), Signal(4)
        high, low, quarter = self._hbm.drain_start, self._hbm.write_low, self._hbm.write_queue // 4
        m.d.comb += [
            must.eq((self.level >= high) | self.conflict | (self.starved & (self.level != 0))),
            self.ahead.eq(self.write | (self.level >= max(high - quarter // 2, 1))),
            groups.eq(Cat(self.banks[i:i + 4].any() for i in range(0, BANKS, 4))),
            # One group: a power of two.
            slow.eq((self.level <= quarter) & ((groups & (groups - 1)[:4]) == 0)),
        ]
        with m.If(self.write):
            with m.If(must):
                m.d.sync += urgent.eq(1)
            with m.Elif(self.level == 0):
                m.d.sync += self.write.eq(0)
            with m.Elif(self.reads & (~urgent | slow | (self.level <= low))):
                m.d.sync += self.write.eq(0)
        with m.Elif(must | ((self.level != 0) & ~self.reads)):
            m.d.sync += [self.write.eq(1), urgent.eq(must)]
        return m
