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
from hdl.macro import Macro, plain_signature
from hdl.packets import WORD_BITS

LANES = CELLS = 16
TAPS = 3
"""Words of a row that a cell sees at once in mode ROW_TAP."""
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
    tapped, fresh: The word goes in a row behind the two ``tapped`` ones before it, which count as
        zeros if ``fresh``: cell j multiplies channel j of the three, the oldest first, by lanes 0
        to 2 of its weights (mode ROW_TAP).
    word_signed, word_zero: How to read ``word``.
    sums, valid: Dot products of the word enabled two cycles before.
    """
    return wiring.Signature(
        {
            "load": In(1), "weights": In(WORD_BITS), "index": In(4), "mode": In(3),
            "weights_signed": In(1), "weights_zero": In(signed(9)), "swap": In(1),
            "enable": In(1), "word": In(WORD_BITS), "inside": In(1), "tapped": In(1),
            "fresh": In(1),
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


class Cell(wiring.Component):
    """One cell: its weights and their dot product with the array's lanes.

    Members
    -------
    number: Which of the array's cells this is.
    load, index, mode: As in `array_signature`; ``weights`` are the word's bytes and ``nibbles`` its
        half bytes, extended.
    swap: As there.
    fed, lanes: The activations, one cycle after the array's ``enable``.
    sum: The dot product, one cycle later.
    """

    def __init__(self):
        super().__init__(
            {
                "number": In(4), "load": In(1), "index": In(4), "mode": In(3),
                "weights": In(9 * LANES), "nibbles": In(9 * 2 * LANES), "swap": In(1),
                "fed": In(1), "lanes": In(9 * LANES), "sum": Out(signed(32)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        weights, nibbles, lanes = (
            [bits[9 * n : 9 * n + 9].as_signed() for n in range(len(bits) // 9)]
            for bits in (self.weights, self.nibbles, self.lanes)
        )
        shadow, active = (
            [Signal(signed(9), name=f"{kind}_{lane}") for lane in range(LANES)]
            for kind in ("shadow", "active")
        )
        column = Signal(signed(9))
        m.d.comb += column.eq(self.weights.word_select(self.number, 9).as_signed())
        with m.If(self.load), m.Switch(self.mode):
            with m.Case(WeightMode.ROW), m.If(self.index == self.number):
                m.d.sync += [shadow[lane].eq(weights[lane]) for lane in range(LANES)]
            with m.Case(WeightMode.COLUMN):
                for lane in range(LANES):
                    with m.If(self.index == lane):
                        m.d.sync += shadow[lane].eq(column)
            with m.Case(WeightMode.DIAGONAL):
                m.d.sync += [
                    shadow[lane].eq(Mux(self.number == lane, column, 0)) for lane in range(LANES)
                ]
            with m.Case(WeightMode.ROW_TAP):
                for lane in range(TAPS):
                    with m.If(self.index == lane):
                        m.d.sync += shadow[lane].eq(column)
                m.d.sync += [shadow[lane].eq(0) for lane in range(TAPS, LANES)]
            with m.Case(WeightMode.INT4), m.If(self.index == self.number[1:]):
                m.d.sync += [
                    shadow[lane].eq(Mux(self.number[0], nibbles[LANES + lane], nibbles[lane]))
                    for lane in range(LANES)
                ]
        with m.If(self.swap):
            m.d.sync += [to.eq(value) for to, value in zip(active, shadow, strict=True)]
        terms = [lane * weight for lane, weight in zip(lanes, active, strict=True)]
        while len(terms) > 1:  # a tree: four adders deep
            terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
        with m.If(self.fed):
            m.d.sync += self.sum.eq(terms[0])
        return m


class PlainArray(wiring.Component):
    """The array as hardware, sixteen times one cell; contract in `array_signature`."""

    def __init__(self):
        super().__init__(array_signature())

    def elaborate(self, platform):
        m = Module()
        lanes, fed = Signal(9 * LANES), Signal()
        weights, nibbles = Signal(9 * LANES), Signal(9 * 2 * LANES)
        m.d.comb += [
            weights.eq(Cat(extended(self.weights, self.weights_signed, self.weights_zero))),
            nibbles.eq(Cat(
                (self.weights[4 * n : 4 * n + 4].as_signed() - self.weights_zero)[:9]
                for n in range(2 * LANES)
            )),
        ]
        tapped, before = Signal(), [Signal(9 * LANES, name=f"before_{n}") for n in (1, 2)]
        m.d.sync += [fed.eq(self.enable), self.valid.eq(fed)]
        with m.If(self.enable):
            values = Cat(extended(self.word, self.word_signed, self.word_zero))
            m.d.sync += [lanes.eq(Mux(self.inside, values, 0)), tapped.eq(self.tapped)]
        with m.If(self.enable & self.tapped):
            m.d.sync += [before[0].eq(Mux(self.fresh, 0, lanes)),
                         before[1].eq(Mux(self.fresh, 0, before[0]))]
        signature = plain_signature(Cell)
        for number in range(CELLS):
            m.submodules[f"cell_{number}"] = cell = Macro("mac_cell", Cell, signature)
            m.d.comb += [
                cell.number.eq(number),
                cell.load.eq(self.load),
                cell.index.eq(self.index),
                cell.mode.eq(self.mode),
                cell.weights.eq(weights),
                cell.nibbles.eq(nibbles),
                cell.swap.eq(self.swap),
                cell.fed.eq(fed),
                cell.lanes.eq(Cat(
                    *(Mux(tapped, word.word_select(number, 9), lanes.word_select(lane, 9))
                      for lane, word in enumerate((before[1], before[0], lanes))),
                    lanes[9 * TAPS :],
                )),
                self.sums[number].eq(cell.sum),
            ]
        return m
