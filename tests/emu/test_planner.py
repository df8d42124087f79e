# SPDX-License-Identifier: Apache-2.0
"""Memory planner: nothing overlaps, bounds hold, the search finds what exhaustion finds."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.errors import UserError
from emu.planner import NAMES, Item, lower_bound, place

ITEMS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 8), st.integers(0, 8)), max_size=12
).map(lambda rows: [Item(f"t{k}", size, min(a, b), max(a, b))
                    for k, (size, a, b) in enumerate(rows)])


def overlapping(items, offsets):
    return [
        (a.name, b.name)
        for (k, a), (j, b) in ((x, y) for x in enumerate(items) for y in enumerate(items))
        if k < j and a.size and b.size and a.meets(b)
        and offsets[k] < offsets[j] + b.size and offsets[j] < offsets[k] + a.size
    ]


@given(ITEMS)
@settings(max_examples=150, deadline=None)
def test_nothing_overlaps_and_bounds_hold(items):
    found = {name: place(items, name) for name in NAMES}
    bound = lower_bound(items)
    for placement in found.values():
        assert not overlapping(items, placement.offsets)
        assert placement.high_water >= bound
        assert placement.high_water == max(
            (at + item.size for at, item in zip(placement.offsets, items, strict=True)), default=0)
    least = found["exact"].high_water
    assert all(least <= placement.high_water for placement in found.values())
    assert found["none"].high_water == sum(item.size for item in items)


@given(ITEMS.filter(lambda items: len(items) <= 6))
@settings(max_examples=60, deadline=None)
def test_the_search_is_exhaustive(items):
    """Every order, each item as low as it can be: nothing is below what the search proves."""
    found = place(items, "exact")
    best = sum(item.size for item in items)
    for order in permutations(range(len(items))):
        offsets: dict[int, int] = {}
        for k in order:
            at = 0
            for j in sorted(offsets, key=lambda j: offsets[j]):
                if items[j].meets(items[k]) and offsets[j] < at + items[k].size:
                    at = max(at, offsets[j] + items[j].size)
            offsets[k] = at
        best = min(best, max((offsets[k] + items[k].size for k in offsets), default=0))
    assert found.proven and found.high_water == best


def test_a_case_where_order_of_birth_wastes():
    """A small tensor that outlives its neighbour splits the memory for one as large as both."""
    items = [Item("a", 4, 0, 1), Item("b", 2, 0, 3), Item("c", 6, 2, 3)]
    assert place(items, "first_fit").high_water == 12
    assert place(items, "exact").high_water == lower_bound(items) == 8
    assert place(items, "exact").proven


def test_power_of_two_blocks_are_aligned():
    items = [Item("a", 3, 0, 5), Item("b", 5, 0, 5), Item("c", 1, 0, 5)]
    placement = place(items, "power_of_two")
    assert placement.offsets == (0, 8, 4) and placement.high_water == 13


def test_unknown_strategy_and_impossible_items():
    with pytest.raises(UserError, match="must be one of none, first_fit"):
        place([], "best")
    with pytest.raises(ValueError, match="steps 3 to 2"):
        Item("x", 1, 3, 2)
