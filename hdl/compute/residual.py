# SPDX-License-Identifier: Apache-2.0
"""Residual addition by table: ``y = rne(f32(a * scale + t))`` with one float32 rounding."""

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.compute.float32 import (
    Float32,
    magnitude,
    mantissa,
    negated,
    register,
)
from hdl.macro import Macro, plain_signature

SATURATED = 512
"""An integer part beyond every clip."""
FIELD = 61
"""Bits in which the two terms are aligned: bit 60 is the weight of the larger term's top bit."""


class ResidualLane(wiring.Component):
    """One lane: ``y = clamp(rne(f32(a * scale + addend)), low, high)``, the sum rounded once.

    Four register stages, stage k loading where ``enable[k]`` is set: 0 exact product, 1 aligned
    sum, 2 integer part and fraction, 3 rounded. One operand a cycle, registers without reset.
    The 61-bit field loses bits of the smaller term only where a sticky bit can stand for them: the
    product is at most 2**9 below its own top and has 28 zero bits under it, the addend 37.

    Members
    -------
    a: Integer of at most 9 bits magnitude, sampled by stage 0.
    addend: float32 below 2**29 in size, sampled by stage 0.
    scale: float32, positive, normal and below 2**20, sampled by stages 0 and 1.
    low, high: Clip, constant from the first operand to the last.
    y: Out of stage 3.
    """

    enable: In(4)
    a: In(signed(10))
    addend: In(32)
    scale: In(32)
    low: In(signed(9))
    high: In(signed(9))
    y: Out(8)

    def _align(self, m, product, term):
        """``(sum, top)``: the signed sum with a sticky bit below, and its top bit's exponent."""
        scale = data.View(Float32, self.scale)
        product_top, difference = Signal(9), Signal(signed(10))
        term_leads, distance = Signal(), Signal(9)
        m.d.comb += [
            product_top.eq(scale.exponent + 9),
            difference.eq(term.exponent - product_top),
            term_leads.eq((difference >= 0) | (product.size == 0)),
            distance.eq(Mux(term_leads, difference, -difference)),
        ]
        at_top, below = Signal(FIELD), Signal(FIELD)
        wide_product, wide_term = Cat(Const(0, 28), product.size), Cat(Const(0, 37), mantissa(term))
        m.d.comb += [
            at_top.eq(Mux(term_leads, wide_term, wide_product)),
            below.eq(Mux(term_leads, wide_product, wide_term)),
        ]
        by, mask, shifted = Signal(6), Signal(63), Signal(FIELD + 1)
        large, total = Signal(FIELD + 1), Signal(Shape(64, True))
        m.d.comb += [
            by.eq(Mux(distance > 63, 63, distance)),
            mask.eq(Const((1 << 63) - 1, 63) >> (63 - by)[:6]),
            shifted.eq(Cat((below & mask) != 0, below >> by)),
            large.eq(Cat(Const(0, 1), at_top)),
            total.eq(Mux(product.negative ^ term.sign, large - shifted, large + shifted)),
        ]
        negative = Mux(term_leads, term.sign, product.negative)
        top = Mux(term_leads, term.exponent, product_top)
        return Mux(negative, negated(total), total.as_unsigned()), top

    def _round_up(self, m, whole, fraction):
        """Whether ``whole.fraction`` becomes whole + 1, when rounded to 24 bits and then to 0.

        The first rounding matters only where it lands on a half: where the fraction is at most
        half a unit in the last place away from it, 2**-24 times the power of two above ``whole``.
        A half has an even significand, so at that very distance it is rounded to as well.
        """
        half, away = Signal(), Signal(25)  # away: (distance from the half - epsilon) * 2**25
        beyond, tie = Signal(25), Signal()
        m.d.comb += [
            half.eq(fraction[32]),
            away.eq(Mux(half, (fraction[:32] - 1)[8:32], ~fraction[8:32])),
            # a & ~b > b where a has more significant bits than b.
            beyond.eq(away & ~Cat(whole, Const(0, 15))),
            tie.eq((fraction[:32] == 0) & half | (beyond <= whole)),
        ]
        return Mux(tie, whole[0], half)

    def _clamp(self, value):
        return Mux(value < self.low, self.low, Mux(value > self.high, self.high, value))

    def elaborate(self, platform):
        m = Module()
        size = magnitude(m, self.a, "size")
        product = register(data.StructLayout({"size": 33, "negative": 1}), "product")
        term = register(Float32, "term")
        with m.If(self.enable[0]):
            m.d.sync += [
                product.size.eq(size[:9] * mantissa(data.View(Float32, self.scale))),
                product.negative.eq(self.a[-1]),
                term.eq(self.addend),
            ]

        aligned, exponent = self._align(m, product, term)
        total, top = register(Shape(64, True), "total"), register(9, "top")
        with m.If(self.enable[1]):
            m.d.sync += [total.eq(aligned), top.eq(exponent)]

        # Bit 61 of `total` has weight 2**(top - 127): 188 - top of its bits are behind the point.
        # Of these 32 are kept, and one for all that follow them.
        size, drop = magnitude(m, total, "sum"), Signal(signed(10))
        mask, kept, tiny = Signal(31), Signal(64), Signal()
        m.d.comb += [
            drop.eq(188 - 32 - top),
            tiny.eq(drop >= 32),
            mask.eq(Const((1 << 31) - 1, 31) >> (31 - drop)[:5]),
            kept.eq(size >> drop[:5]),
        ]
        whole, fraction = register(10, "whole"), register(33, "fraction")
        minus, result = register(1, "minus"), register(8, "result")
        over = (drop < 0) | (kept[41:] != 0)
        with m.If(self.enable[2]):
            m.d.sync += [
                whole.eq(Mux(tiny, 0, Mux(over, SATURATED, kept[32:42]))),
                fraction.eq(Mux(tiny, 0, Cat((size & mask) != 0, kept[:32]))),
                minus.eq(total[-1]),
            ]

        value, clamped = Signal(signed(11)), Signal(signed(9))
        m.d.comb += [
            value.eq(whole + self._round_up(m, whole, fraction)),
            clamped.eq(self._clamp(Mux(minus, -value, value))),
        ]
        with m.If(self.enable[3]):
            m.d.sync += result.eq(clamped)
        m.d.comb += self.y.eq(result)
        return m


class ResidualAdder(wiring.Component):
    """``lanes`` `ResidualLane` under one pipeline of valid bits.

    Latency: 4 cycles. Throughput: ``lanes`` a cycle. Idle stages keep still.

    Parameters
    ----------
    lanes: Lanes, at least 1.

    Members
    -------
    valid, a, addend: Operands of this cycle: bytes, their signedness, and what to add.
    a_signed, a_zero: The integer is ``(int8 or uint8) - a_zero``.
    y, y_valid: Bytes.

    Raises
    ------
    ValueError: If ``lanes`` is less than 1.
    """

    def __init__(self, lanes: int):
        if lanes < 1:
            raise ValueError(f"ResidualAdder lanes must be at least 1, not {lanes!r}")
        self._lanes = lanes
        super().__init__(
            {
                "valid": In(1), "a": In(data.ArrayLayout(8, lanes)), "a_signed": In(1),
                "a_zero": In(signed(9)), "addend": In(data.ArrayLayout(32, lanes)),
                "scale": In(32), "low": In(signed(9)), "high": In(signed(9)),
                "y": Out(data.ArrayLayout(8, lanes)), "y_valid": Out(1),
            }
        )

    @property
    def lanes(self) -> int:
        return self._lanes

    def elaborate(self, platform):
        m = Module()
        stage = Signal(4)
        enable = Cat(self.valid, stage[:3])
        m.d.sync += stage.eq(enable)
        m.d.comb += self.y_valid.eq(stage[3])
        signature = plain_signature(ResidualLane)
        for index in range(self._lanes):
            lane = Macro("residual_lane", ResidualLane, signature)
            m.submodules[f"lane{index}"] = lane
            byte = self.a[index]
            value = Cat(byte, byte[7] & self.a_signed).as_signed()
            m.d.comb += [
                lane.enable.eq(enable),
                lane.a.eq(value - self.a_zero),
                lane.addend.eq(self.addend[index]),
                lane.scale.eq(self.scale),
                lane.low.eq(self.low),
                lane.high.eq(self.high),
                self.y[index].eq(lane.y),
            ]
        return m
