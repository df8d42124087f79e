# SPDX-License-Identifier: Apache-2.0
"""Allocation unit without a clock: nothing overlaps, all is joined, the planner agrees."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.allocator import Allocator, Command, Mode, Op, rounded
from emu.planner import Item, lower_bound, place

ONLINE = {Mode.FIRST_FIT: "first_fit", Mode.BEST_FIT: "best_fit",
          Mode.POWER_OF_TWO: "power_of_two"}
ITEMS = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=16
).map(lambda rows: [Item(f"t{k}", size, min(a, b), max(a, b))
                    for k, (size, a, b) in enumerate(rows)])


def played(unit, items):
    """``items`` step by step: those that died before a step are freed in it first."""
    answers = {}
    for step in range(10):
        for k, item in enumerate(items):
            if item.last == step - 1:
                assert not unit.execute(Command(Op.FREE, k)).refused
        for k, item in enumerate(items):
            if item.first == step:
                answers[k] = unit.execute(Command(Op.ALLOCATE, k, item.size))
    return [answers[k] for k in range(len(items))]


@pytest.mark.parametrize("mode", ONLINE)
@given(ITEMS)
@settings(max_examples=100, deadline=None)
def test_online_modes_are_the_planners_strategies(mode, items):
    """Freed before a step's births, areas lie where the planner puts them in order of birth."""
    unit = Allocator(1024, 16)
    unit.execute(Command(Op.BEGIN, words=1024, mode=mode))
    answers = played(unit, items)
    placement = place(items, ONLINE[mode])
    assert tuple(answer.offset for answer in answers) == placement.offsets
    assert not unit.counters.spills and not unit.error
    assert unit.free == [(0, 1024)]
    if mode != Mode.POWER_OF_TWO:
        assert unit.counters.high_water == placement.high_water >= lower_bound(items)


@pytest.mark.parametrize("mode", ONLINE)
@given(st.integers(8, 64), st.lists(st.tuples(st.integers(0, 7), st.integers(1, 30)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_extents_are_the_gaps(mode, capacity, pairs):
    """What is free is exactly what no area holds, in as few extents as can be."""
    unit = Allocator(64, 8)
    unit.execute(Command(Op.BEGIN, words=capacity, mode=mode))
    for area, words in pairs:
        if area in unit.held:
            unit.execute(Command(Op.FREE, area))
        else:
            answer = unit.execute(Command(Op.ALLOCATE, area, words))
            need = rounded(words) if mode == Mode.POWER_OF_TWO else words
            if answer.spilled:
                starts = range(0, capacity, need if mode == Mode.POWER_OF_TWO else 1)
                assert not any(at + need <= offset + size and at >= offset
                               for offset, size in unit.free for at in starts)
            else:
                assert unit.held[area] == (answer.offset, need)
        taken = sorted(place for place in unit.held.values() if place[1])
        at, gaps = 0, []
        for offset, size in [*taken, (capacity, 0)]:
            assert offset >= at
            gaps += [(at, offset - at)] if offset > at else []
            at = offset + size
        assert unit.free == gaps


def test_best_fit_where_first_fit_wastes():
    def fills(mode):
        unit = Allocator(16, 8)
        return unit.play([
            Command(Op.BEGIN, words=16, mode=mode),
            *(Command(Op.ALLOCATE, k, words) for k, words in enumerate((6, 2, 3, 5))),
            Command(Op.FREE, 0), Command(Op.FREE, 2),
            Command(Op.ALLOCATE, 4, 3), Command(Op.ALLOCATE, 5, 6),
        ])[-1].spilled

    assert fills(Mode.FIRST_FIT) and not fills(Mode.BEST_FIT)


def test_a_plan_is_followed_and_bounded():
    unit = Allocator(16, 4)
    answers = unit.play([
        Command(Op.BEGIN, words=12, mode=Mode.STATIC),
        Command(Op.PLAN, 1, offset=8), Command(Op.PLAN, 2, spilled=True),
        Command(Op.ALLOCATE, 1, 4), Command(Op.ALLOCATE, 2, 40), Command(Op.ALLOCATE, 2, 16),
        Command(Op.FREE, 1), Command(Op.ALLOCATE, 1, 5), Command(Op.ALLOCATE, 3, 1),
    ])
    assert [answer.refused for answer in answers] == [False] * 4 + [True, False, False, True, True]
    assert answers[3].offset == 8 and answers[5].spilled and unit.error
    assert unit.counters.high_water == 12 and unit.counters.spilled_words == 16
    assert all(answer.cycles == 1 for answer in answers)
