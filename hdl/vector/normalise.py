# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of normalisation: a row's reciprocal root, and the lanes that apply it."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from emu.normalise import GAIN_BITS, ROOT_BITS, VALUE_BITS
from hdl.compute.float32 import register
from hdl.vector.row_reduce import SQUARES_BITS, TOTAL_BITS
from hdl.vector.row_reduce import VALUE_BITS as BYTE_BITS

LANES = 4
COUNT_BITS = 14
SPREAD_BITS = 2 * ROOT_BITS
RECIPROCAL_BITS = ROOT_BITS + 1
SCALE_BITS = 5
DISTANCE_BITS = TOTAL_BITS + 2
WIDE_BITS = 50


class RootReciprocal(wiring.Component):
    """``t = 2**45 // isqrt((V + epsilon) * 4**s)`` of a row, V = count*squares - total**2.

    s puts the root's argument into 2**44 .. 2**46 - 1 (`emu.normalise.root_reciprocal`). Bit by
    bit: s + 54 cycles from ``start`` to ``done``; one row at a time.

    Members
    -------
    start: Begin; the inputs are held until ``done``.
    count, total, squares, epsilon: Of the row.
    centred: If not set the total counts as 0.
    t, s: Results, until the next start.
    done: Pulse.
    """

    start: In(1)
    count: In(COUNT_BITS)
    total: In(signed(TOTAL_BITS))
    squares: In(SQUARES_BITS)
    epsilon: In(SPREAD_BITS)
    centred: In(1)
    t: Out(RECIPROCAL_BITS)
    s: Out(SCALE_BITS)
    done: Out(1)

    def elaborate(self, platform):
        m = Module()
        squares, total = register(SPREAD_BITS, "squares_part"), register(SPREAD_BITS, "total_part")
        wide, root = register(SPREAD_BITS, "wide"), register(ROOT_BITS, "root")
        rest, left = register(ROOT_BITS + 2, "rest"), Signal(5)
        trial, longer = Signal(ROOT_BITS + 2), Signal(ROOT_BITS + 2)
        doubled = Signal(ROOT_BITS + 1)
        m.d.comb += [
            longer.eq(Cat(wide[-2:], rest)),
            trial.eq(Cat(Const(1, 2), root)),
            doubled.eq(Cat(0, rest)),
        ]
        m.d.sync += self.done.eq(0)
        with m.FSM(name="step"):
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [squares.eq(self.count * self.squares),
                             total.eq(Mux(self.centred, self.total * self.total, 0))]
                m.next = "SPREAD"
            with m.State("SPREAD"):
                m.d.sync += [wide.eq(squares - total + self.epsilon), self.s.eq(0), rest.eq(0),
                             root.eq(0), left.eq(ROOT_BITS - 1)]
                m.next = "SCALE"
            with m.State("SCALE"):
                with m.If(wide[-2:].any() | (self.s == ROOT_BITS - 1)):
                    m.next = "ROOT"
                with m.Else():
                    m.d.sync += [wide.eq(wide << 2), self.s.eq(self.s + 1)]
            with m.State("ROOT"):
                fits = longer >= trial
                m.d.sync += [
                    rest.eq(Mux(fits, longer - trial, longer)), root.eq(Cat(fits, root)),
                    wide.eq(wide << 2), left.eq(left - 1),
                ]
                with m.If(left == 0):
                    # A numerator of 2**(2 * ROOT_BITS - 1), whose upper bits are below any root.
                    m.d.sync += [rest.eq(1 << ROOT_BITS - 2), left.eq(ROOT_BITS)]
                    m.next = "DIVIDE"
            with m.State("DIVIDE"):
                fits = doubled >= root
                m.d.sync += [
                    rest.eq(Mux(fits, doubled - root, doubled)), self.t.eq(Cat(fits, self.t)),
                    left.eq(left - 1),
                ]
                with m.If(left == 0):
                    m.d.sync += self.done.eq(1)
                    m.next = "IDLE"
        return m


class NormLanes(wiring.Component):
    """Four lanes of ``clamp(rne(n*gain + offset) + zero)``, n a value less the mean over the root.

    Six cycles, one part a cycle; bits equal those of `emu.normalise.normalise`.

    Members
    -------
    valid, bytes, gains, offsets: A part and its channels' parameters.
    is_signed, a_zero, count, total, centred, t, s: The row; constant while a part is under way.
    zero, low, high: Of the output.
    y_valid, y: Results.
    """

    valid: In(1)
    bytes: In(data.ArrayLayout(8, LANES))
    gains: In(data.ArrayLayout(signed(32), LANES))
    offsets: In(data.ArrayLayout(signed(32), LANES))
    is_signed: In(1)
    a_zero: In(signed(9))
    count: In(COUNT_BITS)
    total: In(signed(TOTAL_BITS))
    centred: In(1)
    t: In(RECIPROCAL_BITS)
    s: In(SCALE_BITS)
    zero: In(signed(9))
    low: In(signed(9))
    high: In(signed(9))
    y_valid: Out(1)
    y: Out(data.ArrayLayout(8, LANES))

    def elaborate(self, platform):
        m = Module()
        stage = Signal(6)
        enable = Cat(self.valid, stage[:5])
        m.d.sync += stage.eq(enable)
        m.d.comb += self.y_valid.eq(stage[5])
        shift = Signal(5)
        m.d.comb += shift.eq(30 - self.s)
        for lane in range(LANES):
            self._lane(m, lane, enable, shift)
        return m

    def _lane(self, m, lane, enable, shift):
        byte = self.bytes[lane]
        parameters = Cat(self.gains[lane][:24], self.offsets[lane])
        for k in range(4):
            held = register(56, f"parameters{lane}_{k}")
            with m.If(enable[k]):
                m.d.sync += held.eq(parameters)
            parameters = held
        value = register(signed(BYTE_BITS), f"value{lane}")
        distance = register(signed(DISTANCE_BITS), f"distance{lane}")
        product = register(signed(DISTANCE_BITS + RECIPROCAL_BITS + 1), f"product{lane}")
        normal = register(signed(24), f"normal{lane}")
        wide, shifted = register(signed(WIDE_BITS), f"wide{lane}"), Signal(signed(25))
        gain, offset = parameters[:24].as_signed(), parameters[24:].as_signed()
        point = VALUE_BITS + GAIN_BITS
        y, rounded = Signal(signed(26), name=f"y{lane}"), Signal(signed(WIDE_BITS))
        m.d.comb += [
            shifted.eq(product >> shift),
            rounded.eq(wide + ((1 << point - 1) - 1) + wide[point]),
            y.eq((rounded >> point) + self.zero),
        ]
        with m.If(enable[0]):
            m.d.sync += value.eq(Cat(byte, byte[7] & self.is_signed).as_signed() - self.a_zero)
        with m.If(enable[1]):
            mean = Mux(self.centred, self.total, 0)
            m.d.sync += distance.eq(self.count * value - mean)
        with m.If(enable[2]):
            m.d.sync += product.eq(distance * self.t)
        with m.If(enable[3]):
            m.d.sync += normal.eq((shifted + 1) >> 1)
        with m.If(enable[4]):
            m.d.sync += wide.eq(normal * gain + (offset << VALUE_BITS))
        with m.If(enable[5]):
            m.d.sync += self.y[lane].eq(
                Mux(y < self.low, self.low, Mux(y > self.high, self.high, y))
            )
