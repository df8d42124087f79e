# SPDX-License-Identifier: Apache-2.0
"""Planning within a fixed memory: nothing overlaps, bounds hold, the search never does worse."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.allocator import Allocator, Command, Mode, Op
from emu.errors import UserError
from emu.planner import Item, lower_bound
from emu.spills import STRATEGIES, plan_within, spill_bound

ROWS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 7), st.integers(0, 7),
                          st.integers(0, 4)), min_size=1, max_size=9)


def made(rows):
    """In order of birth, as programs allocate."""
    rows = sorted(rows, key=lambda row: min(row[1:3]))
    items = [Item(f"t{k}", size, min(a, b), max(a, b)) for k, (size, a, b, _) in enumerate(rows)]
    return items, [row[3] for row in rows]


def online(items, reads, capacity, mode):
    """Cost of what an allocator spills that takes items as they come."""
    unit, cost = Allocator(256, 16), 0
    unit.execute(Command(Op.BEGIN, words=capacity, mode=mode))
    for step in range(9):
        for k, item in enumerate(items):
            if item.last == step - 1:
                unit.execute(Command(Op.FREE, k))
        for k, item in enumerate(items):
            if item.first == step and unit.execute(Command(Op.ALLOCATE, k, item.size)).spilled:
                cost += (reads[k] + 1) * item.size
    return cost


@given(ROWS, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_plans_are_possible_and_bounds_hold(rows, capacity):
    items, reads = made(rows)
    bound = spill_bound(items, reads, capacity)
    plans = {name: plan_within(items, reads, capacity, name) for name in STRATEGIES}
    for plan in plans.values():
        kept = [(item, at) for item, at in zip(items, plan.offsets, strict=True) if at is not None]
        for (a, x), (b, y) in combinations(kept, 2):
            assert not a.meets(b) or x + a.size <= y or y + b.size <= x
        assert plan.high_water <= capacity and plan.cost >= bound
        assert plan.proven == (plan.cost == bound)
    assert all(plans["exact"].cost <= plan.cost for plan in plans.values())
    for mode in (Mode.FIRST_FIT, Mode.BEST_FIT):
        assert plans["exact"].cost <= online(items, reads, capacity, mode)
    if capacity >= sum(item.size for item in items):
        assert not any(plan.cost for plan in plans.values())


@given(ROWS, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_no_choice_of_items_to_spill_is_below_the_bound(rows, capacity):
    """Each choice that leaves no step with more than fits costs at least the bound."""
    items, reads = made(rows)
    bound = spill_bound(items, reads, capacity)
    for chosen in range(1 << len(items)):
        kept = [item for k, item in enumerate(items) if not chosen >> k & 1]
        if lower_bound(kept) <= capacity:
            assert bound <= sum((reads[k] + 1) * item.size for k, item in enumerate(items)
                                if chosen >> k & 1)


def test_unknown_strategy():
    with pytest.raises(UserError, match="must be one of none, greedy_by_size, exact"):
        plan_within([], [], 8, "first_fit")
