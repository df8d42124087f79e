# SPDX-License-Identifier: Apache-2.0
"""Largest value, sum and sum of squares of a row of bytes."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.packets import WORD_BITS

VALUE_BITS = 10
TOTAL_BITS, SQUARES_BITS = 24, 32


def larger(a, b):
    return Mux(a > b, a, b)


class RowReducer(wiring.Component):
    """Reduces the valid lanes of a row's words, one word a cycle.

    Three cycles from the last word to the results, which are exact. Sums are of ``byte - zero``
    unless ``raw``; the maximum counts bytes from their type's minimum, and needs ``raw``.

    Members
    -------
    clear: Begin a row; not while ``busy``.
    valid, word, lanes: A word and which of its lanes count.
    is_signed, zero, raw: Of the bytes.
    maximum, total, squares: Results; a row without lanes has maximum 0.
    busy: A word is on its way into the results.
    """

    clear: In(1)
    valid: In(1)
    word: In(WORD_BITS)
    lanes: In(16)
    is_signed: In(1)
    zero: In(signed(9))
    raw: In(1)
    maximum: Out(8)
    total: Out(signed(TOTAL_BITS))
    squares: Out(SQUARES_BITS)
    busy: Out(1)

    def elaborate(self, platform):
        m = Module()
        stage = Signal(2)
        m.d.sync += stage.eq(Cat(self.valid, stage[0]))
        m.d.comb += self.busy.eq(stage.any())
        values = [Signal(signed(VALUE_BITS), name=f"value{lane}") for lane in range(16)]
        with m.If(self.valid):
            for lane, value in enumerate(values):
                byte = self.word[8 * lane : 8 * lane + 8]
                plain = Cat(byte, byte[7] & self.is_signed).as_signed() - self.zero
                counted = Cat(byte[:7], byte[7] ^ self.is_signed)
                m.d.sync += value.eq(Mux(self.lanes[lane], Mux(self.raw, counted, plain), 0))
        totals, squares, maxima = [], [], []
        for quarter in range(4):
            four = values[4 * quarter : 4 * quarter + 4]
            total = Signal(signed(VALUE_BITS + 2), name=f"total{quarter}")
            square = Signal(2 * VALUE_BITS + 1, name=f"square{quarter}")
            largest = Signal(8, name=f"largest{quarter}")
            tops = [value[:8] for value in four]
            with m.If(stage[0]):
                m.d.sync += [
                    total.eq(sum(four[1:], four[0])),
                    square.eq(sum((v * v for v in four[1:]), four[0] * four[0])),
                    largest.eq(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3]))),
                ]
            totals.append(total)
            squares.append(square)
            maxima.append(largest)
        with m.If(stage[1]):
            pair = larger(larger(maxima[0], maxima[1]), larger(maxima[2], maxima[3]))
            m.d.sync += [
                self.total.eq(self.total + sum(totals[1:], totals[0])),
                self.squares.eq(self.squares + sum(squares[1:], squares[0])),
                self.maximum.eq(larger(pair, self.maximum)),
            ]
        with m.If(self.clear):
            m.d.sync += [self.total.eq(0), self.squares.eq(0), self.maximum.eq(0)]
        return m
