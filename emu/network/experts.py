# SPDX-License-Identifier: Apache-2.0
"""A mixture-of-experts feed-forward block with seeded weights: routed, gathered and mixed on chip.

The router's scores become probabilities, the two largest choose two experts, whose outputs are
weighed by their probabilities and added to the token (Shazeer et al., "Outrageously Large Neural
Networks", 2017, without noise; probabilities are those over all experts, not renormalised).
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emu.network.composer import LINEAR_ZERO, SPREAD, Value, short
from emu.network.exact import run_layer
from emu.network.layers import (
    AddLayer,
    ConvLayer,
    ExpertLayer,
    MultiplyLayer,
    Network,
    Operand,
    SoftmaxLayer,
    TopKLayer,
)
from emu.network.recorded import EXPERTS, LAYERS, before, foreseen, recorded
from emu.network.transformers import GELU_SCALE, GELU_ZERO, PROBABILITY_SCALE, Stack

CHOSEN, LANES = 2, 16
TRACE = 512
"""Tokens of the trace that frequencies are counted in."""
SCORE_SCALE = 0.05


class Block(Stack):
    """A stack with layers of experts."""

    def experts(
        self, name: str, x: Value, numbers: Value, count: int, outputs: int, gelu: bool,
        tokens: int = 1, foreseen: Value | None = None, frequency: tuple[int, ...] | None = None,
    ) -> Value:
        """Products of the chosen experts, all calibrated as if of one."""
        label = self.label(name)
        if name not in self.made:
            one = replace(x, sample=x.sample[..., :1])
            layer, _, scale = self.composer.calibrated(name, one, outputs, 1, 1, 0, 1, False, 0)
            y = Value(name, scale, layer.y_zero, run_layer(layer, one.sample))
            drawn = self.composer.rng.standard_normal((count, outputs, x.channels), np.float32) * 24
            self.made[name] = scale, {
                "weights": np.clip(np.rint(drawn), -127, 127).astype(np.int8),
                "table": self._gelu_table(y) if gelu else None, "y_zero": layer.y_zero,
                "bias": np.tile(layer.bias, (count, 1)), "scale": np.tile(layer.scale, (count, 1)),
            }
        scale, fields = self.made[name]
        target = Operand(label, (1, outputs, 1, CHOSEN * tokens), True,
                         GELU_ZERO if gelu else fields["y_zero"])
        values = (x, numbers, *([foreseen] if foreseen else ()))
        found = ExpertLayer(name=label, sources=tuple(v.operand for v in values), target=target,
                            k=CHOSEN, frequency=frequency, **fields)
        return self._add(found, GELU_SCALE if gelu else scale, *values)

    def gates(self, name: str, values: Value, width: int) -> Value:
        """Each chosen expert's probability in ``width`` channels, one expert behind the other."""
        outputs = CHOSEN * width
        weights = np.zeros((outputs, 16, 1, 1), np.int8)
        weights[np.arange(outputs), np.arange(outputs) // width] = 1
        layer = ConvLayer(
            name=name, input_name=values.name, output_name=name, input_shape=(1, 16, 1, 1),
            output_shape=(1, outputs, 1, 1), weights=weights, weight_zero=0, x_zero=0,
            x_signed=False, strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), groups=1,
            bias=np.zeros(outputs, np.int32), scale=np.ones(outputs, np.float32), y_zero=0,
            y_signed=False, clip_low=0, clip_high=255,
        )
        return self._add(layer, PROBABILITY_SCALE, values)

    def weighed(self, name: str, y: Value, gate: Value) -> Value:
        real = (y.sample.astype(np.float64) - y.zero) * float(y.scale) * (
            gate.sample.astype(np.float64) - gate.zero) * float(gate.scale)
        scale = np.float32(short(max(real.std(), 1e-6) / SPREAD))
        layer = MultiplyLayer(
            name=name, sources=(y.operand, gate.operand),
            target=Operand(name, y.operand.shape, True, LINEAR_ZERO), clip_low=-128, clip_high=127,
            scale=np.float32(np.float32(y.scale * gate.scale) / scale),
        )
        return self._add(layer, scale, y, gate)

    def add(self, name: str, y: Value, added: Value) -> Value:
        scale, ra, table = self._sum(y, added)
        layer = AddLayer(
            name=name, sources=(y.operand, added.operand), scale=ra, table=table, clip_low=-128,
            clip_high=127, target=Operand(name, y.operand.shape, True, LINEAR_ZERO),
        )
        return self._add(layer, scale, y, added)

    def hand_on(self, x: Value, outputs: int, which: str = "", channel: int = 0) -> Value:
        """A router that says what channels of ``x`` from ``channel`` on say."""
        router, name = f"router{which}", self.label(f"scores{which}")
        if router not in self.made:
            weights = np.zeros((outputs, x.channels, 1, 1), np.int8)
            weights[np.arange(outputs), channel + np.arange(outputs)] = 1
            self.made[router] = {"weights": weights, "bias": np.zeros(outputs, np.int32),
                                 "scale": np.ones(outputs, np.float32)}
        return self._add(ConvLayer(
            name=self.label(router), input_name=x.name, output_name=name,
            input_shape=x.operand.shape, output_shape=(1, outputs, 1, x.sample.shape[3]),
            weight_zero=0, x_zero=x.zero, x_signed=True, strides=(1, 1), dilations=(1, 1),
            pads=(0, 0, 0, 0), groups=1, y_zero=x.zero, y_signed=True, clip_low=-128,
            clip_high=127, **self.made[router]), x.scale, x)

    def top(self, name: str, scores: Value) -> Value:
        """What the top-k unit finds."""
        target = Operand(self.label(name), (1, 16, 1, 2 * scores.sample.shape[3]), False, 0)
        return self._add(TopKLayer(name=target.name, source=scores.operand, k=CHOSEN,
                                   target=target), scores.scale, scores)

    def route(self, x: Value, experts: int) -> tuple[Value, Value]:
        """(numbers, probabilities) of the chosen experts."""
        scores = self.linear("router", x, experts)
        shape = scores.operand.shape
        layer = SoftmaxLayer(
            name="routing", source=scores.operand, x_scale=SCORE_SCALE,
            target=Operand("routing", shape, False, 0),
            y_scale=float(PROBABILITY_SCALE),
        )
        p = self._add(layer, PROBABILITY_SCALE, scores)
        top = self._add(
            TopKLayer(name="top", source=p.operand, k=CHOSEN,
                      target=Operand("top", (1, 16, 1, 2), False, 0)), PROBABILITY_SCALE, p)
        return (self.slice("numbers", top, 16, 1),
                self.slice("probabilities", top, 16, 1, pixel=1))


def moe_block(name: str, seed: int, *, experts: int, width: int, inner: int) -> Network:
    """One token through a block of ``experts``, of which two are read."""
    net = Block.create(name, seed)
    x = net.input("x", (1, width, 1, 1))
    y = net.norm("norm", x)
    numbers, probabilities = net.route(y, experts)
    gates = net.gates("gates", probabilities, width)
    hidden = net.experts("up", y, numbers, experts, inner, True)
    found = net.experts("down", hidden, numbers, experts, width, False)
    parts = []
    for i in range(CHOSEN):
        out = net.slice(f"expert{i}", found, width, 1, pixel=i)
        gate = net.slice(f"gate{i}", gates, width, 1, channel=i * width)
        parts.append(net.weighed(f"weighed{i}", out, gate))
    return net.network(net.add("sum", net.add("mix", *parts), x))


def popularity(rng: np.random.Generator, experts: int, zipf: float) -> NDArray[np.float64]:
    """Zipf's law over the experts in a random order, not normalised."""
    return rng.permutation(np.arange(1, experts + 1) ** -float(zipf))


def draw(
    rng: np.random.Generator, tokens: int, chances: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Scores (experts, tokens) whose `CHOSEN` largest are drawn by the experts' ``chances``, each
    token's without repetition."""
    experts = len(chances)
    scores = rng.integers(-100, 50, (experts, tokens), np.int8)
    for token in range(tokens):
        chosen = rng.choice(experts, CHOSEN, replace=False, p=chances / chances.sum())
        scores[chosen, token] = 120 - 10 * np.arange(CHOSEN)
    return scores


def moe_batch(
    name: str, seed: int, *, tokens: int, experts: int, width: int, inner: int, zipf: float = 0.0,
    steps: int = 1, layer: int | None = None,
) -> Network:
    """The experts' two layers for ``tokens`` at once, behind a router and the top-k unit; ``steps``
    times one after the other, with other tokens.

    A token's first channels are its scores, which the router, an identity, hands on: so routing is
    chosen by the input and found on the chip: by Zipf's law, or as recorded from a ``layer`` of a
    trained mixture. What the experts say is not mixed. The layers' frequencies are of a trace of
    its own (`TRACE` tokens by the same law, or the third of the images before the seed's).
    """
    net = Block.create(name, seed)
    if layer is None:
        chances = popularity(net.composer.rng, experts, zipf)
        scores = draw(net.composer.rng, steps * tokens, chances)
        trace = draw(np.random.default_rng([seed, TRACE]), TRACE, chances)
    else:
        scores, trace = recorded(steps * tokens, layer, seed), before(layer, seed)
    two = np.argsort(-trace.astype(int), axis=0, kind="stable")[:CHOSEN]
    frequency = tuple(np.bincount(two.reshape(-1), minlength=experts).tolist())
    outputs, given = [], {}
    for net.step in range(steps):
        x = net.input(net.label("x"), (1, width, 1, tokens))
        x.sample[0, :experts, 0] = scores[:, net.step * tokens :][:, :tokens]
        given[x.name] = x.sample
        top = net.top("top", net.hand_on(x, experts))
        hidden = net.experts("up", x, top, experts, inner, True, tokens, frequency=frequency)
        outputs.append(net.experts("down", hidden, top, experts, width, False, tokens,
                                   frequency=frequency))
    return replace(net.network(*outputs), given=given)


def moe_chain(
    name: str, seed: int, *, steps: int, width: int, inner: int,
    foresight: Literal["router", "oracle"] = "router",
) -> Network:
    """`LAYERS` layers of eight experts one behind the other, for ``steps`` tokens in turn.

    All routing is that of the trained mixture: scores are an input, which routers (identities) hand
    on, layer by layer; a layer's router says too what the next layer will choose: what that one's
    router makes of this layer's input, as recorded, or (``oracle``) what it will choose. What the
    two experts of a token say is added, unweighed.
    """
    net = Block.create(name, seed)
    outputs: list[Value] = []
    given: dict[str, NDArray] = {}
    scores = np.full((LAYERS, 2, LANES, steps), -128, np.int8)
    for layer in range(LAYERS):
        scores[layer, 0, :EXPERTS] = recorded(steps, layer, seed)
        if layer:
            source = foreseen if foresight == "router" else recorded
            scores[layer - 1, 1, :EXPERTS] = source(steps, layer, seed)
    for net.step in range(steps):
        x = net.input(net.label("x"), (1, width, 1, 1))
        routing = net.input(net.label("routing"), (1, scores[..., 0].size, 1, 1))
        routing.sample[0, :, 0, 0] = scores[..., net.step].reshape(-1)
        given |= {x.name: x.sample, routing.name: routing.sample}
        ahead: Value | None = None
        for layer in range(LAYERS):
            last = layer == LAYERS - 1
            heard = net.hand_on(routing, EXPERTS if last else LANES + EXPERTS, str(layer),
                                2 * LANES * layer)
            following: Value | None = None
            if last:
                top = net.top(f"top{layer}", heard)
            else:
                true, early = (
                    net.slice(net.label(f"{what}{layer}"), heard, EXPERTS, 1, channel=channel)
                    for what, channel in (("true", 0), ("early", LANES)))
                top = net.top(f"top{layer}", true)
                following = net.top(f"foreseen{layer + 1}", early)
            hidden = net.experts(f"up{layer}", x, top, EXPERTS, inner, True, foreseen=ahead)
            found = net.experts(f"down{layer}", hidden, top, EXPERTS, width, False, foreseen=ahead)
            x = net.add(net.label(f"mix{layer}"), *(
                net.slice(net.label(f"expert{i}.{layer}"), found, width, 1, pixel=i)
                for i in range(CHOSEN)))
            ahead = following
        outputs.append(x)
    return replace(net.network(*outputs), given=given)


__all__ = ["draw", "moe_batch", "moe_block", "moe_chain", "popularity"]
