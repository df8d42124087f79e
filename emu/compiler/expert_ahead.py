# SPDX-License-Identifier: Apache-2.0
"""Experts fetched into their cache before the step that uses them (`prefetch.experts_ahead`).

A step of experts with a cache can load what a list names as soon as there is the list: one that an
earlier step of experts used too (of a layer's two matrices the second knows its list when the first
begins), or one that was foreseen: the next layer's router on this layer's input (R. Hwang et al.,
"Pre-gated MoE", ISCA 2024, train for it; here the router is the layer's own). RETAIN goes by that
list now, and by the true one in the step itself, which then awaits what is on its way and loads
what is missing. So a wrong list costs transfers, never a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emu.compiler.expert_batch import ExpertBatchStep
from emu.compiler.expert_cache import Cache
from emu.compiler.expert_step import LIST
from emu.compiler.images import Tensor
from emu.compiler.stream import AHEADS, FIRST_AHEAD, VECTOR_IN, Step
from emu.compiler.tile_expert_batch import TileExpertBatch
from emu.compiler.vector_step import UnitStep
from emu.config import Config
from emu.isa import Opcode, Queue, VectorOp
from emu.network.layers import ExpertLayer, Layer

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter

AHEAD_IN = VECTOR_IN + 1
"""Counts words of lists, in the vector queue."""


def without_foresight(config: Config, layers: list[Layer], wanted: set[str]) -> list[Layer]:
    """Layers of experts without foreseen lists, and none that made only those; all of them where
    they are followed."""
    if config.prefetch.experts_ahead == "predicted" or not any(map(_is_foreseen, layers)):
        return layers
    kept: list[Layer] = []
    needed = set(wanted)
    for layer in reversed(layers):
        if layer.target.name in needed:
            if isinstance(layer, ExpertLayer):
                layer = replace(layer, sources=layer.sources[:2])
            kept.append(layer)
            needed |= {source.name for source in layer.sources}
    return kept[::-1]


def _is_foreseen(layer: Layer) -> bool:
    return isinstance(layer, ExpertLayer) and len(layer.sources) > 2


@dataclass(frozen=True)
class Ahead:
    """Experts for a later ``step``, fetched by a list of ``numbers``.

    cache: As it is when the list is followed. sem: Counts their words. follows: Others that were
    fetched for the step may be on their way: their words are counted by ``sem`` too.
    """

    step: ExpertBatchStep
    numbers: Tensor
    cache: Cache
    sem: int
    follows: bool

    @property
    def lists(self) -> int:
        """Scratchpad word of ``numbers``; behind them what each slot is to be filled with."""
        return self.cache.base + self.cache.head

    def read_words(self) -> int:
        """At most: into all slots."""
        step, total = self.step, 0
        for first, end in step.work.values():
            total += step.tokens + step.words * (end - first) * step.unit
            total += self.cache.head if self.cache.begins else 0
        return total


@dataclass(frozen=True)
class Part:
    """What the tiles of a later step do for it behind their commands of some step: follow the list
    (RETAIN), or load what is missing in ``slot``."""

    ahead: Ahead
    slot: int | None = None

    def emit(self, emitter: "Emitter", index: int) -> None:
        step = self.ahead.step
        for name in sorted(step.work):
            tile = TileExpertBatch(emitter, index, step, name)
            if self.slot is None:
                self._follow(tile)
            else:
                self._load(tile, self.slot)

    def _follow(self, tile: TileExpertBatch) -> None:
        """The load queue waits until it is done: nothing later may be counted in its place."""
        step, cache, numbers = self.ahead.step, self.ahead.cache, self.ahead.numbers
        lists, words = self.ahead.lists, step.tokens
        if cache.begins:
            tile.load(cache.base, cache.empty, cache.head, AHEAD_IN)
            words += cache.head
        tile.load(lists, numbers.base, 1, AHEAD_IN, count0=step.tokens, s_stride0=1,
                  f_stride0=max(1, numbers.pixels // step.tokens))
        tile.stream.add(
            Opcode.VECTOR, [(AHEAD_IN, words)], [(LIST, tile.here)], Queue.VECTOR,
            op=VectorOp.RETAIN, base=lists, step=1, pixels=step.tokens, k=step.layer.k,
            groups=step.words, channels=len(step.layer.weights), out=lists + step.tokens,
            b_base=cache.base, table=cache.base + cache.slots)
        tile.stream.add(Opcode.SYNC, [(LIST, 1)], queue=Queue.LOAD)

    def _load(self, tile: TileExpertBatch, slot: int) -> None:
        sem = self.ahead.sem
        waits = [(sem, tile.all_words)] if self.ahead.follows and slot == 0 else []
        tile.load_expert(slot, self.ahead.lists + self.ahead.step.tokens + slot, sem, waits)


def plan_ahead(config: Config, steps: Sequence[Step | UnitStep]) -> dict[int, list[Part]]:
    """What is done for later steps behind each step, by its index.

    A list is followed behind the first step with a cache that begins when it is there, but not
    before the last step that needs the cache as it is. If the true list, all is loaded there: it is
    needed next. If a foreseen one, slot by slot behind the steps in between, whose own loads would
    stand behind it in the queue.
    """
    parts: dict[int, list[Part]] = {}
    if config.prefetch.experts_ahead == "none":
        return parts
    cached = [(k, step) for k, step in enumerate(steps)
              if isinstance(step, ExpertBatchStep) and step.cache is not None]
    made: set[str] = set()
    on_way: dict[int, int] = {}       # first word of a cache: semaphore
    behind = 0
    for place, (index, step) in enumerate(cached):
        made |= {each.layer.target.name for each in steps[behind:index]}
        behind = index
        on_way.pop(_cache_of(step).base, None)
        seen = {_cache_of(step).base}
        for later_index, later in cached[place + 1 :]:
            if _cache_of(later).base in seen:
                continue
            seen.add(_cache_of(later).base)
            found = next((t for t in later.sources[1:] if t.name in made), None)
            if found is None or found in [each.numbers for each in later.ahead]:
                continue
            if (ahead := _planned(later, found, on_way)) is None:
                continue
            parts.setdefault(index, []).append(Part(ahead))
            between = later_index - index - 1
            for slot in range(later.words):
                at = index
                if found is not later.sources[1] and between:
                    at += 1 + slot * between // later.words
                parts.setdefault(at, []).append(Part(ahead, slot))
    return parts


def _planned(later: ExpertBatchStep, numbers: Tensor, on_way: dict[int, int]) -> Ahead | None:
    """A fetch for ``later``, if a semaphore is free."""
    cache = _cache_of(later)
    follows = cache.base in on_way
    free = (s for s in range(FIRST_AHEAD, FIRST_AHEAD + AHEADS) if s not in on_way.values())
    sem = on_way[cache.base] if follows else next(free, None)
    if sem is None:
        return None
    on_way[cache.base] = sem
    ahead = Ahead(later, numbers, cache, sem, follows)
    later.ahead += (ahead,)
    if cache.begins:  # from now on it holds something
        later.cache = replace(cache, begins=False)
    return ahead


def _cache_of(step: ExpertBatchStep) -> Cache:
    assert step.cache is not None
    return step.cache


__all__ = ["Ahead", "Part", "plan_ahead", "without_foresight"]
