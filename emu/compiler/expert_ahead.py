# SPDX-License-Identifier: Apache-2.0
"""Experts that are fetched into their cache before the step that uses them (`prefetch.experts_ahead`).

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

from emu.compiler.expert_batch import Cache, ExpertBatchStep, TileExpertBatch
from emu.compiler.expert_step import LIST
from emu.compiler.images import Tensor
from emu.compiler.mapping import encode_rect
from emu.compiler.stream import AHEADS, FIRST_AHEAD, VECTOR_IN, Step, Wait
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

    cache: As it is when they are. sem: Counts their words. follows: Others that were fetched for
    the step are on their way: their words are counted by ``sem`` too.
    """

    step: ExpertBatchStep
    numbers: Tensor
    cache: Cache
    sem: int
    follows: bool

    def read_words(self) -> int:
        """At most: into all slots."""
        step, total = self.step, 0
        for first, end in step.work.values():
            total += step.tokens + step.words * (end - first) * step.unit
            total += self.cache.head if self.cache.begins else 0
        return total

    def emit(self, emitter: "Emitter", index: int) -> None:
        """Commands of all tiles that compute in the later step."""
        for tile in sorted(self.step.work):
            self._emit(TileExpertBatch(emitter, index, self.step, tile))

    def _emit(self, tile: TileExpertBatch) -> None:
        step, cache = self.step, self.cache
        lists = cache.base + cache.head
        slots, words = lists + step.tokens, step.tokens
        if cache.begins:
            tile.load(cache.base, cache.empty, cache.head, AHEAD_IN)
            words += cache.head
        tile.load(lists, self.numbers.base, 1, AHEAD_IN, count0=step.tokens, s_stride0=1,
                  f_stride0=max(1, self.numbers.pixels // step.tokens))
        tile.stream.add(
            Opcode.VECTOR, [(AHEAD_IN, words)], [(LIST, tile.here)], Queue.VECTOR,
            op=VectorOp.RETAIN, base=lists, step=1, pixels=step.tokens, k=step.layer.k,
            groups=step.words, channels=len(step.layer.weights), out=slots, b_base=cache.base,
            table=cache.base + cache.slots)
        waits: list[Wait] = [(LIST, 1)]
        if self.follows:
            waits.append((self.sem, tile.all_words))
        for slot in range(step.words):
            tile.load_expert(slot, slots + slot, self.sem, waits)
            waits = []


def plan_ahead(config: Config, steps: Sequence[Step | UnitStep]) -> None:
    """Let every step with a cache fetch for later ones what it can: as early as a list is there,
    but not before the last step that needs the cache as it is."""
    if config.prefetch.experts_ahead == "none":
        return
    cached = [(k, step) for k, step in enumerate(steps)
              if isinstance(step, ExpertBatchStep) and step.cache is not None]
    made: set[str] = set()
    on_way: dict[int, int] = {}       # first word of a cache: semaphore
    followed: set[tuple[int, str]] = set()
    behind = 0
    for place, (index, step) in enumerate(cached):
        made |= {each.layer.target.name for each in steps[behind:index]}
        behind = index
        step.awaits = on_way.pop(_cache_of(step).base, None)
        seen = {_cache_of(step).base}
        for later_index, later in cached[place + 1 :]:
            if _cache_of(later).base in seen:
                continue
            seen.add(_cache_of(later).base)
            # The true list, if it is there; else the foreseen one.
            found = next((t for t in later.sources[1:] if t.name in made), None)
            if found is None or (later_index, found.name) in followed:
                continue
            _follow(step, later, found, on_way)
            followed.add((later_index, found.name))


def _follow(
    step: ExpertBatchStep, later: ExpertBatchStep, numbers: Tensor, on_way: dict[int, int]
) -> None:
    """Fetch for ``later`` during ``step``, if a semaphore is free."""
    cache = _cache_of(later)
    free = (s for s in range(FIRST_AHEAD, FIRST_AHEAD + AHEADS) if s not in on_way.values())
    follows = cache.base in on_way
    sem = on_way[cache.base] if follows else next(free, None)
    if sem is None:
        return
    on_way[cache.base] = sem
    step.ahead += (Ahead(later, numbers, cache, sem, follows),)
    if cache.begins:  # from now on it holds something
        later.cache = replace(cache, begins=False)


def _cache_of(step: ExpertBatchStep) -> Cache:
    assert step.cache is not None
    return step.cache


__all__ = ["Ahead", "plan_ahead", "without_foresight"]
