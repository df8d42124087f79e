# SPDX-License-Identifier: Apache-2.0
"""Random small networks as ONNX: convolutions of any kind, residuals, pools, tables, classifiers.

A network is a *recipe*, a list of plain values that hypothesis can draw and shrink; `build` turns
recipes, each with names of its own, into one model, so that a simulation can run many at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import helper

from tests.emu import network_models as models
from tests.emu.network_models import TYPES, draw, near_middle, operands

MICROSOFT = "com.microsoft"
MOST_WORDS = 3000
"""Of an activation: keeps a network to some thousand cycles."""

STEP = st.one_of(
    st.tuples(st.just("conv"), st.sampled_from([1, 3, 8, 16, 17, 24, 40, 64]),
              st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2), (5, 5)]),
              st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 1)]),
              st.tuples(*[st.integers(0, 2)] * 4), st.sampled_from([1, 1, 2])),
    st.tuples(st.just("depthwise"), st.sampled_from([(3, 3), (2, 3)]),
              st.sampled_from([(1, 1), (2, 2)])),
    st.tuples(st.just("grouped"), st.sampled_from([2, 3, 4])),
    st.tuples(st.just("residual"), st.booleans()),
    st.tuples(st.just("max_pool"), st.sampled_from([(2, 2), (3, 3)]), st.integers(1, 2)),
    st.tuples(st.just("clip"), st.integers(-60, 0), st.integers(1, 60)),
    st.tuples(st.just("table"), st.sampled_from(["QLinearSigmoid", "QLinearLeakyRelu"])),
    st.tuples(st.just("classify"), st.sampled_from([3, 10, 33])),
)
RECIPE = st.tuples(
    st.integers(0, 2**31 - 1), st.sampled_from(["s8", "s8", "u8"]), st.integers(1, 2),
    st.sampled_from([1, 3, 16, 20, 48]), st.integers(1, 14), st.integers(1, 14),
    st.lists(STEP, min_size=1, max_size=6),
)
"""Seed of the values, type, images, channels, height, width, steps."""


def random_recipe(seed: int) -> tuple:
    """A recipe like those that `RECIPE` draws, without hypothesis."""
    rng = np.random.default_rng([seed, 77])

    def pick(values):
        return values[int(rng.integers(len(values)))]

    def step():
        kind = pick(["conv", "conv", "conv", "depthwise", "grouped", "residual", "residual",
                     "max_pool", "clip", "table", "classify"])
        return {
            "conv": lambda: (kind, pick([1, 3, 8, 16, 17, 24, 40, 64]),
                             pick([(1, 1), (3, 3), (1, 3), (2, 2), (5, 5)]),
                             pick([(1, 1), (1, 1), (2, 2), (2, 1)]),
                             tuple(int(v) for v in rng.integers(0, 3, 4)), pick([1, 1, 2])),
            "depthwise": lambda: (kind, pick([(3, 3), (2, 3)]), pick([(1, 1), (2, 2)])),
            "grouped": lambda: (kind, pick([2, 3, 4])),
            "residual": lambda: (kind, bool(rng.integers(2))),
            "max_pool": lambda: (kind, pick([(2, 2), (3, 3)]), int(rng.integers(1, 3))),
            "clip": lambda: (kind, -int(rng.integers(0, 61)), int(rng.integers(1, 61))),
            "table": lambda: (kind, pick(["QLinearSigmoid", "QLinearLeakyRelu"])),
            "classify": lambda: (kind, pick([3, 10, 33])),
        }[kind]()

    return (seed, pick(["s8", "s8", "u8"]), pick([1, 1, 2]), pick([1, 3, 16, 20, 48]),
            int(rng.integers(1, 15)), int(rng.integers(1, 15)),
            [step() for _ in range(int(rng.integers(1, 7)))])


def _smaller(recipe: tuple) -> Iterator[tuple]:
    """Recipes with a step less, or one size at one, halved or less by one."""
    *front, steps = recipe
    for k in range(len(steps) if len(steps) > 1 else 0):
        yield (*front, [*steps[:k], *steps[k + 1 :]])
    for k in range(2, len(front)):
        for size in sorted({1, front[k] // 2, front[k] - 1}):
            if 1 <= size < front[k]:
                yield (*front[:k], size, *front[k + 1 :], steps)


def shrunk(recipe: tuple, fails: Callable[[tuple], bool]) -> tuple:
    """The smallest part of ``recipe`` for which ``fails`` still holds, step by step (hypothesis
    does not shrink an example that it has not drawn itself)."""
    while True:
        found = next((each for each in _smaller(recipe) if fails(each)), None)
        if found is None:
            return recipe
        recipe = found


@dataclass
class _Value:
    name: str
    shape: tuple[int, ...]
    scale: np.float32
    zero: Any


@dataclass
class Batch:
    """Networks in one model."""

    nodes: list = field(default_factory=list)
    constants: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    outputs: dict = field(default_factory=dict)

    def model(self) -> bytes:
        return models.model(self.nodes, self.inputs, self.outputs, self.constants)


def build(recipes) -> bytes:
    """One model of all ``recipes``; outputs are called ``nK.y`` by their number."""
    batch = Batch()
    for number, recipe in enumerate(recipes):
        _Builder(batch, f"n{number}", recipe).run()
    return batch.model()


class _Builder:
    def __init__(self, batch: Batch, prefix: str, recipe):
        self.batch, self.prefix = batch, prefix
        seed, self.kind, n, c, h, w, self.steps = recipe
        self.rng = np.random.default_rng(seed)
        self.weight = self.kind  # s8 x s8 and u8 x u8: exact on every machine
        self.value = _Value(f"{prefix}.x", (n, c, h, w), np.float32(0.02),
                            near_middle(self.rng, self.kind, 40))
        self.past = [self.value]
        self.count = 0

    def run(self) -> None:
        batch, start = self.batch, self.value
        for step in self.steps:
            if len(self.value.shape) == 4:
                getattr(self, f"_{step[0]}")(*step[1:])
        if self.value is start:
            self._conv(8, (1, 1), (1, 1), (0, 0, 0, 0), 1)
        batch.inputs[start.name] = (self.kind, start.shape)
        last = f"{self.prefix}.y"
        batch.nodes[-1].output[0] = last
        batch.outputs[last] = (self.kind, self.value.shape)

    def _constant(self, name, value):
        self.batch.constants[name] = np.asarray(value)
        return name

    def _names(self):
        self.count += 1
        return f"{self.prefix}.{self.count}"

    def _push(self, name, shape, scale, zero):
        self.value = _Value(name, shape, np.float32(scale), zero)
        self.past.append(self.value)

    def _of(self, name, role, value):
        return [self._constant(f"{name}.{role}s", np.float32(value.scale)),
                self._constant(f"{name}.{role}z", value.zero)]

    def _layer(self, op, weights, outputs, k, name, shape, bias=True, domain="", **attributes):
        found = operands(self.rng, weights, outputs, k, activation=self.kind, weight=self.weight,
                         per_channel=bool(self.rng.integers(2)), bias=bias)
        found |= {"xs": np.float32(self.value.scale), "xz": self.value.zero}
        found["ys"] = np.float32(found["xs"] * 0.01 * np.sqrt(k) * 74 * 74 / 50)
        order = ["xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
        if op == "QGemm":
            order = ["xs", "xz", "w", "ws", "wz", "b", "ys", "yz"]
        inputs = [self._constant(f"{name}.{role}", found[role]) if role in found else ""
                  for role in order]
        self.batch.nodes.append(helper.make_node(
            op, [self.value.name, *inputs], [name], name, domain=domain, **attributes))
        self._push(name, shape, found["ys"], found["yz"])

    def _conv(self, outputs, kernel, strides, pads, dilation, groups=1):
        n, c, h, w = self.value.shape
        pads = [min(p, k - 1) for p, k in zip(pads, kernel * 2, strict=True)]
        spans = [dilation * (k - 1) + 1 for k in kernel]
        size = [(length + pads[i] + pads[i + 2] - spans[i]) // strides[i] + 1
                for i, length in enumerate((h, w))]
        if min(size) < 1 or -(-outputs // 16) * n * size[0] * size[1] > MOST_WORDS:
            return
        weights = draw(self.rng, (outputs, c // groups, *kernel), self.weight)
        self._layer("QLinearConv", weights, outputs, c // groups * kernel[0] * kernel[1],
                    self._names(), (n, outputs, *size), bool(self.rng.integers(4)),
                    strides=list(strides), pads=pads, dilations=[dilation] * 2, group=groups)

    def _depthwise(self, kernel, strides):
        channels = self.value.shape[1]
        if channels > 1:
            self._conv(channels, kernel, strides, (1, 1, 1, 1), 1, channels)

    def _grouped(self, groups):
        channels = self.value.shape[1]
        if channels % groups == 0 and channels > groups:
            self._conv(2 * channels, (3, 3), (1, 1), (1, 1, 1, 1), 1, groups)

    def _residual(self, first):
        same = [v for v in self.past[:-1] if v.shape == self.value.shape]
        if not same:  # make one: a convolution that keeps the shape
            before = self.value
            self._conv(before.shape[1], (1, 1), (1, 1), (0, 0, 0, 0), 1)
            same = [before] if self.value is not before else []
        if not same:
            return
        name, other = self._names(), same[-1]
        a, b = (other, self.value) if first else (self.value, other)
        scale = np.float32(max(a.scale, b.scale) * 1.5)
        to = _Value(name, a.shape, scale, near_middle(self.rng, self.kind, 50))
        self.batch.nodes.append(helper.make_node(
            "QLinearAdd", [a.name, *self._of(name, "a", a), b.name, *self._of(name, "b", b),
                           *self._of(name, "y", to)], [name], name, domain=MICROSOFT))
        self._push(name, a.shape, scale, to.zero)

    def _max_pool(self, kernel, stride):
        n, c, h, w = self.value.shape
        size = [(length - k) // stride + 1 for length, k in zip((h, w), kernel, strict=True)]
        if min(size) < 1:
            return
        name = self._names()
        self.batch.nodes.append(helper.make_node(
            "MaxPool", [self.value.name], [name], name, kernel_shape=list(kernel),
            strides=[stride] * 2))
        self._push(name, (n, c, *size), self.value.scale, self.value.zero)

    def _clip(self, low, high):
        if self.value is self.past[0]:
            return
        info = np.iinfo(TYPES[self.kind][0])
        zero = int(self.value.zero)
        bounds = [np.clip(zero + v, info.min, info.max) for v in (low, high)]
        name = self._names()
        names = [self._constant(f"{name}.{what}", TYPES[self.kind][0](v))
                 for what, v in zip(("low", "high"), bounds, strict=True)]
        self.batch.nodes.append(helper.make_node("Clip", [self.value.name, *names], [name], name))
        self._push(name, self.value.shape, self.value.scale, self.value.zero)

    def _table(self, op):
        if self.value is self.past[0]:
            return
        name = self._names()
        to = _Value(name, self.value.shape, np.float32(1 / 256 if "Sig" in op else 0.03),
                    near_middle(self.rng, self.kind, 30))
        more = {} if "Sig" in op else {"alpha": 0.1}
        self.batch.nodes.append(helper.make_node(
            op, [self.value.name, *self._of(name, "x", self.value), *self._of(name, "y", to)],
            [name], name, domain=MICROSOFT, **more))
        self._push(name, to.shape, to.scale, to.zero)

    def _classify(self, outputs):
        n, c = self.value.shape[:2]
        name = self._names()
        to = _Value(name, (n, c, 1, 1), np.float32(self.value.scale / 2),
                    near_middle(self.rng, self.kind, 20))
        self.batch.nodes.append(helper.make_node(
            "QLinearGlobalAveragePool",
            [self.value.name, *self._of(name, "x", self.value), *self._of(name, "y", to)],
            [name], name, domain=MICROSOFT, channels_last=0))
        self._push(name, to.shape, to.scale, to.zero)
        flat = self._names()
        self.batch.nodes.append(helper.make_node("Flatten", [name], [flat], flat, axis=1))
        self._push(flat, (n, c), to.scale, to.zero)
        weights = draw(self.rng, (outputs, c), self.weight)
        self._layer("QGemm", weights, outputs, c, self._names(), (n, outputs), domain=MICROSOFT,
                    transB=1)
