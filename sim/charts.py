# SPDX-License-Identifier: Apache-2.0
"""Charts of results as pages of their own."""

from collections.abc import Mapping, Sequence
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


def experiment_page(studies: Sequence[Mapping[str, Any]]) -> str:
    """HTML: a figure for the studies on the chip, one for that of memory planning."""
    others = [study for study in studies if study["experiment"] != "planning"]
    figures = [_ratios(others)] if others else []
    figures += [_spills(study) for study in studies if study["experiment"] == "planning"]
    parts = [figure.to_html(include_plotlyjs=index == 0, full_html=False)
             for index, figure in enumerate(figures)]
    return f"<html><head><meta charset='utf-8'></head><body>{''.join(parts)}</body></html>\n"


def _spills(study: Mapping[str, Any]):
    """For each trace, HBM bytes of spills against the memory's size, a line a strategy."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    rows = [row for row in study["rows"] if row["machine"]["memory"] != "all the room"]
    traces = list(dict.fromkeys(row["workload"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = make_subplots(rows=len(traces), cols=1, subplot_titles=traces,
                           vertical_spacing=0.3 / len(traces))
    for place, trace in enumerate(traces, 1):
        for number, case in enumerate([*cases, "lower bound"]):
            of, dash = (case, "solid") if case in cases else ("best_fit", "dot")
            points = [(row["machine"]["memory_bytes"] / 1024, (
                row["spill_bound_bytes"] if of != case else
                row["traffic_bytes"]["hbm_read"] + row["traffic_bytes"]["hbm_write"]) / 1024)
                for row in rows if row["workload"] == trace and row["case"] == of]
            figure.add_trace(go.Scatter(
                x=[x for x, _ in points], y=[y for _, y in points], name=case, legendgroup=case,
                showlegend=place == 1, mode="lines+markers",
                line={"color": qualitative.Dark24[number], "dash": dash},
            ), row=place, col=1)
    figure.update_xaxes(title="memory, KiB")
    figure.update_yaxes(title="spilled, KiB", rangemode="tozero")
    figure.update_layout(title=f"{study['experiment']}: {study['idea']}", template="plotly_white",
                         height=120 + 420 * len(traces))
    return figure


def _ratios(studies: Sequence[Mapping[str, Any]]):
    """HTML: for each study, cycles and HBM bytes of every case over its group's baseline."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(studies), cols=1, subplot_titles=[
        f"{study['experiment']}: {study['idea']}" for study in studies])
    for row, study in enumerate(studies, 1):
        rows = study["rows"]
        base = {r["group"]: r for r in rows if r["is_baseline"]}
        names = [[r["group"] for r in rows], [r["case"] for r in rows]]
        for name, colour, value in (
            ("cycles", "#1f77b4", lambda r: r["cycles"]),
            ("HBM bytes", "#d62728",
             lambda r: sum(r["traffic_bytes"].get(k, 0) for k in ("hbm_read", "hbm_write"))),
        ):
            ratios = [value(r) / value(base[r["group"]]) if value(base[r["group"]]) else None
                      for r in rows]
            figure.add_trace(go.Bar(
                x=names, y=ratios, name=f"{name} over the baseline", marker_color=colour,
                text=[f"{value(r):,}" for r in rows], textposition="none",
                hovertemplate="%{x}: %{y:.3f} of the baseline<br>%{text}", legendgroup=name,
                showlegend=row == 1), row=row, col=1)
        figure.add_hline(y=1, line={"dash": "dot", "color": "grey"}, row=row, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(template="plotly_white", height=120 + 480 * len(studies), barmode="group",
                         legend={"orientation": "h", "y": 1 + 0.2 / len(studies)})
    return figure
