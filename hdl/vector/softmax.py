# SPDX-License-Identifier: Apache-2.0
"""The lanes of softmax: exponentials by table, their sum, and exact division by it."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.compute.tables import LookupTable
from hdl.packets import WORD_BITS

LANES = 8
QUOTIENT_BITS = 9


class SoftmaxLanes(wiring.Component):
    """``e = T[u + 255 - maximum]``, ``S = sum(e)``, ``y = clamp((e*factor + S//2) // S + zero)``.

    u is a byte counted from its type's minimum; bits equal those of `emu.softmax`. Two uses of the
    same lookups: with ``summing`` each e is added to S, otherwise divided by it. Throughput: eight
    lanes a cycle. Latency: four cycles to S, 13 to y. The divider is a pipeline of nine
    compare-and-subtract stages, a bit of the quotient each: it is exact by construction. Contract:
    entries are at most 0x7fffff, the factor at most 256 and no e exceeds S, so that no numerator
    exceeds 32 bits and no quotient 9.

    Members
    -------
    write, row, word: Load the table, as `LookupTable`.
    clear: S becomes 0; not while ``busy``.
    valid, summing, bytes, lanes: Eight bytes and which of them count.
    is_signed, maximum, factor, zero, low, high: Constant while ``busy``.
    y_valid, y: Results.
    busy: Operands of a sum are on their way.
    """

    write: In(1)
    row: In(6)
    word: In(WORD_BITS)
    clear: In(1)
    valid: In(1)
    summing: In(1)
    bytes: In(data.ArrayLayout(8, LANES))
    lanes: In(LANES)
    is_signed: In(1)
    maximum: In(8)
    factor: In(9)
    zero: In(signed(9))
    low: In(signed(9))
    high: In(signed(9))
    y_valid: Out(1)
    y: Out(data.ArrayLayout(8, LANES))
    busy: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = LookupTable(32, LANES)
        m.d.comb += [
            table.write.eq(self.write), table.row.eq(self.row), table.word.eq(self.word)
        ]
        stage, adds, lanes = Signal(2), Signal(2), Signal(LANES)
        entries = [Signal(32, name=f"entry{lane}") for lane in range(LANES)]
        total = Signal(32)
        m.d.sync += [
            stage.eq(Cat(self.valid, stage[0])),
            adds.eq(Cat(self.summing, adds[0])),
        ]
        with m.If(self.valid):
            m.d.sync += lanes.eq(self.lanes)
        for lane in range(LANES):
            byte, index = self.bytes[lane], Signal(8, name=f"index{lane}")
            with m.If(self.valid):
                # + 255 is - 1 in eight bits.
                m.d.sync += index.eq(Cat(byte[:7], byte[7] ^ self.is_signed) - self.maximum - 1)
            m.d.comb += table.index[lane].eq(index)
            with m.If(stage[0]):
                m.d.sync += entries[lane].eq(Mux(lanes[lane], table.entry[lane], 0))
        # Entries are added in two steps: eight at a time would be a long way for one cycle.
        pairs = [Signal(32, name=f"pair{index}") for index in range(LANES // 4)]
        paired = Signal()
        m.d.sync += paired.eq(stage[1] & adds[1])
        m.d.comb += self.busy.eq(stage.any() | paired)
        for index, four in enumerate(pairs):
            with m.If(stage[1] & adds[1]):
                part = entries[4 * index : 4 * index + 4]
                m.d.sync += four.eq(sum(part[1:], part[0]))
        with m.If(self.clear):
            m.d.sync += total.eq(0)
        with m.Elif(paired):
            m.d.sync += total.eq(total + sum(pairs[1:], pairs[0]))
        self._divide(m, stage[1] & ~adds[1], entries, total)
        return m

    def _divide(self, m, begin, entries, total):
        # reach[k]: the registers that stage k of the divider reads hold an operand.
        reach = Signal(QUOTIENT_BITS + 1)
        m.d.sync += reach.eq(Cat(begin, reach))
        results = []
        for lane, entry in enumerate(entries):
            numerator = Signal(32, name=f"numerator{lane}")
            with m.If(begin):
                m.d.sync += numerator.eq(entry * self.factor + (total >> 1))
            rest, quotient = numerator, []
            for k in range(QUOTIENT_BITS):
                shift = QUOTIENT_BITS - 1 - k
                top = Signal(32 - shift, name=f"top{lane}_{k}")
                fits = Signal(name=f"fits{lane}_{k}")
                after = Signal(32, name=f"rest{lane}_{k}")
                longer = Signal(k + 1, name=f"quotient{lane}_{k}")
                m.d.comb += [top.eq(rest >> shift), fits.eq(top >= total)]
                with m.If(reach[k]):
                    m.d.sync += [
                        after.eq(Cat(rest[:shift], Mux(fits, top - total, top)[: 32 - shift])),
                        longer.eq(Cat(fits, *quotient)),
                    ]
                rest, quotient = after, [longer]
            results.append(longer)
        m.d.sync += self.y_valid.eq(reach[QUOTIENT_BITS])
        for lane, quotient in enumerate(results):
            value = Signal(signed(12), name=f"value{lane}")
            m.d.comb += value.eq(quotient + self.zero)
            with m.If(reach[QUOTIENT_BITS]):
                m.d.sync += self.y[lane].eq(
                    Mux(value < self.low, self.low, Mux(value > self.high, self.high, value))
                )
