# SPDX-License-Identifier: Apache-2.0
"""What one VECTOR command computes, as pure functions of its fields and the scratchpad.

Words are written in the order of `write_addresses`: all pixels of the first group, and so on;
operations on rows write all groups of the first pixel, and so on. What a word is made of may be
read any time before it is written.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from emu.isa import ABSENT, VectorOp
from emu.normalise import CHANNELS_LIMIT, EPSILON_LIMIT, NormParameters, normalise
from emu.requantise import add_by_table, from_bytes, lookup, multiply, requantise, to_bytes
from emu.softmax import FACTOR_LIMIT, softmax

Fields = Mapping[str, int]
Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]
LANES = 16
SPACE = 1 << 16
"""Scratchpad addresses wrap at this."""

TABLE_WORDS = {VectorOp.ADD: 64, VectorOp.TABLE: 16, VectorOp.SOFTMAX: 64}
"""Words at ``table`` that an operation reads before its first output word."""
TWO = (VectorOp.ADD, VectorOp.MULTIPLY)
"""Operations with a second operand."""
NORMS = (VectorOp.LAYER_NORM, VectorOp.RMS_NORM)
ROWS = (VectorOp.SOFTMAX, *NORMS, VectorOp.TOP_K)
"""Operations on the channels of each pixel."""
ROUTES = (VectorOp.DISTINCT, VectorOp.PLACES, VectorOp.RETAIN, VectorOp.SORT, VectorOp.COLLECT)
"""Operations on lists of numbers."""
MODELLED = (VectorOp.MAX_POOL, VectorOp.SUM_POOL, *TWO, VectorOp.TABLE, *ROWS, *ROUTES)
TOP_LIMIT = 8
"""Largest k."""
PLACES, NUMBER_LIMIT = 4, 16
"""Of a word of a list of numbers; those are below."""


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


def row_addresses(f: Fields) -> Index:
    """address[pixel, group] of the words of each row."""
    pixel, group = np.arange(f["pixels"])[:, None], np.arange(f["groups"])[None]
    return (f["base"] + pixel * f["step"] + group * f["plane"]) % SPACE


def parameter_addresses(f: Fields) -> Index:
    """address[group, word] of a normalisation's parameters."""
    return (f["table"] + np.arange(8 * f["groups"]).reshape(-1, 8)) % SPACE


def write_addresses(f: Fields) -> Index:
    """Words written, in order; of the last of two equal ones the value stays."""
    group, pixel = np.arange(f["groups"])[:, None], np.arange(f["pixels"])[None]
    if f["op"] in ROUTES:
        entries = f["pixels"] * (f["k"] if f["b_mode"] else 1)
        count = -(-entries // PLACES) if f["op"] == VectorOp.PLACES else f["groups"]
        where = f["out"] + np.arange(count)
        if f["op"] == VectorOp.RETAIN:
            where = np.concatenate([f["b_base"] + np.arange(count), where, [f["table"]]])
        if f["op"] == VectorOp.COLLECT:
            words = np.arange(count)
            return np.concatenate([f["b_base"] + words, f["table"] + words,
                                   f["out"] + np.arange(2)]) % SPACE
        if f["op"] == VectorOp.SORT:
            words = np.arange(count * f["height"] // PLACES)
            where = np.concatenate([where, f["b_base"] + words, f["table"] + words])
        return where % SPACE
    if f["op"] == VectorOp.TOP_K:
        where = f["out"] + pixel * f["out_step"] + np.arange(-(-f["k"] // 4))[:, None]
        if f["b_mode"]:
            where = np.concatenate([where, f["b_base"] + pixel * f["b_step"]])
    else:
        where = f["out"] + group * f["out_group"] + pixel * f["out_step"]
    return ((where.T if f["op"] in ROWS else where) % SPACE).reshape(-1)


def read_addresses(f: Fields) -> tuple[Index, Index]:
    """(address, output word it is read for) of all reads but the table's, in ascending order."""
    count = f["groups"] * f["pixels"]
    if f["op"] in ROUTES:
        address = (f["base"] + np.arange(f["pixels"]) * f["step"]) % SPACE
        if f["op"] == VectorOp.PLACES:
            address = np.append(f["b_base"], address)
        word = np.full(len(address), len(write_addresses(f)) - 1)
        if f["op"] == VectorOp.RETAIN:  # a slot is read before it or any other is written
            slots = np.append(f["b_base"] + np.arange(f["groups"]), f["table"])
            address, word = np.append(slots, address), np.append(np.zeros(len(slots), int), word)
        return address % SPACE, word
    if f["op"] in ROWS:
        address, word = row_addresses(f).reshape(-1), np.arange(count)
        if f["op"] == VectorOp.TOP_K:  # words written: so many a row, when all of it was read
            word = word // f["groups"] * (-(-f["k"] // 4) + (f["b_mode"] > 0))
        elif f["op"] in NORMS:  # the last row reads the parameters as all others do
            address = np.concatenate([address, parameter_addresses(f).reshape(-1)])
            word = np.concatenate([word, word[-f["groups"] :].repeat(8)])
    else:
        taps, inside = tap_addresses(f)
        number = np.arange(count).reshape(f["groups"], 1, f["pixels"])
        address, word = taps[:, inside].reshape(-1), np.broadcast_to(number, taps.shape)
        word = word[:, inside].reshape(-1)
        if f["op"] in TWO:
            address = np.concatenate([address, second_addresses(f).reshape(-1)])
            word = np.concatenate([word, number.reshape(-1)])
    order = np.argsort(word, kind="stable")
    return address[order], word[order]


def unsupported(f: Fields) -> str | None:
    """Why a command cannot run, or None."""
    op = f["op"]
    if op not in MODELLED:
        return f"VECTOR has no operation {op}"
    if op in ROUTES:
        fits = 1 <= f["k"] <= PLACES and f["pixels"] and (f["groups"] or op == VectorOp.PLACES)
        whole = not f["b_mode"] or PLACES % max(f["k"], 1) == 0
        if op == VectorOp.RETAIN and f["groups"] > NUMBER_LIMIT:
            return f"RETAIN in {f['groups']} slots, more than {NUMBER_LIMIT}"
        if op == VectorOp.SORT:
            whole = f["height"] > 0 and f["height"] % PLACES == 0
            if not whole:
                return f"SORT in blocks of {f['height']} rows"
        if op == VectorOp.COLLECT:
            whole = True
            if not (f["height"] and f["kw"] < f["kh"]):
                return f"COLLECT of copy {f['kw']} of {f['kh']} in blocks of {f['height']}"
        return None if fits and whole else f"{VectorOp(op).name} of {f['k']} numbers a word"
    rows = op in ROWS
    for name in ("groups", "pixels", *(("channels",) if rows else ("kh", "kw", "out_width"))):
        if f[name] < 1:
            return f"VECTOR with {name} = 0"
    if op in TWO and f["b_mode"] == 3:
        return "VECTOR has no operand mode 3"
    lanes = f["channels"] + (f["pixels"] - 1) * (op == VectorOp.SOFTMAX and f["causal"])
    if rows and lanes > LANES * f["groups"]:
        return f"VECTOR on {lanes} channels in {f['groups']} groups"
    if op == VectorOp.SOFTMAX and not 1 <= f["scale0"] <= FACTOR_LIMIT:
        return f"SOFTMAX with factor {f['scale0']}, not 1 to {FACTOR_LIMIT}"
    if op in NORMS and f["channels"] >= CHANNELS_LIMIT:
        return f"normalisation over {f['channels']} channels"
    if op in NORMS and _epsilon(f) >= EPSILON_LIMIT:
        return f"normalisation with epsilon {_epsilon(f)}"
    if op == VectorOp.TOP_K and not 1 <= f["k"] <= min(TOP_LIMIT, f["channels"]):
        return f"TOP_K with k = {f['k']}, not 1 to {min(TOP_LIMIT, f['channels'])}"
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
    if f["op"] in ROUTES:
        return write_addresses(f), _routes(f, data)
    compute = _words if f["op"] not in ROWS else _top if f["op"] == VectorOp.TOP_K else _rows
    return write_addresses(f), compute(f, data).reshape(-1, LANES)


def _routes(f: Fields, data: Bytes) -> Bytes:
    """Words of numbers that occur, or of where one is."""
    where = (f["base"] + np.arange(f["pixels"]) * f["step"]) % SPACE
    numbers = np.ascontiguousarray(data[where]).view(np.uint32)[:, : f["k"]]
    found = np.arange(f["channels"]) if f["causal"] else np.unique(numbers % NUMBER_LIMIT)
    if f["op"] == VectorOp.RETAIN:
        return _retained(f, data, found)
    if f["op"] == VectorOp.COLLECT:
        return _collected(f, numbers)
    if f["op"] == VectorOp.DISTINCT:
        words = np.zeros((f["groups"], PLACES), np.uint32)
        words[:, 0] = ABSENT
        count = min(len(found), f["groups"])
        words[:count, 0] = found[:count]
        return words.view(np.uint8)
    if f["op"] == VectorOp.SORT:
        return _sorted(f, numbers)
    hit = numbers == data[f["b_base"]].view(np.uint32)[0]
    nowhere, place = hit.size, np.arange(hit.size).reshape(hit.shape)
    entries = np.where(hit, place, nowhere)
    entries = entries.reshape(-1) if f["b_mode"] else entries.min(axis=1)
    padded = np.full(-(-len(entries) // PLACES) * PLACES, nowhere, np.uint32)
    padded[: len(entries)] = entries
    return padded.view(np.uint8).reshape(-1, LANES)


def _retained(f: Fields, data: Bytes, found: NDArray) -> Bytes:
    """The slots' words, what each awaits, and the slot after the last that was taken."""
    count = f["groups"]
    held = data[f["b_base"] + np.arange(count)].view(np.uint32)[:, 0].copy()
    pointer = first = int(data[f["table"], 0]) % NUMBER_LIMIT
    awaits = np.full(count, ABSENT, np.uint32)
    needed = [number for number in found.tolist() if number not in held]
    for slot in ((first + i) % count for i in range(count)):
        if needed and held[slot] not in found:
            held[slot] = awaits[slot] = needed.pop(0)
            pointer = (slot + 1) % count
    words = np.zeros((2 * count + 1, PLACES), np.uint32)
    words[:, 0] = [*held, *awaits, pointer]
    return words.view(np.uint8)


def _sorted(f: Fields, numbers: NDArray) -> Bytes:
    """The blocks' numbers, then the places and the sources of their rows."""
    size, count = f["height"], f["groups"]
    heads = np.full(count, ABSENT, np.uint32)
    places = np.full((count, size), numbers.size, np.uint32)
    block = 0
    for number in np.unique(numbers):
        found = np.flatnonzero(numbers == number)
        for rows in np.split(found, range(size, len(found), size)):
            if block < count:
                heads[block], places[block, : len(rows)] = number, rows
            block += 1
    there = places != numbers.size
    sources = np.where(there, places if f["b_mode"] else places // f["k"], 0).astype(np.uint32)
    words = np.zeros((count, PLACES), np.uint32)
    words[:, 0] = heads
    lists = [each.reshape(-1, PLACES) for each in (places, sources)]
    return np.concatenate([words, *lists]).view(np.uint8)


def _collected(f: Fields, numbers: NDArray) -> Bytes:
    """The places of a copy's rows, their sources, the number and how many there are."""
    rows = np.flatnonzero(numbers == f["channels"])
    own = np.arange(len(rows)) // f["height"] % f["kh"] == f["kw"]
    rows = rows[own][: PLACES * f["groups"]]
    lists = np.full((2, PLACES * f["groups"]), ABSENT, np.uint32)
    lists[:, : len(rows)] = rows, rows if f["b_mode"] else rows // f["k"]
    ends = np.zeros((2, PLACES), np.uint32)
    ends[:, 0] = f["channels"] if len(rows) else ABSENT, len(rows)
    return np.concatenate([lists.reshape(-1, PLACES), ends]).view(np.uint8)


def _epsilon(f: Fields) -> int:
    return f["scale0"] | f["scale1"] << 32


def _clip(f: Fields) -> dict[str, int]:
    return {"low": f["clip_low"], "high": f["clip_high"]}


def _words(f: Fields, data: Bytes) -> Bytes:
    """Bytes [group, pixel, lane] of pools and element-wise operations."""
    op, scale = VectorOp(f["op"]), np.uint32(f["scale0"]).view(np.float32)
    a_signed, clip = bool(f["a_signed"]), _clip(f)
    taps, inside = tap_addresses(f)
    values = from_bytes(data[np.where(inside[None], taps, 0)], a_signed)
    table = data[table_addresses(f)].reshape(-1)
    if op == VectorOp.SUM_POOL:
        total = np.where(inside[None, ..., None], values - f["a_zero"], 0).sum(axis=1)
        return to_bytes(requantise(total, scale, zero=f["out_zero"], **clip))
    a = np.where(inside[None, ..., None], values, -128 if a_signed else 0).max(axis=1)
    if op in TWO:
        b = from_bytes(data[second_addresses(f)], bool(f["b_signed"]))
        b = np.broadcast_to(b[..., :1] if f["b_mode"] == 2 else b, a.shape)
    if op == VectorOp.ADD:
        y = add_by_table(a, b, scale, table.view(np.float32), offset=f["a_zero"], **clip)
    elif op == VectorOp.MULTIPLY:
        zeros = {"a_zero": f["a_zero"], "b_zero": f["b_zero"], "zero": f["out_zero"]}
        y = multiply(a, b, scale, **zeros, **clip)
    else:
        y = lookup(a, table).astype(np.int32) if op == VectorOp.TABLE else a
    return to_bytes(y)


def _row_values(f: Fields, data: Bytes) -> NDArray[np.int32]:
    """Values [pixel, lane] of all groups of each row."""
    return from_bytes(data[row_addresses(f)].reshape(f["pixels"], -1), bool(f["a_signed"]))


def _rows(f: Fields, data: Bytes) -> Bytes:
    """Bytes [pixel, lane] of softmax and normalisations."""
    values, count = _row_values(f, data), f["channels"]
    y = np.full(values.shape, f["out_zero"], np.int32)
    if f["op"] == VectorOp.SOFTMAX:
        table = data[table_addresses(f)].reshape(-1).view(np.uint32)
        alone = [(slice(p, p + 1), count + p) for p in range(f["pixels"])]
        for rows, last in alone if f["causal"] else [(slice(None), count)]:
            y[rows, :last] = softmax(
                values[rows, :last], table, f["scale0"], is_signed=bool(f["a_signed"]),
                zero=f["out_zero"], **_clip(f),
            )
    else:
        words = data[parameter_addresses(f)].reshape(-1, 4, 2, 16).view(np.int32)
        offset, gain = (words[:, :, k].reshape(-1)[:count] for k in range(2))
        y[:, :count] = normalise(
            values[:, :count], NormParameters(gain=gain, offset=offset, epsilon=_epsilon(f)),
            in_zero=f["a_zero"], zero=f["out_zero"], centred=f["op"] == VectorOp.LAYER_NORM,
            **_clip(f),
        )
    return to_bytes(y)


def _top(f: Fields, data: Bytes) -> Bytes:
    """Bytes [pixel, word, 16] of the largest values' numbers and, if wanted, of the values."""
    values = _row_values(f, data)[:, : f["channels"]]
    best = np.argsort(-values, axis=-1, kind="stable")[:, : f["k"]]
    words = -(-f["k"] // 4)
    result = np.zeros((f["pixels"], words + (f["b_mode"] > 0), LANES), np.uint8)
    numbers = np.zeros((f["pixels"], 4 * words), np.uint32)
    numbers[:, : f["k"]] = best
    result[:, :words] = numbers.view(np.uint8).reshape(f["pixels"], words, LANES)
    if f["b_mode"]:
        result[:, words, : f["k"]] = to_bytes(np.take_along_axis(values, best, axis=-1))
    return result
