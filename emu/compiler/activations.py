# SPDX-License-Identifier: Apache-2.0
"""Tensors of a network: how long each lives, and where those lie that lie in HBM."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from emu.compiler.images import Memory, Tensor
from emu.compiler.residency import areas
from emu.compiler.space_to_depth import block_of, over_blocks
from emu.compiler.views import Part, root_of
from emu.config import WORD_BYTES
from emu.errors import UserError
from emu.network.layers import ConvLayer, Layer, Operand
from emu.planner import Item, place

TENSOR_ALIGN = 64
"""Words to whose multiple a tensor's address and size in HBM are rounded up."""

Blocks = dict[str, tuple[tuple[int, int], tuple[int, int]]]
"""Tensor to (block, image size) of those that are packed in blocks."""


def fill_lanes(layers: list[Layer]) -> tuple[list[Layer], Blocks]:
    """Layers that alone read an input of few channels, over blocks of pixels."""
    produced = {layer.target.name for layer in layers}
    readers = Counter(source.name for layer in layers for source in layer.sources)
    found: list[Layer] = []
    blocks: Blocks = {}
    for layer in layers:
        if isinstance(layer, ConvLayer):
            name, block = layer.input_name, block_of(layer)
            if block != (1, 1) and name not in produced and readers[name] == 1:
                blocks[name] = block, layer.input_shape[2:]
                layer = over_blocks(layer, block)
        found.append(layer)
    return found, blocks


def place_tensors(
    memory: Memory, layers: list[Layer], blocks: Blocks, in_hbm: set[str], outputs: set[str],
    parts: dict[str, Part], viewed: dict[str, Operand], apart: bool,
) -> dict[str, Tensor]:
    """The tensors that lie in HBM; those that never live at one time may share addresses, unless
    they are to lie ``apart`` because steps overlap."""
    tensors = _all_tensors(layers, blocks, viewed)
    items = [item for item in lifetimes(layers, tensors, outputs, parts) if item.name in in_hbm]
    if apart:
        items = [replace(item, first=0, last=len(layers)) for item in items]
    placement = place(items)
    area = memory.allocate(placement.high_water, "activations", TENSOR_ALIGN)
    placed = {
        item.name: replace(tensors[item.name], base=area + offset)
        for item, offset in zip(items, placement.offsets, strict=True)
    }
    for name in parts:
        root = root_of(name, parts)
        whole = placed[root.whole]
        base = whole.base + root.group * whole.plane + root.pixel
        placed[name] = replace(tensors[name], base=base, pitch=whole.plane)
    _check_whole(layers, placed)
    return placed


def _all_tensors(
    layers: list[Layer], blocks: Blocks, viewed: dict[str, Operand]
) -> dict[str, Tensor]:
    """Every tensor of ``layers``, and of concatenations and slices, without an address."""
    tensors: dict[str, Tensor] = {}
    ends = [(layer.name, end) for layer in layers for end in (*layer.sources, layer.target)]
    for name, end in [*ends, *viewed.items()]:
        known = tensors.get(end.name)
        if known is None:
            block = blocks.get(end.name, ((1, 1), (0, 0)))
            tensors[end.name] = Tensor(end.name, end.shape, 0, end.is_signed, end.zero, *block)
        elif known.shape != tuple(end.shape) or known.is_signed != end.is_signed:
            raise UserError(
                f"layer {name}: tensor {end.name} is {known.shape}, {end.shape} expected"
            )
    return tensors


def memories_of(
    layers, choices, tensors, blocks, outputs, parts, viewed, scratchpad: Sequence[Item] | None
) -> dict[str, tuple[Item, ...]]:
    """What was placed where, in bytes, see `Program.memories`; ``scratchpad``: if it is known."""
    activations = lifetimes(layers, _all_tensors(layers, blocks, viewed), outputs, parts)
    edges = [edge for choice in choices.values() for edge in (choice.source, choice.residual)
             if edge]
    if scratchpad is None:
        scratchpad = [replace(item, name=f"{item.name} {layers[index].name}")
                      for item, index in (areas(choices, edges) if edges else [])]
    found = {"activations": activations, "hbm": [i for i in activations if i.name in tensors],
             "scratchpad": scratchpad}
    return {name: tuple(replace(item, size=WORD_BYTES * item.size) for item in items)
            for name, items in found.items()}


def _check_whole(layers: list[Layer], tensors: Mapping[str, Tensor]) -> None:
    """Of several images convolutions read whole tensors only."""
    for layer in layers:
        if isinstance(layer, ConvLayer) and layer.input_name in tensors:
            tensor = tensors[layer.input_name]
            if tensor.shape[0] > 1 and tensor.plane != tensor.pixels and tensor.groups > 1:
                raise UserError(f"layer {layer.name}: it reads {tensor.name}, a part of another "
                                "tensor: not supported")


def lifetimes(
    layers: Sequence[Layer], tensors: Mapping[str, Tensor], outputs: set[str],
    parts: Mapping[str, Part] | None = None,
) -> list[Item]:
    """Every tensor from the layer that makes it to the last that reads it; inputs are there from
    the start, outputs to the end. A tensor with ``parts`` lives as long as any of them, and stands
    for them. Sizes in words."""
    parts = parts or {}
    first = {layer.target.name: index for index, layer in enumerate(layers)}
    last = {source.name: index for index, layer in enumerate(layers) for source in layer.sources}
    made = {part.whole for part in parts.values()} - set(parts)
    begin: dict[str, int] = {}
    end: dict[str, int] = {}
    for name in tensors:
        root = root_of(name, dict(parts)).whole if parts else name
        born = first.get(name, 0)
        died = len(layers) if name in outputs else max(last.get(name, 0), born)
        if not (name == root and root in made and name not in first):  # only its parts are written
            begin[root] = min(begin.get(root, born), born)
        end[root] = max(end.get(root, died), died)
    return [
        Item(
            name, -(-tensor.words // TENSOR_ALIGN) * TENSOR_ALIGN, begin.get(name, 0), end[name],
        )
        for name, tensor in tensors.items() if name not in parts
    ]


__all__ = ["Blocks", "fill_lanes", "lifetimes", "memories_of", "place_tensors"]
