# SPDX-License-Identifier: Apache-2.0
"""What the importer works on: layer tensors under graph shapes, and layers not yet finished.

Every activation is a `Buffer`: row-major data, of which reshapes are other views. The first node
that reads a graph input settles how its buffer lies in (N, C, H, W).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emu.network.layers import ConvLayer, Layer, Layout, Operand, Residual, Shape4


@dataclass(eq=False)
class Buffer:
    """Data of one layer tensor; ``layer_shape`` is None until its first reader settles it.

    scale, zero_point: None until known: of a graph input its first reader says them.
    like: Another buffer with the same scale and zero point (a maximum does not change them).
    """

    layer_name: str
    dtype: str
    layer_shape: Shape4 | None = None
    layout: Layout = "nchw"
    scale: float | None = None
    zero_point: int | None = None
    producer: "Draft | None" = None
    like: "Buffer | None" = None

    @property
    def signed(self) -> bool:
        return self.dtype == "int8"

    @property
    def range(self) -> tuple[int, int]:
        return (-128, 127) if self.signed else (0, 255)

    def learn(self, scale: float, zero_point: int) -> None:
        """Take over what a reader says, unless it is known."""
        if self.scale is None:
            self.scale, self.zero_point = scale, zero_point
            if self.like:
                self.like.learn(scale, zero_point)

    def settle(self, shape: tuple[int, ...]) -> None:
        """Lie as an element-wise reader of ``shape`` has it, unless that is settled."""
        if self.layer_shape is None:
            if len(shape) == 4:
                self.layer_shape, self.layout = tuple(shape), "nchw"  # type: ignore[assignment]
            else:
                rows = math.prod(shape[:-1])
                self.layer_shape, self.layout = (1, shape[-1], 1, rows), "rows"


Source = tuple[Buffer, int | None]
"""A buffer with the zero point that a layer reads it with; None: the buffer's own."""


@dataclass(frozen=True)
class View:
    """A graph tensor: a buffer under a shape; ``sole`` if nothing else reads the buffer."""

    buffer: Buffer
    shape: tuple[int, ...]
    sole: bool


@dataclass(eq=False)
class Draft:
    """A layer whose tensors may still be renamed and to which following nodes are fused.

    fields: The layer's other fields; clips are ``clip_low`` and ``clip_high``.
    target: What the layer writes; ``convolved`` is the output of the convolution proper.
    residual, table: Fused behind a convolution.
    """

    kind: type[Layer]
    name: str
    sources: list[Source]
    target: Buffer
    fields: dict[str, Any]
    convolved: Buffer | None = None
    residual: dict[str, Any] | None = None
    table: np.ndarray | None = None
    extra: dict[str, Source] = field(default_factory=dict)

    @property
    def takes_residual(self) -> bool:
        return self.kind is ConvLayer and self.residual is None and self.table is None

    @property
    def takes_table(self) -> bool:
        return self.kind is ConvLayer and self.table is None

    @property
    def takes_clip(self) -> bool:
        return self.table is not None or "clip_low" in self.fields

    def clip(self, low: int, high: int) -> None:
        """Narrow the range of what the layer writes."""
        if self.table is not None:
            kind = np.int8 if self.target.signed else np.uint8
            values = self.table.view(kind).astype(np.int32)
            self.table = np.clip(values, low, high).astype(kind).view(np.uint8)
            return
        fields = self.residual if self.residual is not None else self.fields
        for name in ("clip_low", "clip_high"):
            fields[name] = min(max(fields[name], low), high)

    def finish(self) -> Layer:
        """The layer, now that every tensor has its name."""
        target = _operand(self.target, None)
        if self.kind is not ConvLayer:
            sources = tuple(_operand(*source) for source in self.sources)
            many = "sources" in self.kind.__dataclass_fields__
            ends: dict[str, Any] = {"target": target}
            ends |= {"sources": sources} if many else {"source": sources[0]}
            return self.kind(name=self.name, **ends, **self.fields)
        source, output = self.sources[0][0], self.convolved or self.target
        residual = None
        if self.residual is not None:
            fields = dict(self.residual)
            summed = fields.pop("summed")
            residual = Residual(
                source=_operand(*self.extra["residual"]), target=_operand(summed, None), **fields
            )
        assert source.layer_shape and output.layer_shape
        return ConvLayer(
            name=self.name, input_name=source.layer_name, output_name=output.layer_name,
            input_shape=source.layer_shape, output_shape=output.layer_shape, residual=residual,
            table=self.table, table_target=target if self.table is not None else None,
            **self.fields,
        )


def _operand(buffer: Buffer, zero: int | None) -> Operand:
    assert buffer.layer_shape is not None
    own = buffer.zero_point or 0
    return Operand(
        buffer.layer_name, buffer.layer_shape, buffer.signed, own if zero is None else zero
    )


__all__ = ["Buffer", "Draft", "Source", "View"]
