# SPDX-License-Identifier: Apache-2.0
"""Caches of experts: slots of a layer in every scratchpad that keep their experts from step to step
(`prefetch.experts=cached`)."""

from dataclasses import dataclass, replace

import numpy as np

from emu.compiler.expert_step import PARAMETER_WORDS, deal
from emu.compiler.images import LANES, Bytes
from emu.config import TILE_WORDS, WORD_BYTES, Config
from emu.errors import UserError
from emu.isa import ABSENT
from emu.network.layers import NUMBERS, ExpertLayer, Layer


def is_batch(layer: ExpertLayer) -> bool:
    """Whether the numbers are all that a top-k unit found, not one token's alone."""
    return layer.sources[1].shape[3] > 1


@dataclass(frozen=True)
class Cache:
    """Slots of a layer's experts in every tile: words that say what they hold, the one to begin
    with, ``spare`` ones for lists of what is fetched ahead, then the slots of ``size`` words each.

    base: First scratchpad word. begins: This step is the first that uses it: ``empty`` is the HBM
    word of what it begins with.
    """

    base: int
    slots: int
    size: int
    spare: int = 0
    empty: int = 0
    begins: bool = False

    @property
    def head(self) -> int:
        """Words that the cache begins with."""
        return self.slots + 1

    @property
    def first_slot(self) -> int:
        return self.base + self.head + self.spare

    @property
    def words(self) -> int:
        return self.head + self.spare + self.slots * self.size

    def contents(self) -> Bytes:
        """Of the head: nothing is held."""
        found = np.zeros((self.head, NUMBERS), np.uint32)
        found[:-1, 0] = ABSENT
        return found.view(np.uint8)


def plan_caches(config: Config, layers: list[Layer]) -> tuple[Config, dict[int, Cache]]:
    """The machine without the top of its scratchpads, and there caches by the id of weights.

    Raises
    ------
    UserError
        If the caches leave nothing.
    """
    found: dict[int, Cache] = {}
    if config.prefetch.experts != "cached":
        return config, found
    at = config.scratchpad.free_words
    for layer in layers:
        if isinstance(layer, ExpertLayer) and is_batch(layer) and id(layer.weights) not in found:
            _, outputs, inputs = layer.weights.shape
            work = deal(config, -(-outputs // LANES))
            most = max(end - first for first, end in work.values())
            size = most * (-(-inputs // LANES) * TILE_WORDS + PARAMETER_WORDS)
            cache = Cache(0, slots := config.prefetch.expert_slots, size)
            if config.prefetch.experts_ahead != "none":
                cache = replace(cache, spare=layer.target.shape[3] // layer.k + slots)
            at -= cache.words
            found[id(layer.weights)] = replace(cache, base=at)
    kib = at * WORD_BYTES // 1024
    if kib < 1:
        raise UserError(f"{config.prefetch.expert_slots} experts of a layer do not fit the "
                        "scratchpads: lower prefetch.expert_slots")
    scratchpad = config.scratchpad.model_copy(update={"kib": kib})
    return config.model_copy(update={"scratchpad": scratchpad}), found


__all__ = ["Cache", "is_batch", "plan_caches"]
