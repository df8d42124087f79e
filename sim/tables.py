# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows: tables of results, lists and checks."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sim.doctor import Row


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def run_tables(result: Mapping[str, Any]) -> list[Table]:
    """The result of one run: headline, bytes at every boundary, stalls."""
    verified = result["verified"]
    title = (f"{result['workload']} on {result['chip']['name']}: {verified['outputs']:,} outputs, "
             f"{verified['mismatches']} differ from ONNX Runtime")
    head = Table(title=title, show_header=False)
    roofline = result["roofline"]
    bound = max(roofline, key=lambda term: roofline[term])
    head.add_row("cycles", _number(result["cycles"]))
    head.add_row("roofline", ", ".join(f"{k} {_number(v)}" for k, v in roofline.items()))
    head.add_row("fraction of the roofline", f"{_percent(result['roofline_fraction'])} ({bound})")
    head.add_row("MAC utilisation", _percent(result["mac_utilisation"]))
    head.add_row("HBM utilisation", _percent(result["hbm_utilisation"]))
    head.add_row("prefetch", ", ".join(f"{k} {v:,}" for k, v in result["prefetch"].items()))
    host = result["host"]
    head.add_row("simulation", f"{host['simulator']}, {host['run_seconds']:.2f} s, "
                 f"{host['kilocycles_per_second']:.1f} kHz")
    data = Table("boundary", "bytes", "compulsory", title="bytes moved")
    for name, value in result["bytes"].items():
        compulsory = result["compulsory_bytes"].get(name)
        data.add_row(name, _number(value), "" if compulsory is None else _number(compulsory))
    stalls = Table("cause", "tile cycles", title="stalls (summed over tiles)")
    for name, value in result["stalls"].items():
        stalls.add_row(name, _number(value))
    for table in (data, stalls):
        for column in table.columns[1:]:
            column.justify = "right"
    return [head, data, stalls]


SUMMARY = {
    "cycles": lambda r: _number(r["cycles"]),
    "of roofline": lambda r: _percent(r["roofline_fraction"]),
    "MAC": lambda r: _percent(r["mac_utilisation"]),
    "HBM": lambda r: _percent(r["hbm_utilisation"]),
    "HBM read": lambda r: _number(r["bytes"]["hbm_read"]),
    "HBM write": lambda r: _number(r["bytes"]["hbm_write"]),
    "mesh links": lambda r: _number(r["bytes"]["mesh_link"]),
    "spad read": lambda r: _number(r["bytes"]["scratchpad_read"]),
    "spad write": lambda r: _number(r["bytes"]["scratchpad_write"]),
    "array load": lambda r: _number(r["bytes"]["array_load"]),
    "block stall": lambda r: _number(r["stalls"]["block"]),
    "differ": lambda r: _number(r["verified"]["mismatches"]),
    "kHz": lambda r: _number(r["host"]["kilocycles_per_second"]),
}
"""Columns of a table with one run a row."""


def summary_table(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """One labelled run per row."""
    table = Table("", *SUMMARY, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, result in rows:
        table.add_row(label, *(show(result) for show in SUMMARY.values()))
    return table


def compare_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Runs under varied settings, the baseline first."""
    rows = [(", ".join(f"{k}={v}" for k, v in r["varied"].items()), r) for r in results]
    return summary_table(str(results[0]["workload"]), rows)


def list_tables() -> list[Table]:
    """Workloads, chips and prefetch policies."""
    from emu.config import PRESETS, load_config
    from emu.network.workloads import list_workloads
    from hdl.prefetch.registry import POLICIES

    workloads = Table("workload", "what", "MMAC", "weights KiB", title="workloads")
    for item in list_workloads():
        workloads.add_row(item.name, item.description, f"{item.macs / 1e6:,.2f}",
                          f"{item.weight_bytes / 1024:,.1f}")
    chips = Table("chip", "tiles", "MAC/cycle", "scratchpad", "HBM", title="chips")
    for name in PRESETS:
        config = load_config(name)
        chips.add_row(
            name, f"{config.mesh.cols} x {config.mesh.rows}",
            f"{config.mesh.tiles * config.core.macs:,}", f"{config.scratchpad.kib} KiB a tile",
            f"{config.hbm.channels} x {config.hbm.mib} MiB",
        )
    policies = Table("prefetch.policy", title="policies")
    for name in POLICIES:
        policies.add_row(name)
    return [workloads, chips, policies]


def doctor_table(rows: Sequence[Row]) -> Table:
    table = Table("what", "works", "found, or what to do")
    for row in rows:
        works = "yes" if row.works else "NO" if row.needed else "no (optional)"
        table.add_row(row.name, works, row.detail)
    return table
