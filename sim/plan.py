# SPDX-License-Identifier: Apache-2.0
"""``headrace plan``: how a network's tensors share memory, by strategy, and a picture of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from emu.compiler import compile_network
from emu.config import load_config
from emu.errors import UserError
from emu.network.workloads import load_network
from emu.planner import NAMES, lower_bound, place
from sim.files import check_writable, write

TITLES = {
    "activations": "all activations, in one memory",
    "hbm": "activations in HBM",
    "scratchpad": "one tile's scratchpad, beside its parameter frames",
}
COMPILER = "greedy_by_size"
"""What the compiler itself uses."""


def plan(
    workload: str,
    *,
    chip: str = "base",
    settings: Iterable[str] = (),
    strategy: str = COMPILER,
    picture: str | None = None,
) -> dict[str, Any]:
    """Place ``workload``'s tensors by every strategy; offsets are those of ``strategy``.

    Returns ``layers`` (names in order: steps count them) and ``memories``: per memory
    ``lower_bound_bytes``, ``strategies`` (``bytes``, ``proven`` least) and ``items`` (``name``,
    ``bytes``, ``first`` and ``last`` step, ``offset``). ``picture`` names a page to write.

    Raises
    ------
    UserError: For bad input.
    """
    if strategy not in NAMES:
        raise UserError(f"strategy {strategy}: must be one of {', '.join(NAMES)}")
    check_writable(picture)
    config = load_config(chip, list(settings))
    program = compile_network(load_network(workload), config, check=False)
    memories = {}
    for name, items in program.memories.items():
        if not items:
            continue
        placements = {each: place(items, each) for each in NAMES}
        memories[name] = {
            "title": TITLES[name],
            "lower_bound_bytes": lower_bound(items),
            "strategies": {each: {"bytes": p.high_water, "proven": p.proven}
                           for each, p in placements.items()},
            "items": [
                {"name": item.name, "bytes": item.size, "first": item.first, "last": item.last,
                 "offset": offset}
                for item, offset in zip(items, placements[strategy].offsets, strict=True)
            ],
        }
    result = {"workload": workload, "chip": config.name, "strategy": strategy,
              "layers": list(program.layer_names), "memories": memories}
    if picture:
        write(picture, _page(result).encode())
    return result


def _page(result: Mapping[str, Any]) -> str:
    """HTML: per memory a rectangle for every item, step by offset."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    memories = list(result["memories"].values())
    used = [each["strategies"][result["strategy"]]["bytes"] for each in memories]
    titles = [f"{each['title']}: {high / 1024:,.0f} KiB, lower bound "
              f"{each['lower_bound_bytes'] / 1024:,.0f}"
              for each, high in zip(memories, used, strict=True)]
    figure = make_subplots(rows=len(memories), cols=1, shared_xaxes=True, subplot_titles=titles,
                           vertical_spacing=0.06)
    for row, memory in enumerate(memories, 1):
        for number, item in enumerate(memory["items"]):
            left, right = item["first"] - 0.5, item["last"] + 0.5
            low, high = item["offset"] / 1024, (item["offset"] + item["bytes"]) / 1024
            colour = qualitative.Set3[number % len(qualitative.Set3)]
            figure.add_trace(go.Scatter(
                x=[left, right, right, left, left], y=[low, low, high, high, low], fill="toself",
                mode="lines", line={"width": 0.7, "color": "#555"}, fillcolor=colour,
                name=item["name"], text=f"{item['name']}: {item['bytes']:,} bytes",
                hoverinfo="text", showlegend=False), row=row, col=1)
        figure.add_hline(y=memory["lower_bound_bytes"] / 1024, line_dash="dot", row=row, col=1)
        figure.update_yaxes(title="KiB", rangemode="tozero", row=row, col=1)
    layers = result["layers"]
    step = max(1, len(layers) // 30)
    figure.update_xaxes(tickvals=list(range(0, len(layers), step)), ticktext=layers[::step],
                        tickangle=-60, row=len(memories), col=1)
    figure.update_layout(title=f"{result['workload']} on {result['chip']}, {result['strategy']}",
                         template="plotly_white", height=360 * len(memories) + 120)
    return figure.to_html(include_plotlyjs=True, full_html=True)
