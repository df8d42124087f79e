# SPDX-License-Identifier: Apache-2.0
"""Whole quantised networks with seeded weights, calibrated as they are built.

Every operator runs at once on a random input, in exact integers, and takes its scale, bias and
zero point from the sums it sees, as a folded batch normalisation would. So values neither saturate
nor vanish however deep the network is, and no machine's rounding has a say: sums are exact, scales
are cut to `SCALE_BITS`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.builder import IR_VERSION, MICROSOFT_OPSET, OPSET
from emu.network.exact import accumulate, run_layer
from emu.network.graph import MICROSOFT
from emu.network.layers import AddLayer, ConvLayer, Operand, PoolLayer
from emu.requantise import add_scales, add_table, pool_scale, scale_of

SPREAD, RECTIFIED_SPREAD, MEAN_SPREAD = 40.0, 60.0, 24.0
"""Standard deviation of outputs in steps; of those of which a rectifier keeps the upper half; of
averages, which other inputs move together."""
SCALE_BITS = 10
LINEAR_ZERO, RECTIFIED_ZERO, CLIPPED_ZERO = -9, -128, -120


@dataclass(frozen=True)
class Value:
    """An int8 (or uint8) activation: its graph name, how it is quantised, the sample (N, C, H, W).
    """

    name: str
    scale: np.float32
    zero: int
    sample: NDArray[Any]
    is_signed: bool = True

    @property
    def channels(self) -> int:
        return self.sample.shape[1]

    @property
    def operand(self) -> Operand:
        return Operand(self.name, self.sample.shape, self.is_signed, self.zero)  # type: ignore[arg-type]


def short(value: Any) -> Any:
    """float32 of few significant bits."""
    mantissa, exponent = np.frexp(np.asarray(value, np.float64))
    cut = np.rint(mantissa * (1 << SCALE_BITS)) / (1 << SCALE_BITS)
    return np.ldexp(cut, exponent).astype(np.float32)


class Composer:
    """Collects nodes and initialisers; methods append an operator and return its output."""

    def __init__(self, name: str, seed: int, shape: tuple[int, int, int, int]):
        self.name, self.rng = name, np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray] = {}
        drawn = self.rng.integers(-128, 127, shape, np.int8, endpoint=True)
        self.x = Value("x", np.float32(0.02), 5, drawn)

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def _node(
        self, op: str, inputs: list[str], target: str, domain: str = "", name: str = "",
        **attributes: Any,
    ) -> None:
        from onnx import helper

        self.nodes.append(
            helper.make_node(op, inputs, [target], name or target, domain=domain, **attributes)
        )

    def _quantisation(self, name: str, value: Value, role: str) -> list[str]:
        return [
            self.constant(f"{name}.{role}_scale", value.scale),
            self.constant(f"{name}.{role}_zero", np.int8(value.zero)),
        ]

    def conv(
        self, name: str, x: Value, outputs: int, kernel: int = 1, *, stride: int = 1,
        groups: int = 1, rectified: bool = False, ceiling: int = 0,
    ) -> Value:
        """A QLinearConv with padding that keeps the size (at stride 1).

        ``rectified``: negative values are cut off, as the output's type does. ``ceiling`` (ReLU6):
        a Clip follows, from the zero point to so many steps above it.
        """
        pad = (kernel - 1) // 2
        layer, weight_scale, scale = self.calibrated(
            name, x, outputs, kernel, stride, pad, groups, rectified, ceiling
        )
        linear = f"{name}.linear" if ceiling else name
        y = Value(name, scale, layer.y_zero, run_layer(layer, x.sample))
        operands = self._operands(name, x, y, layer.weights, weight_scale, layer.bias)
        self._node(
            "QLinearConv", operands, linear, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[pad] * 4, group=groups, name=name,
        )
        if ceiling:
            low = self.constant(f"{name}.low", np.int8(layer.clip_low))
            high = self.constant(f"{name}.high", np.int8(layer.clip_high))
            self._node("Clip", [linear, low, high], name, name=f"{name}.clip")
        return y

    def gemm(self, name: str, x: Value, outputs: int) -> Value:
        """Flatten and QGemm."""
        rows = len(x.sample)
        flat = Value(f"{name}.flat", x.scale, x.zero, x.sample.reshape(rows, -1, 1, 1))
        self._node("Flatten", [x.name], flat.name, axis=1)
        layer, weight_scale, scale = self.calibrated(name, flat, outputs, 1, 1, 0, 1, False, 0)
        y = Value(name, scale, layer.y_zero, run_layer(layer, flat.sample))
        weights = layer.weights.reshape(outputs, -1)
        *first, bias = self._operands(name, flat, y, weights, weight_scale, layer.bias)
        self._node("QGemm", first[:6] + [bias] + first[6:], name, MICROSOFT, transB=1)
        return y

    def _operands(
        self, name: str, x: Value, y: Value, weights: NDArray, weight_scale: NDArray, bias: NDArray
    ) -> list[str]:
        return [
            x.name,
            *self._quantisation(name, x, "x"),
            self.constant(f"{name}.w", weights),
            self.constant(f"{name}.w_scale", weight_scale),
            self.constant(f"{name}.w_zero", np.zeros(len(weight_scale), np.int8)),
            *self._quantisation(name, y, "y"),
            self.constant(f"{name}.bias", bias),
        ]

    def calibrated(
        self, name: str, x: Value, outputs: int, kernel: int, stride: int, pad: int, groups: int,
        rectified: bool, ceiling: int,
    ) -> tuple[ConvLayer, NDArray[np.float32], np.float32]:
        """The layer on the sample, all of whose channels get one spread, its weights' scales and
        its output's."""
        shape = (outputs, x.channels // groups, kernel, kernel)
        drawn = np.rint(self.rng.standard_normal(shape, np.float32) * 24)
        n, _, *size = x.sample.shape
        out = [(length + 2 * pad - kernel) // stride + 1 for length in size]
        fields: dict[str, Any] = dict(
            name=name, input_name=x.name, output_name=name, input_shape=x.sample.shape,
            output_shape=(n, outputs, *out), weights=np.clip(drawn, -127, 127).astype(np.int8),
            weight_zero=0, x_zero=x.zero, x_signed=True, strides=(stride, stride),
            dilations=(1, 1), pads=(pad,) * 4, groups=groups, y_signed=True,
            **self._range(rectified, ceiling),
        )
        zeros = np.zeros(outputs, np.int32)
        sums = accumulate(ConvLayer(bias=zeros, scale=np.ones(outputs, np.float32), **fields),
                          x.sample)
        mean, deviation = self._moments(sums)
        spread = RECTIFIED_SPREAD if rectified else SPREAD
        spread = ceiling / 4 if ceiling else spread
        wanted = spread * self.rng.uniform(0.7, 1.2, outputs)
        bias = np.rint(deviation * self.rng.uniform(-0.5, 0.5, outputs) - mean)
        y_scale = np.float32(short(1 / spread))
        weight_scale = short(wanted / deviation * float(y_scale) / float(x.scale))
        scale = scale_of(x.scale, weight_scale, y_scale)
        layer = ConvLayer(bias=bias.astype(np.int32), scale=scale, **fields)
        return layer, weight_scale, y_scale

    @staticmethod
    def _range(rectified: bool, ceiling: int) -> dict[str, int]:
        if ceiling:
            return {"y_zero": CLIPPED_ZERO, "clip_low": CLIPPED_ZERO,
                    "clip_high": CLIPPED_ZERO + ceiling}
        zero = RECTIFIED_ZERO if rectified else LINEAR_ZERO
        return {"y_zero": zero, "clip_low": -128, "clip_high": 127}

    @staticmethod
    def _moments(sums: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        """Mean and standard deviation of each channel; too few pixels say nothing of a channel."""
        count = sums.shape[0] * sums.shape[2] * sums.shape[3]
        whole = max(float(sums.std()), 1.0)
        if count < 9:
            ones = np.ones(sums.shape[1])
            return ones * sums.mean(), ones * whole
        axes = (0, 2, 3)
        return sums.mean(axis=axes), np.maximum(sums.std(axis=axes), whole / 8)

    def add(self, name: str, a: Value, b: Value, *, rectified: bool = False) -> Value:
        """QLinearAdd."""
        real = [v.scale * (v.sample.astype(np.float64) - v.zero) for v in (a, b)]
        scale = np.float32(
            short((real[0] + real[1]).std() / (RECTIFIED_SPREAD if rectified else SPREAD))
        )
        zero = RECTIFIED_ZERO if rectified else LINEAR_ZERO
        ra, rb = add_scales(a.scale, b.scale, scale)
        table = add_table(ra, rb, a_zero=a.zero, c_zero=b.zero, out_zero=zero, c_signed=True)
        layer = AddLayer(
            name=name, sources=(a.operand, b.operand),
            target=Operand(name, a.operand.shape, True, zero), scale=ra, table=table,
            clip_low=-128, clip_high=127,
        )
        y = Value(name, scale, zero, run_layer(layer, a.sample, b.sample))
        operands = [
            part for role, v in (("a", a), ("b", b))
            for part in (v.name, *self._quantisation(name, v, role))
        ]
        self._node("QLinearAdd", [*operands, *self._quantisation(name, y, "y")], name, MICROSOFT)
        return y

    def max_pool(self, name: str, x: Value, kernel: int, stride: int, pad: int) -> Value:
        """MaxPool."""
        sample = self._pool(name, x, "max", kernel, stride, pad, np.float32(1), x.zero)
        self._node("MaxPool", [x.name], name, kernel_shape=[kernel] * 2, strides=[stride] * 2,
                   pads=[pad] * 4)
        return Value(name, x.scale, x.zero, sample)

    def average(self, name: str, x: Value) -> Value:
        """QLinearGlobalAveragePool."""
        mean = x.scale * (x.sample.astype(np.float64) - x.zero).mean(axis=(2, 3))
        scale = np.float32(short(mean.std() / MEAN_SPREAD))
        zero = int(np.clip(np.rint(-mean.mean() / scale), -128, 127))
        height, width = x.sample.shape[2:]
        sample = self._pool(
            name, x, "average", height, 1, 0, pool_scale(x.scale, scale, height * width), zero
        )
        y = Value(name, scale, zero, sample)
        self._node(
            "QLinearGlobalAveragePool",
            [x.name, *self._quantisation(name, x, "x"), *self._quantisation(name, y, "y")],
            name, MICROSOFT, channels_last=0,
        )
        return y

    @staticmethod
    def _pool(name, x: Value, kind, kernel: int, stride: int, pad: int, scale, zero: int):
        n, channels, *size = x.sample.shape
        out = tuple((length + 2 * pad - kernel) // stride + 1 for length in size)
        return run_layer(
            PoolLayer(
                name=name, source=x.operand, target=Operand(name, (n, channels, *out), True, zero),
                kind=kind, kernel=(kernel, kernel), strides=(stride, stride), pads=(pad,) * 4,
                scale=scale, clip_low=-128, clip_high=127,
            ),
            x.sample,
        )

    def model(self, *outputs: Value) -> Any:
        """The ``ModelProto``; nothing is checked: the importer does."""
        from onnx import TensorProto, helper, numpy_helper

        def info(value: Value, rank: int) -> Any:
            return helper.make_tensor_value_info(
                value.name, TensorProto.INT8, value.sample.shape[:rank]
            )

        flat = {node.output[0] for node in self.nodes if node.op_type == "QGemm"}
        graph = helper.make_graph(
            self.nodes, self.name, [info(self.x, 4)],
            [info(y, 2 if y.name in flat else 4) for y in outputs],
            [numpy_helper.from_array(value, key) for key, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="headrace"
        )
