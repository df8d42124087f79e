# SPDX-License-Identifier: Apache-2.0
"""ONNX models of quantised layers with seeded weights and calibrated scales.

Weights are normal, activations are assumed uniform over their type, and the output scale is chosen
so that outputs have a standard deviation of 40: few saturate, few are equal.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emu.network.graph import MICROSOFT

OPSET, MICROSOFT_OPSET, IR_VERSION = 21, 1, 10
"""Pinned: the golden arithmetic is that of these operator versions."""
SPREAD = 40.0
"""Standard deviation of outputs, in steps, before any clip."""
Operand = Literal["s8", "u8"]


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A QLinearConv with bias. ``relu`` clips at the output's zero point, ``ceiling`` (ReLU6) that
    many steps above it."""

    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    batch: int = 1
    relu: bool = False
    ceiling: int = 0
    activation: Operand = "s8"
    weight: Operand = "s8"

    @property
    def k(self) -> int:
        return self.inputs // self.groups * math.prod(self.kernel)

    @property
    def weight_bytes(self) -> int:
        return self.outputs * self.k

    @property
    def out_size(self) -> tuple[int, int]:
        return tuple(  # type: ignore[return-value]
            (self.size[i] + self.pads[i] + self.pads[i + 2] - self.kernel[i]) // self.stride + 1
            for i in range(2)
        )

    @property
    def macs(self) -> int:
        return self.batch * math.prod(self.out_size) * self.weight_bytes


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """A QGemm with bias: (rows, inputs) x (inputs, outputs); ``lead`` makes it a QLinearMatMul
    without bias whose left side has the shape (lead, rows / lead, inputs)."""

    rows: int
    inputs: int
    outputs: int
    lead: int = 0
    relu: bool = False
    ceiling: int = 0
    activation: Operand = "s8"
    weight: Operand = "s8"

    @property
    def k(self) -> int:
        return self.inputs

    @property
    def weight_bytes(self) -> int:
        return self.inputs * self.outputs

    @property
    def macs(self) -> int:
        return self.rows * self.weight_bytes


@dataclass(frozen=True)
class Spread:
    """Distribution of an activation: its zero point and root mean square about it."""

    zero: int
    rms: float

    @classmethod
    def uniform(cls, zero: int, middle: int) -> "Spread":
        """Over a whole type, whose middle is 0 or 128."""
        return cls(zero, math.hypot(256 / math.sqrt(12), middle - 0.5 - zero))


@dataclass
class Builder:
    """Collects nodes and initialisers; `model` checks nothing: the importer does."""

    rng: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, NDArray] = field(default_factory=dict)

    def constant(self, name: str, value: NDArray) -> str:
        self.constants[name] = value
        return name

    def _weights(self, shape: tuple[int, ...], operand: Operand) -> tuple[NDArray, NDArray]:
        """Weights and their zero point."""
        values = np.rint(self.rng.standard_normal(shape, np.float32) * 24)
        if operand == "s8":
            return np.clip(values, -127, 127).astype(np.int8), np.int8(0)  # type: ignore[return-value]
        return np.clip(values + 119, 0, 255).astype(np.uint8), np.uint8(119)  # type: ignore[return-value]

    def layer(
        self, part: Conv | Gemm, name: str, source: str, target: str, given: Spread
    ) -> Spread:
        """Append ``part``, whose input is spread as ``given``; returns how its output is."""
        dtype = np.int8 if part.activation == "s8" else np.uint8
        middle = 0 if part.activation == "s8" else 128
        y_zero = middle - 9 if not part.relu else middle - 60
        shape = (
            (part.outputs, part.inputs // part.groups, *part.kernel)
            if isinstance(part, Conv)
            else (part.inputs, part.outputs)
        )
        weights, weight_zero = self._weights(shape, part.weight)
        per_channel = part.weight == "s8"
        spread = self.rng.uniform(0.7, 1.3, part.outputs) if per_channel else np.ones(1)
        weight_scale = (0.004 * spread).astype(np.float32)
        x_scale = np.float32(0.02)
        deviation = math.sqrt(part.k) * 24 * given.rms
        y_scale = np.float32(deviation * float(x_scale) * 0.004 / SPREAD)
        bias = self.rng.integers(-1, 1, part.outputs, endpoint=True) * deviation / 4
        bias += self.rng.uniform(-1, 1, part.outputs) * deviation / 4
        one = np.asarray(weight_zero)
        operands = {
            "x_scale": x_scale,
            "x_zero": dtype(given.zero),
            "w": weights,
            "w_scale": weight_scale if per_channel else weight_scale[0],
            "w_zero": np.full(part.outputs, one) if per_channel else one,
            "y_scale": y_scale,
            "y_zero": dtype(y_zero),
            "bias": bias.astype(np.int32),
        }
        names = {
            k: self.constant(f"{name}.{k}", np.asarray(v))
            for k, v in operands.items()
            if not (k == "bias" and isinstance(part, Gemm) and part.lead)
        }
        before = f"{target}.linear" if part.relu else target
        self._node(part, name, source, before, names)
        if part.relu:
            self._relu(part, name, before, target, np.asarray(dtype(y_zero)))
        return Spread(y_zero, SPREAD / math.sqrt(2) if part.relu else SPREAD)

    def _node(self, part: Conv | Gemm, name: str, source: str, target: str, names) -> None:
        from onnx import helper

        first = [
            source,
            names["x_scale"],
            names["x_zero"],
            names["w"],
            names["w_scale"],
            names["w_zero"],
        ]
        last = [names["y_scale"], names["y_zero"]]
        if isinstance(part, Conv):
            node = helper.make_node(
                "QLinearConv",
                [*first, *last, names["bias"]],
                [target],
                name,
                kernel_shape=part.kernel,
                strides=[part.stride] * 2,
                pads=part.pads,
                group=part.groups,
            )
        elif part.lead:
            node = helper.make_node("QLinearMatMul", [*first, *last], [target], name)
        else:
            node = helper.make_node(
                "QGemm", [*first, names["bias"], *last], [target], name, domain=MICROSOFT
            )
        self.nodes.append(node)

    def _relu(self, part: Conv | Gemm, name: str, source: str, target: str, zero: NDArray) -> None:
        """Relu or ReLU6 of the real value: a clip from the zero point upwards."""
        from onnx import helper

        inputs = [source, self.constant(f"{name}.low", zero)]
        if part.ceiling:
            high = zero.astype(np.int32) + part.ceiling
            inputs.append(self.constant(f"{name}.high", high.astype(zero.dtype)))
        self.nodes.append(helper.make_node("Clip", inputs, [target], f"{name}.relu"))

    def flatten(self, source: str, target: str) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Flatten", [source], [target], target, axis=1))


def _shapes(part: Conv | Gemm) -> tuple[list[int], list[int]]:
    """Graph shapes of a part's input and output."""
    if isinstance(part, Conv):
        return ([part.batch, part.inputs, *part.size], [part.batch, part.outputs, *part.out_size])
    rows = [part.lead, part.rows // part.lead] if part.lead else [part.rows]
    return [*rows, part.inputs], [*rows, part.outputs]


def build_model(name: str, parts: tuple[Conv | Gemm, ...], seed: int) -> Any:
    """The ``ModelProto`` of ``parts`` in a chain from input ``x`` to output ``y``."""
    from onnx import TensorProto, helper, numpy_helper

    builder = Builder(np.random.default_rng(seed))
    source = "x"
    spread = Spread.uniform(5, 0) if parts[0].activation == "s8" else Spread.uniform(131, 128)
    for number, part in enumerate(parts):
        target = "y" if number == len(parts) - 1 else f"t{number}"
        label = "layer" if len(parts) == 1 else f"layer{number}"
        if number and isinstance(part, Gemm) and isinstance(parts[number - 1], Conv):
            builder.flatten(source, f"{source}.flat")
            source = f"{source}.flat"
        spread = builder.layer(part, label, source, target, spread)
        source = target
    types = {"s8": TensorProto.INT8, "u8": TensorProto.UINT8}
    graph = helper.make_graph(
        builder.nodes,
        name,
        [helper.make_tensor_value_info("x", types[parts[0].activation], _shapes(parts[0])[0])],
        [helper.make_tensor_value_info("y", types[parts[-1].activation], _shapes(parts[-1])[1])],
        [numpy_helper.from_array(value, key) for key, value in builder.constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="headrace"
    )
