# SPDX-License-Identifier: Apache-2.0
"""Routing that was recorded from the mixture of experts of `tools/train_experts.py`."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from emu.network.trained import DATA

LAYERS, EXPERTS = 3, 8


@cache
def _scores(name: str) -> NDArray[np.int8]:
    with np.load(DATA / "experts.npz") as archive:
        return archive[name]


def recorded(tokens: int, layer: int, seed: int) -> NDArray[np.int8]:
    """The router's scores (8, tokens) in ``layer`` of 0 to 2 for held-out digits one after the
    other; each of the seeds 1, 2, 3 starts a third of them later."""
    return _part(_scores("scores")[layer], tokens, seed)


def before(layer: int, seed: int) -> NDArray[np.int8]:
    """Scores as of `recorded` for the third of the images before those that the seed starts with:
    a trace of routing from other tokens."""
    found = _scores("scores")[layer]
    return _part(found, len(found) // 3, (seed + 1) % 3 + 1)


def foreseen(tokens: int, layer: int, seed: int) -> NDArray[np.int8]:
    """Scores that the router of ``layer``, 1 or 2, makes of the input of the layer before."""
    return _part(_scores("foreseen")[layer - 1], tokens, seed)


def _part(found: NDArray[np.int8], tokens: int, seed: int) -> NDArray[np.int8]:
    first = (seed - 1) * (len(found) // 3)
    return found[(first + np.arange(tokens)) % len(found)].T


__all__ = ["EXPERTS", "LAYERS", "before", "foreseen", "recorded"]
