# SPDX-License-Identifier: Apache-2.0
"""The storage tier without a clock: a decode's page references, what a cache makes of them.

References are synthetic: layers in order, experts and rows of an embedding table drawn by Zipf's
law. Their models are exact where nothing depends on time: which pages are fetched on demand, the
fewest that any cache could fetch, when a device answers, what is stored in the end.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emu.config import Storage
from emu.errors import UserError

WRITTEN_WORDS = 16
"""Words at the start of a page that a writing use changes."""
RECENT_PAGES = 8
"""Pages that a pager knows without a lookup."""
CHANGE = 0x9E3779B9
"""Their 32-bit parts are XORed with this times the reference's number, from 1 on."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """Pages of a layer that are used in order, see `hdl.storage.packets.Region`."""

    first: int
    pages: int
    child: int = 0
    frequency: int = 255
    optional: bool = False
    scattered: bool = False


@dataclass(frozen=True, kw_only=True)
class Decode:
    """A decode of ``tokens`` tokens: the shape of the network and how its choices are drawn.

    Each layer has ``dense`` pages of weights, ``cache`` pages of keys and values of which the last
    is written, and ``experts`` experts of ``expert_pages`` pages, ``chosen`` of them used. The
    first pages are a table of embeddings, of which a token uses ``rows``. Expert and row of rank r
    are drawn with a weight of (r + 1) ** -``zipf``.
    """

    layers: int = 8
    dense: int = 32
    cache: int = 2
    experts: int = 8
    expert_pages: int = 8
    chosen: int = 2
    table: int = 240
    rows: int = 4
    tokens: int = 4
    zipf: float = 1.0
    seed: int = 1

    @property
    def pages(self) -> int:
        return self.table + self.layers * (
            self.dense + self.cache + self.experts * self.expert_pages)


@dataclass(frozen=True)
class References:
    """What a decode asks for, in order. ``last``: the last reference of a token."""

    page: NDArray[np.int64]
    region: NDArray[np.int64]
    write: NDArray[np.bool_]
    last: NDArray[np.bool_]
    regions: tuple[Region, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.page)


PROFILED_TOKENS = 256
"""Tokens of a profile, drawn with another seed, that regions' frequencies come from."""


def _popularity(shape: Decode) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Probabilities of the table's pages and of each layer's experts: the model's own, no seed."""
    rng = np.random.default_rng(2026)

    def weights(count: int) -> NDArray[np.float64]:
        ranks = (np.arange(count) + 1.0) ** -shape.zipf
        return rng.permutation(ranks / ranks.sum()) if count else np.zeros(0)

    return weights(shape.table), [weights(shape.experts) for _ in range(shape.layers)]


def _choices(shape: Decode, tokens: int, rng) -> NDArray[np.int64]:
    """Experts by token and layer, ascending."""
    popular = _popularity(shape)[1]
    if not shape.chosen:
        return np.zeros((tokens, shape.layers, 0), np.int64)
    return np.array([
        [np.sort(rng.choice(shape.experts, shape.chosen, replace=False, p=popular[layer]))
         for layer in range(shape.layers)] for _ in range(tokens)
    ], np.int64).reshape(tokens, shape.layers, shape.chosen)


def _regions(shape: Decode) -> tuple[Region, ...]:
    """The stream order: table, then of each layer weights, keys and values, all experts."""
    drawn = _choices(shape, PROFILED_TOKENS, np.random.default_rng(shape.seed + 1_000_003))
    plan: list[dict] = []
    if shape.table:
        plan.append({"pages": shape.table, "scattered": True})
    for layer in range(shape.layers):
        plan.append({"pages": shape.dense})
        if shape.cache:
            plan.append({"pages": shape.cache})
        for expert in range(shape.experts):
            share = (drawn[:, layer] == expert).any(axis=1).mean() if shape.chosen else 0
            plan.append({"pages": shape.expert_pages, "optional": True,
                         "frequency": round(255 * float(share))})
    firsts = np.cumsum([0, *(item["pages"] for item in plan)])
    return tuple(Region(first=int(firsts[i]), child=(i + 1) % len(plan), **item)
                 for i, item in enumerate(plan))


def decode(shape: Decode) -> References:
    """The references of a decode.

    Raises
    ------
    UserError: If an expert must be chosen of none, or a size is negative.
    """
    if min(shape.layers, shape.dense, shape.tokens) < 1 or min(
            shape.cache, shape.experts, shape.table, shape.rows, shape.expert_pages) < 0:
        raise UserError("a decode needs at least one layer, one page of weights and one token")
    if shape.chosen > shape.experts:
        raise UserError(f"chosen {shape.chosen}: there are {shape.experts} experts")
    regions, rng = _regions(shape), np.random.default_rng(shape.seed)
    rows = _popularity(shape)[0]
    chosen = _choices(shape, shape.tokens, rng)
    found: list[tuple[int, int, bool, bool]] = []

    def use(number: int, write_last: bool = False) -> None:
        region = regions[number]
        found.extend((region.first + i, number, write_last and i == region.pages - 1, False)
                     for i in range(region.pages))

    head, step = bool(shape.table), 1 + bool(shape.cache) + shape.experts
    for token in range(shape.tokens):
        if shape.table:
            found.extend((int(page), 0, False, False)
                         for page in rng.choice(shape.table, shape.rows, p=rows))
        for layer in range(shape.layers):
            first = head + layer * step
            use(first)
            if shape.cache:
                use(first + 1, write_last=True)
            for expert in chosen[token, layer]:
                use(first + 1 + bool(shape.cache) + int(expert))
        found[-1] = (*found[-1][:3], True)
    page, region, write, last = (np.array(column) for column in zip(*found, strict=True))
    return References(page.astype(np.int64), region.astype(np.int64), write.astype(np.bool_),
                      last.astype(np.bool_), regions)


@dataclass(frozen=True)
class Transfers:
    """Pages moved between storage and a cache; ``flushed`` are written back after the end."""

    fills: int
    evictions: int
    write_backs: int
    flushed: int


def random_numbers() -> Iterator[int]:
    """What the page cache draws frames from: a 16-bit xorshift register (G. Marsaglia, 2003)."""
    state = 1
    while True:
        state ^= state << 7 & 0xFFFF
        state ^= state >> 9
        state ^= state << 8 & 0xFFFF
        yield state


def demand_cache(references: References, frames: int, replacement: str = "ring") -> Transfers:
    """What the page cache does under policy ``demand``."""
    pages: list[int] = []
    dirty: dict[int, bool] = {}
    numbers, victim = random_numbers(), 0
    fills = evictions = write_backs = 0
    for page, write in zip(references.page.tolist(), references.write.tolist(), strict=True):
        if page not in dirty:
            fills += 1
            number = next(numbers)
            if len(pages) == frames:
                evictions += 1
                write_backs += dirty.pop(pages[victim])
                pages[victim] = page
            else:
                pages.append(page)
            dirty[page] = False
            # The next frame is chosen after the fetch.
            random = replacement == "random" and len(pages) == frames
            victim = number * frames >> 16 if random else fills % frames
        dirty[page] |= write
    return Transfers(fills, evictions, write_backs, sum(dirty.values()))


def pager_cache(pages: Sequence[int], frames: int) -> Transfers:
    """What a pager's cache does (`hdl.storage.pager`) under policy ``demand`` when it is asked for
    one of ``pages`` after the other.

    The last `RECENT_PAGES` pages that were looked up are known without a lookup. Frames of the last
    few of them, a quarter of all, are passed over for the ring's next.
    """
    held: list[int | None] = [None] * frames
    recent: deque[int | None] = deque(maxlen=RECENT_PAGES)  # frames, the newest last
    victim = fills = evictions = 0
    for page in pages:
        if any(frame is not None and held[frame] == page for frame in recent):
            continue
        if page in held:
            recent.append(held.index(page))
            continue
        kept = list(recent)[-(frames // 4) :] if frames >= 4 else []
        while held[victim] is not None and victim in kept:
            victim = (victim + 1) % frames
        fills += 1
        evictions += held[victim] is not None
        for i, frame in enumerate(recent):
            if frame == victim:
                recent[i] = None
        held[victim] = page
        recent.append(victim)
        victim = (victim + 1) % frames
    return Transfers(fills, evictions, 0, 0)


def fewest_fills(references: References, frames: int) -> int:
    """Fills of the cache that always gives up the page whose next use is farthest: the fewest that
    any cache can have (L. A. Belady, IBM Systems Journal 5(2), 1966)."""
    pages = references.page.tolist()
    never = len(pages)
    following, seen = [never] * len(pages), dict[int, int]()
    for at in reversed(range(len(pages))):
        following[at] = seen.get(pages[at], never)
        seen[pages[at]] = at
    held: dict[int, int] = {}
    fills = 0
    for at, page in enumerate(pages):
        if page not in held:
            fills += 1
            if len(held) == frames:
                del held[max(held, key=held.__getitem__)]
        held[page] = following[at]
    return fills


def due_times(storage: Storage, requests: list[tuple[int, bool]]) -> list[int]:
    """When the device has each of its ``requests`` (time of acceptance, write) done."""
    free, times = 0, []
    for now, write in requests:
        free = max(free, now + (0 if write else storage.latency)) + storage.page_cycles
        times.append(free)
    return times


def initial_image(storage: Storage, seed: int) -> NDArray[np.uint8]:
    """Random contents of the device, a row a word."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (storage.pages * storage.page_words, 16), np.uint8)


def final_image(
    storage: Storage, image: NDArray[np.uint8], references: References
) -> NDArray[np.uint8]:
    """What is stored after all of ``references`` and a flush."""
    words = image.copy().view("<u4")
    for at in np.flatnonzero(references.write):
        first = int(references.page[at]) * storage.page_words
        words[first:first + WRITTEN_WORDS] ^= np.uint32(CHANGE * (int(at) + 1) & 0xFFFFFFFF)
    return words.view(np.uint8)
