# SPDX-License-Identifier: Apache-2.0
"""The curve of a mesh as a page of its own."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

SHOWN = 6
"""Latencies up to this many times that at zero load are drawn."""


def page(result: Mapping[str, Any]) -> str:
    """HTML: mean latency and accepted load over offered load, BookSim's figures where known."""
    curve = [p for p in result["curve"] if p["offered"] is not None]
    zero = result["zero_load_latency"] or 1
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    drawn = [p for p in curve if p["latency_mean"] is not None]
    offered = [p["offered"] for p in drawn]
    figure.add_trace(go.Scatter(
        x=offered, y=[p["latency_mean"] for p in drawn], name="Headrace: mean latency",
        mode="lines+markers", line={"color": "#1f77b4"}), row=1, col=1)
    figure.add_trace(go.Scatter(
        x=[p["offered"] for p in curve], y=[p["accepted"] for p in curve],
        name="Headrace: accepted", mode="lines+markers", line={"color": "#1f77b4", "dash": "dot"}),
        row=2, col=1)
    figure.add_trace(go.Scatter(
        x=[p["offered"] for p in curve], y=[p["worst_node"] for p in curve],
        name="Headrace: the node with least", mode="lines", line={"color": "#9ec9e8"}),
        row=2, col=1)
    highest = SHOWN * zero
    for row, colour in zip(result["booksim"], ("#d62728", "#ff7f0e", "#8c564b"), strict=False):
        highest = max(highest, 3.3 * row["zero_load_latency"])
        figure.add_trace(go.Scatter(
            x=[0, row["saturation"]], y=[row["zero_load_latency"], 3 * row["zero_load_latency"]],
            name=f"{row['name']}: zero load and saturation", mode="markers",
            marker={"color": colour, "size": 11, "symbol": "x"}), row=1, col=1)
        figure.add_trace(go.Scatter(
            x=[1.0], y=[row["accepted"]], name=f"{row['name']}: accepted at 1.0", mode="markers",
            marker={"color": colour, "size": 11, "symbol": "x"}, showlegend=False), row=2, col=1)
    figure.update_yaxes(title="cycles, creation to delivery", range=[0, highest], row=1, col=1)
    figure.update_yaxes(title="flits / node / cycle", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title="offered, flits / node / cycle", range=[0, 1.02], row=2, col=1)
    figure.update_layout(
        title=f"{result['traffic']} traffic on a {result['size']} mesh, {result['buffer_depth']} "
              f"flits an input, {result['arbiter']} arbiters",
        template="plotly_white", height=800, legend={"orientation": "h", "y": -0.12},
    )
    return figure.to_html(include_plotlyjs=True, full_html=True)
