# SPDX-License-Identifier: Apache-2.0
"""Moves of a drained op's words: fields of the STOREs (and of a residual's LOADs) of a tile."""

from collections.abc import Iterator, Sequence

from emu.compiler.images import Tensor
from emu.compiler.mapping import encode_rect
from emu.compiler.residency import Edge, Landing
from emu.compiler.schedule import Op


def move_out(tensor: Tensor, op: Op) -> dict[str, int]:
    """The HBM side and the loops of a move between an output slot and ``tensor``."""
    first, last = op.segment.groups
    run, groups = op.pixels[1] - op.pixels[0], last - first
    move = {"s_stride0": run, "f_stride0": tensor.plane} if groups > 1 else {}
    if run == tensor.plane:
        run, groups, move = run * groups, 1, {}
    far = tensor.base + first * tensor.plane + op.pixels[0]
    return move | {"far": far, "run": run, "count0": groups, "count1": 1, "count2": 1}


def deliveries(
    op: Op, slot: int, edge: Edge, landings: Sequence[Landing]
) -> Iterator[dict[str, int]]:
    """Moves of a drained op's words to the tiles that read them."""
    (a, b), (g0, g1) = op.pixels, op.segment.groups
    for to in landings:
        first, end = max(a, to.start), min(b, to.end)
        low, high = max(g0, to.groups[0]), min(g1, to.groups[1])
        if first >= end or low >= high:
            continue
        far = edge.base + (low - to.low) * edge.plane + to.offset + first - to.start
        yield {
            "scratchpad": slot + (low - g0) * (b - a) + first - a, "far": far,
            "run": end - first, "count0": high - low, "count1": 1, "count2": 1,
            "s_stride0": b - a if high - low > 1 else 0,
            "f_stride0": edge.plane if high - low > 1 else 0,
            "rect": encode_rect(to.rect), "to_tiles": 1, "sem_valid": 1,
            "sem": edge.sem + to.piece,
        }


__all__ = ["deliveries", "move_out"]
