# SPDX-License-Identifier: Apache-2.0
"""Pieces of float32 arithmetic on integers: normalise, round to nearest even, convert to a byte.

Functions that add combinational logic to a module; whoever calls them adds the registers. No value
is ever wider than 64 bits, so that a simulator keeps it in one machine word.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data

Float32 = data.StructLayout({"fraction": 23, "exponent": 8, "sign": 1})

SHIFT_MAX = 15
"""A shift of `to_byte` that saturates every nonzero value."""


def register(shape, name: str) -> Signal:
    """A datapath register: not reset, so that a simulator skips what feeds it while it holds."""
    return Signal(shape, name=name, reset_less=True)


def mantissa(number) -> Value:
    """24-bit significand of a `Float32` view; subnormals only ever round to zero here."""
    return Cat(number.fraction, number.exponent != 0)


def negated(value: Value) -> Value:
    """``-value`` in the same width, as a subtraction that synthesis keeps that narrow."""
    return (Const(0, len(value)) - value.as_unsigned())[: len(value)]


def magnitude(m: Module, value: Value, name: str) -> Signal:
    """Absolute value of a signed ``value``, unsigned of the same width."""
    result = Signal(len(value), name=name)
    m.d.comb += result.eq(Mux(value[-1], negated(value), value.as_unsigned()))
    return result


def normalise(m: Module, value: Value, name: str) -> tuple[Value, Value]:
    """``(value << n, n)`` with the leading one at the top; n = width - 1 for zero.

    Width must be a power of two. One comparison, one multiplexer for each bit of n.
    """
    width = len(value)
    bits = []
    step = width // 2
    while step:
        small, moved = Signal(name=f"{name}_small{step}"), Signal(width, name=f"{name}_by{step}")
        m.d.comb += [
            small.eq(value[width - step:] == 0),
            moved.eq(Mux(small, Cat(Const(0, step), value[: width - step]), value)),
        ]
        bits.insert(0, small)
        value, step = moved, step // 2
    return value, Cat(*bits)


def to_24_bits(value: Value, low: int) -> Value:
    """Bits ``low .. low + 23`` of ``value``, rounded to nearest even by those below: 25 bits."""
    up = value[low - 1] & (value[low] | (value[: low - 1] != 0))
    return (value[low : low + 24] + up)[:25]


def shift_code(m: Module, amount: Value, name: str) -> tuple[Value, Value]:
    """``(drop, code)`` of a left shift: below 0 the value rounds to 0, above 9 it saturates."""
    drop, code = Signal(name=f"{name}_drop"), Signal(4, name=f"{name}_code")
    m.d.comb += [drop.eq(amount < 0), code.eq(Mux(amount > SHIFT_MAX, SHIFT_MAX, amount))]
    return drop, code


def to_byte(
    m: Module, rounded: Value, shift: Value, negative: Value, zero: Value, low: Value, high: Value,
    name: str,
) -> Value:
    """``clamp(+-rne(rounded * 2**(shift - 24)) + zero, low, high)`` as a byte."""
    fixed, whole = Signal(40, name=f"{name}_fixed"), Signal(16, name=f"{name}_whole")
    value = Signal(Shape(18, True), name=f"{name}_value")
    clamped = Signal(signed(9), name=f"{name}_clamped")
    m.d.comb += [
        fixed.eq(rounded << shift),
        whole.eq(fixed[24:] + (fixed[23] & (fixed[24] | (fixed[:23] != 0)))),
        value.eq(Mux(negative, -whole, whole) + zero),
        clamped.eq(Mux(value < low, low, Mux(value > high, high, value))),
    ]
    return clamped[:8]
