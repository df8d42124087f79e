# SPDX-License-Identifier: Apache-2.0
"""What another placement of experts could bring at most, by the golden model's routing.

Nothing here is measured: the machine has no experts on tiles of their own. ``counts`` is [step,
expert]: tokens of each expert.
"""

import numpy as np
from numpy.typing import NDArray

LEAST_ROWS = 16
"""A pass of the array takes no less: the words of the weights it replaces."""

Counts = NDArray[np.int64]


def idle(counts: Counts, twice: int = 0) -> float:
    """Share of the array's time that groups of tiles idle, where each expert has one group to
    itself, all of a size, and the next step waits for the busiest.

    ``twice``: So many experts, those with most tokens over all steps, have two groups, their tokens
    halved. Groups are as many as experts and copies, so each is smaller the more copies there are.
    """
    hot = np.argsort(-counts.sum(0), kind="stable")[:twice]
    cold = np.delete(counts, hot, axis=1)
    groups = np.concatenate([cold, counts[:, hot] // 2, (counts[:, hot] + 1) // 2], axis=1)
    rows = np.where(groups > 0, np.maximum(groups, LEAST_ROWS), 0)
    return 1 - float(rows.sum() / (rows.max(1).sum() * groups.shape[1]))


__all__ = ["LEAST_ROWS", "Counts", "idle"]
