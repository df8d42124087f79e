# SPDX-License-Identifier: Apache-2.0
"""Charts of results as pages of their own."""

from collections.abc import Mapping
from typing import Any


def layer_page(result: Mapping[str, Any]) -> str:
    """HTML: per layer its cycles beside the arrays' bound, and the share of the MACs used."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    layers = result["layers"]
    names = [layer["name"] for layer in layers]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    figure.add_trace(go.Bar(x=names, y=[layer["cycles"] for layer in layers], name="cycles",
                            marker_color="#9ec9e8"), row=1, col=1)
    for term, colour in (("compute", "#1f77b4"), ("hbm", "#d62728"), ("inbound", "#2ca02c")):
        figure.add_trace(go.Scatter(
            x=names, y=[layer["roofline"][term] for layer in layers], name=f"bound: {term}",
            mode="markers", marker={"color": colour, "symbol": "line-ew-open", "size": 10}),
            row=1, col=1)
    figure.add_trace(go.Bar(
        x=names, y=[100 * layer["mac_utilisation"] for layer in layers], name="MACs used, %",
        text=[layer["plan"] for layer in layers], textposition="none",
        hovertemplate="%{x}: %{y:.1f}%<br>%{text}", marker_color="#1f77b4"), row=2, col=1)
    figure.update_yaxes(title="cycles", row=1, col=1)
    figure.update_yaxes(title="MACs used, %", range=[0, 100], row=2, col=1)
    figure.update_xaxes(tickangle=-60, row=2, col=1)
    figure.update_layout(
        title=f"{result['workload']} on {result['chip']['name']}: {result['cycles']:,} cycles",
        template="plotly_white", height=800, legend={"orientation": "h", "y": 1.06})
    return figure.to_html(include_plotlyjs=True, full_html=True)
