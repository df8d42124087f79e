# SPDX-License-Identifier: Apache-2.0
"""Quantised tensors and constants of a QDQ model, and what the host does at its ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Scale:
    """A quantised tensor: its name in the new model, scale and zero point."""

    name: str
    scale: np.float32
    zero: NDArray

    def same(self, other: "Scale") -> bool:
        return (self.scale == other.scale and self.zero == other.zero
                and self.zero.dtype == other.zero.dtype)


@dataclass(frozen=True)
class Weights:
    """A constant as DequantizeLinear reads it; ``scale`` along ``axis`` if it has several."""

    values: NDArray
    scale: NDArray[np.float32]
    zero: NDArray
    axis: int

    @property
    def real(self) -> NDArray[np.float64]:
        shape = [1] * self.values.ndim
        if self.scale.size > 1:
            shape[self.axis] = -1
        return ((self.values.astype(np.float64) - self.zero.astype(np.float64).reshape(
            shape if self.zero.size > 1 else [1] * self.values.ndim))
            * self.scale.astype(np.float64).reshape(shape))


@dataclass(frozen=True)
class Boundary:
    """What the host does: graph name to how its float values become integers, or were made."""

    original: Any = field(repr=False)
    inputs: Mapping[str, Scale] = field(default_factory=dict)
    outputs: Mapping[str, Scale] = field(default_factory=dict)

    def host_operators(self, elements: Mapping[str, int]) -> dict[str, str]:
        """What the host computes: operator and tensor, to what it is and how many bytes it moves.

        ``elements``: of every graph input and output.
        """
        def text(name: str, scale: Scale) -> str:
            count, kind = elements[name], scale.zero.dtype
            ways = f"{4 * count:,} bytes of float32", f"{count:,} of {kind}"
            first, last = ways if name in self.inputs else ways[::-1]
            return f"{first} to {last}, scale {scale.scale:.6g}, zero point {scale.zero}"

        return {
            **{f"{QUANTISE} {name}": text(name, scale) for name, scale in self.inputs.items()},
            **{f"{DEQUANTISE} {name}": text(name, scale) for name, scale in self.outputs.items()},
        }

    def quantise(self, name: str, values: NDArray) -> NDArray:
        """``values`` of graph input ``name`` as QuantizeLinear makes them."""
        return to_integers(values, self.inputs[name])

    def reals(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The original model's inputs for integer ones."""
        return {
            name: to_reals(value, self.inputs[name]) if name in self.inputs else value
            for name, value in inputs.items()
        }


def to_integers(values: NDArray, scale: Scale) -> NDArray:
    """QuantizeLinear: round to even, add the zero point, saturate."""
    info = np.iinfo(scale.zero.dtype)
    steps = np.rint(np.asarray(values, np.float32) / scale.scale)
    return np.clip(steps + np.float32(scale.zero), info.min, info.max).astype(scale.zero.dtype)


def to_reals(values: NDArray, scale: Scale) -> NDArray[np.float32]:
    """DequantizeLinear."""
    return ((values.astype(np.float32) - np.float32(scale.zero)) * scale.scale).astype(np.float32)


def is_qdq(model: Any) -> bool:
    """Whether ``model`` has quantisers or dequantisers."""
    return any(node.op_type in (QUANTISE, DEQUANTISE) for node in model.graph.node)
