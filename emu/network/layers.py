# SPDX-License-Identifier: Apache-2.0
"""What the compiler compiles: convolutions in integers, and the graph tensors around them.

A matrix product is a convolution with a 1x1 kernel whose pixels are the rows of A. Graph tensors
keep the shape that the model gives them; `Tensor.to_layer` and `Tensor.from_layer` are the exact
mappings to and from the (N, C, H, W) arrays that layers read and write.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["int8", "uint8", "int32"]
Layout = Literal["nchw", "rows"]
Shape4 = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of the model's graph and where it is among the layers' tensors.

    name, shape, dtype: As the model declares them.
    scale, zero_point: ``real = scale * (value - zero_point)``, of whoever makes or reads it.
    layer_name: Name of the layers' tensor with the same values.
    layer_shape: Its (N, C, H, W).
    layout: ``nchw``: the same values in the same order (also 1-D convolutions, where H is 1, and
        matrices of one column per image); ``rows``: shape (..., K) is (1, K, 1, rows).
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    scale: float
    zero_point: int
    layer_name: str
    layer_shape: Shape4
    layout: Layout = "nchw"

    def to_layer(self, values: NDArray) -> NDArray:
        """``values`` of the graph's shape as (N, C, H, W)."""
        if self.layout == "rows":
            return values.reshape(-1, self.layer_shape[1]).T.reshape(self.layer_shape)
        return values.reshape(self.layer_shape)

    def from_layer(self, values: NDArray) -> NDArray:
        """Inverse of `to_layer`."""
        if self.layout == "rows":
            return values.reshape(self.layer_shape[1], -1).T.reshape(self.shape)
        return values.reshape(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvLayer:
    """One layer: ``y = clamp(rne(f32(sum (x - x_zero)(w - w_zero) + bias) * scale) + y_zero)``.

    name: The ONNX node's name (its first output if it has none).
    input_name, output_name: Layer tensors; a fused Relu or Clip gives its output's name.
    input_shape, output_shape: (N, C, H, W) and (N, M, OH, OW).
    weights: int8 or uint8 (M, C/groups, KH, KW), as in the model.
    pads: top, left, bottom, right; padding has the value ``x_zero``.
    bias: int32[M].
    scale: float32[M], positive and normal: ``f32(f32(sx * sw) / sy)``.
    clip_low, clip_high: In the output's domain: its type's range or a fused clip.
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """Layers in order of execution, the graph's inputs and outputs, and the model itself.

    model: The golden ``onnx.ModelProto``: `emu.network.golden.golden` runs it.
    """

    name: str
    layers: tuple[ConvLayer, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    model: Any = field(repr=False)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes for layer in self.layers)

    def to_layers(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Graph inputs as the layers' input tensors, by layer tensor name."""
        return {t.layer_name: t.to_layer(inputs[t.name]) for t in self.inputs}

    def from_layers(self, tensors: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The layers' output tensors as graph outputs, by graph name."""
        return {t.name: t.from_layer(tensors[t.layer_name]) for t in self.outputs}
