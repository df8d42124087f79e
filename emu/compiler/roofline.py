# SPDX-License-Identifier: Apache-2.0
"""The three bounds of a program, in cycles: nothing can be faster than the largest of them."""

from dataclasses import dataclass

import numpy as np

from emu.compiler.schedule import Work
from emu.compiler.stream import Step
from emu.config import Config


@dataclass(frozen=True)
class Roofline:
    """Cycles that one step needs at least.

    compute: the worst tile's passes, each max(pixels, words loaded, 4).
    hbm: compulsory words over all channels at one word per cycle each.
    inbound: words delivered to the worst tile, one per cycle.
    """

    name: str
    compute: int
    hbm: float
    inbound: int
    reads: dict[str, int] # distinct words of every tensor read
    constant_words: int   # weights and parameters
    write_words: int
    macs: int

    @property
    def cycles(self) -> float:
        return max(self.compute, self.hbm, self.inbound)


def _input_words(step: Step) -> int:
    """Distinct input words that the step's loads name."""
    shape = step.plan.shape
    seen = np.zeros((shape.in_groups, shape.images, shape.height, shape.width), bool)
    done = set()
    for (p, _), work in step.work.items():
        for piece in (piece for item in work.items for piece in item.pieces):
            low, high = piece.inputs
            if (p, low, high, piece.stretches) in done:  # tiles that share pixels load alike
                continue
            done.add((p, low, high, piece.stretches))
            for region, _, first, end in piece.stretches:
                y, x = region.y0, region.x0
                if region.rows == 1:
                    seen[low:high, region.image, y, x + first : x + end] = True
                else:
                    seen[low:high, region.image, y + first : y + end, x : x + region.cols] = True
    return int(np.count_nonzero(seen))


def _residual_words(work: Work) -> int:
    return sum(op.drained_words for op in work.ops if op.last)


def step_roofline(config: Config, step: Step, macs: int, resident: bool = False) -> Roofline:
    """Bounds of one planned step; ``macs``: of the whole layer as the network defines it;
    ``resident``: its weights are in the scratchpads already, in a pipeline also its parameters."""
    plan, shape = step.plan, step.plan.shape
    parameters = not step.flow.step
    compute = inbound = 0
    for (_, c), work in step.work.items():
        passes = sum(
            op.segment.tiles * shape.pass_cycles(op.pixels[1] - op.pixels[0])
            for op in work.ops
        )
        first, last = plan.channel_range(c)
        words = sum(piece.words for item in work.items for piece in item.pieces)
        tiles = 0 if resident else sum(tiles for _, tiles in step.weights[c].descriptors)
        words += work.generations * tiles * shape.tile_words
        words += (8 * (last - first) + shape.table_words) * parameters
        words += _residual_words(work) * shape.has_residual
        compute, inbound = max(compute, passes), max(inbound, words)
    tiles = 0 if resident else sum(shape.passes(g) for g in plan.groups)
    constants = tiles * shape.tile_words
    constants += (8 * len(plan.groups) + shape.table_words) * parameters
    reads = {step.source.name: _input_words(step)} if step.source else {}
    if step.residual:
        reads[step.residual.name] = len(plan.groups) * shape.pixels
    write = len(plan.groups) * shape.pixels if step.target else 0
    share = len(plan.groups) / shape.out_groups
    return Roofline(
        name=shape.name, compute=compute, inbound=inbound, reads=reads,
        hbm=(sum(reads.values()) + constants + write) / config.hbm.channels,
        constant_words=constants, write_words=write,
        macs=round(share * macs),
    )


def planned_read_words(config: Config, step: Step, generations: int | None = None) -> int:
    """Words that the step's commands read from HBM: loads by leaders and blocks, with repeats;
    ``generations``: how often its weights are read, if not as its work says."""
    plan = step.plan
    total = 0
    for (p, c), work in step.work.items():
        if step.source and (not plan.share_inputs or c == step.leader_of_inputs(p)):
            total += sum(piece.words for item in work.items for piece in item.pieces)
        total += _residual_words(work) if step.residual else 0
        first, last = plan.channel_range(c)
        leads = p == step.leader_of_weights(c)
        if not step.flow.step and (leads or not config.mesh.multicast):
            total += 8 * (last - first) + plan.shape.table_words
        if leads or not plan.share_weights:
            tiles = sum(tiles for _, tiles in step.weights[c].descriptors)
            times = work.generations if generations is None else generations
            total += times * tiles * plan.shape.tile_words
    return total

