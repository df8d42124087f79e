# SPDX-License-Identifier: Apache-2.0
"""What the importer works on: layer tensors under graph shapes, and layers not yet finished.

Every activation is a `Buffer`, whose elements have an order of their own: that of the graph for a
graph input, that of (N, C, H, W) for what a layer makes. A graph tensor is a `View`: which element
of a buffer each of its own is. So Reshape, Transpose, Slice and the like move no data; a reader
compares the view with what it can read. The first reader of a graph input settles how it lies.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.graph import Node
from emu.network.layers import ConvLayer, Layer, Operand, Residual, Shape4, TableLayer


@dataclass(eq=False)
class Buffer:
    """Data of one layer tensor; ``layer_shape`` is None until its first reader settles it.

    order: Where in (N, C, H, W) each element lies; None: in the same order.
    scale, zero_point: None until known: of a graph input its first reader says them.
    like: Another buffer with the same scale and zero point (a maximum does not change them).
    limit: Of an input that numbers rows of tables: rows of the smallest.
    """

    layer_name: str
    dtype: str
    layer_shape: Shape4 | None = None
    order: NDArray[np.int64] | None = None
    scale: float | None = None
    zero_point: int | None = None
    producer: "Draft | None" = None
    like: "Buffer | None" = None
    limit: int | None = None

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


Source = tuple[Buffer, int | None]
"""A buffer with the zero point that a layer reads it with; None: the buffer's own."""


@dataclass(frozen=True, eq=False)
class View:
    """A graph tensor: a buffer under a shape; ``sole`` if nothing else reads the buffer.

    index: Which element of the buffer each one is, in the tensor's shape; None: all in order.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    sole: bool
    index: NDArray[np.int64] | None = None

    @property
    def elements(self) -> NDArray[np.int64]:
        """``index``, written out."""
        if self.index is not None:
            return self.index
        return np.arange(math.prod(self.shape)).reshape(self.shape)

    @property
    def settled(self) -> bool:
        return self.buffer.layer_shape is not None

    @property
    def positions(self) -> NDArray[np.int64] | None:
        """Where in (N, C, H, W) each element lies, of a settled buffer; None: all in order."""
        if self.buffer.order is None:
            return self.index
        return self.buffer.order[self.elements]

    def settle(self, layer_shape: Shape4, positions: NDArray[np.int64] | None = None) -> None:
        """Let the buffer lie so that this view is at ``positions``, if nothing has read it."""
        if self.settled or math.prod(layer_shape) != math.prod(self.shape):
            return
        if positions is None and self.index is not None:
            positions = np.arange(math.prod(self.shape)).reshape(self.shape)
        if positions is not None:
            order = np.zeros(positions.size, np.int64)
            order[self.elements.reshape(-1)] = positions.reshape(-1)
            if not in_order(order):
                self.buffer.order = order
        self.buffer.layer_shape = layer_shape

    def settle_plainly(self) -> None:
        """As an element-wise reader has it: images as they are, all else as rows."""
        if self.settled:
            return
        if len(self.shape) == 4:
            self.settle(self.shape)  # type: ignore[arg-type]
        else:
            rows = math.prod(self.shape[:-1])
            self.settle((1, self.shape[-1], 1, rows), rows_of((1, self.shape[-1], 1, rows)))


def in_order(positions: NDArray[np.int64] | None) -> bool:
    """Whether positions count up from 0."""
    return positions is None or bool(
        np.array_equal(positions.reshape(-1), np.arange(positions.size))
    )


def rows_of(shape: Shape4) -> NDArray[np.int64]:
    """Positions of (pixels of all images, channels) in (N, C, H, W)."""
    n, c, height, width = shape
    return np.arange(math.prod(shape)).reshape(n, c, height * width).transpose(0, 2, 1).reshape(
        -1, c
    )


def moved(node: Node, name: str) -> Exception:
    """The refusal of a view that its reader cannot read."""
    return node.error(f"{name} would have to be moved in memory, not only reshaped")


@dataclass(eq=False)
class Draft:
    """A layer whose tensors may still be renamed and to which following nodes are fused.

    fields: The layer's other fields; clips are ``clip_low`` and ``clip_high``.
    target: What the layer writes; ``convolved`` is the output of the convolution proper.
    residual, table: Fused behind a convolution; the table of a `TableLayer`.
    """

    kind: type[Layer]
    name: str
    sources: list[Source]
    target: Buffer
    fields: dict[str, Any]
    convolved: Buffer | None = None
    residual: dict[str, Any] | None = None
    table: NDArray[np.uint8] | None = None
    extra: dict[str, Source] = field(default_factory=dict)

    @property
    def takes_residual(self) -> bool:
        return self.kind is ConvLayer and self.residual is None and self.table is None

    @property
    def takes_table(self) -> bool:
        return self.kind in (ConvLayer, TableLayer)

    @property
    def takes_clip(self) -> bool:
        """A maximum has no clip of its own in hardware."""
        return self.table is not None or (
            "clip_low" in self.fields and self.fields.get("kind") != "max")

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
            if self.table is not None:
                ends["table"] = self.table
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


__all__ = ["Buffer", "Draft", "Source", "View", "in_order", "moved", "rows_of"]
