# SPDX-License-Identifier: Apache-2.0
"""One COMPUTE command's accumulators, straight from the definition in `emu.isa`: slow and plain.

`emu.compute_model` says the same in whole arrays for the compiler's interpreter; this one exists so
that the hardware is compared with something that shares neither its structure nor its shortcuts.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from emu.isa import WeightMode

Fields = dict[str, int]
Bytes = NDArray[np.uint8]
LANES = 16
TILE_WORDS = {WeightMode.ROW: 16, WeightMode.COLUMN: 16, WeightMode.DIAGONAL: 1,
              WeightMode.INT4: 8, WeightMode.ROW_TAP: 3}
"""Scratchpad words of a weight tile in each mode."""


def extend(data: Bytes, is_signed: int, zero: int) -> NDArray[np.int64]:
    """Bytes as the array sees them: extended, less the zero point."""
    return (data.view(np.int8) if is_signed else data).astype(np.int64) - zero


def tile_weights(f: Fields, words: Bytes) -> NDArray[np.int64]:
    """Weights [lane, cell] of one tile; ``words``: bytes [word, 16]."""
    mode = f["w_mode"]
    if mode == WeightMode.INT4:
        nibbles = np.stack([words & 15, words >> 4], axis=-1).reshape(LANES, LANES).astype(np.int64)
        return (np.where(nibbles > 7, nibbles - 16, nibbles) - f["w_zero"]).T
    values = extend(words, f["w_signed"], f["w_zero"])
    if mode == WeightMode.DIAGONAL:
        return np.diag(values[0])
    return values.T if mode == WeightMode.ROW else values


def window_word(
    f: Fields, group: int, in_group: int, ky: int, kx: int, pixel: int, right: int = 0
) -> int | None:
    """Scratchpad word of one activation, or None if it lies outside; ``right`` columns beside the
    tap's own."""
    row, column = divmod(f["first_x"] + pixel, f["out_width"])
    y = f["y0"] + row * f["sy"] + ky * f["dy"]
    x = f["x0"] + column * f["sx"] + kx * f["dx"] + right
    if not (0 <= y < f["height"] and 0 <= x < f["width"]):
        return None
    base = f["base"] + group * f["advance"] + in_group * f["plane"]
    return (base + y * f["row"] + x * f["step"]) & 0xFFFF


def group_sums(
    f: Fields, group: int, memory: Bytes, tile_words: Callable[[int, int], Bytes]
) -> NDArray[np.int64]:
    """Sums [pixel, cell] that one output group of ``f`` adds to the accumulators.

    Parameters
    ----------
    memory: the scratchpad, bytes [word, 16].
    tile_words: words of tile ``k`` of ``group``: ``tile_words(group, k)`` is bytes [word, 16].
    """
    total = np.zeros((f["pixels"], LANES), np.int64)
    taps = [(i, ky, kx) for i in range(f["in_groups"]) for ky in range(f["kh"])
            for kx in range(f["kw"])]
    for k, (in_group, ky, kx) in enumerate(taps):
        if f["w_mode"] == WeightMode.ROW_TAP:
            columns = extend(tile_words(group, k), f["w_signed"], f["w_zero"])
            for pixel in range(f["pixels"]):
                for right, column in enumerate(columns):
                    word = window_word(f, group, in_group, ky, kx, pixel, right)
                    if word is not None:
                        total[pixel] += column * extend(memory[word], f["a_signed"], f["a_zero"])
            continue
        weights = tile_weights(f, tile_words(group, k))
        for pixel in range(f["pixels"]):
            word = window_word(f, group, in_group, ky, kx, pixel)
            if word is not None:
                total[pixel] += extend(memory[word], f["a_signed"], f["a_zero"]) @ weights
    return total
