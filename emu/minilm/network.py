# SPDX-License-Identifier: Apache-2.0
"""MiniLM in integers: calibrated on some sentences, compiled for the tokens of others.

In the feed-forward parts the first token ([CLS]) has values ten times as large as those of all
others, the same in every sentence. So each of these parts is computed twice, once in its scales and
once in the others', and every token takes its own sum from there. Few other large values are cut
off: what they lose weighs less than what all others gain.

Several sentences lie side by side, token by token: products take all of them at once, attention and
the mean each its own. On the chip is everything from token numbers to the sentences' means; text to
numbers before, and lengths and cosines behind are the host's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.minilm.model import EPSILON, HEADS, LAYERS, LONGEST, WIDTH, MiniLM, gelu, load_minilm, unit
from emu.minilm.sentences import CALIBRATION, LONG, PAIRS
from emu.network.layers import (
    AddLayer,
    AttentionLayer,
    ConcatLayer,
    ConvLayer,
    GatherLayer,
    IndexTensor,
    Layer,
    Network,
    NormLayer,
    Operand,
    PoolLayer,
    Residual,
    SliceLayer,
    Tensor,
)
from emu.network.tables import function_table
from emu.requantise import add_scales, add_table, pool_scale, scale_of

SPLIT = ("middle", "inner", "gelu", "outer", "total")
"""Activations whose first tokens have scales of their own, under the name ``first_``."""
PROBABILITY = np.float32(1 / 256)
RANGE_SHARE = 1e-5
SPLIT_SHARE = 3e-4
"""Of the values of an activation, on each side, that may be cut off; of one in `SPLIT`."""


@dataclass(frozen=True)
class Scale:
    """``real = scale * (value - zero)``, int8."""

    scale: np.float32
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> "Scale":
        low, high = min(low, 0.0), max(high, 0.0)
        scale = np.float32((high - low) / 255)
        return cls(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))

    def quantise(self, values: NDArray) -> NDArray[np.int8]:
        return np.clip(np.rint(values / self.scale) + self.zero, -128, 127).astype(np.int8)

    def real(self, values: NDArray) -> NDArray[np.float64]:
        return float(self.scale) * (values.astype(np.float64) - self.zero)


def calibrate(model: MiniLM, texts: Sequence[str] = CALIBRATION) -> dict[str, Scale]:
    """The range of every activation over ``texts``; of the tables of embeddings, over all rows."""
    seen: dict[str, list[NDArray]] = {}

    def watch(name: str, x: NDArray) -> None:
        if name.startswith(SPLIT):
            seen.setdefault(f"first_{name}", []).append(x[:1].reshape(-1))
            x = x[1:]
        seen.setdefault(name, []).append(x.reshape(-1))

    for text in texts:
        hidden = model.hidden(model.tokenizer(text), watch)
        seen.setdefault("mean", []).append(hidden.mean(axis=0))
    seen["word"] = [model.weights["embeddings.word_embeddings.weight"].reshape(-1)]
    seen["place"] = [model.places[:LONGEST].reshape(-1)]
    found = {}
    for name, values in seen.items():
        whole = np.concatenate(values)
        share = 0 if name.startswith("first_") else RANGE_SHARE
        share = SPLIT_SHARE if name.startswith(SPLIT) else share
        found[name] = Scale.of(*np.quantile(whole, (share, 1 - share)).tolist())
    return found


@dataclass
class _Builder:
    """Layers over ``lengths`` tokens each, side by side."""

    model: MiniLM
    scales: dict[str, Scale]
    lengths: list[int]
    layers: list[Layer] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def at(self, name: str, channels: int = WIDTH) -> Operand:
        return Operand(name, (1, channels, 1, self.tokens), True, self.scales[name].zero)

    def gather(self, name: str, numbers: str, rows: NDArray) -> None:
        source = Operand(numbers, (1, 16, 1, -(-self.tokens // 4)), False, 0)
        table = self.scales[name].quantise(rows)
        self.layers.append(
            GatherLayer(name=name, source=source, target=self.at(name), table=table))

    def norm(self, source: str, target: str, gamma: NDArray, beta: NDArray) -> None:
        self._norm(source, target, self.at(source), self.at(target), gamma, beta)

    def _norm(
        self, source: str, target: str, x: Operand, y: Operand, gamma: NDArray, beta: NDArray
    ) -> None:
        """Of ``x`` to ``y``, which are quantised as ``source`` and ``target``."""
        self.layers.append(NormLayer(
            name=y.name, source=x, target=y, gamma=gamma, beta=beta, epsilon=EPSILON,
            x_scale=float(self.scales[source].scale), y_scale=float(self.scales[target].scale),
        ))

    def _added(self, a: str, c: str, target: str) -> dict[str, Any]:
        """Scale and table of the sum of two activations."""
        x, y, out = (self.scales[name] for name in (a, c, target))
        ra, rc = add_scales(x.scale, y.scale, out.scale)
        return {"scale": ra, "clip_low": -128, "clip_high": 127, "target": self.at(target),
                "table": add_table(ra, rc, a_zero=x.zero, c_zero=y.zero, out_zero=out.zero,
                                   c_signed=True)}

    def add(self, a: str, c: str, target: str) -> None:
        self.layers.append(AddLayer(name=target, sources=(self.at(a), self.at(c)),
                                    **self._added(a, c, target)))

    def linear(
        self, part: tuple[NDArray, NDArray], source: str, target: str, *, channels: int = WIDTH,
        **fields: Any,
    ) -> None:
        """A product with a part's weights, one scale for each output."""
        weight, bias = part
        x, y = self.scales[source], self.scales[target]
        steps = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
        whole = np.clip(np.rint(weight / steps[:, None]), -127, 127).astype(np.int8)
        self.layers.append(ConvLayer(
            name=target, input_name=source, output_name=target,
            input_shape=self.at(source, weight.shape[1]).shape,
            output_shape=self.at(target, channels).shape, weights=whole[:, :, None, None],
            weight_zero=0, x_zero=x.zero, x_signed=True, strides=(1, 1), dilations=(1, 1),
            pads=(0, 0, 0, 0), groups=1,
            bias=np.rint(bias / (np.float64(x.scale) * steps)).astype(np.int32),
            scale=np.asarray(scale_of(x.scale, steps, y.scale)), y_zero=y.zero, y_signed=True,
            clip_low=-128, clip_high=127, **fields,
        ))

    def gelu(self, source: str, target: str) -> dict[str, Any]:
        x, y = self.scales[source], self.scales[target]
        table = function_table(gelu, x_scale=float(x.scale), x_zero=x.zero, x_signed=True,
                               y_scale=float(y.scale), y_zero=y.zero, y_signed=True)
        return {"table": table, "table_target": self.at(target, 4 * WIDTH)}

    def split(self, name: str) -> list[Operand]:
        """The tokens of each sentence."""
        whole = self.at(name)
        if len(self.lengths) == 1:
            return [whole]
        found, first = [], 0
        for number, length in enumerate(self.lengths):
            part = Operand(f"{name}/{number}", (1, WIDTH, 1, length), True, whole.zero)
            self.layers.append(SliceLayer(name=part.name, source=whole, target=part, pixel=first))
            found.append(part)
            first += length
        return found

    def join(self, parts: list[Operand], target: Operand) -> None:
        if len(parts) > 1:
            self.layers.append(
                ConcatLayer(name=target.name, sources=tuple(parts), target=target))

    def parts_of(self, target: Operand, lengths: Sequence[int]) -> list[Operand]:
        """What `join` makes ``target`` of."""
        if len(lengths) == 1:
            return [target]
        return [Operand(f"{target.name}[{k}]", (1, WIDTH, 1, length), True, target.zero)
                for k, length in enumerate(lengths)]

    def attention(self, block: int) -> None:
        q, k, v, scores, mixed = (
            self.scales[f"{name}{block}"] for name in ("query", "key", "value", "scores", "mixed"))
        operands = [self.split(f"{name}{block}") for name in ("query", "key", "value")]
        target = self.at(f"mixed{block}")
        parts = self.parts_of(target, self.lengths)
        for sources, part in zip(zip(*operands, strict=True), parts, strict=True):
            inner = (HEADS, part.shape[3], 1, part.shape[3])
            self.layers.append(AttentionLayer(
                name=part.name.replace("mixed", "attention"), sources=sources, target=part,
                heads=HEADS, scores=Operand("scores", inner, True, scores.zero),
                probabilities=Operand("probabilities", inner, True, -128),
                score_scale=np.float32(
                    float(q.scale) * float(k.scale) / np.sqrt(WIDTH / HEADS) / float(scores.scale)),
                scores_scale=float(scores.scale), probability_scale=float(PROBABILITY),
                value_scale=np.float32(scale_of(PROBABILITY, v.scale, mixed.scale)),
            ))
        self.join(parts, target)

    def block(self, b: int) -> None:
        model = self.model
        for name in ("query", "key", "value"):
            self.linear(model.block(b, f"attention.self.{name}"), f"x{b}", f"{name}{b}")
        self.attention(b)
        added = self._added(f"projection{b}", f"x{b}", f"sum{b}")
        self.linear(model.block(b, "attention.output.dense"), f"mixed{b}", f"projection{b}",
                    residual=Residual(source=self.at(f"x{b}"), **added))
        for first in ("", "first_"):
            self._feed_forward(b, first)
        self._norm_apart(b)

    def _feed_forward(self, b: int, first: str) -> None:
        """From the sum behind attention to that behind the second product, in ``first``'s scales.
        """
        model, at = self.model, f"{first}middle{b}"
        self.norm(f"sum{b}", at, *model.block(b, "attention.output.LayerNorm"))
        self.linear(
            model.block(b, "intermediate.dense"), at, f"{first}inner{b}", channels=4 * WIDTH,
            **self.gelu(f"{first}inner{b}", f"{first}gelu{b}"),
        )
        added = self._added(f"{first}outer{b}", at, f"{first}total{b}")
        self.linear(model.block(b, "output.dense"), f"{first}gelu{b}", f"{first}outer{b}",
                    residual=Residual(source=self.at(at), **added))

    def _norm_apart(self, b: int) -> None:
        """Each token normalised from the sum that has its scale."""
        target, parts, at = self.at(f"x{b + 1}"), [], 0
        for k, length in enumerate(self.lengths):
            for first, pixel, count in (("first_", at, 1), ("", at + 1, length - 1)):
                name = f"{first}total{b}"
                shape = (1, WIDTH, 1, count)
                source = Operand(f"{name}[{k}]", shape, True, self.scales[name].zero)
                part = Operand(f"{first}{target.name}[{k}]", shape, True, target.zero)
                self.layers.append(SliceLayer(
                    name=source.name, source=self.at(name), target=source, pixel=pixel))
                self._norm(name, target.name, source, part,
                           *self.model.block(b, "output.LayerNorm"))
                parts.append(part)
            at += length
        self.join(parts, target)

    def means(self) -> Tensor:
        """The mean of each sentence's tokens: (1, `WIDTH`, 1, sentences)."""
        last, scale = f"x{LAYERS}", self.scales["mean"]
        count = len(self.lengths)
        target = Operand("mean", (1, WIDTH, 1, count), True, scale.zero)
        parts = self.parts_of(target, [1] * count)
        for source, part in zip(self.split(last), parts, strict=True):
            length = source.shape[3]
            self.layers.append(PoolLayer(
                name=part.name, source=source, target=part, kind="average", kernel=(1, length),
                strides=(1, 1), pads=(0, 0, 0, 0), clip_low=-128, clip_high=127,
                scale=pool_scale(self.scales[last].scale, scale.scale, length),
            ))
        self.join(parts, target)
        return Tensor(name="mean", shape=target.shape, dtype="int8", scale=float(scale.scale),
                      zero_point=scale.zero, layer_name="mean", layer_shape=target.shape)


def build(
    model: MiniLM, scales: dict[str, Scale], sentences: Sequence[Sequence[int]],
    name: str = "minilm",
) -> Network:
    """The network of some sentences' token numbers, which are its inputs unless others are given
    of equal lengths."""
    net = _Builder(model, scales, [len(numbers) for numbers in sentences])
    words = model.weights["embeddings.word_embeddings.weight"]
    net.gather("word", "tokens", words)
    net.gather("place", "positions", model.places[:LONGEST])
    net.add("word", "place", "embedding")
    net.norm("embedding", "x0", model.weights["embeddings.LayerNorm.weight"],
             model.weights["embeddings.LayerNorm.bias"])
    for block in range(LAYERS):
        net.block(block)
    output = net.means()

    def numbers(label: str, limit: int) -> IndexTensor:
        return IndexTensor(
            name=label, shape=(net.tokens,), dtype="int32", scale=1.0, zero_point=0,
            layer_name=label, layer_shape=(1, 16, 1, -(-net.tokens // 4)), limit=limit,
        )

    flat = [number for each in sentences for number in each]
    places = [place for each in sentences for place in range(len(each))]
    return Network(
        name=name, layers=tuple(net.layers), outputs=(output,), model=None,
        inputs=(numbers("tokens", len(words)), numbers("positions", LONGEST)),
        given={"tokens": np.array(flat, np.int32), "positions": np.array(places, np.int32)},
        host={
            "tokenizer": f"{len(sentences)} texts to {4 * len(flat):,} bytes of token numbers and "
            f"{4 * len(flat):,} of positions",
            "length and cosine": f"of {len(sentences)} embeddings, {WIDTH * len(sentences):,} "
            "bytes",
        },
    )


def long_sentence(name: str, seed: int) -> Network:
    """The built-in text of `LONGEST` tokens; ``seed`` has no say."""
    model = load_minilm()
    return build(model, calibrate(model), [model.tokenizer(LONG)], name)


def pairs(name: str, seed: int) -> Network:
    """The sentences of `PAIRS`, one after another."""
    model = load_minilm()
    texts = [model.tokenizer(text) for pair in PAIRS for text in pair]
    return build(model, calibrate(model), texts, name)


def cosines(embeddings: NDArray) -> NDArray[np.float64]:
    """Of the pairs of rows (1, 2), (3, 4), ..."""
    rows = unit(embeddings.astype(np.float64))
    return (rows[::2] * rows[1::2]).sum(axis=-1)


def compare_pairs(output: NDArray) -> tuple[NDArray, NDArray]:
    """(cosines of `pairs`' output ``mean``, the float model's)."""
    model = load_minilm()
    ours = calibrate(model)["mean"].real(output[0, :, 0].T)
    theirs = np.array([model.embed(text) for pair in PAIRS for text in pair])
    return cosines(ours), cosines(theirs)


__all__ = ["Scale", "build", "calibrate", "compare_pairs", "cosines", "long_sentence", "pairs"]
