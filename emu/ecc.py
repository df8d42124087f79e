# SPDX-License-Identifier: Apache-2.0
"""The error-correcting code of a DRAM word: eight check bits for 64 bits of data.

Single errors are corrected, double errors detected (SECDED; odd-weight columns after Hsiao, IBM
Journal of Research and Development, 1970). The syndrome of one wrong bit is that bit's column; all
columns have odd weight, so two wrong bits give an even one, which is no column.
"""

from dataclasses import dataclass
from itertools import combinations

DATA_BITS = 64
CHECK_BITS = 8
CODE_BITS = DATA_BITS + CHECK_BITS


def _columns() -> tuple[int, ...]:
    """All 56 columns of weight 3 and eight of weight 5, spread so that rows weigh the same."""
    light = [sum(1 << i for i in bits) for bits in combinations(range(CHECK_BITS), 3)]
    heavy = [sum(1 << (start + i) % CHECK_BITS for i in (0, 1, 2, 4, 6))
             for start in range(CHECK_BITS)]
    return tuple(light + heavy)


COLUMNS = _columns()
"""Check bits that each data bit takes part in; check bit i has column 1 << i."""
ROWS = tuple(
    sum(1 << bit for bit, column in enumerate(COLUMNS) if column >> row & 1)
    for row in range(CHECK_BITS)
)
"""Data bits whose parity each check bit is."""


@dataclass(frozen=True)
class Decoded:
    """Data after correction, and what was found."""

    data: int
    corrected: bool
    uncorrectable: bool


def check_bits(data: int) -> int:
    """The check bits of 64 bits of data."""
    return sum(((data & row).bit_count() & 1) << i for i, row in enumerate(ROWS))


def decode(data: int, check: int) -> Decoded:
    """Correct one wrong bit of the 72; more than one is uncorrectable if it is recognised."""
    syndrome = check_bits(data) ^ check
    if not syndrome:
        return Decoded(data, False, False)
    if syndrome in COLUMNS:
        return Decoded(data ^ 1 << COLUMNS.index(syndrome), True, False)
    one_check_bit = syndrome & (syndrome - 1) == 0
    return Decoded(data, one_check_bit, not one_check_bit)
