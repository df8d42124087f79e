# SPDX-License-Identifier: Apache-2.0
"""What LOAD and STORE move: the words in order, and the requests that a load makes of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from emu.config import SEGMENT_WORDS
from emu.isa import ABSENT, Opcode

NEAR_WORDS = 1 << 16
"""Scratchpad addresses wrap at this."""
FAR_WORDS = 1 << 28
"""Global HBM addresses wrap at this."""


def move_runs(
    fields: Mapping[str, int], indices: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """First scratchpad and far word of every run of a command, int64 of shape (runs,).

    ``indices`` is the list at ``gather_base``, at least ``count2`` numbers, if ``gather`` is set.
    """
    count0, count1, count2 = (fields.get(f"count{k}", 0) for k in range(3))
    i2, i1, i0 = (
        loop.ravel()
        for loop in np.meshgrid(
            np.arange(count2), np.arange(count1), np.arange(count0), indexing="ij"
        )
    )
    outer = i2
    if fields.get("gather"):
        if indices is None or len(indices) < count2:
            raise ValueError(f"a gather of {count2} needs as many indices, not {indices!r}")
        # Modulo first: index times stride may pass 64 bits.
        outer = np.asarray(indices, dtype=np.int64)[i2]
        outer = np.where(outer == ABSENT, 0, outer) % FAR_WORDS

    def walk(start: str, letter: str, last: np.ndarray) -> np.ndarray:
        strides = [fields.get(f"{letter}_stride{k}", 0) for k in range(3)]
        return fields.get(start, 0) + i0 * strides[0] + i1 * strides[1] + last * strides[2]

    sums = fields.get("sum", 0)
    near, far = walk("scratchpad", "s", i2 // sums if sums else i2), walk("far", "f", outer)
    if not fields.get("run", 0):
        near, far = near[:0], far[:0]
    return near % NEAR_WORDS, far % FAR_WORDS


def moved_words(
    opcode: Opcode, fields: Mapping[str, int], indices: Sequence[int] | None = None
) -> np.ndarray:
    """(source word, destination word) of every word of a LOAD or STORE, in order; none of `ABSENT`
    numbers.

    int64 of shape (words, 2). The source is far for a LOAD and in the scratchpad for a STORE.
    """
    near, far = move_runs(fields, indices)
    if fields.get("gather") and len(near):
        turns = np.asarray(indices, dtype=np.int64)[: fields["count2"]]
        there = np.repeat(turns != ABSENT, len(near) // len(turns))
        near, far = near[there], far[there]
    within = np.arange(fields.get("run", 0))
    near = ((near[:, None] + within) % NEAR_WORDS).ravel()
    far = ((far[:, None] + within) % FAR_WORDS).ravel()
    pair = (far, near) if opcode == Opcode.LOAD else (near, far)
    return np.stack(pair, axis=1)


def load_requests(
    fields: Mapping[str, int], indices: Sequence[int] | None = None
) -> list[tuple[int, int, int]]:
    """(global address, words, first scratchpad word) of a LOAD's requests, in order.

    A request is a run's largest piece within one segment. Runs of `ABSENT` numbers make none.
    """
    requests = []
    runs = zip(*(a.tolist() for a in move_runs(fields, indices)), strict=True)
    turn = max(1, fields.get("count0", 0) * fields.get("count1", 0))
    for number, (near, far) in enumerate(runs):
        left = fields.get("run", 0)
        if fields.get("gather") and indices is not None and indices[number // turn] == ABSENT:
            continue
        while left:
            words = min(left, SEGMENT_WORDS - far % SEGMENT_WORDS)
            requests.append((far, words, near))
            near, far, left = (near + words) % NEAR_WORDS, (far + words) % FAR_WORDS, left - words
    return requests


def line_ends(far: Sequence[int], words: int = 4) -> list[bool]:
    """Which words of an HBM store close their ``words``-word line: the next one is in another line.

    ``far`` are a command's destinations in order; the command's last word always closes its line.
    """
    lines = [address // words for address in far]
    return [
        address % words == words - 1 or i + 1 == len(lines) or lines[i + 1] != lines[i]
        for i, address in enumerate(far)
    ]
