# SPDX-License-Identifier: Apache-2.0
"""What one COMPUTE command computes, as pure functions of its fields."""

import numpy as np
from numpy.typing import NDArray

from emu.config import BLOCK_TILES
from emu.isa import WeightMode

Fields = dict[str, int]
LANES = 16
TILE_WORDS = {WeightMode.ROW: 16, WeightMode.COLUMN: 16, WeightMode.DIAGONAL: 1,
              WeightMode.INT4: 8, WeightMode.ROW_TAP: 3}
"""Words of a weight tile in each mode."""


DEPTHWISE = (WeightMode.DIAGONAL, WeightMode.ROW_TAP)
"""Modes in which a cell sees its own channel alone."""


def window_addresses(f: Fields) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(address[in_group, tap, pixel], inside[tap, pixel]) of the first output group's window.

    In mode ROW_TAP a tap of the command is three, side by side.
    """
    column = f["first_x"] + np.arange(f["pixels"])
    row, column = column // f["out_width"], column % f["out_width"]
    ky, kx = np.divmod(np.arange(f["kh"] * f["kw"]), f["kw"])
    y = f["y0"] + row[None, :] * f["sy"] + ky[:, None] * f["dy"]
    x = f["x0"] + column[None, :] * f["sx"] + kx[:, None] * f["dx"]
    if f["w_mode"] == WeightMode.ROW_TAP:
        size = TILE_WORDS[WeightMode.ROW_TAP]
        y = y.repeat(size, axis=0)
        x = (x[:, None] + np.arange(size)[:, None]).reshape(len(y), -1)
    inside = (y >= 0) & (y < f["height"]) & (x >= 0) & (x < f["width"])
    plane = f["base"] + y * f["row"] + x * f["step"]
    return np.arange(f["in_groups"])[:, None, None] * f["plane"] + plane[None], inside


def weight_addresses(f: Fields, layer: Fields) -> NDArray[np.int64]:
    """HBM words [tile, word] of the weight tiles of ``f`` in layer descriptor ``layer``."""
    tiles = f["in_groups"] * f["kh"] * f["kw"] * f["out_groups"]
    number, size = f["w_tile"] + np.arange(tiles), layer["tile_words"]
    first = layer["hbm"] + number // BLOCK_TILES * layer["stride"] + number % BLOCK_TILES * size
    return first[:, None] + np.arange(size)


def resident_addresses(f: Fields) -> NDArray[np.int64]:
    """Scratchpad words [tile, word] of resident weight tiles."""
    group, tile = np.divmod(
        np.arange(f["out_groups"] * f["in_groups"] * f["kh"] * f["kw"]),
        f["in_groups"] * f["kh"] * f["kw"],
    )
    first = f["w_base"] + group * f["w_group_stride"] + tile * f["w_tile_stride"]
    return first[:, None] + np.arange(TILE_WORDS[WeightMode(f["w_mode"])])


def weight_matrices(f: Fields, raw: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """Per output group [in_group * tap * lane, cell], or [tap, lane] if depthwise; zero removed.

    ``raw``: bytes [tile, word, 16].
    """
    count, size = f["in_groups"] * f["kh"] * f["kw"], raw.shape[1]
    if f["w_mode"] == WeightMode.INT4:
        nibbles = np.stack([raw & 15, raw >> 4], axis=-1).astype(np.float64)
        values = np.where(nibbles > 7, nibbles - 16, nibbles) - f["w_zero"]
        size *= 2  # a word holds two cells
    else:
        values = (raw.view(np.int8) if f["w_signed"] else raw).astype(np.float64) - f["w_zero"]
    values = values.reshape(f["out_groups"], count, size, LANES)
    if f["w_mode"] in DEPTHWISE:
        return list(values.reshape(f["out_groups"], -1, LANES))
    if f["w_mode"] in (WeightMode.ROW, WeightMode.INT4):
        values = values.transpose(0, 1, 3, 2)
    return [each.reshape(count * LANES, LANES) for each in values]


def sums(
    f: Fields, raw: NDArray[np.uint8], inside: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Sums [pixel, cell] of one output group; ``raw``: window bytes [in_group, tap, pixel, 16].

    Exact: products and sums stay below 2**53.
    """
    values = (raw.view(np.int8) if f["a_signed"] else raw).astype(np.float64) - f["a_zero"]
    values[:, ~inside] = 0
    if f["w_mode"] in DEPTHWISE:
        total = (values[0] * weights[:, None, :]).sum(axis=0)
    else:
        total = values.transpose(2, 0, 1, 3).reshape(f["pixels"], -1) @ weights
    return np.rint(total).astype(np.int64)
