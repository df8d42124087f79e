# SPDX-License-Identifier: Apache-2.0
"""Where weights, parameters and command streams lie in HBM."""

from collections.abc import Mapping

import numpy as np

from emu.compiler.images import Bytes, Memory, Tensor, parameter_words, weight_tiles
from emu.compiler.placement import near_channels
from emu.compiler.residency import Choice
from emu.compiler.schedule import schedule
from emu.compiler.stream import Step
from emu.compiler.tiling import Plan, Weights, input_cuts, plan_weights
from emu.config import (
    BLOCK_TILES,
    SEGMENT_WORDS,
    TILE_WORDS,
    WORD_BYTES,
    Config,
    direct_address,
    interleaved,
)
from emu.isa import COMMAND_WORDS
from emu.network.layers import ConvLayer

HOMES = "homes"
"""In `Memory.shared`: the areas of tiles whose weights are theirs alone."""


def place_weights(
    memory: Memory, layer: ConvLayer, plan: Plan, tensors: dict[str, Tensor], choice: Choice
) -> Step:
    """Lay out parameters and weight blocks of one step and schedule its tiles."""
    cuts = () if choice.source else input_cuts(plan)
    active = [
        c for c in range(plan.split.channel_parts)
        if plan.channel_range(c)[0] < plan.channel_range(c)[1]
    ]
    weights = {c: plan_weights(plan, c, cuts) for c in active}
    params, bases, stride = _laid_out(memory, layer, plan, weights, cuts)
    work = {
        (p, c): schedule(plan, weights[c], p, c, cuts)
        for p in range(plan.split.pixel_parts) for c in active
    }
    return Step(
        layer=layer, plan=plan, target=tensors.get(layer.target.name), weights=weights, work=work,
        source=None if choice.source else tensors[layer.input_name],
        weight_base=bases, block_stride=stride, params=params,
        residual=tensors[layer.residual.source.name] if layer.residual and not choice.residual
        else None,
        source_edge=choice.source, residual_edge=choice.residual, flow=choice.flow,
    )


def _laid_out(
    memory: Memory, layer: ConvLayer, plan: Plan, weights: Mapping[int, Weights],
    cuts: tuple[int, ...],
) -> tuple[dict[int, int], dict[int, int], int]:
    """Parameters and weight blocks: (first word of each part's, of its blocks, block stride).

    Layers with the very same arrays, as the steps of a decoder have, share them.
    """
    residual = layer.residual and layer.residual.table
    arrays = (layer.weights, layer.bias, layer.scale, residual, layer.table)
    key = (*map(id, arrays), plan.split, plan.groups, plan.mode, plan.batch, plan.parts, cuts,
           plan.share_weights, plan.chunk_pixels, plan.tail)
    return memory.once(key, lambda: _lay_out(memory, layer, plan, weights))


def _lay_out(
    memory: Memory, layer: ConvLayer, plan: Plan, weights: Mapping[int, Weights]
) -> tuple[dict[int, int], dict[int, int], int]:
    """As `_laid_out`, of what no layer before has."""
    params: dict[int, int] = {}
    tables: list[Bytes] = []
    if layer.residual:
        table = np.asarray(layer.residual.table, np.float32)
        tables.append(table.view(np.uint8).reshape(-1, WORD_BYTES))
    if layer.table is not None:
        tables.append(np.asarray(layer.table, np.uint8).reshape(-1, WORD_BYTES))
    for c in weights:
        groups = range(*plan.channel_range(c))
        words = np.concatenate([parameter_words(layer, plan.shape, groups), *tables])
        params[c] = memory.allocate(len(words), f"parameters of {layer.name}")
        memory.put(params[c], words)
    bases, stride = _weight_area(memory, layer, plan, weights)
    for c in weights:
        _put_weights(memory, layer, plan, weights[c], c, bases[c], stride)
    return params, bases, stride


def _weight_area(
    memory: Memory, layer: ConvLayer, plan: Plan, weights: Mapping[int, Weights]
) -> tuple[dict[int, int], int]:
    """(first word of each part's first block, words from block to block).

    Parts lie side by side, block by block, so that what is read at one time is close together: in
    the interleaved space, or, where each part is read by one tile only, in the channels near to
    those tiles.
    """
    config, slot = memory.config, BLOCK_TILES * plan.shape.tile_words
    blocks = max(w.blocks for w in weights.values())
    if areas_of_tiles := memory.shared.get(HOMES):
        return {c: areas_of_tiles.take(plan.split.tile(0, c), blocks * slot) for c in weights}, slot
    near = None
    if plan.split.pixel_parts == 1:
        near = near_channels(
            config, {c: plan.split.tile(0, c) for c in weights},
            {c: w.blocks for c, w in weights.items()},
        )
    if near is None:
        what = f"weights of {layer.name}"
        area = memory.allocate(blocks * len(weights) * slot, what, BLOCK_TILES * TILE_WORDS)
        return {c: area + rank * slot for rank, c in enumerate(weights)}, len(weights) * slot
    members = {k: [c for c in weights if near[c] == k] for k in range(config.hbm.channels)}
    striped = 1 < max(len(parts) for parts in members.values()) <= 1 << config.stripe_bits
    sets = 1 << config.stripe_bits if striped else max(len(parts) for parts in members.values())
    line = config.hbm.channels * SEGMENT_WORDS * (sets if striped else 1)
    words = -(-blocks * sets * slot * config.hbm.channels // line) * line
    first = memory.allocate(words, f"weights of {layer.name}", line) // config.hbm.channels
    if striped:
        return {
            c: direct_address(config, channel, first // sets, rank)
            for channel, parts in members.items() for rank, c in enumerate(parts)
        }, slot
    return {
        c: direct_address(config, channel, first + rank * slot)
        for channel, parts in members.items() for rank, c in enumerate(parts)
    }, sets * slot


def _put_weights(
    memory: Memory, layer: ConvLayer, plan: Plan, weights: Weights, c: int, base: int, stride: int
) -> None:
    """Write the tiles of channel part ``c``, segment by segment, into its blocks."""
    groups = range(*plan.channel_range(c))
    tiles = dict(zip(groups, weight_tiles(layer, plan.shape, groups), strict=True))
    size = plan.shape.tile_words
    for batch in weights.segments:
        for segment in batch:
            parts = []
            for g in range(*segment.groups):
                low = plan.shape.needs[g][0]
                a, b = segment.inputs
                if segment.groups[1] - segment.groups[0] > 1:  # whole windows, maybe advancing
                    a, b = low, low + plan.shape.needs[g][1]
                parts.append(tiles[g][(a - low) * plan.shape.taps : (b - low) * plan.shape.taps])
            data = np.concatenate(parts).reshape(-1, WORD_BYTES)
            first = weights.descriptors[segment.descriptor][0] * BLOCK_TILES + segment.first_tile
            number = first + np.arange(len(data) // size)
            address = base + number // BLOCK_TILES * stride + number % BLOCK_TILES * size
            words = (address[:, None] + np.arange(size)).reshape(-1)
            memory.put(interleaved(memory.config, words), data)


def place_streams(memory: Memory, config: Config, streams) -> None:
    """Command streams behind all else, and the directory that says where."""
    directory = np.zeros((config.mesh.tiles, 2), np.uint64)
    for (x, y), commands in streams.items():
        base = memory.allocate(len(commands) * COMMAND_WORDS, "the command streams")
        memory.put(base, np.frombuffer(b"".join(commands), np.uint8).reshape(-1, WORD_BYTES))
        directory[y * config.mesh.cols + x, 0] = base | len(commands) << 32
    memory.put(0, directory.view(np.uint8).reshape(-1, WORD_BYTES))


__all__ = ["HOMES", "place_streams", "place_weights"]
