# SPDX-License-Identifier: Apache-2.0
"""The plans of one layer with weights: the best split that fits, or several steps."""

from itertools import pairwise

from emu.compiler.fit import plan_step
from emu.compiler.geometry import Geometry
from emu.compiler.mapping import choose
from emu.compiler.tiling import Plan
from emu.config import Config
from emu.errors import UserError


def plan_layer(
    config: Config, shape: Geometry, frames: int | None, words: int | None = None
) -> list[Plan]:
    """One plan, or several over ranges of the output groups if one does not fit.

    ``frames`` and ``words`` as in `emu.compiler.fit.plan_step`.

    Raises
    ------
    UserError
        If not even one output group fits.
    """
    count = 1
    while count <= shape.out_groups:
        edges = [shape.out_groups * k // count for k in range(count + 1)]
        plans = []
        for a, b in pairwise(edges):
            plan = _plan_groups(config, shape, range(a, b), frames, words)
            if plan is None:
                break
            plans.append(plan)
        if len(plans) == count:
            return plans
        count = shape.out_groups if count < shape.out_groups < 2 * count else 2 * count
    least = shape.taps + 2 * 256 + 8 + 2
    raise UserError(
        f"layer {shape.name}: does not fit the scratchpad of {config.scratchpad.free_words} words: "
        f"one output pixel needs at least {least} words with two parameter frames: raise "
        "scratchpad.kib"
    )


def _plan_groups(
    config: Config, shape: Geometry, groups: range, frames: int | None, words: int | None
) -> Plan | None:
    """The best split that fits. A split that needs weights again and again costs HBM time that the
    estimate does not know, so one that keeps its inputs whole is preferred among the first few."""
    fallback = None
    for split in choose(config, shape, groups):
        plan = plan_step(config, shape, split, groups, frames, words=words)
        if plan and (plan.mode in ("keep", "batch") or plan.bands == 1):
            return plan
        fallback = fallback or plan
    return fallback
