# SPDX-License-Identifier: Apache-2.0
"""The code of `emu.ecc` in hardware, and errors to try it with."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.ecc import CHECK_BITS, CODE_BITS, COLUMNS, DATA_BITS, ROWS
from hdl.counter import count
from hdl.packets import WORD_BITS

WORDS = WORD_BITS // DATA_BITS
"""Code words of a word of the bus."""
WORD_CHECK_BITS = WORDS * CHECK_BITS


def parity(data):
    """Check bits of 64 bits of data."""
    return Cat((data & row).xor() for row in ROWS)


def word_parity(word):
    """Check bits of a word of the bus."""
    return Cat(parity(word[i:i + DATA_BITS]) for i in range(0, WORD_BITS, DATA_BITS))


class Corrector(wiring.Component):
    """Corrects one wrong bit in each code word of a bus word. Combinational.

    Members
    -------
    data, check: As they came. ``o``: Corrected.
    corrected, uncorrectable: Of each code word: it had one wrong bit; it has more.
    """

    def __init__(self):
        super().__init__(
            {
                "data": In(WORD_BITS), "check": In(WORD_CHECK_BITS), "o": Out(WORD_BITS),
                "corrected": Out(WORDS), "uncorrectable": Out(WORDS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for i in range(WORDS):
            data = self.data.word_select(i, DATA_BITS)
            syndrome, wrong = (Signal(n, name=f"{name}_{i}")
                               for name, n in (("syndrome", CHECK_BITS), ("wrong", DATA_BITS)))
            known = Signal(name=f"known_{i}")
            m.d.comb += [
                syndrome.eq(parity(data) ^ self.check.word_select(i, CHECK_BITS)),
                wrong.eq(Cat(syndrome == column for column in COLUMNS)),
                # Of the check bits themselves one may be wrong too.
                known.eq((Cat(syndrome == 1 << bit for bit in range(CHECK_BITS)) | wrong).any()),
                self.o.word_select(i, DATA_BITS).eq(data ^ wrong),
                self.corrected[i].eq(known),
                self.uncorrectable[i].eq((syndrome != 0) & ~known),
            ]
        return m


class Injector(wiring.Component):
    """Flips one or two bits of some code words that come from the DRAM. Combinational.

    Whether and where is decided by a xorshift generator for each code word (Marsaglia, Journal of
    Statistical Software, 2003), so that a seed gives the same errors in every simulator.

    Parameters
    ----------
    wrong: Bits to flip, 1 or 2. ``rate``: Share of the code words. ``seed``: Of the generators.

    Members
    -------
    valid: The word is looked at. ``data``, ``check``: As they lie in the DRAM.
    o, o_check: As they arrive.

    Counters
    --------
    injected: Code words made wrong.
    """

    def __init__(self, wrong: int, rate: float, seed: int):
        if wrong not in (1, 2):
            raise ValueError(f"Injector flips 1 or 2 bits, not {wrong!r}")
        self._wrong, self._rate, self._seed = wrong, rate, seed
        super().__init__(
            {
                "valid": In(1), "data": In(WORD_BITS), "check": In(WORD_CHECK_BITS),
                "o": Out(WORD_BITS), "o_check": Out(WORD_CHECK_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        hits = []
        for i in range(WORDS):
            # Never zero, and apart from the other seeds.
            start = (self._seed * 0x9E3779B97F4A7C15 + i * 0xD1B54A32D192ED03) % (1 << 64) | 1
            hit, flips = self._flips(m, start, i)
            hits.append(hit)
            data, check = i * DATA_BITS, i * CHECK_BITS
            m.d.comb += [
                self.o[data:data + DATA_BITS].eq(
                    self.data[data:data + DATA_BITS] ^ flips[:DATA_BITS]),
                self.o_check[check:check + CHECK_BITS].eq(
                    self.check[check:check + CHECK_BITS] ^ flips[DATA_BITS:]),
            ]
        count(m, "injected", Mux(self.valid, sum(hits), 0))
        return m

    def _flips(self, m, start, i):
        """Whether code word ``i`` is hit now, and its bits to flip."""
        state = Signal(64, name=f"state_{i}", init=start)
        one, two, three = (Signal(64, name=f"{name}_{i}") for name in ("one", "two", "three"))
        first, second = (Signal(range(CODE_BITS), name=f"{name}_{i}")
                         for name in ("first", "second"))
        hit, flips = Signal(name=f"hit_{i}"), Signal(CODE_BITS, name=f"flips_{i}")
        m.d.comb += [
            one.eq(state ^ state << 13), two.eq(one ^ one >> 7), three.eq(two ^ two << 17),
            hit.eq(self.valid & (state[:32] < round(self._rate * (1 << 32)))),
            first.eq(Mux(state[32:39] < CODE_BITS, state[32:39], state[32:39] - 64)),
            # One to 64 bits further, round the word.
            second.eq(Mux(first + state[40:46] + 1 < CODE_BITS, first + state[40:46] + 1,
                          first + state[40:46] + 1 - CODE_BITS)),
        ]
        with m.If(self.valid):
            m.d.sync += state.eq(three)
        with m.If(hit):
            m.d.comb += flips.eq((1 << first) | (1 << second if self._wrong == 2 else 0))
        return hit, flips
