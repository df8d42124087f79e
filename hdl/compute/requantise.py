# SPDX-License-Identifier: Apache-2.0
"""Requantisation: int32 to int8 or uint8 exactly as float32 arithmetic does it, in integers."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.compute.float32 import (
    Float32,
    magnitude,
    mantissa,
    normalise,
    register,
    shift_code,
    to_24_bits,
    to_byte,
)
from hdl.macro import Macro, plain_signature


class RequantiseLane(wiring.Component):
    """One lane: ``y = clamp(rne(f32(acc + bias) * scale) + zero, low, high)``.

    Five register stages, stage k loading where ``enable[k]`` is set: 0 sum (int32, wraps), 1
    float32 mantissa, 2 product, 3 rounded to 24 bits, 4 integer. One operand a cycle. Bits equal
    those of ONNX Runtime's MLAS (`emu.requantise.requantise`), whose middle rounding this keeps.
    Registers of the datapath have no reset: valid bits say what they hold.

    Members
    -------
    acc, bias: int32, sampled by stage 0.
    scale: float32, positive and normal, sampled by stage 2: two cycles after its ``acc``.
    zero, low, high: Constant from stage 4 of the first operand to that of the last.
    total: ``acc + bias``, out of stage 0.
    y: Out of stage 4.
    """

    enable: In(5)
    acc: In(32)
    bias: In(32)
    scale: In(32)
    zero: In(signed(9))
    low: In(signed(9))
    high: In(signed(9))
    total: Out(32)
    y: Out(8)

    def elaborate(self, platform):
        m = Module()
        total = register(32, "sum")
        with m.If(self.enable[0]):
            m.d.sync += total.eq(self.acc + self.bias)

        normal, zeros = normalise(m, magnitude(m, total.as_signed(), "size"), "normal")
        significand, leading = register(25, "significand"), register(5, "leading")
        negative = [register(1, f"negative{stage}") for stage in range(3)]
        with m.If(self.enable[1]):
            m.d.sync += [
                significand.eq(to_24_bits(normal, 8)),
                leading.eq(zeros),
                negative[0].eq(total[-1]),
            ]

        scale = data.View(Float32, self.scale)
        product, exponent = register(48, "product"), register(signed(10), "exponent")
        with m.If(self.enable[2]):
            # significand <= 2**24, so the product is in 2**46 .. 2**48 - 1 or zero.
            m.d.sync += [
                product.eq(significand * mantissa(scale)),
                exponent.eq(scale.exponent - leading - 95),
                negative[1].eq(negative[0]),
            ]

        drop, code = shift_code(m, exponent + product[47], "amount")
        rounded, shift = register(25, "rounded"), register(4, "shift")
        aligned = Signal(48)
        # Doubling the product where its top bit is clear puts the same 24 bits in one place.
        m.d.comb += aligned.eq(Mux(product[47], product, Cat(0, product[:47])))
        with m.If(self.enable[3]):
            m.d.sync += [
                rounded.eq(Mux(drop, 0, to_24_bits(aligned, 24))),
                shift.eq(code),
                negative[2].eq(negative[1]),
            ]

        value = to_byte(
            m, rounded, shift, negative[2], self.zero, self.low, self.high, "byte"
        )
        result = register(8, "result")
        with m.If(self.enable[4]):
            m.d.sync += result.eq(value)
        m.d.comb += [self.total.eq(total), self.y.eq(result)]
        return m


class Requantiser(wiring.Component):
    """``lanes`` lanes under one pipeline of valid bits: nothing stalls, idle stages keep still.

    Latency: ``total`` 1 cycle, ``y`` 5 cycles after ``valid``. Throughput: ``lanes`` a cycle.

    Parameters
    ----------
    lanes: Lanes, at least 1.

    Members
    -------
    valid, acc, bias: Operands of this cycle.
    scale: Scales of the operands of two cycles ago.
    stop: Only ``total`` is wanted: later stages keep still.
    total, total_valid: ``acc + bias``.
    y, y_valid: Bytes.

    Raises
    ------
    ValueError: If ``lanes`` is less than 1.
    """

    def __init__(self, lanes: int):
        if lanes < 1:
            raise ValueError(f"Requantiser lanes must be at least 1, not {lanes!r}")
        self._lanes = lanes
        words = data.ArrayLayout(32, lanes)
        super().__init__(
            {
                "valid": In(1), "stop": In(1), "acc": In(words), "bias": In(words),
                "scale": In(words), "zero": In(signed(9)), "low": In(signed(9)),
                "high": In(signed(9)), "total": Out(words), "total_valid": Out(1),
                "y": Out(data.ArrayLayout(8, lanes)), "y_valid": Out(1),
            }
        )

    @property
    def lanes(self) -> int:
        return self._lanes

    def elaborate(self, platform):
        m = Module()
        stage = Signal(5)  # stage[k]: stage k's registers hold an operand
        enable = Cat(self.valid, stage[0] & ~self.stop, stage[1:4])
        m.d.sync += stage.eq(enable)
        m.d.comb += [self.total_valid.eq(stage[0]), self.y_valid.eq(stage[4])]
        signature = plain_signature(RequantiseLane)
        for index in range(self._lanes):
            lane = Macro("requantise_lane", RequantiseLane, signature)
            m.submodules[f"lane{index}"] = lane
            m.d.comb += [
                lane.enable.eq(enable),
                lane.acc.eq(self.acc[index]),
                lane.bias.eq(self.bias[index]),
                lane.scale.eq(self.scale[index]),
                lane.zero.eq(self.zero),
                lane.low.eq(self.low),
                lane.high.eq(self.high),
                self.total[index].eq(lane.total),
                self.y[index].eq(lane.y),
            ]
        return m
