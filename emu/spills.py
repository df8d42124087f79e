# SPDX-License-Identifier: Apache-2.0
"""Planning within a memory that may be too small: what does not fit is spilled.

What is spilled costs its traffic: its size, once for the write and once for each read. Which items
to spill and where to place the others so that the cost is least is harder still than placing all of
them; the search here says when it has proof.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from emu.errors import UserError
from emu.planner import Item, lower_bound, place

TRIES = 200
"""Orders that the search tries beyond those that it begins with."""
STRATEGIES = ("none", "greedy_by_size", "exact")


@dataclass(frozen=True)
class Plan:
    """Offsets in the order of the items, None where an item is spilled.

    high_water: End of the highest item. cost: Of what is spilled. proven: No plan costs less.
    """

    strategy: str
    offsets: tuple[int | None, ...]
    high_water: int
    cost: int
    proven: bool


def spill_bound(items: Sequence[Item], reads: Sequence[int], capacity: int) -> int:
    """What any plan must spill, as cost.

    In each step what lives beyond ``capacity`` is spilled, cheapest first and as if items could be
    cut. Steps that no item lives through both of add up.
    """
    best: list[tuple[int, float]] = [(-1, 0.0)]
    for step in sorted({item.first for item in items}):
        alive = [(count + 1, item) for item, count in zip(items, reads, strict=True)
                 if item.first <= step <= item.last]
        excess, cost = sum(item.size for _, item in alive) - capacity, 0.0
        for weight, item in sorted(alive, key=lambda pair: pair[0]):
            cost += weight * min(item.size, max(0, excess))
            excess -= item.size
        born = min(item.first for _, item in alive)
        before = max(total for at, total in best if at < born)
        best.append((step, max(best[-1][1], before + cost)))
    return round(best[-1][1])


def _neighbours(items: Sequence[Item]) -> list[list[int]]:
    return [[j for j, other in enumerate(items) if j != k and item.meets(other)]
            for k, item in enumerate(items)]


def _fit(
    items: Sequence[Item], meets: Sequence[Sequence[int]], order: Sequence[int], capacity: int,
    best: bool = False,
) -> list[int | None]:
    """Each item in ``order`` in the first gap, or the ``best``; spilled if none has room."""
    offsets: list[int | None] = [None] * len(items)
    for k in order:
        size = items[k].size
        taken = sorted((at, at + items[j].size) for j in meets[k]
                       if (at := offsets[j]) is not None)
        end, fits = 0, []
        for low, high in [*taken, (capacity, capacity)]:
            if low - end >= size:
                fits.append((low - end, end))
                if not best:
                    break
            end = max(end, high)
        if fits:
            offsets[k] = min(fits)[1]
    return offsets


def _without_reuse(items: Sequence[Item], capacity: int) -> list[int | None]:
    offsets: list[int | None] = []
    end = 0
    for item in items:
        fits = end + item.size <= capacity
        offsets.append(end if fits else None)
        end += item.size if fits else 0
    return offsets


def _search(items, reads, capacity: int, bound: int) -> list[int | None]:
    """The cheapest of several orders, and of orders near the best found.

    One of them, by birth into the best gap, is what an online allocator does: the search never
    costs more.
    """
    meets, rng = _neighbours(items), random.Random(0)
    everything = range(len(items))

    def steps(k: int) -> int:
        return items[k].last - items[k].first + 1

    def cost(offsets) -> int:
        return _cost(items, reads, offsets)

    orders = [
        sorted(everything, key=key) for key in (
            lambda k: -items[k].size, lambda k: items[k].first, lambda k: items[k].size,
            steps, lambda k: -(reads[k] + 1), lambda k: -(reads[k] + 1) / steps(k),
        )
    ]
    found = [(_fit(items, meets, order, capacity, best), order, best)
             for order in orders for best in (False, True)]
    offsets, order, best = min(found, key=lambda each: cost(each[0]))
    for _ in range(TRIES):
        spilled = [k for k in everything if offsets[k] is None]
        if cost(offsets) <= bound or not spilled:
            break
        # A spilled item and another one come earlier or later.
        new = list(order)
        for k in (rng.choice(spilled), rng.randrange(len(items))):
            new.remove(k)
            new.insert(rng.randrange(len(items)), k)
        tried = _fit(items, meets, new, capacity, best)
        if cost(tried) <= cost(offsets):
            offsets, order = tried, new
    return offsets


def _cost(items, reads, offsets) -> int:
    return sum((count + 1) * item.size for item, count, at in zip(
        items, reads, offsets, strict=True) if at is None)


def plan_within(
    items: Sequence[Item], reads: Sequence[int], capacity: int, strategy: str = "greedy_by_size",
) -> Plan:
    """Offsets below ``capacity``, or spills. ``exact`` is the planner's if all fits.

    Raises
    ------
    UserError
        If there is no such strategy.
    """
    bound = spill_bound(items, reads, capacity)
    offsets: Sequence[int | None]
    if strategy == "none":
        offsets = _without_reuse(items, capacity)
    elif strategy == "greedy_by_size":
        order = sorted(range(len(items)), key=lambda k: (-items[k].size, items[k].first, k))
        offsets = _fit(items, _neighbours(items), order, capacity)
    elif strategy == "exact":
        whole = place(items, "exact") if lower_bound(items) <= capacity else None
        fits = whole is not None and whole.high_water <= capacity
        offsets = whole.offsets if whole and fits else _search(items, reads, capacity, bound)
    else:
        raise UserError(f"strategy {strategy}: must be one of {', '.join(STRATEGIES)}")
    high = max((at + item.size for at, item in zip(offsets, items, strict=True)
                if at is not None), default=0)
    cost = _cost(items, reads, offsets)
    return Plan(strategy, tuple(offsets), high, cost, cost == bound)
