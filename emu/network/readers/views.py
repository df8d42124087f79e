# SPDX-License-Identifier: Apache-2.0
"""Operators that only look at a tensor in another way: no data moves."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emu.network.drafts import Buffer, Draft, View
from emu.network.graph import Node
from emu.network.layers import ConvLayer
from emu.network.operators import constant, reshaped
from emu.network.readers import joins

if TYPE_CHECKING:
    from emu.network.importer import Importer


def reshape(net: "Importer", node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity."""
    if node.op == "Identity" and node.input(0) in net.scores and (
            net.graph.uses[node.input(0)] == 1):
        net.scores[node.outputs[0]] = net.scores[node.input(0)]
        return
    if node.op == "Identity" and node.input(0) in net.experts:
        net.experts[node.outputs[0]] = net.experts[node.input(0)]
        return
    if node.input(0) in net.tops:
        top = net.tops[node.input(0)]
        net.tops[node.outputs[0]] = replace(top, shape=reshaped(node, top.shape, net.constants))
        return
    view = net.view(node)
    shape = reshaped(node, view.shape, net.constants)
    net.alias(node, view, shape, None if view.index is None else view.index.reshape(shape))


def transpose(net: "Importer", node: Node) -> None:
    """Transpose."""
    view = net.view(node)
    order = node.get("perm", list(range(len(view.shape)))[::-1])
    index = view.elements.transpose(order)
    net.alias(node, view, index.shape, index)


def _axis(node: Node, view: View, default: int) -> int:
    axis, rank = node.get("axis", default), len(view.shape)
    if not -rank <= axis < rank:
        raise node.error(f"axis {axis} of {list(view.shape)}")
    return axis % rank


def cut(net: "Importer", node: Node) -> None:
    """Slice with constant bounds."""
    view = net.view(node)
    starts, ends = (constant(node, i, what, net.constants).reshape(-1).tolist()
                    for i, what in ((1, "starts"), (2, "ends")))
    axes = (constant(node, 3, "axes", net.constants).reshape(-1).tolist()
            if node.input(3) else list(range(len(starts))))
    steps = (constant(node, 4, "steps", net.constants).reshape(-1).tolist()
             if node.input(4) else [1] * len(starts))
    picks = [slice(None)] * len(view.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise node.error(f"step {step}: only steps forward are supported")
        picks[axis] = slice(start, end, step)
    index = view.elements[tuple(picks)]
    if not index.size:
        raise node.error("nothing is left of it")
    net.alias(node, view, index.shape, index)


def gather(net: "Importer", node: Node) -> None:
    """Gather with constant indices; of a constant table, an embedding."""
    if node.input(0) in net.constants:
        joins.embedding(net, node)
        return
    view = net.view(node)
    picks, axis = constant(node, 1, "indices", net.constants), _axis(node, view, 0)
    if picks.size and (picks.min() < -view.shape[axis] or picks.max() >= view.shape[axis]):
        raise node.error(f"indices up to {picks.max()} of {view.shape[axis]}")
    index = np.take(view.elements, picks, axis=axis)
    net.alias(node, view, index.shape, index)


def split(net: "Importer", node: Node) -> None:
    """Split; a layer whose channels are split becomes several layers."""
    view = net.view(node)
    axis = _axis(node, view, 0)
    count, length = len(node.outputs), view.shape[axis]
    if node.input(1):
        sizes = constant(node, 1, "sizes", net.constants).reshape(-1).tolist()
    else:
        step = -(-length // count)
        sizes = [min(step, length - k * step) for k in range(count)]
    if len(sizes) != count or sum(sizes) != length or min(sizes) < 1:
        raise node.error(f"sizes {sizes} of {length}")
    ends = np.cumsum(sizes)
    parts = np.split(view.elements, ends[:-1], axis=axis)
    layers = _split_layer(net, view, parts)
    for number, part in enumerate(parts):
        name = node.outputs[number]
        if not name:
            continue
        if layers is None:
            net.views[name] = View(view.buffer, part.shape, False, part)
        else:
            buffer, index = layers[number]
            buffer.layer_name = name
            net.views[name] = View(buffer, part.shape, net.graph.uses[name] == 1, index)


def _split_layer(
    net: "Importer", view: View, parts: list[NDArray[np.int64]]
) -> list[tuple[Buffer, NDArray[np.int64]]] | None:
    """The convolution behind ``view``, cut by output channels: a buffer and an index a part."""
    draft, shape = view.buffer.producer, view.buffer.layer_shape
    if (draft is None or shape is None or not view.sole or draft.kind is not ConvLayer
            or draft.residual is not None or draft.fields["groups"] > 1 or draft.convolved):
        return None
    n, c, height, width = shape
    plane, ranges = height * width, []
    for part in parts:
        channel = part // plane % c
        low, high = int(channel.min()), int(channel.max()) + 1
        if part.size != n * (high - low) * plane:
            return None
        ranges.append((low, high))
    place = net.drafts.index(draft)
    found = []
    for number, (part, (low, high)) in enumerate(zip(parts, ranges, strict=True)):
        image, channel, pixel = part // (c * plane), part // plane % c - low, part % plane
        fields = draft.fields | {k: draft.fields[k][low:high] for k in ("weights", "bias", "scale")}
        piece = Draft(ConvLayer, f"{draft.name}.{number}", draft.sources, view.buffer, fields,
                      table=draft.table)
        piece.target = Buffer(
            "", view.buffer.dtype, (n, high - low, height, width), scale=view.buffer.scale,
            zero_point=view.buffer.zero_point, producer=piece,
        )
        net.drafts.insert(place + number, piece)
        found.append((piece.target, (image * (high - low) + channel) * plane + pixel))
    net.drafts.remove(draft)
    return found


READERS = {
    "Flatten": reshape, "Reshape": reshape, "Squeeze": reshape, "Unsqueeze": reshape,
    "Identity": reshape, "Transpose": transpose, "Slice": cut, "Split": split, "Gather": gather,
}
