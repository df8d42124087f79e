# SPDX-License-Identifier: Apache-2.0
"""What one VECTOR command computes, as pure functions of its fields and the scratchpad.

Output word w of a command is pixel ``w % pixels`` of group ``w // pixels``: words are written in
this order. What a word is made of may be read any time before it is written.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from emu.isa import VectorOp
from emu.requantise import add_by_table, from_bytes, lookup, multiply, requantise, to_bytes

Fields = Mapping[str, int]
Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]
LANES = 16
SPACE = 1 << 16
"""Scratchpad addresses wrap at this."""

TABLE_WORDS = {VectorOp.ADD: 64, VectorOp.TABLE: 16}
"""Words at ``table`` that an operation reads before its first output word."""
TWO = (VectorOp.ADD, VectorOp.MULTIPLY)
"""Operations with a second operand."""
MODELLED = (VectorOp.MAX_POOL, VectorOp.SUM_POOL, *TWO, VectorOp.TABLE)


def tap_addresses(f: Fields) -> tuple[Index, NDArray[np.bool_]]:
    """(address[group, tap, pixel], inside[tap, pixel]) of the window; taps outside are not read."""
    column = f["first_x"] + np.arange(f["pixels"])
    row, column = column // f["out_width"], column % f["out_width"]
    ky, kx = np.divmod(np.arange(f["kh"] * f["kw"]), f["kw"])
    y = f["y0"] + row[None, :] * f["sy"] + ky[:, None]
    x = f["x0"] + column[None, :] * f["sx"] + kx[:, None]
    inside = (y >= 0) & (y < f["height"]) & (x >= 0) & (x < f["width"])
    plane = f["base"] + y * f["row"] + x * f["step"]
    return (np.arange(f["groups"])[:, None, None] * f["plane"] + plane[None]) % SPACE, inside


def second_addresses(f: Fields) -> Index:
    """address[group, pixel] of the second operand."""
    group, pixel = np.arange(f["groups"])[:, None], np.arange(f["pixels"])[None]
    steps = group * (f["b_plane"] if f["b_mode"] != 2 else 0) + pixel * (
        f["b_step"] if f["b_mode"] != 1 else 0
    )
    return (f["b_base"] + steps) % SPACE


def table_addresses(f: Fields) -> Index:
    """Words of the table that is loaded before everything else."""
    return (f["table"] + np.arange(TABLE_WORDS.get(VectorOp(f["op"]), 0))) % SPACE


def write_addresses(f: Fields) -> Index:
    """Words written, in order; of the last of two equal ones the value stays."""
    group, pixel = np.arange(f["groups"])[:, None], np.arange(f["pixels"])[None]
    return ((f["out"] + group * f["out_group"] + pixel * f["out_step"]) % SPACE).reshape(-1)


def read_addresses(f: Fields) -> tuple[Index, Index]:
    """(address, output word it is read for) of all reads but the table's, in ascending order."""
    taps, inside = tap_addresses(f)
    number = np.arange(f["groups"] * f["pixels"]).reshape(f["groups"], 1, f["pixels"])
    address, word = taps[:, inside].reshape(-1), np.broadcast_to(number, taps.shape)
    word = word[:, inside].reshape(-1)
    if f["op"] in TWO:
        address = np.concatenate([address, second_addresses(f).reshape(-1)])
        word = np.concatenate([word, number.reshape(-1)])
    order = np.argsort(word, kind="stable")
    return address[order], word[order]


def unsupported(f: Fields) -> str | None:
    """Why a command cannot run, or None."""
    if f["op"] not in MODELLED:
        return f"VECTOR has no operation {f['op']}"
    for name in ("groups", "pixels", "kh", "kw", "out_width"):
        if f[name] < 1:
            return f"VECTOR with {name} = 0"
    if f["op"] in TWO and f["b_mode"] == 3:
        return "VECTOR has no operand mode 3"
    return None


def early_write(f: Fields) -> int | None:
    """A word that is read for an output word after the command itself has written it, or None."""
    address, word = read_addresses(f)
    last = np.full(SPACE, -1, np.int64)
    last[address] = word  # ascending: the last assignment stays
    where = write_addresses(f)
    bad = np.flatnonzero(last[where] > np.arange(len(where)))
    return int(where[bad[0]]) if len(bad) else None


def run_vector(f: Fields, data: Bytes) -> tuple[Index, Bytes]:
    """(address, word of 16 bytes) of everything a command writes, in order.

    ``data`` is the scratchpad, bytes [word, 16]; it is not changed. Addresses read must lie in it.

    Raises
    ------
    ValueError
        If no such command can run.
    """
    if reason := unsupported(f):
        raise ValueError(reason)
    op, scale = VectorOp(f["op"]), np.uint32(f["scale0"]).view(np.float32)
    a_signed, b_signed = bool(f["a_signed"]), bool(f["b_signed"])
    clip = {"low": f["clip_low"], "high": f["clip_high"]}
    taps, inside = tap_addresses(f)
    raw = data[np.where(inside[None], taps, 0)]
    values = from_bytes(raw, a_signed)
    table = data[table_addresses(f)].reshape(-1)
    if op == VectorOp.SUM_POOL:
        total = np.where(inside[None, ..., None], values - f["a_zero"], 0).sum(axis=1)
        y = requantise(total, scale, zero=f["out_zero"], **clip)
        return write_addresses(f), to_bytes(y).reshape(-1, LANES)
    a = np.where(inside[None, ..., None], values, -128 if a_signed else 0).max(axis=1)
    if op in TWO:
        b = from_bytes(data[second_addresses(f)], b_signed)
        b = np.broadcast_to(b[..., :1] if f["b_mode"] == 2 else b, a.shape)
    if op == VectorOp.ADD:
        y = add_by_table(a, b, scale, table.view(np.float32), offset=f["a_zero"], **clip)
    elif op == VectorOp.MULTIPLY:
        zeros = {"a_zero": f["a_zero"], "b_zero": f["b_zero"], "zero": f["out_zero"]}
        y = multiply(a, b, scale, **zeros, **clip)
    else:
        y = lookup(a, table).astype(np.int32) if op == VectorOp.TABLE else a
    return write_addresses(f), to_bytes(y).reshape(-1, LANES)
