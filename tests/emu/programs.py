# SPDX-License-Identifier: Apache-2.0
"""Command streams written by hand, for the interpreter."""

import numpy as np

from emu.config import SEGMENT_WORDS, Config, load_config
from emu.isa import COMMAND_WORDS, RECT, Opcode, encode, pack_fields

Command = tuple[Opcode, dict]
DATA = 1024
"""HBM word of 512 words of random data."""


def rect(**fields: int) -> int:
    return pack_fields(RECT, fields)


def move(opcode: Opcode, scratchpad: int, far: int, run: int, **fields: int) -> Command:
    counts = {f"count{k}": 1 for k in range(3)}
    return opcode, {"scratchpad": scratchpad, "far": far, "run": run} | counts | fields


def load(scratchpad: int, far: int, run: int, **fields: int) -> Command:
    return move(Opcode.LOAD, scratchpad, far, run, **fields)


def store(scratchpad: int, far: int, run: int, **fields: int) -> Command:
    return move(Opcode.STORE, scratchpad, far, run, **fields)


def program(
    *first: Command, second: tuple[Command, ...] = (), config: Config | None = None
) -> tuple[Config, np.ndarray]:
    """A chip whose first tiles run ``first`` and ``second``, and its HBM image."""
    config = config or load_config("small", ["scratchpad.kib=16"])
    words = np.zeros((4096, 16), np.uint8)
    words[DATA : DATA + 512] = np.random.default_rng(5).integers(0, 256, (512, 16))
    base = 16
    for tile, commands in enumerate([first, second] + [()] * (config.mesh.tiles - 2)):
        stream = [*commands, (Opcode.END, {})]
        words[tile].view(np.uint64)[0] = base | len(stream) << 32
        raw = b"".join(encode(opcode, **fields) for opcode, fields in stream)
        size = len(stream) * COMMAND_WORDS
        words[base : base + size] = np.frombuffer(raw, np.uint8).reshape(-1, 16)
        base += -(-size // SEGMENT_WORDS) * SEGMENT_WORDS
    return config, words
