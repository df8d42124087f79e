# SPDX-License-Identifier: Apache-2.0
"""The MAC array: sixteen cells, each a sixteen-lane dot product with stationary weights.

Two implementations behind one signature, equal bit for bit (`sim.benches.compute.array`): the plain
one here is what would be synthesised, 256 multipliers of 9 by 9 bits; its twin in
`hdl.compute.packed_array` simulates several times faster.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from emu.isa import WeightMode
from hdl.packets import WORD_BITS

LANES = CELLS = 16
SUM_BITS = 21
"""Of one cell's dot product, signed: 16 x 255 x 255 < 2**20."""

Sums = data.ArrayLayout(signed(32), CELLS)


def array_signature() -> wiring.Signature:
    """What both arrays look like from outside.

    Latency: `sums` and `valid` two cycles after `enable`. Throughput: a word a cycle on both sides.

    Members
    -------
    load, weights, index, mode: Word ``index`` of a weight tile enters the shadow registers, as
        `emu.isa.WeightMode` says; all words of a tile, in order.
    weights_signed, weights_zero: How to read the bytes of ``weights`` (nibbles are always signed).
    swap: The shadow weights become the active ones for words enabled from this cycle on; a word
        loaded in this cycle belongs to the next tile.
    enable, word, inside: An activation word; zeros are taken in its place if not ``inside``.
    word_signed, word_zero: How to read ``word``.
    sums, valid: Dot products of the word enabled two cycles before.
    """
    return wiring.Signature(
        {
            "load": In(1), "weights": In(WORD_BITS), "index": In(4), "mode": In(3),
            "weights_signed": In(1), "weights_zero": In(signed(9)), "swap": In(1),
            "enable": In(1), "word": In(WORD_BITS), "inside": In(1),
            "word_signed": In(1), "word_zero": In(signed(9)),
            "sums": Out(Sums), "valid": Out(1),
        }
    )


def extended(word, is_signed, zero):
    """The bytes of ``word`` as 9-bit signed values less ``zero``."""
    values = []
    for lane in range(LANES):
        byte = word[8 * lane : 8 * lane + 8]
        values.append((Cat(byte, byte[7] & is_signed).as_signed() - zero)[:9].as_signed())
    return values


class PlainArray(wiring.Component):
    """The array as hardware; contract in `array_signature`."""

    def __init__(self):
        super().__init__(array_signature())

    def elaborate(self, platform):
        m = Module()
        lanes = [Signal(signed(9), name=f"lane_{lane}") for lane in range(LANES)]
        shadow, active = (
            [[Signal(signed(9), name=f"{kind}_{cell}_{lane}") for lane in range(LANES)]
             for cell in range(CELLS)]
            for kind in ("shadow", "active")
        )
        fed = Signal()
        m.d.sync += [fed.eq(self.enable), self.valid.eq(fed)]
        with m.If(self.enable):
            values = extended(self.word, self.word_signed, self.word_zero)
            m.d.sync += [
                lane.eq(Mux(self.inside, value, 0))
                for lane, value in zip(lanes, values, strict=True)
            ]
        with m.If(self.load):
            self._load(m, shadow)
        with m.If(self.swap):
            m.d.sync += [
                a.eq(s) for to, source in zip(active, shadow, strict=True)
                for a, s in zip(to, source, strict=True)
            ]
        with m.If(fed):
            for cell in range(CELLS):
                m.d.sync += self.sums[cell].eq(
                    sum(lanes[lane] * active[cell][lane] for lane in range(LANES))
                )
        return m

    def _load(self, m, shadow):
        bytes_ = extended(self.weights, self.weights_signed, self.weights_zero)
        nibbles = [
            (self.weights[4 * n : 4 * n + 4].as_signed() - self.weights_zero)[:9].as_signed()
            for n in range(2 * LANES)
        ]
        for cell in range(CELLS):
            for lane in range(LANES):
                weight = shadow[cell][lane]
                with m.Switch(self.mode):
                    with m.Case(WeightMode.ROW), m.If(self.index == cell):
                        m.d.sync += weight.eq(bytes_[lane])
                    with m.Case(WeightMode.COLUMN), m.If(self.index == lane):
                        m.d.sync += weight.eq(bytes_[cell])
                    with m.Case(WeightMode.DIAGONAL):
                        m.d.sync += weight.eq(bytes_[lane] if cell == lane else 0)
                    with m.Case(WeightMode.INT4), m.If(self.index == cell // 2):
                        m.d.sync += weight.eq(nibbles[LANES * (cell % 2) + lane])
