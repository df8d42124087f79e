# SPDX-License-Identifier: Apache-2.0
"""What the compiler compiles: layers in integers, and the graph tensors around them.

A matrix product is a convolution with a 1x1 kernel whose pixels are the rows of A. Graph tensors
keep the shape that the model gives them; `Tensor.to_layer` and `Tensor.from_layer` are the exact
mappings to and from the (N, C, H, W) arrays that layers read and write.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["int8", "uint8", "int32", "int64"]
Shape4 = tuple[int, int, int, int]
NUMBERS = 4
"""Uint32 numbers of a word: of a pixel of 16 channels of bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of the model's graph and where it is among the layers' tensors.

    name, shape, dtype: As the model declares them.
    scale, zero_point: ``real = scale * (value - zero_point)``, of whoever makes or reads it.
    layer_name: Name of the layers' tensor with the same values.
    layer_shape: Its (N, C, H, W).
    order: Where in it each element lies, in row-major order of both; None: in the same order. Of an
        output it may name only some of the layer tensor's elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    scale: float
    zero_point: int
    layer_name: str
    layer_shape: Shape4
    order: NDArray[np.int64] | None = field(default=None, repr=False)

    def to_layer(self, values: NDArray) -> NDArray:
        """``values`` of the graph's shape as (N, C, H, W)."""
        if self.order is None:
            return values.reshape(self.layer_shape)
        placed = np.zeros(self.layer_shape, values.dtype)
        placed.reshape(-1)[self.order] = values.reshape(-1)
        return placed

    def from_layer(self, values: NDArray) -> NDArray:
        """Inverse of `to_layer`."""
        flat = values.reshape(-1)
        return (flat if self.order is None else flat[self.order]).reshape(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexTensor(Tensor):
    """An int32 or int64 graph tensor that numbers rows of tables of ``limit`` rows."""

    limit: int

    def to_layer(self, values: NDArray) -> NDArray:
        padded = np.zeros(4 * self.layer_shape[3], np.uint32)
        padded[: values.size] = values.reshape(-1)
        return padded.view(np.uint8).reshape(-1, 16).T.reshape(self.layer_shape)

    def from_layer(self, values: NDArray) -> NDArray:
        words = np.ascontiguousarray(values.reshape(16, -1).T)
        numbers = words.view(np.uint32).reshape(-1)[: math.prod(self.shape)]
        return numbers.astype(self.dtype).reshape(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class TopTensor(Tensor):
    """What a `TopKLayer` found, as ONNX's TopK has it: rows of k values, or of their numbers."""

    k: int

    def from_layer(self, values: NDArray) -> NDArray:
        words = np.ascontiguousarray(values.reshape(16, -1).T).view(np.uint8)
        if self.dtype == "int64":
            found = words[0::2].copy().view(np.uint32)[:, : self.k].astype(np.int64)
        else:
            found = words[1::2, : self.k].copy().view(self.dtype)
        return found.reshape(self.shape)


@dataclass(frozen=True)
class Operand:
    """A layer tensor as a layer reads or writes it: name, (N, C, H, W), signedness, zero point."""

    name: str
    shape: Shape4
    is_signed: bool
    zero: int


@dataclass(frozen=True, eq=False)
class Residual:
    """A quantised addition behind a layer: ``clamp(rne(f32(a * scale + table[byte of c])))``.

    source: The other addend, of the output's shape.
    source_first: The other addend is a, the first operand of QLinearAdd, and the layer's y is c;
        if not, a is y. The two differ in a few results per million.
    scale, table: ``ra`` and float32[256] of `emu.requantise.add_table`; ``a`` is in its own domain.
    target: The sum; its range, or a fused Relu or Clip, is ``clip_low .. clip_high``.
    """

    source: Operand
    target: Operand
    scale: np.float32
    table: NDArray[np.float32]
    clip_low: int
    clip_high: int
    source_first: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvLayer:
    """One layer: ``y = clamp(rne(f32(sum (x - x_zero)(w - w_zero) + bias) * scale) + y_zero)``.

    name: The ONNX node's name (its first output if it has none).
    input_name, output_name: Layer tensors; a fused Relu or Clip gives its output's name. With a
        residual or a table, ``output_name``, ``y_zero`` and ``y_signed`` are of the convolution
        proper, which nothing else reads; `target` is what the layer writes.
    input_shape, output_shape: (N, C, H, W) and (N, M, OH, OW).
    weights: int8 or uint8 (M, C/groups, KH, KW), as in the model.
    pads: top, left, bottom, right; padding has the value ``x_zero``.
    bias: int32[M].
    scale: float32[M], positive and normal: ``f32(f32(sx * sw) / sy)``.
    clip_low, clip_high: In the output's domain: its type's range or a fused clip.
    residual: An addition fused behind the convolution.
    table: uint8[256], applied last: byte of y (or of the sum) to byte of ``table_target``.
    packed: Weights move and lie as nibbles; the compiler decides it where `fits_nibbles`.
    """

    name: str
    input_name: str
    output_name: str
    input_shape: Shape4
    output_shape: Shape4
    weights: NDArray[Any]
    weight_zero: int
    x_zero: int
    x_signed: bool
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    bias: NDArray[np.int32]
    scale: NDArray[np.float32]
    y_zero: int
    y_signed: bool
    clip_low: int
    clip_high: int
    residual: Residual | None = None
    table: NDArray[np.uint8] | None = None
    table_target: Operand | None = None
    packed: bool = False

    @property
    def fits_nibbles(self) -> bool:
        """Whether every weight and their zero point are -8 .. 7."""
        low = min(int(self.weights.min(initial=0)), self.weight_zero)
        return low >= -8 and max(int(self.weights.max(initial=0)), self.weight_zero) <= 7

    @property
    def sources(self) -> tuple[Operand, ...]:
        """Every layer tensor that the layer reads."""
        x = Operand(self.input_name, self.input_shape, bool(self.x_signed), int(self.x_zero))
        return (x, self.residual.source) if self.residual else (x,)

    @property
    def target(self) -> Operand:
        """The layer tensor that the layer writes."""
        if self.table_target:
            return self.table_target
        if self.residual:
            return self.residual.target
        return Operand(self.output_name, self.output_shape, bool(self.y_signed), int(self.y_zero))

    @property
    def weight_signed(self) -> bool:
        return self.weights.dtype == np.int8

    @property
    def macs(self) -> int:
        """Multiply-accumulates by definition, padding included."""
        n, _, height, width = self.output_shape
        return n * height * width * self.weights.size

    @property
    def weight_bytes(self) -> int:
        return self.weights.size


class _WithoutWeights:
    """Defaults of layers that multiply nothing by constants."""

    macs: int = 0
    weight_bytes: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolLayer(_WithoutWeights):
    """Window maximum, or ``requantise(sum(x - x_zero), scale)`` for an average.

    Taps outside the image are skipped. ``scale`` is `emu.requantise.pool_scale` of the window's
    size (an average whose windows hang over the border is for the importer to refuse).
    Global pooling: the kernel is the image.
    """

    name: str
    source: Operand
    target: Operand
    kind: Literal["max", "average"]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    scale: np.float32
    clip_low: int
    clip_high: int

    @property
    def sources(self) -> tuple[Operand, ...]:
        return (self.source,)


@dataclass(frozen=True, kw_only=True, eq=False)
class AddLayer(_WithoutWeights):
    """``clamp(rne(f32(a * scale + table[byte of b])))`` of equal shapes: QLinearAdd."""

    name: str
    sources: tuple[Operand, Operand]
    target: Operand
    scale: np.float32
    table: NDArray[np.float32]
    clip_low: int
    clip_high: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiplyLayer(_WithoutWeights):
    """``requantise((a - a_zero) * (b - b_zero), scale)`` of equal shapes: QLinearMul.

    ONNX Runtime computes ``rne(f32(f32(product * scale) + zero))`` (0 of 7.9 million differ), which
    this is except for products that lie within half a step of float32 at ``zero`` of the middle
    between two values: one or two in a million, more where scales are round decimal numbers.
    """

    name: str
    sources: tuple[Operand, Operand]
    target: Operand
    scale: np.float32
    clip_low: int
    clip_high: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TableLayer(_WithoutWeights):
    """``y = table[byte of x]``, element by element: Sigmoid, Tanh, Gelu, requantisation, ..."""

    name: str
    source: Operand
    target: Operand
    table: NDArray[np.uint8]

    @property
    def sources(self) -> tuple[Operand, ...]:
        return (self.source,)


@dataclass(frozen=True, kw_only=True, eq=False)
class NormLayer(_WithoutWeights):
    """Layer normalisation of every pixel over its channels: `emu.normalise.layer_norm`.

    gamma, beta: float32[C]; epsilon, the input's and the output's scale: float32.
    """

    name: str
    source: Operand
    target: Operand
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    epsilon: float
    x_scale: float
    y_scale: float

    @property
    def sources(self) -> tuple[Operand, ...]:
        return (self.source,)


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftmaxLayer(_WithoutWeights):
    """Softmax of every pixel over its channels as ONNX Runtime's QLinearSoftmax computes it."""

    name: str
    source: Operand
    target: Operand
    x_scale: float
    y_scale: float

    @property
    def sources(self) -> tuple[Operand, ...]:
        return (self.source,)


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionLayer(_WithoutWeights):
    """Per head ``softmax(Q K^T) V`` in integers; scores and probabilities stay in the scratchpads.

    sources: q (1, heads*d, 1, S), k and v (1, heads*d, 1, T): a pixel is a token; d % 16 == 0.
    scores: signedness and zero point of the scores, ``requantise(sum (q - zq)(k - zk),
        score_scale)``; softmax as `SoftmaxLayer` with ``scores_scale`` as its x_scale and
        ``probability_scale`` as its y_scale; ``requantise(sum (p - zp)(v - zv), value_scale)``.
    """

    name: str
    sources: tuple[Operand, Operand, Operand]
    target: Operand
    heads: int
    scores: Operand
    probabilities: Operand
    score_scale: np.float32
    scores_scale: float
    probability_scale: float
    value_scale: np.float32

    @property
    def macs(self) -> int:  # type: ignore[override]
        q, k, _ = self.sources
        return 2 * q.shape[1] * q.shape[3] * k.shape[3]


@dataclass(frozen=True, kw_only=True, eq=False)
class ConcatLayer(_WithoutWeights):
    """Sources side by side along W (tokens) or along the channels: of H = 1, one type and zero
    point, else equal shapes; along the channels, multiples of 16 of them."""

    name: str
    sources: tuple[Operand, ...]
    target: Operand
    axis: Literal["tokens", "channels"] = "tokens"


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceLayer(_WithoutWeights):
    """Channels from ``channel`` and, along W, pixels from ``pixel`` on, as many as the target has.

    H = 1; ``channel`` is a multiple of 16.
    """

    name: str
    source: Operand
    target: Operand
    channel: int = 0
    pixel: int = 0

    @property
    def sources(self) -> tuple[Operand, ...]:
        return (self.source,)


@dataclass(frozen=True, kw_only=True, eq=False)
class GatherLayer(_WithoutWeights):
    """Rows of a table by number: an embedding.

    source: Numbers, uint32, four a pixel of 16 uint8 channels (`IndexTensor`): (1, 16, 1, P).
    target: (1, C, 1, T), T <= 4 P.
    table: int8 or uint8 (rows, C), in the target's domain.
    """

    name: str
    source: Operand
    target: Operand
    table: NDArray[Any]

    @property
    def sources(self) -> tuple[Operand, ...]:
        return (self.source,)

    @property
    def weight_bytes(self) -> int:  # type: ignore[override]
        return self.table.size


@dataclass(frozen=True, kw_only=True, eq=False)
class BagsLayer(_WithoutWeights):
    """Channels k * width to (k + 1) * width: ``requantise(sum of lookups[k] rows, scales[k])``.

    source: uint32 numbers, four a pixel of 16 uint8 channels, bag by bag, sample by sample; each
        bag begins with a pixel (`emu.network.bags`).
    target: int8 (1, bags * width, 1, batch).
    tables: int8 (rows, width) of every bag; of ``bits`` = 4 values from -8 to 7.
    """

    name: str
    source: Operand
    target: Operand
    tables: tuple[NDArray[np.int8], ...]
    lookups: tuple[int, ...]
    scales: tuple[np.float32, ...]
    bits: int = 8

    @property
    def sources(self) -> tuple[Operand, ...]:
        return (self.source,)

    @property
    def batch(self) -> int:
        return self.target.shape[3]

    @property
    def width(self) -> int:
        return self.tables[0].shape[1]

    @property
    def weight_bytes(self) -> int:  # type: ignore[override]
        return sum(table.size for table in self.tables) * self.bits // 8

    def first(self, bag: int) -> int:
        """First pixel of a bag's numbers."""
        return sum(-(-self.batch * count // NUMBERS) for count in self.lookups[:bag])

    def grain(self, bag: int) -> int:
        """Samples whose numbers fill whole pixels."""
        return NUMBERS // gcd(NUMBERS, self.lookups[bag])


@dataclass(frozen=True, kw_only=True, eq=False)
class TopKLayer(_WithoutWeights):
    """The k <= 4 largest of up to 16 channels of every pixel, ties to the lower channel.

    target: uint8 (1, 16, 1, 2 P): of pixel p the channels' numbers, uint32, at pixel 2 p, and the
        values' bytes, one a channel, at 2 p + 1; what is left is 0.
    """

    name: str
    source: Operand
    target: Operand
    k: int

    @property
    def sources(self) -> tuple[Operand, ...]:
        return (self.source,)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertLayer:
    """Products of T tokens, each with the weights of k experts, chosen by number.

    sources: x (1, C, 1, T), or (1, C, 1, T*k) with an x for each; what a `TopKLayer` found, of one
        token also its first pixel alone; then, if there is one, such a list that was foreseen
        before: it says what to fetch, never what to compute.
    target: (1, M, 1, T*k), a token's k side by side, behind ``table`` (byte of y to byte) if there
        is one.
    weights, bias, scale: int8 (E, M, C), int32 (E, M), float32 (E, M), as in `ConvLayer`;
        ``weight_zero`` is that of all.
    frequency: How often each expert was chosen in some other run, if that is known: what the
        compiler places experts and copies by.
    """

    name: str
    sources: tuple[Operand, ...]
    target: Operand
    k: int
    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    scale: NDArray[np.float32]
    y_zero: int
    y_signed: bool = True
    table: NDArray[np.uint8] | None = None
    weight_zero: int = 0
    frequency: tuple[int, ...] | None = None

    @property
    def macs(self) -> int:
        return self.target.shape[3] * self.weights[0].size

    @property
    def weight_bytes(self) -> int:
        return self.weights.size


Layer = (
    ConvLayer | PoolLayer | AddLayer | MultiplyLayer | TableLayer | NormLayer | SoftmaxLayer
    | AttentionLayer | ConcatLayer | SliceLayer | GatherLayer | BagsLayer
    | TopKLayer | ExpertLayer
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """Layers in order of execution, the graph's inputs and outputs, and the model itself.

    model: The golden ``onnx.ModelProto``: `emu.network.golden.golden` runs it. None if no
        operators of ONNX Runtime say the same: the integer definition (`emu.network.exact`) is
        golden then.
    boundary: Of a QDQ model, what the host does at its float inputs and outputs
        (`emu.network.qdq.Boundary`).
    given: Inputs that a run without any takes instead of random ones.
    constants: Layer tensors that are the same in every run: addends and factors.
    host: What of the model as people know it the host does: operator to what and how many bytes.
    """

    name: str
    layers: tuple[Layer, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    model: Any = field(repr=False)
    boundary: Any = None
    given: Mapping[str, NDArray] | None = field(default=None, repr=False)
    constants: Mapping[str, NDArray] = field(default_factory=dict, repr=False)
    host: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes for layer in self.layers)

    def to_layers(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Graph inputs and constants as the layers' input tensors, by layer tensor name."""
        return {**self.constants,
                **{t.layer_name: t.to_layer(inputs[t.name]) for t in self.inputs}}

    def from_layers(self, tensors: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The layers' output tensors as graph outputs, by graph name."""
        return {t.name: t.from_layer(tensors[t.layer_name]) for t in self.outputs}
