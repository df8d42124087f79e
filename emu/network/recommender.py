# SPDX-License-Identifier: Apache-2.0
"""DLRM with seeded weights: dense features through a bottom MLP, 26 embedding bags, a top MLP.

Widths and lookups a bag are those of MLPerf's DLRM-v2 (multi-hot Criteo); the interaction is the
plain concatenation of the bottom's output and the bags' sums, and tables are cut to a few rows:
what a gather costs depends on the rows that it reads, not on those that are there.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from emu.network.bags import BagsTensor, numbers_shape
from emu.network.composer import SPREAD, Value, short
from emu.network.layers import (
    BagsLayer,
    ConcatLayer,
    GatherLayer,
    IndexTensor,
    Network,
    Operand,
    PoolLayer,
)
from emu.network.transformers import Stack

LOOKUPS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
BOTTOM, TOP = (512, 256, 128), (1024, 1024, 512, 256, 1)
DENSE = 13


@dataclass
class Recommender(Stack):
    """A stack whose inputs also number rows of tables."""

    numbers: list[IndexTensor] = field(default_factory=list)

    def bag(self, name: str, batch: int, lookups: int, rows: int, like: Value) -> Value:
        """The sum of ``lookups`` rows for each sample, quantised as ``like``."""
        rng, width = self.composer.rng, like.channels
        drawn = np.rint(rng.standard_normal((rows, width), np.float32) * SPREAD)
        table = np.clip(drawn, -128, 127).astype(np.int8)
        numbers = rng.integers(0, rows, (batch, lookups), np.int32)
        return self.gathered(name, table, numbers, np.float32(short(1 / np.sqrt(lookups))),
                             like.zero, like.scale)

    def gathered(
        self, name: str, table: NDArray[np.int8], numbers: NDArray[np.int32], factor: np.float32,
        zero: int, scale: np.float32,
    ) -> Value:
        """The sums, by sample, of the rows of ``table`` that ``numbers`` names, times ``factor``.
        """
        (batch, lookups), (rows, width) = numbers.shape, table.shape
        count = batch * lookups
        tensor = IndexTensor(
            name=f"{name}.numbers", shape=(count,), dtype="int32", scale=1.0, zero_point=0,
            layer_name=f"{name}.numbers", layer_shape=(1, 16, 1, -(-count // 4)), limit=rows,
        )
        self.numbers.append(tensor)
        found = Operand(f"{name}.rows", (1, width, 1, count), True, 0)
        sample = Value(tensor.name, np.float32(1), 0,
                       tensor.to_layer(numbers.reshape(-1)))
        gathered = self._add(GatherLayer(
            name=found.name, source=Operand(tensor.name, tensor.layer_shape, False, 0),
            target=found, table=table), np.float32(1), sample)
        return self._add(PoolLayer(
            name=name, source=found, kind="average", kernel=(1, lookups), strides=(1, lookups),
            target=Operand(name, (1, width, 1, batch), True, zero), pads=(0, 0, 0, 0),
            scale=factor, clip_low=-128, clip_high=127,
        ), scale, gathered)

    def side_by_side(self, name: str, values: list[Value]) -> Value:
        """All channels of ``values``, which are quantised alike."""
        first = values[0]
        shape = (1, sum(v.channels for v in values), 1, first.sample.shape[3])
        return self._add(ConcatLayer(
            name=name, sources=tuple(v.operand for v in values), axis="channels",
            target=Operand(name, shape, True, first.zero)), first.scale, *values)

    def network(self, *outputs: Value) -> Network:
        found = super().network(*outputs)
        return Network(name=found.name, layers=found.layers, outputs=found.outputs, model=None,
                       inputs=(*found.inputs, *self.numbers))


def embeddings(
    name: str, seed: int, *, batch: int, lookups: tuple[int, ...] = LOOKUPS, rows: int = 4096,
    width: int = 128, bits: int = 8, fused: bool = True, zipf: float = 0.0,
) -> Network:
    """Bags alone, side by side, with numbers drawn by Zipf's law of exponent ``zipf``.

    fused: One layer of bags; else a gather and a sum for each, with the rows in HBM in between.
    """
    net = Recommender.create(name, seed)
    rng, low = net.composer.rng, 1 << bits - 1
    spread = SPREAD if bits == 8 else 3
    tables = tuple(
        np.clip(np.rint(rng.standard_normal((rows, width), np.float32) * spread), -low, low - 1)
        .astype(np.int8) for _ in lookups)
    scales = tuple(np.float32(short(SPREAD / spread / np.sqrt(count))) for count in lookups)
    chances = np.arange(1, rows + 1) ** -float(zipf)
    drawn = [rng.permutation(rows)[rng.choice(rows, (batch, count), p=chances / chances.sum())]
             .astype(np.int32) for count in lookups]
    target = Operand("bags", (1, len(lookups) * width, 1, batch), True, 0)
    if fused:
        tensor = BagsTensor(
            name="numbers", shape=(batch, sum(lookups)), dtype="int32", scale=1.0, zero_point=0,
            layer_name="numbers", layer_shape=numbers_shape(batch, lookups), limit=rows,
            lookups=lookups)
        net.numbers.append(tensor)
        given = {"numbers": np.concatenate(drawn, axis=1)}
        sample = Value("numbers", np.float32(1), 0, tensor.to_layer(given["numbers"]))
        found = net._add(BagsLayer(
            name="bags", source=Operand("numbers", tensor.layer_shape, False, 0), target=target,
            tables=tables, lookups=lookups, scales=scales, bits=bits), np.float32(1), sample)
        return replace(net.network(found), given=given)
    sums, given = [], {}
    for k, table in enumerate(tables):
        sums.append(net.gathered(f"bag{k}", table, drawn[k], scales[k], 0, np.float32(1)))
        given[net.numbers[-1].name] = drawn[k].reshape(-1)
    return replace(net.network(net.side_by_side("bags", sums)), given=given)


def dlrm(
    name: str, seed: int, *, batch: int, lookups: tuple[int, ...] = LOOKUPS, rows: int = 1000,
    bottom: tuple[int, ...] = BOTTOM, top: tuple[int, ...] = TOP,
) -> Network:
    """``batch`` samples from dense features and numbers of rows to one score each."""
    net = Recommender.create(name, seed)
    x = net.input("dense", (1, DENSE, 1, batch))
    for number, width in enumerate(bottom):
        x = net.linear(f"bottom{number}", x, width, rectified=number < len(bottom) - 1)
    bags = [net.bag(f"bag{k}", batch, count, rows, x) for k, count in enumerate(lookups)]
    x = net.side_by_side("interaction", [x, *bags])
    for number, width in enumerate(top):
        x = net.linear(f"top{number}", x, width, rectified=number < len(top) - 1)
    return net.network(x)


__all__ = ["dlrm"]
