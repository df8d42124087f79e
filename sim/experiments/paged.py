# SPDX-License-Identifier: Apache-2.0
"""The storage tier on the chip: decodes whose parameters exceed the frames, read over the mesh."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from emu.network.experts import moe_block
from emu.network.layers import Network
from emu.network.transformers import decoder
from sim.experiments.framework import Case, compared

ON_CHIP = "on the chip: "
POLICIES = ("demand", "double_buffer", "run_ahead", "next_layer", "oracle")
TOKENS = 3


@cache
def _decoder(width: int, layers: int, heads: int, cached: int, steps: int) -> Network:
    return decoder(f"decoder:{steps}", 7, layers=layers, width=width, heads=heads, cached=cached,
                   steps=steps)


@cache
def _experts(width: int, inner: int) -> Network:
    return moe_block("experts", 7, experts=8, width=width, inner=inner)


def cases(quick: bool) -> list[Case]:
    """Policies on equal machines; ``quick``: a small chip."""
    found: list[Case] = []
    chip = "small" if quick else "base"
    shape = (64, 2, 4, 13, TOKENS) if quick else (256, 2, 4, 16, TOKENS)
    few, most = (16, 32) if quick else (24, 64)

    def add(title: str, workload: str, network, names: Sequence[str], samples: int,
            **storage: int | str) -> None:
        """``names``: a policy, then its threshold; or nothing, all constants in HBM."""
        for name in names:
            policy, threshold = ([*name.split(), "0"])[:2] if name else ("", "")
            settings = (
                "storage.enabled=true", f"storage.policy={policy}",
                f"storage.threshold={threshold}",
                *(f"storage.{key}={value}" for key, value in storage.items()),
            ) if name else ()
            title_of = f"{policy}, threshold {threshold}" if " " in name else policy
            found.append(Case(
                name=title_of or "all in HBM", group=ON_CHIP + title, workload=workload, chip=chip,
                settings=settings, is_baseline=policy == "run_ahead", network=network,
                samples=samples))

    network = partial(_decoder, *shape)
    workload = f"decoder {shape[0]} wide, {shape[1]} blocks, {TOKENS} tokens"
    quicker = {"latency": 5_000, "bytes_per_cycle": 16}
    if quick:
        add(f"{few} frames a channel", workload, network, POLICIES, TOKENS, cache_pages=few,
            **quicker)
        add("all pages fit", workload, network, ("run_ahead", "next_layer", ""), TOKENS,
            cache_pages=most, **quicker)
        return found
    add("5,000 cycles, 16 B a cycle, half of the pages fit", workload, network, POLICIES, TOKENS,
        cache_pages=few, **quicker)
    add("5,000 cycles, 16 B a cycle, all pages fit", workload, network,
        ("run_ahead", "demand", "next_layer", "oracle", ""), TOKENS, cache_pages=most, **quicker)
    add("5,000 cycles, 16 B a cycle, 2 of 8 experts", "one token, experts of 256 x 512",
        partial(_experts, 256, 512), ("run_ahead", "demand", "next_layer 0", "next_layer 128"), 1,
        cache_pages=few, **quicker)
    return found


def findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about the rows on the chip."""
    rows = [row for row in rows if row["group"].startswith(ON_CHIP)]
    groups: dict[str, list[str]] = {}
    for group, case, ratio in compared(rows, lambda row: row["cycles"]):
        groups.setdefault(group, []).append(f"{case} {ratio:.3f}")
    return [f"{group}, cycles over run_ahead's: {'; '.join(texts)}"
            for group, texts in groups.items()]
