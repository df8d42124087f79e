# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts, second part: each expert on tiles of its own, copies of those most used.

Which tiles wait for the busiest is measured: cycles in which each tile's array is at work. All
cases of a group have one machine, so one total of SRAM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from emu.compiler.expert_owners import Share, owners
from emu.config import load_config
from emu.network.layers import ExpertLayer
from sim.experiments import experts
from sim.experiments.experts import LANES, LAWS, SIZES, TRAINED, Load, routing
from sim.experiments.framework import Case, compared

SHARED, SORTED = "shared by all tiles", "shared, tokens sorted"
OUTSTANDING = "prefetch.outstanding=64"
"""Of all cases on `base`. Rows come word by word: with 256 in flight their requests wait behind
those of weights."""
TUNED_FROM = 64
"""Tokens from which on the quicker of the two shared ways sorts them; below, sorting loses."""


@dataclass(frozen=True)
class Placed:
    """Each expert on ``tiles`` tiles (0: as many as there are for each), with so many copies."""

    copies: int = 0
    tiles: int = 0

    @property
    def name(self) -> str:
        more = f", {self.copies} cop{'y' if self.copies == 1 else 'ies'}" if self.copies else ""
        return f"placed{f' on {self.tiles} tiles' if self.tiles else ''}{more}"

    @property
    def settings(self) -> tuple[str, ...]:
        return ("mapping.experts=placed", f"mapping.expert_copies={self.copies}",
                f"mapping.expert_tiles={self.tiles}")


PLACED = (Placed(), Placed(2))

ASKED: dict[tuple[str, str], tuple[Load, Placed | None]] = {}
"""(group, case) to what it computes, and how if not shared."""


def _group(load: Load, chip: str, ways: Sequence[Placed], sorts: bool) -> list[Case]:
    """The shared ways, the quicker one as baseline, and the others."""
    name = f"{load.group}, {load.law}, seed {load.seed}"
    shared: dict[str, tuple[str, ...]] = {SHARED: ()}
    if sorts:
        shared[SORTED] = ("prefetch.experts=sorted",)
    baseline = SORTED if sorts and load.tokens >= TUNED_FROM else SHARED
    found = []
    for case, settings in [*shared.items(), *((way.name, way.settings) for way in ways)]:
        ASKED[name, case] = load, next((way for way in ways if way.name == case), None)
        machine = (OUTSTANDING,) if chip == "base" else ()
        found.append(Case(case, name, load.group, chip, (*machine, *settings),
                          network=load.network, samples=load.tokens,
                          is_baseline=case == baseline))
    return found


def cases(quick: bool) -> list[Case]:
    """The curve over tokens at once, laws and copies."""
    small, middle, _ = SIZES
    if quick:
        return [case for tokens in (1, 32) for case in _group(
            Load(small, tokens, law="Zipf 1"), "small", PLACED, False)]
    found: list[Case] = []
    for law, tokens in product(LAWS, (8, 32, 128)):
        more = [Placed(1), Placed(4), Placed(8), Placed(tiles=4)] if (
            tokens == 128 and law != "Zipf 0.5") else []
        found += _group(Load(middle, tokens, law=law), "base", (*PLACED, *more), tokens == 128)
    for tokens in (1, 8, 32, 128):
        more = [Placed(4)] if tokens == 128 else []
        found += _group(Load(middle, tokens, law=TRAINED), "base", (*PLACED, *more), tokens == 128)
    for tokens in (1, 2, 4, 16, 64):
        found += _group(Load(middle, tokens, law="Zipf 1"), "base", PLACED, tokens == 64)
    for law, seed in product(("uniform", "Zipf 1"), (2, 3)):
        found += _group(Load(middle, 128, law=law, seed=seed), "base", (Placed(), Placed(4)), True)
    return found


def is_ours(row: Mapping[str, Any]) -> bool:
    return (row["group"], row["case"]) in ASKED


def uneven(row: Mapping[str, Any]) -> float:
    """Busy cycles of the busiest tile over the mean."""
    busy = row["tiles"]["busy_cycles"]
    return max(busy) * len(busy) / sum(busy)


def idle_tiles(row: Mapping[str, Any]) -> int:
    """Tiles that made no pass but the router's, which are one for each group of inputs."""
    load, _ = ASKED[row["group"], row["case"]]
    return sum(passes <= SIZES[load.size][0] // LANES for passes in row["tiles"]["passes"])


def weight_bytes(row: Mapping[str, Any]) -> float | None:
    """HBM bytes of weights and parameters a token: those read beyond commands and what else was
    planned. None of sorted tokens, as in `experts.loaded`."""
    load, way = ASKED[row["group"], row["case"]]
    if row["case"] == SORTED:
        return None
    held = load.at_once if way is None else sum(map(len, _shares(load, way)))
    moved = row["traffic_bytes"]
    other = row["planned_read_bytes"] - held * load.expert_bytes
    return (moved["hbm_read"] - moved["commands"] - other) / load.tokens


def _shares(load: Load, way: Placed) -> list[tuple[Share, ...]]:
    """Experts and copies of each group of tiles."""
    config = load_config("small" if load.size == "48 x 80" else "base", way.settings)
    layer = next(each for each in load.network().layers if isinstance(each, ExpertLayer))
    return list({owner.shares for owner in owners(config, layer).values()})


def findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cycles = {(g, c): r for g, c, r in compared(rows, lambda r: r["cycles"])}
    found = []
    for row in rows:
        key = row["group"], row["case"]
        load, _ = ASKED[key]
        tokens = routing(load).sum(0)
        bytes_ = weight_bytes(row)
        busy = sum(row["tiles"]["busy_cycles"]) / len(row["tiles"]["busy_cycles"]) / row["cycles"]
        line = (f"{row['group']}: {row['case']}: arrays busy {busy:.3f} of the time, largest over "
                f"mean {uneven(row):.2f} (of the experts' tokens {tokens.max() / tokens.mean():.2f}"
                f"), {idle_tiles(row)} tiles idle")
        if bytes_ is not None:
            line += f", weights of {bytes_:,.0f} bytes a token"
        if key in cycles:
            line += f"; {cycles[key]:.3f} of the cycles"
        found.append(line)
    return found


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    theirs = [row for row in rows if not is_ours(row)]
    return experts.EXPERTS.findings(theirs) + findings([row for row in rows if is_ours(row)])


EXPERTS = replace(
    experts.EXPERTS,
    idea=experts.EXPERTS.idea + "; each expert on tiles of its own, the most used ones twice",
    baseline=experts.EXPERTS.baseline + "; for experts on tiles of their own: the quicker of the "
    "shared ways on the same machine",
    cases=lambda quick: [*experts.EXPERTS.cases(quick), *cases(quick)],
    losing_case=experts.EXPERTS.losing_case + "; experts on tiles of their own at one token; "
    "copies where routing is even",
    findings=_findings,
)
