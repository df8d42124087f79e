# SPDX-License-Identifier: Apache-2.0
"""The studies by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from emu.config import load_config
from emu.network.layers import Network
from emu.network.transformers import Stack, encoder
from sim.experiments.embeddings import EMBEDDINGS
from sim.experiments.expert_places import EXPERTS
from sim.experiments.framework import Case, Experiment, compared
from sim.experiments.hierarchy import HIERARCHY
from sim.experiments.planning import PLANNING
from sim.experiments.precision import PRECISION
from sim.experiments.residency import RESIDENCY

POLICIES = ("double_buffer", "demand", "run_ahead", "next_layer", "oracle")


def _hbm(row: Mapping[str, Any]) -> float:
    return row["traffic_bytes"]["hbm_read"] + row["traffic_bytes"]["hbm_write"]


def _cycles(row: Mapping[str, Any]) -> float:
    return row["cycles"]


@cache
def _feed_forward(rows: int) -> Network:
    """GPT-2's feed-forward parts of two blocks on ``rows`` tokens."""
    net = Stack.create(f"gpt2 feed-forward:{rows}", 11)
    x = net.input("x", (1, 768, 1, rows))
    for block in range(2):
        y = net.linear(f"block{block}.ffn1", x, 3072, activation=True)
        x = net.linear(f"block{block}.ffn2", y, 768, added=x)
    return net.network(x)


@cache
def _bert_block() -> Network:
    return encoder("bert block", 12, layers=1, width=768, heads=12, tokens=128)


def _prefetch_cases(quick: bool) -> list[Case]:
    workloads: list[tuple[str, str, str, Callable[[], Network] | None]] = [
        ("tiny.conv3x3", "tiny.conv3x3", "small", None),
        ("tiny.residual", "tiny.residual", "small", None),
    ] if quick else [
        ("resnet50.res4_3x3: one layer", "resnet50.res4_3x3", "base", None),
        ("BERT block, 128 tokens", "BERT block", "base", _bert_block),
        *((f"GPT-2 decode, two feed-forward parts, batch {rows}", "GPT-2 feed-forward", "base",
           partial(_feed_forward, rows)) for rows in (1, 8, 32)),
        ("resnet50", "resnet50", "base", None),
    ]
    cases = []
    for group, workload, chip, network in workloads:
        cases += [
            Case(policy, group, workload, chip, (f"prefetch.policy={policy}",), network=network,
                 is_baseline=policy == POLICIES[0])
            for policy in POLICIES if (group, policy) != ("resnet50", "oracle")  # a minute
        ]
        if quick or "GPT-2" in group:
            cases.append(Case("next_layer, threshold 128", group, workload, chip,
                              ("prefetch.policy=next_layer", "prefetch.threshold=128"),
                              network=network))
    return cases


def _prefetch_findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [f"{group}: {case} takes {ratio:.3f} of double_buffer's cycles"
             for group, case, ratio in compared(rows, _cycles)]
    for row in rows:
        useful, late, useless = (row["prefetch"]["bytes"][k] for k in ("useful", "late", "useless"))
        found.append(f"{row['group']}: {row['case']}: fetched ahead {useful:,} bytes that came in "
                     f"time, {late:,} late, {useless:,} useless; tiles waited "
                     f"{row['stall_cycles']['block']:,} cycles for blocks")
    wasted = [f"{row['group']}, {row['case']}: {row['prefetch']['useless']} useless blocks"
              for row in rows if row["prefetch"]["useless"]]
    read = [f"{group}: {case} reads {ratio:.4f} of double_buffer's HBM bytes"
            for group, case, ratio in compared(rows, _hbm) if abs(ratio - 1) > 1e-4]
    return found + (wasted or ["no policy fetched a block that was not used"]) + (
        read or ["HBM bytes are equal under all policies: prefetching hides latency only"])


def _fusion_case(network: str, chip: str, kib: int, room: int | None, fused: bool = False) -> Case:
    """``room``: most KiB a tile of activations that stay, 0 for what fits, None for none;
    ``fused``: stripe by stripe, where that saves traffic."""
    tiles = load_config(chip).mesh.tiles
    name = {None: "in HBM", 0: "on the chip"}.get(
        room, f"on the chip, at most {(room or 0) * tiles} KiB")
    settings = (f"scratchpad.kib={kib}", f"scratchpad.resident={str(room is not None).lower()}",
                *([f"scratchpad.resident_kib={room}"] if room else []),
                *(["mapping.fused=true"] if fused else []))
    return Case(name + ", in stripes" * fused, f"{network}, {kib} KiB a tile", network, chip,
                settings, is_baseline=room is None)


ROOMS = {
    ("resnet50", 256): (None, 16, 64, 0),
    ("mobilenetv2", 64): (None, 0),
    ("mobilenetv2", 256): (None, 16, 32, 64, 0),
}
"""Of each network and scratchpad in KiB. With half of it `resnet50` fetches weights again and again
(at 64 it takes 4 million cycles) and says no more than `mobilenetv2` does."""
STRIPES = (("resnet50", 256, 16), ("mobilenetv2", 64, 0), ("mobilenetv2", 256, 16),
           ("mobilenetv2", 256, 32), ("mobilenetv2", 256, 64))
"""Those that are also run in stripes: with more room the compiler finds nothing to fuse."""


def _fusion_cases(quick: bool) -> list[Case]:
    if quick:  # one build
        kib = load_config("small").scratchpad.kib
        cases = [_fusion_case("tiny.residual", "small", kib, room) for room in (None, 1, 0)]
        cases += [_fusion_case("tiny.inverted", "small", kib, *room)
                  for room in ((None,), (16,), (16, True), (0,))]
    else:
        cases = [_fusion_case(network, "base", kib, room)
                 for (network, kib), rooms in ROOMS.items() for room in rooms]
        cases += [_fusion_case(network, "base", kib, room, True) for network, kib, room in STRIPES]
    null = ("tiny.conv3x3", "small") if quick else ("bert_base.ffn1", "base")
    return cases + [
        Case("in HBM" if resident == "false" else "on the chip", f"{null[0]}: one layer", null[0],
             null[1], (f"scratchpad.resident={resident}",), is_baseline=resident == "false")
        for resident in ("false", "true")
    ]


def _fusion_findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    bytes_moved = {(g, c): r for g, c, r in compared(rows, _hbm)}
    cycles = {(g, c): r for g, c, r in compared(rows, _cycles)}
    return [f"{group}: {ratio:.3f} of the HBM bytes, {cycles[group, case]:.3f} of the cycles"
            for (group, case), ratio in bytes_moved.items()]


EXPERIMENTS = {
    study.name: study for study in (
        Experiment(
            name="prefetch",
            idea="blocks of weights are fetched before they are asked for, as far ahead as a "
            "policy allows",
            baseline="double_buffer: the next block while one is in use",
            cases=_prefetch_cases,
            null_case="oracle against next_layer on a plain chain: the order of blocks is known, "
            "there is nothing to predict",
            losing_case="demand: nothing is fetched ahead",
            findings=_prefetch_findings,
        ),
        Experiment(
            name="fusion",
            idea="activations stay in the scratchpads between layers with weights, whole or stripe "
            "by stripe",
            baseline="the same machine and splits of its own, activations through HBM; residual "
            "additions are fused with convolutions on both sides",
            cases=_fusion_cases,
            null_case="a single layer: no activation lies between two layers",
            losing_case="small scratchpads: areas leave few frames and coarse splits; the compiler "
            "gives up activations there, so that little is gained, not lost",
            findings=_fusion_findings,
        ),
        PRECISION,
        RESIDENCY,
        EMBEDDINGS,
        HIERARCHY,
        PLANNING,
        EXPERTS,
    )
}
