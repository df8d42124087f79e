# SPDX-License-Identifier: Apache-2.0
"""The code: each single error is corrected, each double error is seen, both in the hardware too."""

from itertools import combinations

import numpy as np

from emu.ecc import CODE_BITS, COLUMNS, DATA_BITS, ROWS, Decoded, check_bits, decode


def flipped(data, check, *bits):
    for bit in bits:
        if bit < DATA_BITS:
            data ^= 1 << bit
        else:
            check ^= 1 << bit - DATA_BITS
    return data, check


def test_columns_are_odd_and_differ():
    assert len(set(COLUMNS)) == DATA_BITS
    assert {column.bit_count() for column in COLUMNS} == {3, 5}
    assert {row.bit_count() for row in ROWS} == {26}


def test_every_single_and_double_error():
    rng = np.random.default_rng(1)
    for _ in range(3):
        data = int.from_bytes(rng.bytes(8), "little")
        check = check_bits(data)
        assert decode(data, check) == Decoded(data, False, False)
        for bit in range(CODE_BITS):
            assert decode(*flipped(data, check, bit)) == Decoded(data, True, False)
        for bits in combinations(range(CODE_BITS), 2):
            found = decode(*flipped(data, check, *bits))
            assert found.uncorrectable and not found.corrected
