# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts: whose weights leave HBM, by how many tokens come at once and how many experts
stay in the scratchpads from step to step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.compiler.expert_step import PARAMETER_WORDS
from emu.network.exact import exact
from emu.network.experts import CHOSEN, moe_batch
from emu.network.layers import ExpertLayer, Network
from sim.experiments import foresight
from sim.experiments.framework import Case, Experiment, compared

LANES, WORD = 16, 16
MODES = {"all experts": "all", "each token's own": "per_token", "distinct experts": "distinct",
         "tokens sorted by expert": "sorted"}
"""Case to `prefetch.experts`; others are caches of so many experts of a layer."""
ALL, OWN, DISTINCT, SORTED = MODES
FETCHED = (ALL, OWN, DISTINCT)
"""Ways to fetch weights alone; the last is that of other laws and seeds."""
LAWS = {"uniform": 0.0, "Zipf 0.5": 0.5, "Zipf 1": 1.0}
TRAINED = "trained"
"""The law of the routing recorded from the middle layer of a trained mixture."""
SIZES = {"48 x 80": (48, 80), "256 x 512": (256, 512), "768 x 3072": (768, 3072)}
EXPERTS_OF_LAYER = 8


@dataclass(frozen=True)
class Load:
    """What a case computes: ``steps`` times ``tokens`` at once, chosen by a law."""

    size: str
    tokens: int
    steps: int = 1
    law: str = "uniform"
    seed: int = 1

    @property
    def group(self) -> str:
        several = "s" if self.tokens > 1 else ""
        steps = f"{self.steps} steps of " if self.steps > 1 else ""
        return f"{self.size}, {steps}{self.tokens} token{several}"

    def network(self) -> Network:
        return _network(self)

    @property
    def at_once(self) -> int:
        """Experts that may occur in a step."""
        return min(EXPERTS_OF_LAYER, CHOSEN * self.tokens)

    @property
    def expert_bytes(self) -> int:
        """Of both matrices' weights and parameters."""
        width, inner = (-(-n // LANES) for n in SIZES[self.size])
        return WORD * (2 * width * inner * LANES + PARAMETER_WORDS * (width + inner))


@lru_cache(maxsize=2)
def _network(load: Load) -> Network:
    width, inner = SIZES[load.size]
    return moe_batch(f"moe.{load.group}", load.seed, tokens=load.tokens,
                     zipf=LAWS.get(load.law, 0.0), layer=1 if load.law == TRAINED else None,
                     steps=load.steps, experts=EXPERTS_OF_LAYER, width=width, inner=inner)


ASKED: dict[tuple[str, str], tuple[str, Load]] = {}
"""(group, case) of those that were asked for to mode and load."""


def _case(load: Load, chip: str, mode: str, baseline: str) -> Case:
    """What the baseline loads does not depend on the law, so it is there once."""
    name = mode if mode == baseline else f"{mode}, {load.law}, seed {load.seed}"
    ASKED[load.group, name] = mode, load
    return Case(name, load.group, load.group, chip, _settings(mode), network=load.network,
                samples=load.tokens * load.steps, is_baseline=mode == baseline)


def _group(
    load: Load, chip: str, modes: Sequence[str], baseline: str = ALL, laws: Sequence[str] = (),
    seeds: Sequence[int] = (1,), more: Sequence[str] = (),
) -> list[Case]:
    """Cases of the first law and seed, then of ``modes[-1]`` or ``more`` of all others."""
    cases = [_case(load, chip, mode, baseline) for mode in modes]
    others = [replace(load, law=law, seed=seed) for law in laws for seed in seeds]
    return cases + [_case(other, chip, mode, baseline) for other in others if other != load
                    for mode in (more or modes[-1:])]


def _settings(mode: str) -> tuple[str, ...]:
    if mode in MODES:
        return (f"prefetch.experts={MODES[mode]}",)
    return ("prefetch.experts=cached", f"prefetch.expert_slots={mode.split()[-1]}")


def _cached(*slots: int) -> tuple[str, ...]:
    return tuple(f"cache of {count}" for count in slots)


def _cases(quick: bool) -> list[Case]:
    small, middle, large = SIZES
    if quick:
        cases = [case for tokens in (1, 3, 32) for case in
                 _group(Load(small, tokens), "small", (ALL, OWN, SORTED, DISTINCT))]
        cases += _group(Load(small, 1, 6, "Zipf 1"), "small", (DISTINCT, *_cached(2, 4)),
                        DISTINCT, laws=(TRAINED,))
        return cases + foresight.cases(quick)
    cases = _group(Load(middle, 1), "base", (ALL, OWN, SORTED, DISTINCT))
    for tokens in (2, 4, 8, 16):
        cases += _group(Load(middle, tokens), "base", FETCHED,
                        laws=(*LAWS, TRAINED), seeds=(1, 2, 3))
    for tokens in (32, 64, 128):
        modes = (ALL, *([OWN] if tokens == 32 else []), SORTED, DISTINCT)
        cases += _group(Load(middle, tokens), "base", modes, laws=tuple(LAWS),
                        more=(SORTED, DISTINCT) if tokens == 128 else ())
    cases += _group(Load(middle, 1, 32), "base", (DISTINCT, *_cached(2, 4, 6)), DISTINCT,
                    laws=(*LAWS, TRAINED), seeds=(1, 2, 3), more=_cached(4))
    cases += [_case(Load(middle, 1, 32, law), "base", mode, DISTINCT)
              for law in ("Zipf 1", TRAINED) for mode in _cached(2, 6)]
    cases += _group(Load(large, 1), "base", FETCHED)
    cases += _group(Load(large, 8), "base", (ALL, DISTINCT))
    return cases + foresight.cases(quick)


def loaded(row: Mapping[str, Any]) -> float | None:
    """Experts whose weights were loaded: HBM words read beyond commands and what else was planned.

    None of sorted tokens: each layer has blocks of its own length, and an expert comes once a
    block.
    """
    mode, load = ASKED[row["group"], row["case"]]
    if mode == SORTED:
        return None
    moved = row["traffic_bytes"]
    planned = {ALL: EXPERTS_OF_LAYER, OWN: CHOSEN * load.tokens, DISTINCT: load.at_once}.get(mode)
    planned = int(mode.split()[-1]) if planned is None else planned
    other = row["planned_read_bytes"] - load.steps * planned * load.expert_bytes
    return (moved["hbm_read"] - moved["commands"] - other) / load.expert_bytes


@cache
def routing(load: Load) -> NDArray[np.int64]:
    """Tokens of each expert, [step, expert], by the golden model."""
    network = load.network()
    routers = tuple(e for e in network.layers if not isinstance(e, ExpertLayer))
    tensors = exact(replace(network, layers=routers), network.given or {}, every=True)
    found = []
    for name, top in tensors.items():
        if name.split("@")[0] == "top":
            words = np.ascontiguousarray(top.reshape(16, -1).T).view(np.uint32)[::2, :CHOSEN]
            found.append(np.bincount(words.reshape(-1), minlength=EXPERTS_OF_LAYER))
    return np.array(found)


def _findings(every: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [row for row in every if not foresight.is_ours(row)]
    found = foresight.findings([row for row in every if foresight.is_ours(row)])
    hbm = {(g, c): r for g, c, r in compared(rows, lambda r: r["traffic_bytes"]["hbm_read"])}
    cycles = {(g, c): r for g, c, r in compared(rows, lambda r: r["cycles"])}
    for row in rows:
        load, count = ASKED[row["group"], row["case"]][1], loaded(row)
        counts = routing(load)
        occur, total = int((counts > 0).sum()), counts.sum(0)
        uneven = total.max() / total.mean()
        line = f"{row['group']}: {row['case']}: "
        if count is not None:
            line += (f"weights of {count:g} experts, "
                     f"{count * load.expert_bytes / row['samples']:,.0f} bytes a token; ")
        line += f"{occur} occur, largest over mean {uneven:.2f}"
        if not row["is_baseline"]:
            key = row["group"], row["case"]
            line += f"; {hbm[key]:.3f} of the HBM bytes, {cycles[key]:.3f} of the cycles"
        found.append(line)
    return found


EXPERTS = Experiment(
    name="experts",
    idea="of a mixture of experts only those leave HBM that some token chose, each once, and not "
    "those that are still in the scratchpads; tokens sorted go to their experts alone",
    baseline="all experts are loaded, each once, and see all tokens; for caches: the distinct ones",
    cases=_cases,
    null_case="many tokens: all experts occur, there is nothing to leave out",
    losing_case="each token's own from a few tokens on: the same weights come again and again; "
    "large caches in cycles: every slot is computed and commanded in every step; tokens sorted, if "
    "there are few",
    findings=_findings,
)
