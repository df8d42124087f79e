# SPDX-License-Identifier: Apache-2.0
"""The study of weights that stay in the scratchpads from step to step."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from emu.network.layers import Network
from emu.network.transformers import decoder, perceptron
from sim.experiments.framework import Case, Experiment

WIDTH, LAYERS, HEADS, CACHED = 256, 2, 4, 16
"""A decoder whose weights, 1.5 MiB, fill 96 KiB of each of sixteen scratchpads."""
WIDTHS = (512, 768, 512, 768, 512)
"""A perceptron of as many weights: four layers, so that each can have a quarter of the tiles."""
NARROW = (128,) * 5
"""One whose activations, of 1,024 tokens, are more than its weights."""
GROUPS = "pipeline, tiles of its own for each layer"
UNEVEN = (512, 1024, 256, 768, 256)
"""One whose first layer has 44% of the arithmetic."""


@cache
def _perceptron(widths: tuple[int, ...], tokens: int, steps: int) -> Network:
    return perceptron(f"perceptron:{tokens}x{steps}", 7, widths=widths, tokens=tokens, steps=steps)


@cache
def _network(width: int, layers: int, heads: int, cached: int, steps: int) -> Network:
    return decoder(f"decoder:{steps}", 7, layers=layers, width=width, heads=heads, cached=cached,
                   steps=steps)


def _cases(quick: bool) -> list[Case]:
    chip = "small" if quick else "base"
    shape = (64, 2, 4, 13) if quick else (WIDTH, LAYERS, HEADS, CACHED)
    counts, sizes = ((1, 4), (0, 24)) if quick else ((1, 4, 16, 64), (0, 24, 48, 96))
    half = ("scratchpad.kib=128", f"hbm.edge_kib={512 if quick else 2048}")
    cases = [
        Case(name, f"{steps} steps", f"decoder {shape[0]} wide, {shape[1]} blocks", chip, settings,
             is_baseline=name == "streamed", samples=steps,
             network=partial(_network, *shape, steps))
        for steps in counts
        for name, settings in (
            *((f"{size} KiB a tile pinned" if size else "streamed",
               (f"scratchpad.pinned_kib={size}",)) for size in sizes
              if steps < 64 or size in (0, 96)),  # a minute each, and flat by then
            ("half of all SRAM at the edge", half),
        )
    ]
    cases += _modes(quick)
    if quick:
        return cases
    return cases + [
        Case(f"{size} KiB a tile pinned" if size else "streamed", "resnet50: every layer once",
             "resnet50", "base", (f"scratchpad.pinned_kib={size}",), is_baseline=size == 0)
        for size in (0, 128)
    ]


def _modes(quick: bool) -> list[Case]:
    """Perceptrons: what is kept where, by tokens of a step and steps. A pipeline and its rivals
    at many steps, the others where they are not minutes."""
    some = ("streamed", "retained", "pipeline", GROUPS)
    pipelines = ("streamed", "pipeline", GROUPS)
    every = (*some, "edge", "weight-streaming", "activation-streaming")
    if quick:
        return _points("small", 8, [((64, 96, 64), 8, 2, every)])
    return _points("base", 96, [
        (WIDTHS, 1, 1, some), (WIDTHS, 1, 4, some), (WIDTHS, 1, 16, every),
        (WIDTHS, 1, 64, pipelines),
        (WIDTHS, 64, 1, every), (WIDTHS, 64, 4, every), (WIDTHS, 64, 16, some),
        (WIDTHS, 256, 4, ("streamed", "retained", "edge", "weight-streaming")),
        (NARROW, 1024, 4, every),
        (UNEVEN, 64, 1, some), (UNEVEN, 64, 16, some),
    ])


def _points(
    chip: str, room: int, points: Sequence[tuple[tuple[int, ...], int, int, Sequence[str]]]
) -> list[Case]:
    """Cases of (widths, tokens of a step, steps, which modes), with ``room`` KiB for pins."""
    settings = {
        "streamed": (),
        "edge": ("scratchpad.kib=128", f"hbm.edge_kib={512 if chip == 'small' else 2048}"),
        "weight-streaming": ("mapping.mode=weight_streaming",),
        "retained": ("mapping.mode=retained", f"scratchpad.pinned_kib={room}"),
        "activation-streaming": ("mapping.mode=activation_streaming",
                                 f"scratchpad.pinned_kib={room}"),
        "pipeline": ("mapping.mode=pipeline",),
        GROUPS: ("mapping.mode=pipeline", "mapping.groups=equal"),
    }
    marks: dict[tuple[int, ...], str] = {UNEVEN: ", uneven"}
    return [
        Case({"edge": "half of all SRAM at the edge"}.get(name, name),
             f"perceptron {max(widths)} wide{marks.get(widths, '')}, {tokens} tokens a step, "
             f"{steps} steps",
             f"perceptron of {len(widths) - 1} layers", chip, settings[name],
             is_baseline=name == "streamed", samples=steps,
             network=partial(_perceptron, widths, tokens, steps))
        for widths, tokens, steps, names in points for name in names
    ]


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    bases = {row["group"]: row for row in rows if row["is_baseline"]}
    found = []
    for row in rows:
        base, steps = bases[row["group"]], row["samples"]
        read, before = row["traffic_bytes"]["hbm_read"], base["traffic_bytes"]["hbm_read"]
        initial = row["initial_load_bytes"]
        edge = row["traffic_bytes"].get("edge_read", 0)
        if edge:
            found.append(
                f"{row['group']}, {row['case']}: {read / steps / 1024:,.1f} KiB read from HBM a "
                f"step and {edge / steps / 1024:,.1f} KiB from the edge ({read / before:.3f} of "
                f"streaming), over the links "
                f"{row['traffic_bytes']['mesh_link'] / base['traffic_bytes']['mesh_link']:.3f}; "
                f"{row['cycles'] / steps:,.0f} cycles a step, {_idle(row)}")
            continue
        found.append(
            f"{row['group']}, {row['case']}: {read / steps / 1024:,.1f} KiB read from HBM a step, "
            f"{initial / 1024:,.1f} KiB of all of them once at the start ({read / before:.3f} of "
            f"streaming; without that {(read - initial) / before:.3f}; of W (f + N (1 - f)) "
            f"{read / (before - (steps - 1) * initial):.3f}); "
            f"{row['cycles'] / steps:,.0f} cycles a step, {_idle(row)}"
        )
    return found


def _idle(row: Mapping[str, Any]) -> str:
    found = row["arrays"]
    return f"{found['idle_tiles']:.1f} of {found['tiles']} tiles idle"


RESIDENCY = Experiment(
    name="residency",
    idea="weights stay in the scratchpads of the tiles that use them, step after step",
    baseline="the same machine, weights streamed from HBM in every step, prefetched; the frames "
    "have all the room that nothing else needs. A rival of equal SRAM has half of it in one shared "
    "scratchpad at the edge, which keeps constants from their first read on",
    cases=_cases,
    null_case="one step: what is loaded once is used once; weight-streaming of one token: no "
    "pixels to deal, it is the baseline",
    losing_case="resnet50: every layer is used once, and pinned weights take the room of "
    "activations and frames; activation-streaming: a group of tiles works while the others wait; "
    "a pipeline of few steps, which has to fill, and of uneven layers",
    findings=_findings,
)
