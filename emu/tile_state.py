# SPDX-License-Identifier: Apache-2.0
"""What the interpreter keeps of a tile, and how commands name tiles and words."""

from collections import deque
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from emu.config import SEMAPHORES
from emu.errors import UserError
from emu.isa import RECT, Opcode, Queue, unpack_fields

Bytes = NDArray[np.uint8]
Fields = dict[str, int]
FAR_WORDS = 1 << 28
"""Products of an index list wrap at this."""


class ProgramError(UserError):
    """A program that the machine could not run."""


@cache
def tiles_of(rect: int) -> tuple[tuple[int, int], ...]:
    """Coordinates (x, y) of an encoded rectangle."""
    r = unpack_fields(RECT, rect)
    return tuple(
        (x, y)
        for y in range(r["y0"], r["y1"] + 1, 1 << r["ys"])
        for x in range(r["x0"], r["x1"] + 1, 1 << r["xs"])
    )


def offsets(
    fields: Fields, prefix: str, indices: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Word offsets of a LOAD or STORE in order: ``prefix`` ``s`` scratchpad, ``f`` far.

    ``indices``: the list of a gather; it stands for the outermost loop's turns on the far side.
    """
    index = np.arange(fields["run"], dtype=np.int64)
    for k in range(3):
        turns = np.arange(fields[f"count{k}"], dtype=np.int64)
        if k == 2 and prefix == "f" and indices is not None:
            turns = indices
        steps = turns * fields[f"{prefix}_stride{k}"]
        if turns is indices:
            steps %= FAR_WORDS
        index = (steps[:, None] + index[None, :]).reshape(-1)
    return index


@dataclass
class Tile:
    """State of one tile."""

    x: int
    y: int
    commands: list[tuple[Opcode, Fields]]
    data: Bytes
    written: NDArray[np.bool_]
    next: int = 0
    semaphores: list[int] = field(default_factory=lambda: [0] * SEMAPHORES)
    queues: tuple[deque, ...] = field(default_factory=lambda: tuple(deque() for _ in Queue))
    descriptors: dict[int, Fields] = field(default_factory=dict)
    registers: list[int] = field(default_factory=lambda: [0] * 8)
    frames: Fields = field(default_factory=dict)
    waiters: dict[int, int] = field(default_factory=dict)
    held: set[tuple[int, int]] = field(default_factory=set)
    accumulators: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    pushes: deque = field(default_factory=deque)
    """Words for other tiles, on their way in order."""
    scatters: bool = False
    """It has stored to tiles by a list."""
    is_stuck: bool = False
    """Nothing could run in it, and no semaphore has counted since."""
    done: bool = False

    @property
    def name(self) -> str:
        return f"tile {self.x},{self.y}"


@dataclass
class Counts:
    """What an execution moved, in words."""

    load_words: int = 0
    block_words: int = 0
    store_words: int = 0
    inbound: dict[tuple[int, int], int] = field(default_factory=dict)
    commands: int = 0
