# SPDX-License-Identifier: Apache-2.0
"""Trace files: ``<cycle> <hex byte address> <R|W>``, one 64-byte request a line."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.hbm_timing import BYTE_BITS

LINE_BYTES = 64
LAST_CYCLE = 1 << 31


@dataclass(frozen=True)
class Trace:
    """Requests in order: the earliest cycle, the 64-byte line and whether it is a write."""

    name: str
    cycles: NDArray[np.int64]
    lines: NDArray[np.int64]
    writes: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.cycles)

    def records(self) -> bytes:
        """What `sim.memory.player` reads: eight bytes a request, most significant first."""
        words = self.cycles << 32 | self.writes.astype(np.int64) << 31 | self.lines
        return words.astype(">u8").tobytes()


def _request(fields: list[str]) -> tuple[int, int, bool]:
    """Cycle, line and kind of one request; ValueError says what is wrong."""
    if len(fields) != 3:
        raise ValueError("write it as <cycle> <hex byte address> <R|W>")
    cycle, address, kind = fields
    if not cycle.isdecimal() or int(cycle) >= LAST_CYCLE:
        raise ValueError(f"cycle must be a number below 2**31, not {cycle!r}")
    try:
        place = int(address, 16)
    except ValueError:
        raise ValueError(f"address must be hexadecimal, not {address!r}") from None
    if not 0 <= place < 1 << BYTE_BITS:
        raise ValueError(f"address must be below 2**{BYTE_BITS} (512 MiB), not {address}")
    if place % LINE_BYTES:
        raise ValueError(f"address must be a multiple of {LINE_BYTES}, not {address}")
    if kind not in ("R", "W"):
        raise ValueError(f"the request must be R or W, not {kind!r}")
    return int(cycle), place // LINE_BYTES, kind == "W"


def read_trace(path: str) -> Trace:
    """The requests in file ``path``, which may be compressed (``.gz``); ``#`` begins a comment.

    Raises
    ------
    UserError: If it cannot be read or a line is no request.
    """
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if path.endswith(".gz") else data).decode()
    except gzip.BadGzipFile:
        raise UserError(f"{path}: not a gzip file") from None
    except (EOFError, zlib.error):
        raise UserError(f"{path}: the gzip file is damaged") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    requests = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.partition("#")[0].split()
        if fields:
            try:
                requests.append(_request(fields))
            except ValueError as error:
                raise UserError(f"{path}: line {number}: {error}") from None
    if not requests:
        raise UserError(f"{path}: no requests")
    cycles, lines, writes = zip(*requests, strict=True)
    name = Path(path).name.removesuffix(".gz").removesuffix(".trace")
    return Trace(name, np.array(cycles, np.int64), np.array(lines, np.int64), np.array(writes))
