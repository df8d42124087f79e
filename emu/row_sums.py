# SPDX-License-Identifier: Apache-2.0
"""What a LOAD of sums brings (`emu.isa.MOVE`, field ``sum``), as pure functions of its fields."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from emu.config import SEGMENT_WORDS, WORD_BYTES

Fields = Mapping[str, int]
MOST_ROWS = 128
"""Of a sum: int8 lanes stay within 15 bits."""
LOW_BITS = 7
"""Of a lane's sum, in the second of its two words."""


def parts(f: Fields) -> int:
    """Words that come back for each word of a row."""
    return 4 if f["sum_int4"] else 2


def unsummable(f: Fields, far: NDArray[np.int64], least: int) -> str:
    """Why the hardware cannot sum rows at ``far``; empty if it can."""
    if not least:
        return "the channels have no adders (hbm.sum_rows is 0)"
    if f["count2"] % f["sum"] or f["sum"] > MOST_ROWS:
        return f"{f['count2']} rows in sums of {f['sum']}"
    runs = far.reshape(-1, f["run"]) // SEGMENT_WORDS
    if f["run"] * parts(f) > 16 or (runs != runs[:, :1]).any():
        return f"a piece of {f['run']} words, more than 16 lane groups or across segments"
    return ""


def sum_addresses(f: Fields) -> NDArray[np.int64]:
    """Scratchpad words of the sums, in the order of `sum_words`."""
    index = np.arange(f["run"] * parts(f), dtype=np.int64)
    for k, turns in enumerate((f["count0"], f["count1"], f["count2"] // f["sum"])):
        index = (np.arange(turns)[:, None] * f[f"s_stride{k}"] + index[None]).reshape(-1)
    return f["scratchpad"] + index


def split(sums: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Lanes (..., 16) as two words (..., 2, 16): high part, signed, and low part."""
    return np.stack([sums >> LOW_BITS & 0xFF, sums & (1 << LOW_BITS) - 1], axis=-2).astype(np.uint8)


def sum_words(f: Fields, words: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The words of the sums of the rows' ``words``."""
    values = words.view(np.int8).astype(np.int64)
    if f["sum_int4"]:
        nibbles = np.stack([words & 15, words >> 4], axis=1).astype(np.int64)
        values = np.where(nibbles > 7, nibbles - 16, nibbles)
    rows = values.reshape(f["count2"] // f["sum"], f["sum"], -1, WORD_BYTES)
    return split(rows.sum(axis=1)).reshape(-1, WORD_BYTES)


__all__ = ["MOST_ROWS", "split", "sum_addresses", "sum_words", "unsummable"]
