# SPDX-License-Identifier: Apache-2.0
"""Tensors that are parts of others: concatenations and slices, which move no data.

A concatenation is the larger tensor, of which its sources are parts; a slice is part of its source.
So a row that is appended to a cache is written where the cache continues.
"""

from dataclasses import dataclass

from emu.errors import UserError
from emu.network.layers import ConcatLayer, Layer, Operand, SliceLayer

LANES = 16


@dataclass(frozen=True)
class Part:
    """Where a tensor lies in ``whole``: from which group and pixel on."""

    whole: str
    group: int
    pixel: int


def take_views(layers: list[Layer]) -> tuple[list[Layer], dict[str, Part], dict[str, Operand]]:
    """(other layers, part of another tensor by name, all tensors of concatenations and slices).

    Raises
    ------
    UserError
        If a tensor would have to lie in two places, or a slice begins within a word.
    """
    parts: dict[str, Part] = {}
    operands: dict[str, Operand] = {}
    rest: list[Layer] = []

    def put(layer: Layer, name: str, part: Part) -> None:
        if name in parts:
            raise UserError(f"layer {layer.name}: {name} would have to be copied: it is part of "
                            f"{parts[name].whole} already")
        parts[name] = part

    for layer in layers:
        if not isinstance(layer, ConcatLayer | SliceLayer):
            rest.append(layer)
            continue
        operands |= {end.name: end for end in (*layer.sources, layer.target)}
        if isinstance(layer, SliceLayer):
            if layer.channel % LANES:
                raise UserError(f"layer {layer.name}: a slice from channel {layer.channel}: a "
                                f"multiple of {LANES} is supported")
            put(layer, layer.target.name,
                Part(layer.source.name, layer.channel // LANES, layer.pixel))
            continue
        group = pixel = 0
        for source in layer.sources:
            put(layer, source.name, Part(layer.target.name, group, pixel))
            if layer.axis == "tokens":
                pixel += source.shape[3]
            elif source.shape[1] % LANES:
                raise UserError(f"layer {layer.name}: {source.name} has {source.shape[1]} channels:"
                                f" a multiple of {LANES} is supported")
            else:
                group += source.shape[1] // LANES
    return rest, parts, operands


def root_of(name: str, parts: dict[str, Part]) -> Part:
    """The tensor that is part of no other, and where in it ``name`` lies."""
    group = pixel = 0
    while name in parts:
        part = parts[name]
        name, group, pixel = part.whole, group + part.group, pixel + part.pixel
    return Part(name, group, pixel)


__all__ = ["Part", "root_of", "take_views"]
