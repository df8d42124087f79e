# SPDX-License-Identifier: Apache-2.0
"""Memory planning: tensors with a size and a lifetime get offsets in one memory.

Two tensors whose lifetimes meet must not overlap. The least memory that can do is at least the most
that lives at one time (`lower_bound`); to find the least is dynamic storage allocation, NP-hard in
general. The strategies are those of compilers for small memories: in order of birth (first fit,
best fit), by size ("greedy by size", Pisarchyk and Lee, "Efficient Memory Management for Deep
Neural Net Inference", 2020), blocks of powers of two (a buddy allocator's sizes), and a search.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from emu.errors import UserError

NODES = 1_000
"""Placements that `exact` tries before it gives up its proof."""


@dataclass(frozen=True)
class Item:
    """``size`` words that are needed from step ``first`` to step ``last``, both included."""

    name: str
    size: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.size < 0 or self.first > self.last:
            raise ValueError(f"{self.name}: size {self.size}, steps {self.first} to {self.last}")

    def meets(self, other: "Item") -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Placement:
    """Offsets in the order of the items.

    high_water: The end of the highest item. proven: No placement has less.
    """

    strategy: str
    offsets: tuple[int, ...]
    high_water: int
    proven: bool


def lower_bound(items: Sequence[Item]) -> int:
    """Most words that live in one step."""
    steps = {item.first for item in items}
    return max((sum(i.size for i in items if i.first <= s <= i.last) for s in steps), default=0)


def _gaps(items: Sequence[Item], offsets: dict[int, int], new: Item) -> Iterator[tuple[int, int]]:
    """(offset, size) of what is free while ``new`` lives; the last gap has no end: size -1."""
    taken = sorted((at, at + items[k].size) for k, at in offsets.items() if items[k].meets(new))
    end = 0
    for low, high in taken:
        if low > end:
            yield end, low - end
        end = max(end, high)
    yield end, -1


def _first_gap(items, offsets, new: Item) -> int:
    return next(at for at, size in _gaps(items, offsets, new) if size < 0 or size >= new.size)


def _best_gap(items, offsets, new: Item) -> int:
    fits = [(size if size >= 0 else float("inf"), at)
            for at, size in _gaps(items, offsets, new) if size < 0 or size >= new.size]
    return min(fits)[1]


def _in_order(items: Sequence[Item], order: Sequence[int], gap: Callable) -> tuple[int, ...]:
    offsets: dict[int, int] = {}
    for k in order:
        offsets[k] = gap(items, offsets, items[k])
    return tuple(offsets[k] for k in range(len(items)))


def _births(items: Sequence[Item]) -> list[int]:
    return sorted(range(len(items)), key=lambda k: (items[k].first, k))


def _sizes(items: Sequence[Item]) -> list[int]:
    return sorted(range(len(items)), key=lambda k: (-items[k].size, items[k].first, k))


def _none(items: Sequence[Item]) -> tuple[int, ...]:
    ends = [0]
    for item in items:
        ends.append(ends[-1] + item.size)
    return tuple(ends[:-1])


def _first_fit(items: Sequence[Item]) -> tuple[int, ...]:
    return _in_order(items, _births(items), _first_gap)


def _best_fit(items: Sequence[Item]) -> tuple[int, ...]:
    return _in_order(items, _births(items), _best_gap)


def _greedy_by_size(items: Sequence[Item]) -> tuple[int, ...]:
    return _in_order(items, _sizes(items), _first_gap)


def _power_of_two(items: Sequence[Item]) -> tuple[int, ...]:
    """First fit of blocks of powers of two at multiples of their size."""
    blocks = [Item(i.name, 1 << (i.size - 1).bit_length() if i.size else 0, i.first, i.last)
              for i in items]

    def aligned(items, offsets, new: Item) -> int:
        for at, size in _gaps(items, offsets, new):
            start = -(-at // new.size) * new.size if new.size else at
            if size < 0 or start + new.size <= at + size:
                return start
        raise AssertionError("the last gap has no end")

    return _in_order(blocks, _births(blocks), aligned)


def _high(items: Sequence[Item], offsets: Sequence[int]) -> int:
    return max((at + item.size for at, item in zip(offsets, items, strict=True)), default=0)


def _exact(items: Sequence[Item]) -> tuple[tuple[int, ...], bool]:
    """(offsets, whether they are proven to be least).

    In some best placement no item can be lowered, so placing items in order of their offsets, each
    as low as it can be, finds one. The search tries these orders, best first, and cuts off where an
    item that is not yet placed cannot end below the best found.
    """
    bound = lower_bound(items)
    best = min((strategy(items) for strategy in STRATEGIES.values()),
               key=lambda offsets: _high(items, offsets))
    least, nodes = _high(items, best), 0
    if least == bound:
        return best, True

    def search(offsets: dict[int, int], floor: int) -> bool:
        """Whether all orders that begin like this were tried."""
        nonlocal best, least, nodes
        if len(offsets) == len(items):
            found = tuple(offsets[k] for k in range(len(items)))
            if _high(items, found) < least:
                best, least = found, _high(items, found)
            return True
        lowest = {k: max(floor, _first_gap(items, offsets, items[k]))
                  for k in range(len(items)) if k not in offsets}
        # What must lie above the floor must fit below the best found.
        if any(at + items[k].size >= least for k, at in lowest.items()):
            return True
        complete = True
        for k in sorted(lowest, key=lambda k: (lowest[k], -items[k].size)):
            if least == bound:
                return True
            nodes += 1
            if nodes > NODES:
                return False
            at = _first_gap(items, offsets, items[k])
            if at >= floor:
                complete &= search({**offsets, k: at}, at)
        return complete

    proven = search({}, 0)
    return best, proven or least == bound


STRATEGIES: dict[str, Callable[[Sequence[Item]], tuple[int, ...]]] = {
    "none": _none, "first_fit": _first_fit, "best_fit": _best_fit,
    "greedy_by_size": _greedy_by_size, "power_of_two": _power_of_two,
}
NAMES = (*STRATEGIES, "exact")


def place(items: Sequence[Item], strategy: str = "greedy_by_size") -> Placement:
    """Offsets for ``items``.

    Raises
    ------
    UserError
        If there is no such strategy.
    """
    if strategy == "exact":
        offsets, proven = _exact(items)
    elif strategy in STRATEGIES:
        offsets = STRATEGIES[strategy](items)
        proven = _high(items, offsets) == lower_bound(items)
    else:
        raise UserError(f"strategy {strategy}: must be one of {', '.join(NAMES)}")
    return Placement(strategy, offsets, _high(items, offsets), proven)
