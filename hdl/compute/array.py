# SPDX-License-Identifier: Apache-2.0
"""The MAC array: sixteen cells, each a sixteen-lane dot product with stationary weights.

Two implementations behind one signature, equal bit for bit (`sim.benches.compute.array`). The plain
one is what would be synthesised: 256 multipliers of 9 by 9 bits. The packed one computes three
cells with each 64-bit multiplication, in three signed 21-bit fields, and simulates several times
faster: a dot product stays below 2**20 in magnitude (16 x 255 x 255), so fields never meet. The
packing of several narrow products into one wide multiplier is the one known from FPGA DSP blocks.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.packets import WORD_BITS

LANES = CELLS = 16
SUM_BITS = 21
"""Of one cell's dot product, signed."""

Row = data.ArrayLayout(signed(9), LANES)
"""Weights of one cell, zero point subtracted."""
Sums = data.ArrayLayout(signed(SUM_BITS), CELLS)


def array_signature() -> wiring.Signature:
    """What both arrays look like from outside; see `PlainArray`."""
    return wiring.Signature(
        {
            "load": In(1), "row": In(4), "weights": In(Row), "swap": In(1),
            "enable": In(1), "word": In(WORD_BITS), "inside": In(1),
            "is_signed": In(1), "zero": In(signed(9)),
            "sums": Out(Sums), "valid": Out(1),
        }
    )


def extended(word, is_signed, zero, width):
    """Lanes of ``word`` as signed values less ``zero``."""
    for lane in range(LANES):
        byte = word[8 * lane : 8 * lane + 8]
        yield (Cat(byte, byte[7] & is_signed).as_signed() - zero).as_signed()[:width].as_signed()


class _Array(wiring.Component):
    """Common part: the input register.

    Latency: `sums` and `valid` two cycles after `enable`. Throughput: one word a cycle.

    Members
    -------
    load, row, weights: Cell ``row`` of the shadow weights takes ``weights``; rows in order.
    swap: The shadow weights become the active ones for words enabled from this cycle on.
    enable, word, inside: An activation word; 0 is taken in its place if not ``inside``.
    is_signed, zero: How to read ``word``.
    sums, valid: Dot products of the word enabled two cycles before.
    """

    def __init__(self):
        super().__init__(array_signature())

    def _inputs(self, m, width):
        lanes = [Signal(signed(width), name=f"lane_{lane}") for lane in range(LANES)]
        fed = Signal()
        m.d.sync += [fed.eq(self.enable), self.valid.eq(fed)]
        with m.If(self.enable):
            values = extended(self.word, self.is_signed, self.zero, 9)
            m.d.sync += [
                lane.eq(Mux(self.inside, value, 0))
                for lane, value in zip(lanes, values, strict=True)
            ]
        return lanes, fed


class PlainArray(_Array):
    """The array as hardware: 256 multipliers and an adder tree per cell."""

    def elaborate(self, platform):
        m = Module()
        lanes, fed = self._inputs(m, 9)
        shadow = [Signal(Row, name=f"shadow_{cell}") for cell in range(CELLS)]
        active = [Signal(Row, name=f"active_{cell}") for cell in range(CELLS)]
        with m.If(self.load), m.Switch(self.row):
            for cell in range(CELLS):
                with m.Case(cell):
                    m.d.sync += shadow[cell].eq(self.weights)
        with m.If(self.swap):
            m.d.sync += [a.eq(s) for a, s in zip(active, shadow, strict=True)]
        with m.If(fed):
            for cell in range(CELLS):
                m.d.sync += self.sums[cell].eq(
                    sum(lanes[lane] * active[cell][lane] for lane in range(LANES))
                )
        return m


class PackedArray(_Array):
    """The array as a fast simulation twin: cells 3g, 3g+1, 3g+2 share one 64-bit multiplication."""

    def elaborate(self, platform):
        m = Module()
        lanes, fed = self._inputs(m, 64)
        groups = [range(first, min(first + 3, CELLS)) for first in range(0, CELLS, 3)]
        shadow, active = (
            [[Signal(signed(64), name=f"{kind}_{g}_{lane}") for lane in range(LANES)]
             for g in range(len(groups))]
            for kind in ("shadow", "active")
        )
        self._load(m, groups, shadow)
        with m.If(self.swap):
            m.d.sync += [
                a.eq(s)
                for row, source in zip(active, shadow, strict=True)
                for a, s in zip(row, source, strict=True)
            ]
        packed = [Signal(signed(64), name=f"packed_{g}") for g in range(len(groups))]
        with m.If(fed):
            for g in range(len(groups)):
                m.d.sync += packed[g].eq(self._dot(m, lanes, active[g], g))
        for g, cells in enumerate(groups):
            fields = self._unpack(packed[g])
            m.d.comb += [self.sums[cell].eq(fields[cell - cells.start]) for cell in cells]
        return m

    def _load(self, m, groups, shadow):
        """Add the row, shifted into its field, to the rows of its group that came before."""
        partial = [Signal(signed(64), name=f"partial_{lane}") for lane in range(LANES)]
        together = [Signal(signed(64), name=f"together_{lane}") for lane in range(LANES)]
        with m.Switch(self.row):
            for field in range(3):
                with m.Case(*range(field, CELLS, 3)):
                    for lane in range(LANES):
                        before = partial[lane] if field else 0
                        shifted = self.weights[lane] << SUM_BITS * field
                        m.d.comb += together[lane].eq(before + shifted)
        with m.If(self.load):
            m.d.sync += [p.eq(t) for p, t in zip(partial, together, strict=True)]
            with m.Switch(self.row):
                for g, cells in enumerate(groups):
                    with m.Case(cells.stop - 1):
                        m.d.sync += [s.eq(t) for s, t in zip(shadow[g], together, strict=True)]

    def _dot(self, m, lanes, weights, group):
        total = None
        for lane in range(LANES):
            # Named 64-bit products: a bare expression would become a 128-bit one in Verilog.
            product = Signal(signed(64), name=f"product_{group}_{lane}")
            m.d.comb += product.eq(lanes[lane] * weights[lane])
            total = product if total is None else (total + product)[:64].as_signed()
        return total

    @staticmethod
    def _unpack(packed):
        """The three fields; a negative lower field has borrowed 1 from the next."""
        edges = [(0, 21), (21, 42), (42, 63)]
        fields = []
        for low, high in edges:
            borrow = packed[low - 1] if low else 0
            fields.append((packed[low:high] + borrow)[:SUM_BITS].as_signed())
        return fields


def make_array(packed: bool) -> wiring.Component:
    """The array that ``core.packed_cells`` asks for."""
    return PackedArray() if packed else PlainArray()
