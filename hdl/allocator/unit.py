# SPDX-License-Identifier: Apache-2.0
"""The allocation unit of a tile: areas of a memory by the compiler's plan or from a free list."""

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.allocator.extents import FreeExtents
from hdl.allocator.ports import Mode, Op, answer_layout, command_layout
from hdl.counter import count


class Allocator(wiring.Component):
    """Carries out the commands of `emu.allocator` one after another, with an answer to each.

    Latency: the answer to a command taken in cycle t is valid in cycle t + 1 + n, where n is

    - 1 for BEGIN, PLAN, all that is refused, all in the mode STATIC, and FREE of a spilled area;
    - for ALLOCATE 1 + the extents looked at (up to the first with room; in the mode BEST_FIT all,
      or up to an exact fit) + 1 if there is room, + 1 more if its extent is then gone or in two;
    - for FREE 2 + the extents looked at (up to the first behind the area), + 1 more if three
      extents become one, or if a new one enters the list behind another.

    Throughput: the next command is taken in the cycle after the answer. Counters: ``cycles`` (the
    sum of n), ``allocations``, ``spills``, ``spilled_words``.

    A plan is trusted but for the memory's end: that its areas do not overlap is for the compiler.

    Parameters
    ----------
    words: The largest memory's.
    areas: How many may be held at once; their numbers are below it.

    Members
    -------
    command: Stream of `command_layout`.
    answer: Stream of `answer_layout`, in order.
    high_water: End of the highest area since BEGIN.
    error: Sticky: a command was refused.

    Raises
    ------
    ValueError: If ``words`` or ``areas`` is not a power of two, at least 2.
    """

    def __init__(self, words: int, areas: int):
        for name, value in (("words", words), ("areas", areas)):
            if value < 2 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, at least 2, not {value!r}")
        self._words, self._areas = words, areas
        super().__init__({
            "command": In(stream.Signature(command_layout(words, areas))),
            "answer": Out(stream.Signature(answer_layout(words, areas))),
            "high_water": Out(range(words + 1)),
            "error": Out(1),
        })

    @property
    def words(self) -> int:
        return self._words

    @property
    def areas(self) -> int:
        return self._areas

    def elaborate(self, platform):
        m = Module()
        m.submodules.extents = extents = FreeExtents(self._words, self._areas + 1)
        command, mode = Signal(command_layout(self._words, self._areas)), Signal(Mode)
        areas = _Areas(m, self._words, self._areas, command.area)
        act = _Outcome(self._words)
        size, end = Signal(range(2 * self._words)), Signal(range(2 * self._words))
        busy = Signal()
        m.d.comb += [
            size.eq(Mux(mode == Mode.POWER_OF_TWO, _rounded(m, command.words), command.words)),
            end.eq(act.offset + size),
            extents.need.eq(size),
            extents.best.eq(mode == Mode.BEST_FIT),
            extents.aligned.eq(mode == Mode.POWER_OF_TWO),
            extents.capacity.eq(command.words),
            extents.offset.eq(areas.now.offset),
            extents.words.eq(areas.now.words),
            areas.hold.eq(act.placed | act.spilled),
            areas.then.offset.eq(act.offset),
            areas.then.words.eq(Mux(act.placed, size, 0)),
        ]
        with m.FSM(name="step"):
            with m.State("IDLE"):
                m.d.comb += self.command.ready.eq(~self.answer.valid)
                with m.If(self.command.valid & self.command.ready):
                    m.d.sync += command.eq(self.command.payload)
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [busy.eq(1), act.done.eq(1)]
                self._start(m, command, mode, areas, extents, act)
                m.next = "IDLE"
                with m.If(~act.done):
                    m.next = "SEARCH"
            with m.State("SEARCH"):
                allocating = extents.done & (command.op == Op.ALLOCATE)
                m.d.comb += [
                    busy.eq(1), act.done.eq(extents.done), act.offset.eq(extents.found_offset),
                    act.placed.eq(allocating & extents.found),
                    act.spilled.eq(allocating & ~extents.found),
                ]
                with m.If(extents.done):
                    m.next = "IDLE"
        self._answer(m, command, act)
        with m.If(act.placed & (end > self.high_water)):
            m.d.sync += self.high_water.eq(end)
        count(m, "cycles", busy)
        count(m, "allocations", act.placed)
        count(m, "spills", act.spilled)
        count(m, "spilled_words", Mux(act.spilled, command.words, 0))
        return m

    def _start(self, m, command, mode, areas, extents, act):
        """Do what needs no search, or ask for one: the command is then not done."""
        capacity = Signal(range(self._words + 1))
        possible = Signal()
        m.d.comb += possible.eq((command.words != 0) & (command.words <= self._words))
        with m.Switch(command.op):
            with m.Case(Op.BEGIN):
                m.d.comb += [act.refused.eq(~possible), extents.begin.eq(possible)]
                m.d.comb += areas.clear.eq(possible)
                with m.If(possible):
                    m.d.sync += [
                        mode.eq(command.mode), capacity.eq(command.words), self.high_water.eq(0),
                    ]
            with m.Case(Op.PLAN):
                m.d.comb += [
                    areas.plan.eq(1), areas.planned.offset.eq(command.offset),
                    areas.planned.spilled.eq(command.spilled),
                ]
            with m.Case(Op.ALLOCATE):
                planned = areas.planned_now
                with m.If(areas.held | ~possible):
                    m.d.comb += act.refused.eq(1)
                with m.Elif(mode == Mode.STATIC):
                    fits = planned.offset + command.words <= capacity
                    m.d.comb += [
                        act.offset.eq(planned.offset),
                        act.spilled.eq(areas.is_planned & planned.spilled),
                        act.placed.eq(areas.is_planned & ~planned.spilled & fits),
                        act.refused.eq(~act.spilled & ~act.placed),
                    ]
                with m.Elif(extents.empty):
                    m.d.comb += act.spilled.eq(1)
                with m.Else():
                    m.d.comb += [extents.allocate.eq(1), act.done.eq(0)]
            with m.Case(Op.FREE):
                m.d.comb += [act.refused.eq(~areas.held), areas.drop.eq(areas.held)]
                with m.If(areas.held & (mode != Mode.STATIC) & (areas.now.words != 0)):
                    m.d.comb += [extents.release.eq(1), act.done.eq(0)]

    def _answer(self, m, command, act):
        answer = self.answer.payload
        with m.If(self.answer.ready):
            m.d.sync += self.answer.valid.eq(0)
        with m.If(act.done):
            m.d.sync += [
                self.answer.valid.eq(1), answer.area.eq(command.area),
                answer.offset.eq(Mux(act.placed, act.offset, 0)),
                answer.spilled.eq(act.spilled), answer.refused.eq(act.refused),
            ]
        with m.If(act.refused):
            m.d.sync += self.error.eq(1)


def _rounded(m, words):
    """The least power of two that is not below ``words``, which is not 0."""
    found = Signal(len(words))
    below = words - 1
    m.d.comb += found.eq(1)
    for bit in range(len(words) - 1):
        with m.If(below[bit]):
            m.d.comb += found.eq(1 << bit + 1)
    return found


class _Outcome:
    """What becomes of the command in this cycle."""

    def __init__(self, words: int):
        self.offset = Signal(range(words), name="outcome_offset")
        self.placed, self.spilled, self.refused, self.done = (
            Signal(name=f"outcome_{name}") for name in ("placed", "spilled", "refused", "done"))


class _Areas:
    """Of each number the area that it holds (0 words: it is spilled) and the one planned for it.

    ``now`` and ``planned_now`` are of ``area``, as are the changes ``hold``, ``drop``, ``plan``.
    """

    def __init__(self, m: Module, words: int, areas: int, area):
        place = data.StructLayout({"offset": range(words), "words": range(words + 1)})
        choice = data.StructLayout({"offset": range(words), "spilled": 1})
        self.hold, self.drop, self.plan, self.clear = (
            Signal(name=f"areas_{name}") for name in ("hold", "drop", "plan", "clear"))
        self.then, self.planned = Signal(place), Signal(choice)
        self.now, self.held = self._table(m, "places", areas, area, self.then, self.hold)
        self.planned_now, self.is_planned = self._table(
            m, "plans", areas, area, self.planned, self.plan)

    def _table(self, m, name, depth, index, value, write):
        """A memory and a bit an entry that says whether it holds anything: (entry, bit)."""
        m.submodules[name] = memory = Memory(shape=value.shape(), depth=depth, init=[])
        put, read = memory.write_port(), memory.read_port(domain="comb")
        known = Signal(depth, name=f"{name}_known")
        mask = Const(1, depth) << index
        m.d.comb += [put.addr.eq(index), put.data.eq(value), put.en.eq(write), read.addr.eq(index)]
        with m.If(write):
            m.d.sync += known.eq(known | mask)
        with m.If(self.clear):
            m.d.sync += known.eq(0)
        if name == "places":
            with m.If(self.drop):
                m.d.sync += known.eq(known & ~mask)
        return read.data, known.bit_select(index, 1)
