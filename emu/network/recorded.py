# SPDX-License-Identifier: Apache-2.0
"""Routing that was recorded from the mixture of experts of `tools/train_experts.py`."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from emu.network.trained import DATA

LAYERS = 3


@cache
def _scores() -> NDArray[np.int8]:
    with np.load(DATA / "experts.npz") as archive:
        return archive["scores"]


def recorded(tokens: int, layer: int, seed: int) -> NDArray[np.int8]:
    """The router's scores (8, tokens) in ``layer`` of 0 to 2 for held-out digits one after the
    other; each of the seeds 1, 2, 3 starts a third of them later."""
    found = _scores()[layer]
    first = (seed - 1) * (len(found) // 3)
    return found[(first + np.arange(tokens)) % len(found)].T


__all__ = ["LAYERS", "recorded"]
