# SPDX-License-Identifier: Apache-2.0
"""Traffic patterns by name, and trace files of packets."""

import gzip
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emu.config import Mesh
from emu.errors import UserError


class Pattern(IntEnum):
    """What a generator does; the numbers are its ``pattern`` input."""

    UNIFORM = 0
    """Any node, itself included, with equal probability."""
    TRANSPOSE = 1
    """(x, y) to (y, x)."""
    NEIGHBOR = 2
    """(x, y) to (x + 1, y + 1), modulo the size, as BookSim 2 defines it."""
    EXCHANGE = 3
    """(x, y) to (x ^ 1, y)."""
    HOTSPOT = 4
    """All nodes to one."""
    BROADCAST = 5
    """One node to all by one multicast flit; the others send nothing."""
    SCATTER = 6
    """One node to all, one unicast flit after another: what a broadcast saves."""
    TRACE = 7
    """As a file says."""


AT_A_NODE = (Pattern.HOTSPOT, Pattern.BROADCAST, Pattern.SCATTER)
NAMES = ("uniform, transpose, neighbor, exchange, hotspot:x,y, broadcast:x,y, scatter:x,y, "
         "trace:FILE")


@dataclass(frozen=True)
class Trace:
    """Packets in the order of their sources' files; arrays of equal length."""

    cycles: NDArray[np.int64]
    sources: NDArray[np.int64]
    destinations: NDArray[np.int64]
    flits: NDArray[np.int64]

    def records(self, node: int) -> bytes:
        """Of one source: 64 bits big-endian each: cycle 32, flits 16, destination 16."""
        mine = self.sources == node
        order = np.argsort(self.cycles[mine], kind="stable")
        words = (self.cycles[mine] << 32 | self.flits[mine] << 16 | self.destinations[mine])[order]
        return words.astype(">u8").tobytes()


@dataclass(frozen=True)
class Traffic:
    """A pattern, the node that it names and its trace."""

    name: str
    pattern: Pattern
    node: tuple[int, int] = (0, 0)
    trace: Trace | None = None

    def hops(self, mesh: Mesh) -> float | None:
        """Mean distance of a packet, None for a broadcast."""
        places = [(x, y) for y in range(mesh.rows) for x in range(mesh.cols)]
        pairs: list[tuple[tuple[int, int], tuple[int, int]]]
        if self.pattern == Pattern.TRACE:
            assert self.trace is not None
            far = [divmod(int(n), mesh.cols)[::-1] for n in range(len(places))]
            pairs = [(far[s], far[d]) for s, d, n in zip(
                self.trace.sources, self.trace.destinations, self.trace.flits, strict=True)
                for _ in range(int(n))]
        elif self.pattern == Pattern.BROADCAST:
            return None
        elif self.pattern == Pattern.SCATTER:
            pairs = [(self.node, to) for to in places]
        elif self.pattern == Pattern.UNIFORM:
            pairs = [(a, b) for a in places for b in places]
        else:
            pairs = [(a, self._to(mesh, *a)) for a in places]
        return sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in pairs) / len(pairs)

    def _to(self, mesh: Mesh, x: int, y: int) -> tuple[int, int]:
        return {
            Pattern.TRANSPOSE: (y, x), Pattern.EXCHANGE: (x ^ 1, y), Pattern.HOTSPOT: self.node,
            Pattern.NEIGHBOR: ((x + 1) % mesh.cols, (y + 1) % mesh.rows),
        }[self.pattern]


def parse_traffic(text: str, mesh: Mesh) -> Traffic:
    """The traffic called ``text`` on ``mesh``.

    Raises
    ------
    UserError
        If there is none, it does not fit the mesh, or its file is unreadable or malformed.
    """
    kind, colon, rest = text.partition(":")
    try:
        pattern = Pattern[kind.upper()]
    except KeyError:
        raise UserError(f"traffic {text}: must be one of {NAMES}") from None
    wants = pattern in AT_A_NODE or pattern == Pattern.TRACE
    if wants != bool(colon and rest):
        raise UserError(f"traffic {text}: must be one of {NAMES}")
    if pattern == Pattern.TRANSPOSE and mesh.cols != mesh.rows:
        raise UserError(f"traffic transpose needs as many rows as columns, not "
                        f"{mesh.cols}x{mesh.rows}")
    if pattern == Pattern.EXCHANGE and mesh.cols % 2:
        raise UserError(f"traffic exchange needs an even number of columns, not {mesh.cols}")
    if pattern == Pattern.TRACE:
        return Traffic(text, pattern, trace=read_trace(rest, mesh))
    if pattern not in AT_A_NODE:
        return Traffic(text, pattern)
    try:
        x, y = map(int, rest.split(","))
    except ValueError:
        raise UserError(f"traffic {text}: write the node as {kind}:x,y") from None
    if not (0 <= x < mesh.cols and 0 <= y < mesh.rows):
        raise UserError(f"traffic {text}: node {x},{y} is outside of the {mesh.cols}x{mesh.rows} "
                        "mesh")
    return Traffic(text, pattern, (x, y))


def read_trace(path: str, mesh: Mesh) -> Trace:
    """Packets of a file with lines ``<cycle> <source> <destination> <flits>``; node = x + cols*y.

    Empty lines and lines that begin with ``#`` are skipped; ``.gz`` is unpacked.

    Raises
    ------
    UserError
        Naming the first line that is malformed, or the file if it cannot be read.
    """
    try:
        raw = Path(path).read_bytes()
        if path.endswith(".gz"):
            raw = gzip.decompress(raw)
        text = raw.decode("ascii")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"trace {path}: cannot be read: {why}") from None
    rows = []
    limits = (1 << 31, mesh.tiles, mesh.tiles, 1 << 16)
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            values = [int(field) for field in fields]
        except ValueError:
            values = []
        if len(values) != 4:
            raise UserError(f"trace {path}, line {number}: must be '<cycle> <src> <dst> <flits>'")
        for what, value, limit in zip(("cycle", "source", "destination", "flits"), values, limits,
                                      strict=True):
            if not 0 <= value < limit or (what == "flits" and not value):
                raise UserError(f"trace {path}, line {number}: {what} {value} is not in "
                                f"{int(what == 'flits')} .. {limit - 1}")
        rows.append(values)
    if not rows:
        raise UserError(f"trace {path}: has no packets")
    return Trace(*np.array(rows, np.int64).T)
