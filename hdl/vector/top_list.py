# SPDX-License-Identifier: Apache-2.0
"""The k largest values of a row."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out


class TopList(wiring.Component):
    """The largest values seen and their numbers, in falling order; of equal ones the first leads.

    One value a cycle.

    Members
    -------
    clear: Forget all.
    valid, value: A byte, counted from its type's minimum; values are numbered from 0.
    values, numbers: The list; places never filled are number 0 and value 0.
    """

    DEPTH = 8

    clear: In(1)
    valid: In(1)
    value: In(8)
    values: Out(data.ArrayLayout(8, DEPTH))
    numbers: Out(data.ArrayLayout(16, DEPTH))

    def elaborate(self, platform):
        m = Module()
        filled, number, beats = Signal(self.DEPTH), Signal(16), Signal(self.DEPTH)
        m.d.comb += beats.eq(Cat(
            ~filled[k] | (self.value > self.values[k]) for k in range(self.DEPTH)
        ))
        with m.If(self.valid):
            m.d.sync += [number.eq(number + 1), filled.eq(Cat(1, filled))]
            for k in range(self.DEPTH):
                with m.If(beats[k]):
                    # Falling order: what beats place k - 1 beats place k too.
                    moves = beats[k - 1] if k else 0
                    m.d.sync += [
                        self.values[k].eq(Mux(moves, self.values[k - 1] if k else 0, self.value)),
                        self.numbers[k].eq(Mux(moves, self.numbers[k - 1] if k else 0, number)),
                    ]
        with m.If(self.clear):
            m.d.sync += [filled.eq(0), number.eq(0), self.values.eq(0), self.numbers.eq(0)]
        return m
