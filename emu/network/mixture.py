# SPDX-License-Identifier: Apache-2.0
"""The trained mixture of experts of `tools/train_experts.py` as a network, images as tokens.

All is on the chip: routers, softmax, the top-k unit, the chosen experts of all tokens, and the mix:
their outputs times their probabilities (of all experts, not renormalised), summed onto the token.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.composer import Value
from emu.network.exact import accumulate
from emu.network.experts import CHOSEN, Block
from emu.network.layers import (
    ConvLayer,
    ExpertLayer,
    MultiplyLayer,
    Network,
    Operand,
    Residual,
    SoftmaxLayer,
)
from emu.network.recorded import LAYERS
from emu.network.trained import DATA
from emu.network.transformers import PROBABILITY_SCALE
from emu.requantise import add_scales, add_table, scale_of

LOWEST = -128


def _real(value: Value) -> NDArray[np.float64]:
    return (value.sample.astype(np.float64) - value.zero) * float(value.scale)


def _fitted(real: NDArray[np.float64]) -> tuple[np.float32, int]:
    """Scale and zero point of int8 with which all of ``real``, and 0, can be said."""
    low, high = min(float(real.min()), 0.0), max(float(real.max()), 0.0)
    scale = np.float32((high - low) / 255)
    return scale, int(np.rint(LOWEST - low / scale))


class _Mixture(Block):
    """Layers with given weights; calibrated, as all, on the sample of the first step."""

    weights: dict[str, NDArray[Any]]

    def product(
        self, name: str, x: Value, weights: NDArray[np.int8], weight_scale: np.float32,
        added: Value | None = None, apart: int = 1, y: tuple[np.float32, int] | None = None,
    ) -> Value:
        """Weights (M, C, 1, taps) on ``apart`` pixels of ``x`` side by side; then the sum with
        ``added``. ``y``: scale and zero point of the product, fitted to the sample by default."""
        label, (outputs, _, _, taps) = self.label(name), weights.shape
        pixels = x.sample.shape[3] // apart
        fields: dict[str, Any] = {
            "name": label, "input_name": x.name, "output_name": label,
            "input_shape": x.operand.shape, "output_shape": (1, outputs, 1, pixels),
            "weights": weights, "weight_zero": 0, "x_zero": x.zero, "x_signed": x.is_signed,
            "strides": (1, apart), "dilations": (1, 1), "pads": (0, 0, 0, 0), "groups": 1,
            "y_signed": True, "clip_low": LOWEST, "clip_high": 127,
        }
        assert taps == apart
        if name not in self.made:
            ones = ConvLayer(scale=np.ones(outputs, np.float32), y_zero=0,
                             bias=np.zeros(outputs, np.int32), **fields)
            real = accumulate(ones, x.sample) * float(x.scale) * float(weight_scale)
            scale, zero = y or _fitted(real)
            total = _fitted(real.reshape(added.sample.shape) + _real(added)) if added else None
            factor = scale_of(x.scale, weight_scale, scale)
            self.made[name] = scale, zero, total, {
                "bias": ones.bias, "scale": np.full(outputs, factor, np.float32)}
        scale, zero, total, constants = self.made[name]
        fields |= constants | {"y_zero": zero}
        if not (added and total):
            return self._add(ConvLayer(**fields), scale, x)
        ra, rc = add_scales(scale, added.scale, total[0])
        fields["output_name"] = f"{label}.linear"
        residual = Residual(
            source=added.operand, target=Operand(label, fields["output_shape"], True, total[1]),
            scale=ra, clip_low=LOWEST, clip_high=127,
            table=add_table(ra, rc, a_zero=zero, c_zero=added.zero, out_zero=total[1],
                            c_signed=True))
        return self._add(ConvLayer(residual=residual, **fields), total[0], x, added)

    def linear_of(self, name: str, x: Value, added: Value | None = None) -> Value:
        """A matrix of the trained ones."""
        found, scale = self.weights[name], np.float32(self.weights[f"{name}.scale"])
        weights = self.made.setdefault(f"{name}.weights", found[:, :, None, None])
        return self.product(name, x, weights, scale, added)

    def routing(self, layer: int, h: Value) -> Value:
        """Probabilities of all experts, uint8."""
        scores = self.linear_of(f"router{layer}", h)
        label = self.label(f"routing{layer}")
        return self._add(SoftmaxLayer(
            name=label, source=scores.operand, x_scale=float(scores.scale),
            target=Operand(label, scores.operand.shape, False, 0),
            y_scale=float(PROBABILITY_SCALE)), PROBABILITY_SCALE, scores)

    def chosen(self, name: str, x: Value, numbers: Value, rectified: bool) -> Value:
        """The chosen experts' products, of which the negative ones are cut off if ``rectified``."""
        weights, label = self.weights[name], self.label(name)
        experts, outputs, _ = weights.shape
        if name not in self.made:
            real = self._products(name, x, numbers)
            y_scale, zero = _fitted(np.maximum(real, 0) if rectified else real)
            scale = scale_of(x.scale, self.weights[f"{name}.scale"], y_scale)
            self.made[name] = y_scale, zero, {  # one array each: steps share what lies in HBM
                "weights": weights, "bias": np.zeros((experts, outputs), np.int32),
                "scale": np.full((experts, outputs), scale, np.float32)}
        y_scale, zero, fields = self.made[name]
        shape = (1, outputs, 1, CHOSEN * numbers.sample.shape[3] // 2)
        return self._add(ExpertLayer(
            name=label, sources=(x.operand, numbers.operand), k=CHOSEN, y_zero=zero,
            target=Operand(label, shape, True, zero), **fields), y_scale, x, numbers)

    def _products(self, name: str, x: Value, numbers: Value) -> NDArray[np.float64]:
        """Real, (outputs, tokens * k)."""
        words = np.ascontiguousarray(numbers.sample.reshape(16, -1).T).view(np.uint32)[::2, :CHOSEN]
        share = words.size // x.sample.shape[3]
        values = np.repeat(_real(x)[0, :, 0], share, axis=1)
        scale = float(self.weights[f"{name}.scale"])
        chosen = self.weights[name].astype(np.float64)[words.reshape(-1)] * scale
        return np.einsum("pmc,cp->mp", chosen, values)

    def _ones(self, width: int) -> list[NDArray[np.int8]]:
        """Weights that put outputs and probabilities into channels, and that sum the products."""
        if "ones" not in self.made:
            both = np.zeros((CHOSEN * width, width, 1, CHOSEN), np.int8)
            gates = np.zeros((CHOSEN * width, 16, 1, 2), np.int8)
            total = np.zeros((width, CHOSEN * width, 1, 1), np.int8)
            for i in range(CHOSEN):
                rows = np.arange(i * width, (i + 1) * width)
                both[rows, rows - i * width, 0, i] = gates[rows, i, 0, 1] = 1
                total[rows - i * width, rows, 0, 0] = 1
            self.made["ones"] = [both, gates, total]
        return self.made["ones"]

    def mixed(self, layer: int, found: Value, top: Value, h: Value) -> Value:
        """``h`` and its experts' outputs, each times its probability.

        The two outputs of a token lie side by side, its numbers before its probabilities: products
        with ones put both into channels, first expert's, then second's.
        """
        both, gates, total = self._ones(h.channels)
        one = np.float32(1)
        y = self.product(f"both{layer}", found, both, one, apart=2, y=(found.scale, found.zero))
        p = self.product(f"gates{layer}", top, gates, one, apart=2,
                         y=(PROBABILITY_SCALE, LOWEST))
        name = f"weighed{layer}"
        if name not in self.made:
            self.made[name] = _fitted(_real(y) * _real(p))
        scale, zero = self.made[name]
        weighed = self._add(MultiplyLayer(
            name=self.label(name), sources=(y.operand, p.operand), clip_low=LOWEST, clip_high=127,
            target=Operand(self.label(name), y.operand.shape, True, zero),
            scale=np.float32(np.float32(y.scale * p.scale) / scale)), scale, y, p)
        return self.product(f"h{layer + 1}", weighed, total, one, added=h)


def digits_moe(name: str, seed: int, *, tokens: int, steps: int) -> Network:
    """Held-out digits, ``tokens`` at a time; the seed plays no part.

    Calibrated on the first ``tokens`` of them, by range.
    """
    net = _Mixture.create(name, seed)
    with np.load(DATA / "experts.npz") as archive:
        net.weights = {key: archive[key] for key in archive.files}
    with np.load(DATA / "digits.npz") as archive:
        images = archive["image"].reshape(-1, 64).astype(np.int8)
    outputs, given = [], {}
    for net.step in range(steps):
        drawn = images[net.step * tokens :][:tokens].T[None, :, None]
        x = Value(net.label("image"), np.float32(1 / 16), 0, np.ascontiguousarray(drawn))
        net.inputs.append(x)
        given[x.name] = x.sample
        h = net.linear_of("first", x)
        for layer in range(LAYERS):
            top = net.top(f"top{layer}", net.routing(layer, h))
            hidden = net.chosen(f"up{layer}", h, top, True)
            h = net.mixed(layer, net.chosen(f"down{layer}", hidden, top, False), top, h)
        outputs.append(net.linear_of("last", h))
    return replace(net.network(*outputs), given=given)


__all__ = ["digits_moe"]
