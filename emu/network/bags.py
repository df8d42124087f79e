# SPDX-License-Identifier: Apache-2.0
"""The numbers of embedding bags: what comes with every sample of a `BagsLayer`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.network.layers import NUMBERS, IndexTensor


@dataclass(frozen=True, kw_only=True, eq=False)
class BagsTensor(IndexTensor):
    """The numbers of all bags, int32 (batch, sum of ``lookups``), bag by bag along a sample."""

    lookups: tuple[int, ...]

    def _places(self) -> list[tuple[slice, slice]]:
        """Per bag its columns and its numbers in the layer tensor."""
        found, column, place = [], 0, 0
        for count in self.lookups:
            size = self.shape[0] * count
            found.append((slice(column, column + count), slice(place, place + size)))
            column, place = column + count, place + -(-size // NUMBERS) * NUMBERS
        return found

    def to_layer(self, values: NDArray) -> NDArray:
        padded = np.zeros(NUMBERS * self.layer_shape[3], np.uint32)
        for columns, place in self._places():
            padded[place] = values.reshape(self.shape)[:, columns].reshape(-1)
        return padded.view(np.uint8).reshape(-1, 16).T.reshape(self.layer_shape)

    def from_layer(self, values: NDArray) -> NDArray:
        flat = np.ascontiguousarray(values.reshape(16, -1).T).view(np.uint32).reshape(-1)
        found = np.zeros(self.shape, np.int32)
        for columns, place in self._places():
            found[:, columns] = flat[place].reshape(self.shape[0], -1)
        return found


def numbers_shape(batch: int, lookups: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(N, C, H, W) of the numbers."""
    return 1, 16, 1, sum(-(-batch * count // NUMBERS) for count in lookups)


__all__ = ["BagsTensor", "numbers_shape"]
