# SPDX-License-Identifier: Apache-2.0
"""Two halves of 16 x int32 accumulators: one fills while the other is drained."""

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In

from emu.config import Config
from hdl.compute.array import CELLS, Sums
from hdl.compute.drain import AccumulatorRead
from hdl.sram import MultiPort

Accumulator = data.ArrayLayout(signed(32), CELLS)


class Accumulators(wiring.Component):
    """Adds dot products to rows, wrapping at 32 bits.

    Latency: a row accumulated in cycle t is readable in t + 2. Throughput: one row a cycle; the
    same row again after two cycles at the earliest (a pass lasts at least four).

    Parameters
    ----------
    config: Gives ``core.accumulator_rows``.

    Members
    -------
    fetch, fetch_row, fetch_half: Announces, one cycle ahead, the row to be accumulated.
    enable, overwrite, sums: Adds ``sums`` to the announced row, or replaces it.
    drain: Read port of the drain.
    """

    def __init__(self, config: Config):
        self._rows = config.core.accumulator_rows
        super().__init__(
            {
                "fetch": In(1), "fetch_row": In(12), "fetch_half": In(1),
                "enable": In(1), "overwrite": In(1), "sums": In(Sums),
                "drain": In(AccumulatorRead),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.rows = rows = MultiPort(2 * self._rows, 512, reads=2, writes=1)
        bits = (self._rows - 1).bit_length()
        address = Signal(bits + 1)
        old, new = Signal(Accumulator), Signal(Accumulator)
        with m.If(~self.overwrite):
            m.d.comb += old.as_value().eq(rows.read_0_data)
        m.d.comb += [
            rows.read_0_row.eq(Cat(self.fetch_row[:bits], self.fetch_half)),
            rows.read_0_enable.eq(self.fetch),
            *(new[cell].eq(old[cell] + self.sums[cell]) for cell in range(CELLS)),
            rows.write_0_row.eq(address),
            rows.write_0_data.eq(new.as_value()),
            rows.write_0_enable.eq(self.enable),
            rows.read_1_row.eq(Cat(self.drain.row[:bits], self.drain.half)),
            rows.read_1_enable.eq(self.drain.enable),
            self.drain.data.as_value().eq(rows.read_1_data),
        ]
        with m.If(self.fetch):
            m.d.sync += address.eq(rows.read_0_row)
        return m
