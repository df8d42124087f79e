# SPDX-License-Identifier: Apache-2.0
"""Lifetimes of tensors: of inference, of a training step, of requests whose lengths vary."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from emu.network.layers import ConvLayer, Network
from emu.planner import Item

TOKEN_BYTES = 2 * 768
"""A token's key and value of one layer, 768 channels wide."""


@dataclass(frozen=True)
class Trace:
    """What needs memory, and when.

    items: Sizes in bytes. reads: How often each is read; each is written once.
    slots, most: Nothing is known beforehand but that at most ``slots`` live at once, each of at
        most ``most`` bytes. 0: sizes and lifetimes are known.
    """

    name: str
    items: tuple[Item, ...]
    reads: tuple[int, ...]
    slots: int = 0
    most: int = 0

    def in_words(self, word: int) -> tuple[Item, ...]:
        """The items in words of ``word`` bytes."""
        return tuple(Item(i.name, -(-i.size // word), i.first, i.last) for i in self.items)


def inference(network: Network, placed: Sequence[Item], name: str) -> Trace:
    """Activations as the compiler placed them: from the layer that makes each to its last reader.

    Additions that were fused behind a convolution make no tensor of their own.
    """
    reads = Counter(s.name for layer in network.layers for s in layer.sources)
    items = sorted(placed, key=lambda item: item.first)
    return Trace(name, tuple(items), tuple(reads[item.name] for item in items))


def training_step(network: Network, name: str, element: int = 2) -> Trace:
    """One step of gradient descent on ``network``'s layers, ``element`` bytes a value.

    Layer k of n runs forward in step k and backward in step 2n - 1 - k. Its output is kept until
    its own backward step (the function behind it is inverted there by sign or table) and those of
    its readers, which multiply it for their weights' gradients. The gradient of a tensor is born in
    the backward step of its last reader and added to by the others until its own layer's. The
    gradients of weights are kept until the last step, in which the optimiser applies all.
    """
    layers = network.layers
    n = len(layers)

    def back(index: int) -> int:
        return 2 * n - 1 - index

    readers: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        for source in layer.sources:
            readers.setdefault(source.name, []).append(index)
    made = {layer.target.name: index for index, layer in enumerate(layers)}
    inputs = {s.name: s for layer in layers for s in layer.sources if s.name not in made}
    rows: list[tuple[Item, int]] = []
    for tensor, operand in inputs.items():
        used = readers[tensor]
        rows.append((Item(tensor, element * math.prod(operand.shape), 0, back(min(used))),
                     2 * len(used)))
    for index, layer in enumerate(layers):
        size, tensor = element * math.prod(layer.target.shape), layer.target.name
        used = readers.get(tensor, [])
        rows.append((Item(tensor, size, index, back(index)), 2 * len(used) + 1))
        born = back(max(used)) if used else back(index)
        rows.append((Item(f"{tensor} gradient", size, born, back(index)), len(used) or 1))
        if isinstance(layer, ConvLayer):
            rows.append((Item(f"{layer.name} weights' gradient", element * layer.weights.size,
                              back(index), 2 * n), 1))
    rows.sort(key=lambda row: row[0].first)
    return Trace(name, tuple(item for item, _ in rows), tuple(count for _, count in rows))


def chain(count: int, size: int, name: str) -> Trace:
    """``count`` tensors of one size, each read by the layer that makes the next."""
    items = tuple(Item(f"t{k}", size, k, k + 1) for k in range(count))
    return Trace(name, items, (1,) * count)


def requests(seed: int, name: str, count: int = 400, slots: int = 32) -> Trace:
    """Caches of keys and values of requests that come and go; synthetic.

    In each step one begins with chance 1/2 unless ``slots`` run: a prompt of a lognormal number of
    tokens (median 128, sigma 0.9, 16 to 1024), in memory for a geometric number of steps, 24 on
    average; its cache is read in each.
    """
    rng = random.Random(seed)
    rows: list[Item] = []
    ends: list[int] = []
    step = 0
    while len(rows) < count:
        ends = [end for end in ends if end >= step]
        if len(ends) < slots and rng.random() < 0.5:
            tokens = min(1024, max(16, round(rng.lognormvariate(math.log(128), 0.9))))
            end = step + math.floor(math.log(1 - rng.random()) / math.log(1 - 1 / 24))
            rows.append(Item(f"request {len(rows)}", TOKEN_BYTES * tokens, step, end))
            ends.append(end)
        step += 1
    reads: Sequence[int] = [item.last - item.first + 1 for item in rows]
    return Trace(name, tuple(rows), tuple(reads), slots, 1024 * TOKEN_BYTES)
