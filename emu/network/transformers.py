# SPDX-License-Identifier: Apache-2.0
"""Transformers with seeded weights, layer by layer; no operators of ONNX Runtime say the same.

Every layer is calibrated as it is added, on what the sample inputs give there, as in
`emu.network.composer`. A decoder's further steps repeat the layers of its first: same weights, same
scales, other tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emu.network.composer import LINEAR_ZERO, SPREAD, Composer, Value, short
from emu.network.exact import run_layer
from emu.network.layers import (
    AttentionLayer,
    ConcatLayer,
    Layer,
    Network,
    NormLayer,
    Operand,
    Residual,
    SliceLayer,
    Tensor,
)
from emu.network.tables import function_table
from emu.requantise import add_scales, add_table, scale_of

SCORE_STEPS = 26.0
"""Standard deviation of scores in steps: the largest of thousands must not saturate."""
SCORE_SPREAD = 1.5
"""Standard deviation of real scores: some keys matter more than others, none alone."""
PROBABILITY_SCALE, PROBABILITY_ZERO = np.float32(1 / 256), -128
GELU_SCALE, GELU_ZERO = np.float32(3.5 / 255), -116


def gelu(x: NDArray) -> NDArray:
    """Gaussian error linear unit."""
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])


@dataclass
class Stack:
    """Layers under construction with the sample values of every tensor.

    made: Calibrated layers by their name without the step; later steps repeat them.
    """

    name: str
    composer: Composer
    layers: list[Layer] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    @classmethod
    def create(cls, name: str, seed: int) -> Self:
        return cls(name, Composer(name, seed, (1, 1, 1, 1)))

    def label(self, name: str) -> str:
        return f"{name}@{self.step}" if self.step else name

    def input(
        self, name: str, shape: tuple[int, int, int, int], like: Value | None = None
    ) -> Value:
        """A graph input, quantised ``like`` another: any bytes may come, as random inputs do."""
        drawn = self.composer.rng.integers(-128, 127, shape, np.int8, endpoint=True)
        scale, zero = (like.scale, like.zero) if like else (np.float32(0.02), 5)
        value = Value(name, scale, zero, drawn)
        self.inputs.append(value)
        return value

    def _add(self, layer: Layer, scale: np.float32, *values: Value) -> Value:
        self.layers.append(layer)
        target = layer.target
        sample = run_layer(layer, *(v.sample for v in values))
        return Value(target.name, scale, target.zero, sample, target.is_signed)

    def norm(self, name: str, x: Value) -> Value:
        """Layer normalisation over the channels."""
        if name not in self.made:
            rng, channels = self.composer.rng, x.channels
            self.made[name] = (rng.normal(1, 0.2, channels).astype(np.float32),
                               rng.normal(0, 0.2, channels).astype(np.float32))
        gamma, beta = self.made[name]
        scale, label = np.float32(1 / SPREAD), self.label(name)
        layer = NormLayer(
            name=label, source=x.operand, gamma=gamma, beta=beta, epsilon=1e-5,
            target=Operand(label, x.operand.shape, True, LINEAR_ZERO), x_scale=float(x.scale),
            y_scale=float(scale),
        )
        return self._add(layer, scale, x)

    def linear(
        self, name: str, x: Value, outputs: int, *, activation: bool = False,
        rectified: bool = False, added: Value | None = None,
    ) -> Value:
        """A product with constants; then Gelu (``activation``), Relu, or the sum with ``added``."""
        label = self.label(name)
        if name not in self.made:
            layer, _, scale = self.composer.calibrated(name, x, outputs, 1, 1, 0, 1, rectified, 0)
            y = Value(name, scale, layer.y_zero, run_layer(layer, x.sample))
            self.made[name] = (
                layer, scale, self._sum(y, added) if added else None,
                self._gelu_table(y) if activation else None,
            )
        layer, scale, summed, table = self.made[name]
        fields: dict[str, Any] = {"name": label, "input_name": x.name, "output_name": label}
        if activation:
            fields |= {"output_name": f"{label}.linear", "table": table,
                       "table_target": Operand(label, layer.output_shape, True, GELU_ZERO)}
            scale = GELU_SCALE
        if added and summed:
            scale, ra, addend_table = summed
            fields |= {"output_name": f"{label}.linear", "residual": Residual(
                source=added.operand, scale=ra, table=addend_table, clip_low=-128, clip_high=127,
                target=Operand(label, layer.output_shape, True, LINEAR_ZERO),
            )}
        values = (x, added) if added else (x,)
        return self._add(replace(layer, **fields), scale, *values)

    @staticmethod
    def _gelu_table(y: Value) -> NDArray[np.uint8]:
        return function_table(
            gelu, x_scale=float(y.scale), x_zero=y.zero, x_signed=True,
            y_scale=float(GELU_SCALE), y_zero=GELU_ZERO, y_signed=True,
        )

    @staticmethod
    def _sum(y: Value, added: Value) -> tuple[np.float32, np.float32, NDArray[np.float32]]:
        """(scale, ra, table) of y plus ``added``."""
        real = sum(v.scale * (v.sample.astype(np.float64) - v.zero) for v in (y, added))
        scale = np.float32(short(np.std(real) / SPREAD))
        ra, rc = add_scales(y.scale, added.scale, scale)
        return scale, ra, add_table(ra, rc, a_zero=y.zero, c_zero=added.zero,
                                    out_zero=LINEAR_ZERO, c_signed=True)

    def attention(self, name: str, q: Value, k: Value, v: Value, heads: int) -> Value:
        """Softmax(Q K^T) V by heads."""
        label, keys, queries = self.label(name), k.sample.shape[3], q.sample.shape[3]
        if name not in self.made:
            self.made[name] = self._attention_scales(q, k, v, heads)
        step, mixed = self.made[name]
        inner = (heads, keys, 1, queries)
        layer = AttentionLayer(
            name=label, sources=(q.operand, k.operand, v.operand), heads=heads,
            target=Operand(label, q.operand.shape, True, LINEAR_ZERO),
            scores=Operand(f"{label}.scores", inner, True, 0),
            probabilities=Operand(f"{label}.probabilities", inner, True, PROBABILITY_ZERO),
            score_scale=np.float32(step), scores_scale=SCORE_SPREAD / SCORE_STEPS,
            probability_scale=float(PROBABILITY_SCALE),
            value_scale=np.float32(scale_of(PROBABILITY_SCALE, v.scale, mixed)),
        )
        return self._add(layer, mixed, q, k, v)

    def _attention_scales(self, q: Value, k: Value, v: Value, heads: int):
        """(scale of the scores, scale of the output): as the sample's values spread."""
        depth = q.channels // heads
        qs, ks, vs = (
            (t.sample[0, :, 0].astype(np.float64) - t.zero).reshape(heads, depth, -1)
            for t in (q, k, v)
        )
        scores = qs.transpose(0, 2, 1) @ ks
        step = short(SCORE_STEPS / scores.std())
        weights = np.exp(scores * float(step) * SCORE_SPREAD / SCORE_STEPS)
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = weights @ vs.transpose(0, 2, 1) * float(v.scale)
        return step, np.float32(short(mixed.std() / SPREAD))

    def concat(self, name: str, *values: Value) -> Value:
        """Tokens of all ``values``, which are quantised alike."""
        first = values[0]
        pixels = sum(v.sample.shape[3] for v in values)
        layer = ConcatLayer(
            name=name, sources=tuple(v.operand for v in values),
            target=Operand(name, (1, first.channels, 1, pixels), True, first.zero),
        )
        return self._add(layer, first.scale, *values)

    def slice(self, name: str, x: Value, channels: int, pixels: int, *, channel: int = 0,
              pixel: int = 0) -> Value:
        """Some channels and tokens of ``x``."""
        layer = SliceLayer(
            name=name, source=x.operand, channel=channel, pixel=pixel,
            target=Operand(name, (1, channels, 1, pixels), x.is_signed, x.zero),
        )
        return self._add(layer, x.scale, x)

    def network(self, *outputs: Value) -> Network:
        def tensor(v: Value) -> Tensor:
            shape = v.operand.shape
            return Tensor(name=v.name, shape=shape, dtype="int8", scale=float(v.scale),
                          zero_point=v.zero, layer_name=v.name, layer_shape=shape)

        return Network(
            name=self.name, layers=tuple(self.layers), inputs=tuple(map(tensor, self.inputs)),
            outputs=tuple(map(tensor, outputs)), model=None,
        )


def encoder(name: str, seed: int, *, layers: int, width: int, heads: int, tokens: int) -> Network:
    """Blocks of attention and feed-forward, each behind a layer normalisation (GPT's order)."""
    net = Stack.create(name, seed)
    x = net.input("x", (1, width, 1, tokens))
    for block in range(layers):
        at = f"block{block}"
        y = net.norm(f"{at}.norm1", x)
        q, k, v = (net.linear(f"{at}.{part}", y, width) for part in ("query", "key", "value"))
        y = net.attention(f"{at}.attention", q, k, v, heads)
        x = _feed_forward(net, at, net.linear(f"{at}.projection", y, width, added=x))
    return net.network(net.norm("norm", x))


def _feed_forward(net: Stack, at: str, x: Value) -> Value:
    y = net.norm(f"{at}.norm2", x)
    y = net.linear(f"{at}.ffn1", y, 4 * x.channels, activation=True)
    return net.linear(f"{at}.ffn2", y, x.channels, added=x)


def decoder(
    name: str, seed: int, *, layers: int, width: int, heads: int, cached: int, steps: int
) -> Network:
    """``steps`` tokens one after another, with keys and values of ``cached`` others before them.

    Inputs: the tokens' embeddings and each block's cache, keys before values; outputs: the last
    hidden states, and the caches with the new rows.
    """
    net = Stack.create(name, seed)
    tokens = net.input("x", (1, width, 1, steps))
    caches: list[Value | None] = [None] * layers
    hidden = []
    for step in range(steps):
        net.step = step
        x = net.slice(f"x@{step}", tokens, width, 1, pixel=step)
        for block in range(layers):
            x, caches[block] = _decode_block(net, block, x, caches[block], heads, cached)
        hidden.append(net.norm("norm", x))
    found = net.network(net.concat("y", *hidden), *(each for each in caches if each))
    return replace(found, host={
        "embedding": f"of {steps} token{'s' if steps > 1 else ''}: {width * steps:,} bytes to the "
        "chip",
        "logits and choice": f"from {width * steps:,} bytes of hidden states",
    })


def perceptron(
    name: str, seed: int, *, widths: Sequence[int], tokens: int, steps: int
) -> Network:
    """Products with a Relu each, one after another, over ``steps`` batches of ``tokens``: its
    activations meet nothing that is no product. ``widths``: Of the input and of every layer."""
    net = Stack.create(name, seed)
    found = []
    for step in range(steps):
        net.step = step
        x = net.input(f"x@{step}", (1, widths[0], 1, tokens))
        for number, width in enumerate(widths[1:]):
            x = net.linear(f"layer{number}", x, width, rectified=True)
        found.append(x)
    return net.network(*found)


def _decode_block(
    net: Stack, block: int, x: Value, cache: Value | None, heads: int, cached: int
) -> tuple[Value, Value]:
    """One token through one block, and the cache with its key and value."""
    at, width = f"block{block}", x.channels
    y = net.norm(f"{at}.norm1", x)
    q = net.linear(f"{at}.query", y, width)
    row = net.linear(f"{at}.key_value", y, 2 * width)
    if cache is None:
        cache = net.input(f"cache{block}", (1, 2 * width, 1, cached), like=row)
    label = f"{at}.cache@{net.step}"
    cache = net.concat(label, cache, row)
    count = cache.sample.shape[3]
    k = net.slice(f"{label}.key", cache, width, count)
    v = net.slice(f"{label}.value", cache, width, count, channel=width)
    y = net.attention(f"{at}.attention", q, k, v, heads)
    return _feed_forward(net, at, net.linear(f"{at}.projection", y, width, added=x)), cache


__all__ = ["decoder", "encoder", "gelu", "perceptron"]
