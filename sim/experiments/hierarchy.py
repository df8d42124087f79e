# SPDX-License-Identifier: Apache-2.0
"""The study `hierarchy`: a decode whose parameters exceed HBM, on the RTL of the storage tier."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from emu import storage as model
from emu.config import load_config
from emu.storage import Decode, decode, fewest_fills
from hdl.verilog import Design
from sim.cache import cache_home
from sim.experiments import paged
from sim.experiments.framework import (
    LEVELS,
    SCHEMA,
    Case,
    Experiment,
    Progress,
    chip_row,
    coefficients,
    compared,
)
from sim.files import write
from sim.storage import run as tier
from sim.storage.run import Play, design, play

SEEDS = (1, 2, 3)
MACHINE = ("hbm.mib=4", "storage.pages=1024")
CHAIN = Decode(table=0, rows=0, cache=0, experts=0, expert_pages=0, chosen=0, dense=64, tokens=3)
"""Layers of weights alone: nothing to choose, so nothing to predict."""


@dataclass(frozen=True)
class TierCase(Case):
    """A decode under a policy. ``exact``: its own references are known ahead."""

    shape: Decode = field(default_factory=Decode)
    exact: bool = False
    seeds: tuple[int, ...] = SEEDS


@cache
def _design() -> Design:
    return design(load_config("base", MACHINE))


def _cases(quick: bool) -> list[Case]:
    return [*_tier_cases(quick), *paged.cases(quick)]


def _tier_cases(quick: bool) -> list[TierCase]:
    found: list[TierCase] = []
    shape = replace(Decode(), layers=3, tokens=1) if quick else replace(Decode(), tokens=3)
    seeds = (1,) if quick else SEEDS

    def add(group: str, policies: Sequence[str], shape: Decode = shape, *,
            seeds: Sequence[int] = seeds, **sizes: int | str) -> None:
        """``policies``: name, then depth, then threshold."""
        for text in policies:
            name, depth, threshold = (text.split() + ["32", "0"])[:3] if " " in text else (
                text, "32", "0")
            settings = (f"storage.policy={name}", f"storage.depth={depth}",
                        f"storage.threshold={threshold}",
                        *(f"storage.{key}={value}" for key, value in sizes.items()))
            title = {"run_ahead": f"run_ahead, {depth} pages",
                     "next_layer": f"next_layer, threshold {threshold}"}.get(name, name)
            found.append(TierCase(
                name=title, group=group, workload="decode", settings=(*MACHINE, *settings),
                is_baseline=(name, depth) == ("run_ahead", "32"), shape=shape,
                exact=name == "oracle", seeds=tuple(seeds)))

    few = ("run_ahead", "next_layer 32 64", "oracle")
    sweep = (*few, "double_buffer")
    if quick:
        add("20,000 cycles, 1 MiB", (*sweep, "demand"))
        add("200 cycles", ("run_ahead", "next_layer 32 0"), latency=200)
        add("plain chain", ("run_ahead", "next_layer 32 0", "next_layer 32 250"),
            replace(CHAIN, layers=3, dense=32, tokens=1), cache_pages=64)
        return found
    add("20,000 cycles, 1 MiB", (
        "run_ahead", "demand", "double_buffer", "run_ahead 8", "next_layer 32 0",
        "next_layer 32 32", "next_layer 32 64", "next_layer 32 128", "next_layer 32 250", "oracle"))
    for latency in (200, 5_000, 50_000):
        add(f"latency {latency:,} cycles", (*sweep, "next_layer 32 0"), latency=latency)
    for kib in (512, 2048):
        add(f"cache {kib} KiB", few, cache_pages=kib // 4)
    add("random replacement, 1 MiB", few, replacement="random")
    for zipf in (0.0, 0.5):
        add(f"Zipf {zipf}", few, replace(shape, zipf=zipf))
    add("plain chain, 2 MiB of weights", (*sweep, "next_layer 32 0", "next_layer 32 250"), CHAIN,
        seeds=(1,))
    add("plain chain that fits", (*sweep, "demand"), CHAIN, seeds=(1,), cache_pages=512)
    return found


def _energy(result: Mapping[str, Any]) -> dict[str, float]:
    """pJ by level: of HBM and storage; nothing else is modelled here."""
    moved, table = result["bytes"], coefficients()
    events = {
        "hbm_activate": result["activates"],
        "hbm_bit": 8 * (moved["hbm_read"] + moved["hbm_write"]),
        "storage_bit": 8 * (moved["storage_read"] + moved["storage_write"]),
    }
    return {level: round(sum(count * table[event][level] for event, count in events.items()))
            for level in LEVELS}


def _played(case: TierCase, seed: int, progress: Progress) -> dict[str, Any]:
    """The result of one run, kept under a hash of all that it depends on."""
    config, made = load_config(case.chip, case.settings), _design()
    shape = replace(case.shape, seed=seed)
    key = hashlib.sha256(f"{SCHEMA} {asdict(shape)} {case.exact} {seed}".encode())
    key.update(config.storage.model_dump_json().encode())
    for name in sorted(made.files):
        key.update(made.files[name].encode())
    for file in (model.__file__, tier.__file__):
        key.update(Path(file).read_bytes())
    kept = cache_home() / "experiments" / f"{key.hexdigest()[:24]}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    references = decode(shape)
    result = play(config, references, Play(exact=case.exact, seed=seed), made=made,
                  progress=lambda text: progress(f"{case.group}, {case.name}: {text}"))
    result["fewest_fills"] = fewest_fills(references, config.storage.cache_pages)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write(str(kept), json.dumps(result).encode())
    return result


def _row(case: Case, progress: Progress) -> dict[str, Any]:
    return (_tier_row(case, progress) if isinstance(case, TierCase)
            else chip_row(case, progress))


def _tier_row(case: TierCase, progress: Progress) -> dict[str, Any]:
    """The means over the seeds; what was counted is exact for each."""
    results = [_played(case, seed, progress) for seed in case.seeds]
    config = load_config(case.chip, case.settings)
    storage, tokens = config.storage, case.shape.tokens

    def average(values: Iterable[float]) -> int:
        return round(mean(values))

    def total(name: str) -> int:
        return sum(result["cache"][name] for result in results)

    page = storage.page_kib * 1024
    cycles = average(r["cycles"] for r in results)
    fetched = total("demand_fetches") + total("prefetches")
    useful, useless = total("useful"), total("prefetches") - total("useful")
    return {
        "case": case.name, "group": case.group, "is_baseline": case.is_baseline,
        "machine": {"chip": case.chip, "settings": list(case.settings)},
        "workload": {"decode": asdict(case.shape) | {"seed": list(case.seeds)}},
        "footprint_bytes": {"storage": case.shape.pages * page,
                            "hbm_cache": storage.cache_pages * page},
        "traffic_bytes": {name: average(r["bytes"][name] for r in results)
                          for name in results[0]["bytes"]},
        "cycles": cycles,
        "seeds": {"cycles": [result["cycles"] for result in results]},
        "warm_cycles": average(
            sum(r["token_cycles"][1:]) / max(1, tokens - 1) for r in results),
        "tokens_per_second": round(1e6 * config.clock.mhz * tokens / cycles, 1),
        "stall_cycles": average(r["stall_cycles"] for r in results),
        "pages": {name: average(r["cache"][name] for r in results) for name in tier.CACHE}
        | {"fewest_fills": average(r["fewest_fills"] for r in results)},
        "prefetch": {
            "useful": useful, "useless": useless, "late": total("late"),
            "useless_bytes": round(useless * page / len(results)),
            "coverage": round(useful / max(1, useful + total("demand_fetches")), 4),
            "accuracy": round(useful / max(1, total("prefetches")), 4),
            "timeliness": round(1 - total("late") / useful, 4) if useful else None,
            "useless_share": round(useless / max(1, fetched), 4),
        },
        "energy_pj": {level: average(_energy(r)[level] for r in results) for level in LEVELS},
        # Words that the decode read, each compared; words that storage held in the end.
        "verified": {"outputs": sum(result["words"] for result in results),
                     "mismatches": sum(result["mismatches"] + result["wrong_words"]
                                       for result in results)},
    }


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    alone = [row for row in rows if not row["group"].startswith(paged.ON_CHIP)]
    return _tier_findings(alone) + paged.findings(rows)


def _tier_findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    by_case = {(row["group"], row["case"]): row for row in rows}
    groups: dict[str, list[str]] = {}
    for group, case, ratio in compared(rows, lambda row: row["cycles"]):
        fetch = by_case[group, case]["prefetch"]
        groups.setdefault(group, []).append(
            f"{case} {ratio:.3f} (coverage {fetch['coverage']:.2f}, accuracy "
            f"{fetch['accuracy']:.2f})")
    found = [f"{group}, cycles over run_ahead's: {'; '.join(texts)}"
             for group, texts in groups.items()]
    chain = {row["cycles"] for row in rows
             if row["group"].startswith("plain chain") and "threshold" in row["case"]
             and "fits" not in row["group"]}
    found.append("plain chain: the threshold changes nothing" if len(chain) == 1 else
                 f"plain chain: the threshold changes the cycles: {sorted(chain)}")
    fits = {row["warm_cycles"] for row in rows if "fits" in row["group"]}
    if fits:
        found.append(f"a chain that fits: once it is there, a token takes {min(fits):,} to "
                     f"{max(fits):,} cycles under all policies")
    lost = [f"{group}: {case}" for group, case, ratio in compared(rows, lambda r: r["cycles"])
            if ratio > 1 and case not in ("demand", "double_buffer") and "run_ahead" not in case]
    found.append(f"slower than the baseline: {'; '.join(lost) or 'none'}")
    return found


HIERARCHY = Experiment(
    name="hierarchy",
    idea="HBM caches the pages of a storage device; pages are fetched before they are asked for",
    baseline="run_ahead, 32 pages: as far ahead as a layer's weights reach",
    cases=_cases,
    null_case="plain chain: every layer follows every time, so the threshold changes nothing; "
    "and a chain that fits HBM: after the first token nothing is fetched",
    losing_case="threshold 0 where storage is quick: experts that are not chosen take the "
    "bandwidth of those that are",
    findings=_findings,
    row=_row,
)
