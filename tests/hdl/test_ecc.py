# SPDX-License-Identifier: Apache-2.0
"""The corrector against `emu.ecc`; the injector's share of errors and its seeds."""

from itertools import combinations

import numpy as np
import pytest
from amaranth.sim import Simulator

from emu.ecc import CODE_BITS, DATA_BITS, check_bits, decode
from hdl.hbm.ecc import Corrector, Injector
from tests.emu.test_ecc import flipped
from tests.hdl.test_hbm import make


def simulate(dut, bench, clocked=True):
    simulator = Simulator(dut)
    if clocked:
        simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()


def errors():
    """No error, every single one, every tenth double one."""
    yield ()
    yield from ((bit,) for bit in range(CODE_BITS))
    yield from list(combinations(range(CODE_BITS), 2))[::10]


def test_corrector_as_the_model():
    dut, rng, seen = Corrector(), np.random.default_rng(2), {}

    async def bench(ctx):
        for bits in errors():
            words = [int.from_bytes(rng.bytes(8), "little") for _ in range(2)]
            sent = [flipped(words[0], check_bits(words[0]), *bits),
                    (words[1], check_bits(words[1]))]
            sent = sent[::-1] if rng.random() < 0.5 else sent
            ctx.set(dut.data, sent[0][0] | sent[1][0] << DATA_BITS)
            ctx.set(dut.check, sent[0][1] | sent[1][1] << 8)
            for i, (data, check) in enumerate(sent):
                want = decode(data, check)
                assert ctx.get(dut.o) >> DATA_BITS * i & (1 << DATA_BITS) - 1 == want.data
                assert ctx.get(dut.corrected) >> i & 1 == want.corrected
                assert ctx.get(dut.uncorrectable) >> i & 1 == want.uncorrectable
                seen[want.corrected, want.uncorrectable] = True

    simulate(dut, bench, clocked=False)
    assert len(seen) == 3


@pytest.mark.parametrize(("wrong", "rate"), [(1, 0.25), (2, 0.25), (1, 1.0), (2, 1.0)])
def test_injector_flips_as_many_bits_as_it_says(wrong, rate):
    def run(seed):
        dut, hits = Injector(wrong, rate, seed), []

        async def bench(ctx):
            ctx.set(dut.valid, 1)
            for _ in range(400):
                for i in range(2):
                    data = ctx.get(dut.o) >> DATA_BITS * i & (1 << DATA_BITS) - 1
                    check = ctx.get(dut.o_check) >> 8 * i & 0xFF
                    bits = data | check << DATA_BITS
                    assert bits.bit_count() in (0, wrong)
                    hits.append(bits)
                await ctx.tick()

        simulate(dut, bench)
        return hits

    first, again, other = run(7), run(7), run(8)
    assert first == again != other
    share = sum(bits != 0 for bits in first) / len(first)
    assert abs(share - rate) < 0.06
    places = {bit for bits in first for bit in range(CODE_BITS) if bits >> bit & 1}
    assert len(places) > 60


def test_errors_name_the_problem():
    with pytest.raises(ValueError, match="Injector flips 1 or 2 bits, not 3"):
        make(Injector, 3, 0.5, 1)
