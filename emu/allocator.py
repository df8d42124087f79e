# SPDX-License-Identifier: Apache-2.0
"""The allocation unit without a clock: what it answers to each command, and in how many cycles.

`BEGIN` chooses a mode and how many words there are, and forgets everything. In the mode `STATIC`
areas lie where the compiler's plan says (`PLAN` for each number that will be allocated); in the
others they are cut from a list of free extents in the order of their addresses, into which `FREE`
joins what it gets back with both its neighbours at once. What finds no room is spilled: it has no
area, and lies in HBM as far as a program is concerned.

Powers of two: an area of 2**k words lies at a multiple of 2**k. As buddies are joined at once, the
free blocks of a buddy allocator (Knowlton, "A fast storage allocator", 1965) are just the aligned
blocks within the free extents, so that the first extent with room for an aligned block is what a
buddy allocator finds that takes the lowest address.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Op(IntEnum):
    """What a command does."""

    BEGIN = 0
    PLAN = 1
    ALLOCATE = 2
    FREE = 3


class Mode(IntEnum):
    """Where an area goes."""

    STATIC = 0
    FIRST_FIT = 1
    BEST_FIT = 2
    POWER_OF_TWO = 3


@dataclass(frozen=True)
class Command:
    """``op`` with what it needs; the rest is not looked at.

    area: Number of the area (PLAN, ALLOCATE, FREE).
    words: Of the memory (BEGIN), of the area (ALLOCATE).
    offset, spilled: Where the area lies, or that it has no room (PLAN).
    mode: BEGIN.
    """

    op: Op
    area: int = 0
    words: int = 0
    offset: int = 0
    spilled: bool = False
    mode: Mode = Mode.STATIC


@dataclass(frozen=True)
class Answer:
    """To every command one.

    offset: Of an area that was allocated, else 0.
    spilled: ALLOCATE: there is no room.
    refused: The command makes no sense and changed nothing.
    cycles: It was worked on; not part of the hardware's answer, which counts them in a counter.
    """

    area: int = 0
    offset: int = 0
    spilled: bool = False
    refused: bool = False
    cycles: int = 1


@dataclass
class Counters:
    """Since reset, but ``high_water``, the end of the highest area since BEGIN."""

    cycles: int = 0
    allocations: int = 0
    spills: int = 0
    spilled_words: int = 0
    high_water: int = 0


def rounded(words: int) -> int:
    """The least power of two that is not below ``words``."""
    return 1 << (words - 1).bit_length()


class Allocator:
    """An allocation unit of ``areas`` numbers for memories of up to ``words`` words."""

    def __init__(self, words: int, areas: int):
        self.words, self.areas = words, areas
        self.counters = Counters()
        self.mode, self.capacity = Mode.STATIC, 0
        self.free: list[tuple[int, int]] = []
        self.held: dict[int, tuple[int, int]] = {}
        self.plan: dict[int, tuple[int, bool]] = {}
        self.error = False

    def play(self, commands: Iterable[Command]) -> list[Answer]:
        """The answers to ``commands``."""
        return [self.execute(command) for command in commands]

    def execute(self, command: Command) -> Answer:
        """Carry out one command."""
        found = {Op.BEGIN: self._begin, Op.PLAN: self._plan, Op.ALLOCATE: self._allocate,
                 Op.FREE: self._free}[command.op](command)
        self.counters.cycles += found.cycles
        self.error |= found.refused
        return found

    def _begin(self, command: Command) -> Answer:
        if not 0 < command.words <= self.words:
            return Answer(command.area, refused=True)
        self.mode, self.capacity = command.mode, command.words
        self.free, self.held, self.plan = [(0, command.words)], {}, {}
        self.counters.high_water = 0
        return Answer(command.area)

    def _plan(self, command: Command) -> Answer:
        self.plan[command.area] = command.offset, command.spilled
        return Answer(command.area)

    def _allocate(self, command: Command) -> Answer:
        area, words = command.area, command.words
        if area in self.held or not 0 < words <= self.words:
            return Answer(area, refused=True)
        if self.mode == Mode.STATIC:
            offset, spilled = self.plan.get(area, (self.capacity, False))
            if spilled:
                return self._spill(area, words, 1)
            if offset + words > self.capacity:
                return Answer(area, refused=True)
            return self._place(area, offset, words, 1)
        need = rounded(words) if self.mode == Mode.POWER_OF_TWO else words
        chosen, walked = self._search(need)
        if chosen is None:
            return self._spill(area, words, 1 + walked)
        offset, cycles = self._cut(chosen, need)
        return self._place(area, offset, need, 1 + walked + cycles)

    def _place(self, area: int, offset: int, words: int, cycles: int) -> Answer:
        self.held[area] = offset, words
        self.counters.allocations += 1
        self.counters.high_water = max(self.counters.high_water, offset + words)
        return Answer(area, offset, cycles=cycles)

    def _spill(self, area: int, words: int, cycles: int) -> Answer:
        self.held[area] = 0, 0
        self.counters.spills += 1
        self.counters.spilled_words += words
        return Answer(area, spilled=True, cycles=cycles)

    def _start(self, offset: int, need: int) -> int:
        return -(-offset // need) * need if self.mode == Mode.POWER_OF_TWO else offset

    def _search(self, need: int) -> tuple[int | None, int]:
        """(index of the extent to cut, extents looked at). Nothing is better than an exact fit."""
        best = None
        for index, (offset, size) in enumerate(self.free):
            if self._start(offset, need) + need > offset + size:
                continue
            if self.mode != Mode.BEST_FIT or size == need:
                return index, index + 1
            if best is None or size < self.free[best][1]:
                best = index
        return best, len(self.free)

    def _cut(self, index: int, need: int) -> tuple[int, int]:
        """Take ``need`` words out of an extent; (offset, cycles)."""
        offset, size = self.free[index]
        start = self._start(offset, need)
        rest = [(offset, start - offset), (start + need, offset + size - start - need)]
        rest = [extent for extent in rest if extent[1]]
        self.free[index:index + 1] = rest
        # An extent that is used up or becomes two changes the list in one cycle more.
        return start, 1 if len(rest) == 1 else 2

    def _free(self, command: Command) -> Answer:
        if command.area not in self.held:
            return Answer(command.area, refused=True)
        offset, size = self.held.pop(command.area)
        if self.mode == Mode.STATIC or not size:
            return Answer(command.area)
        after = [index for index, extent in enumerate(self.free) if extent[0] > offset]
        index = after[0] if after else len(self.free)
        walked = index + bool(after)
        before = index > 0 and sum(self.free[index - 1]) == offset
        behind = bool(after) and offset + size == self.free[index][0]
        low, high = index - before, index + behind
        extents = [(offset, size), *self.free[low:high]]
        self.free[low:high] = [(min(extents)[0], sum(extent[1] for extent in extents))]
        # Two links change where three extents become one, and where one enters behind another.
        more = (before and behind) or (not before and not behind and index > 0)
        return Answer(command.area, cycles=2 + walked + more)
