# SPDX-License-Identifier: Apache-2.0
"""The model of a planned layer: cycles and HBM words, from its tile with most to do."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.compiler.schedule import Work, schedule
from emu.compiler.tiling import Plan, plan_weights
from emu.config import Config

if TYPE_CHECKING:
    from emu.compiler.residency import Choice


def modelled_cycles(config: Config, choice: "Choice") -> float:
    """The bound of a layer, from one of its tiles: passes, inbound words, HBM words with weights
    fetched again."""
    total = 0.0
    for plan in choice.plans:
        worst = _worst_tile(plan)
        inputs = 0 if choice.source else worst.inputs
        compute = sum(op.segment.tiles * plan.shape.pass_cycles(op.pixels[1] - op.pixels[0])
                      for op in worst.work.ops)
        hbm = _weight_words(plan, worst.work) + inputs * plan.split.pixel_parts
        total += max(compute, (worst.weights + inputs) / 0.9, hbm / config.hbm.channels / 0.9)
    return total


def hbm_words(choice: "Choice", stored: bool) -> int:
    """Words that a layer reads from HBM and, if its output is ``stored`` there, writes."""
    total = 0
    for plan in choice.plans:
        worst, made = _worst_tile(plan), len(plan.groups) * plan.shape.pixels
        inputs = 0 if choice.source else worst.inputs * plan.split.pixel_parts
        added = made * (plan.shape.has_residual and not choice.residual)
        total += _weight_words(plan, worst.work) + inputs + added + made * stored
    return total


@dataclass(frozen=True)
class _WorstTile:
    """Of the tile with most output groups: its work, words of inputs and of weights."""

    work: Work
    inputs: int
    weights: int


def _worst_tile(plan: Plan) -> _WorstTile:
    ranges = [plan.channel_range(c) for c in range(plan.split.channel_parts)]
    c = max(range(len(ranges)), key=lambda k: ranges[k][1] - ranges[k][0])
    weights = plan_weights(plan, c, ())
    work = schedule(plan, weights, 0, c, ())
    inputs = sum(piece.words for item in work.items for piece in item.pieces)
    tiles = sum(n for _, n in weights.descriptors)
    return _WorstTile(work, inputs, work.generations * plan.shape.tile_words * tiles)


def _weight_words(plan: Plan, work: Work) -> int:
    """Words of weights that all tiles read together."""
    copies = 1 if plan.share_weights else plan.split.pixel_parts
    tiles = sum(map(plan.shape.passes, plan.groups))
    return copies * work.generations * plan.shape.tile_words * tiles


__all__ = ["hbm_words", "modelled_cycles"]
