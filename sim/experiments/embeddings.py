# SPDX-License-Identifier: Apache-2.0
"""Embedding bags: rows summed beside their channel against rows that cross the mesh."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from emu.network.recommender import LOOKUPS, embeddings
from sim.experiments.framework import Case, Experiment, compared

ROWS = 4096
"""Of each table; the real ones have up to 40 million."""
BASELINE, THROUGH, ALL, SOME = ("summed in the tile", "rows through HBM", "summed in HBM",
                                "from 3 rows on in HBM")
SUMMED = {BASELINE: 0, THROUGH: 0, ALL: 1, SOME: 3}
"""Case to `hbm.sum_rows`."""


def _group(
    name: str, chip: str, kinds: Sequence[str], *, seed: int = 1, **options: Any,
) -> list[Case]:
    return [
        Case(kind, name, name, chip, (f"hbm.sum_rows={SUMMED[kind]}",),
             is_baseline=kind == BASELINE, samples=options["batch"],
             network=partial(embeddings, name, seed, fused=kind != THROUGH, **options))
        for kind in kinds
    ]


def _bits(name: str, chip: str, **options: Any) -> list[Case]:
    """8 and 4 bits, both summed in HBM: the vector engine knows no nibbles."""
    return [
        Case(f"rows of {bits} bits", name, name, chip, ("hbm.sum_rows=1",), is_baseline=bits == 8,
             samples=options["batch"], network=partial(embeddings, name, 1, bits=bits, **options))
        for bits in (8, 4)
    ]


def _cases(quick: bool) -> list[Case]:
    both = (BASELINE, ALL)
    if quick:
        small: dict[str, Any] = {"batch": 4, "rows": 64, "width": 64}
        lookups = (3, 2, 1, 70, 9)
        return [
            *_group("bags", "small", (BASELINE, THROUGH, ALL, SOME), lookups=lookups, **small),
            *_bits("4 bits", "small", lookups=lookups, **small),
            *_group("one lookup a bag", "small", (BASELINE, ALL, SOME), lookups=(1,) * 5, **small),
        ]
    every = (BASELINE, THROUGH, ALL, SOME)
    cases = []
    for batch in (8, 32):
        for zipf in (0.0, 1.0):
            law = "uniform" if zipf == 0 else f"Zipf {zipf:g}"
            for seed in (1, 2, 3) if batch == 32 else (1,):
                kinds = every if seed == 1 else (BASELINE, SOME)
                cases += _group(f"{batch} samples, {law}, seed {seed}", "base", kinds, seed=seed,
                                batch=batch, rows=ROWS, zipf=zipf)
    cases += _bits("32 samples, uniform, 4 bits", "base", batch=32, rows=ROWS)
    cases += _group("32 samples, one lookup a bag", "base", (*both, SOME), batch=32, rows=ROWS,
                    lookups=(1,) * len(LOOKUPS))
    return cases


def _links(row: Mapping[str, Any]) -> float:
    return row["traffic_bytes"]["mesh_link"]


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    links = {(g, c): r for g, c, r in compared(rows, _links)}
    hbm = {(g, c): r for g, c, r in compared(
        rows, lambda r: r["traffic_bytes"]["hbm_read"] + r["traffic_bytes"]["hbm_write"])}
    found = []
    for group, case, cycles in compared(rows, lambda row: row["cycles"]):
        key = group, case
        found.append(f"{group}: {case}: {links[key]:.3f} of the link bytes, {hbm[key]:.3f} of the "
                     f"HBM bytes, {cycles:.3f} of the cycles")
    for row in rows:
        moved, count, dram = row["traffic_bytes"], row["samples"], row["dram"]
        found.append(
            f"{row['group']}: {row['case']}: a sample reads {moved['hbm_read'] / count:,.0f} bytes "
            f"of HBM and moves {moved['mesh_link'] / count:,.0f} over links; "
            f"{dram['row_hit_rate']:.3f} of the columns find their row open")
    return found


EMBEDDINGS = Experiment(
    name="embeddings",
    idea="rows of an embedding bag are summed beside their HBM channel, and only the sum crosses "
    "the mesh",
    baseline="rows come to a tile, whose vector engine sums them; one step for all bags",
    cases=_cases,
    null_case="one lookup a bag, bags summed in HBM from 3 rows on: none is",
    losing_case="one lookup a bag, all summed in HBM: a sum is two words where the row is one",
    findings=_findings,
)
