# SPDX-License-Identifier: Apache-2.0
"""Pooling."""

import math
from typing import TYPE_CHECKING

import numpy as np

from emu.network.drafts import Draft, View
from emu.network.graph import Node
from emu.network.layers import PoolLayer
from emu.network.operators import pool_window, quantised
from emu.network.readers.weighted import image_of, settle_image
from emu.requantise import pool_scale

if TYPE_CHECKING:
    from emu.network.importer import Importer


def _pool(
    net: "Importer", node: Node, view: View, kind: str, zero: int | None, whole: bool
) -> Draft:
    """Append a pooling layer, quantised as its input is."""
    rank = len(view.shape) - 2
    if rank not in (1, 2):
        raise node.error(f"its input is {list(view.shape)}: only 1-D and 2-D is supported")
    window = pool_window(node, image_of(view), rank, whole)
    settle_image(node, view)
    low, high = view.buffer.range
    layer_shape = window.pop("output_shape")
    draft = net.layer(
        node, PoolLayer, [(view.buffer, zero)], kind=kind, scale=np.float32(1), clip_low=low,
        clip_high=high, **window,
    )
    shape = layer_shape if rank == 2 else (*layer_shape[:2], layer_shape[3])
    net.output(node, draft, shape, layer_shape=layer_shape, signed=view.buffer.signed,
               scale=view.buffer.scale, zero=view.buffer.zero_point)
    return draft


def maximum(net: "Importer", node: Node) -> None:
    """MaxPool."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise node.error("its second output (Indices) is not supported")
    view = net.view(node)
    _pool(net, node, view, "max", None, False).target.like = view.buffer


def average(net: "Importer", node: Node) -> None:
    """QLinearAveragePool and QLinearGlobalAveragePool."""
    x = quantised(node, 1, "input", net.constants)
    y = quantised(node, 3, "output", net.constants)
    view = net.source(node, 0, x.scale, x.zero, x.signed)
    if y.signed != x.signed:
        raise node.error("its input and output differ in type")
    whole = node.op == "QLinearGlobalAveragePool"
    draft = _pool(net, node, view, "average", x.zero, whole)
    if any(draft.fields["pads"]) and not node.get("count_include_pad", 0):
        raise node.error("windows over the border are supported with count_include_pad only")
    count = math.prod(draft.fields["kernel"])
    draft.fields["scale"] = pool_scale(x.scale, y.scale, count)
    draft.target.scale, draft.target.zero_point = y.scale, y.zero


READERS = {
    "MaxPool": maximum, "QLinearAveragePool": average, "QLinearGlobalAveragePool": average,
}
