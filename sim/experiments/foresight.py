# SPDX-License-Identifier: Apache-2.0
"""Experts fetched ahead: three layers of a trained mixture's routing, a token at a time; lists that
are known already, foreseen by the next layer's router, or by an oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from emu.compiler.expert_step import PARAMETER_WORDS
from emu.isa import ABSENT, VECTOR, VectorOp
from emu.network.experts import CHOSEN, moe_chain
from emu.network.layers import Network
from emu.network.recorded import EXPERTS, LAYERS, foreseen, recorded
from emu.vector_model import run_vector
from sim.experiments.framework import Case, compared

LANES, WORD = 16, 16
NONE, KNOWN, ROUTER, ORACLE = "in its own step", "known list", "foreseen", "foreseen by an oracle"
FOLLOWED = {NONE: (1, 1), KNOWN: (1, 2), ROUTER: (2, 3), ORACLE: (2, 3)}
"""Lists by which the caches of a layer's first and second matrices are filled; the first layer is
never foreseen."""


@dataclass(frozen=True)
class Chain:
    """``steps`` tokens through layers of experts of ``size`` (width, inner), in caches of
    ``slots``."""

    size: tuple[int, int]
    steps: int
    slots: int
    mode: str
    seed: int = 1

    @property
    def group(self) -> str:
        width, inner = self.size
        return f"{width} x {inner}, {LAYERS} layers, {self.steps} tokens in turn"

    @property
    def name(self) -> str:
        return f"cache of {self.slots}, {self.mode}, seed {self.seed}"

    @property
    def matrix_bytes(self) -> tuple[int, int]:
        """Of an expert's two matrices, with parameters."""
        width, inner = (-(-n // LANES) for n in self.size)
        first, second = (WORD * (width * inner * LANES + PARAMETER_WORDS * outputs)
                         for outputs in (inner, width))
        return first, second

    def network(self) -> Network:
        width, inner = self.size
        return moe_chain(f"moe.{self.group}", self.seed, steps=self.steps, width=width, inner=inner,
                         foresight="oracle" if self.mode == ORACLE else "router")


ASKED: dict[tuple[str, str], Chain] = {}
"""(group, case) of those that were asked for."""


def _case(chain: Chain, chip: str, is_baseline: bool) -> Case:
    ASKED[chain.group, chain.name] = chain
    ahead = {NONE: "none", KNOWN: "known"}.get(chain.mode, "predicted")
    settings = ("prefetch.experts=cached", f"prefetch.expert_slots={chain.slots}",
                f"prefetch.experts_ahead={ahead}")
    return Case(chain.name, chain.group, chain.group, chip, settings, network=chain.network,
                samples=chain.steps, is_baseline=is_baseline)


def cases(quick: bool) -> list[Case]:
    if quick:
        return [_case(Chain((48, 80), 3, 2, mode), "small", mode == NONE) for mode in FOLLOWED]
    size, steps = (256, 512), 16
    found = [_case(Chain(size, steps, slots, mode), "base", slots == 2 and mode == NONE)
             for slots in (2, 4) for mode in FOLLOWED]
    return found + [_case(Chain(size, steps, 2, mode, seed), "base", False)
                    for seed in (2, 3) for mode in (NONE, ROUTER)]


@dataclass
class Fetched:
    """Experts by why they were loaded, by the golden model: ``early`` by a foreseen list, of which
    ``wrong`` were not used by the token, ``late`` by the true one."""

    early: int = 0
    wrong: int = 0
    late: int = 0


def _top(scores: np.ndarray) -> list[list[int]]:
    """Per token, in ascending order."""
    return np.sort(np.argsort(-scores.T.astype(int), 1, kind="stable")[:, :CHOSEN], 1).tolist()


class _Cache:
    """A layer's slots, as RETAIN of the vector engine's model treats them."""

    def __init__(self, slots: int):
        self._data = np.zeros((slots + 2, WORD), np.uint8)
        self._fields = dict.fromkeys(dict(VECTOR), 0) | {
            "op": VectorOp.RETAIN, "base": 0, "step": 1, "pixels": 1, "k": CHOSEN,
            "groups": slots, "channels": EXPERTS, "b_base": 1, "table": slots + 1,
            "out": slots + 2}
        self._data.view(np.uint32)[1 : slots + 1, 0] = ABSENT

    def fetch(self, wanted: list[int]) -> list[int]:
        """What comes because ``wanted`` are asked for."""
        self._data.view(np.uint32)[0, :CHOSEN] = wanted
        where, words = run_vector(self._fields, self._data)
        here = where < len(self._data)
        self._data[where[here]] = words[here]
        numbers = words[~here].view(np.uint32)[:, 0]
        return numbers[numbers != ABSENT].tolist()


@cache
def replayed(chain: Chain) -> Fetched:
    """What the caches do."""
    found = Fetched()
    for layer in range(LAYERS):
        true = _top(recorded(chain.steps, layer, chain.seed))
        early: list[list[int]] = []
        if layer and chain.mode in (ROUTER, ORACLE):
            scores = foreseen if chain.mode == ROUTER else recorded
            early = _top(scores(chain.steps, layer, chain.seed))
        held = _Cache(chain.slots)
        for step, now in enumerate(true):
            if early:
                fetched = held.fetch(early[step])
                found.early += len(fetched)
                found.wrong += len(set(fetched) - set(now))
            found.late += len(held.fetch(now))
    return found


def is_ours(row: Mapping[str, Any]) -> bool:
    return (row["group"], row["case"]) in ASKED


def loaded(row: Mapping[str, Any]) -> float:
    """Experts loaded: HBM words read beyond commands and what else was planned."""
    chain, moved = ASKED[row["group"], row["case"]], row["traffic_bytes"]
    planned = row["planned_read_bytes"]
    others, first = FOLLOWED[chain.mode], FOLLOWED[NONE if chain.mode == NONE else KNOWN]
    for later, earliest, size in zip(others, first, chain.matrix_bytes, strict=True):
        planned -= chain.steps * chain.slots * ((LAYERS - 1) * later + earliest) * size
    return (moved["hbm_read"] - moved["commands"] - planned) / sum(chain.matrix_bytes)


def findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    hbm = {(g, c): r for g, c, r in compared(rows, lambda r: r["traffic_bytes"]["hbm_read"])}
    cycles = {(g, c): r for g, c, r in compared(rows, lambda r: r["cycles"])}
    for row in rows:
        key = row["group"], row["case"]
        fetched = replayed(ASKED[key])
        line = (f"{row['group']}: {row['case']}: {loaded(row):g} experts loaded "
                f"({fetched.early} early, {fetched.wrong} of them not used by the token, "
                f"{fetched.late} late, by the golden model)")
        if key in hbm:
            line += f"; {hbm[key]:.3f} of the HBM bytes, {cycles[key]:.3f} of the cycles"
        found.append(line)
    return found


__all__ = ["cases", "findings", "is_ours", "loaded", "replayed"]
