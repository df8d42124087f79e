# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows: tables of results, lists and checks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from sim.doctor import Row


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _golden(verified: Mapping[str, Any]) -> str:
    named = {"integer_definition": "the integer definition"}
    return next((named[c] for c in verified["conditions"] if c in named), "ONNX Runtime")


def run_tables(result: Mapping[str, Any]) -> list[Table]:
    """The result of one run: headline, bytes at every boundary, stalls."""
    verified = result["verified"]
    title = (f"{result['workload']} on {result['chip']['name']}: {verified['outputs']:,} outputs, "
             f"{verified['mismatches']} differ from {_golden(verified)}")
    head = Table(title=title, show_header=False)
    roofline = result["roofline"]
    bound = max(roofline, key=lambda term: roofline[term])
    head.add_row("cycles", _number(result["cycles"]))
    head.add_row("roofline", ", ".join(f"{k} {_number(v)}" for k, v in roofline.items()))
    head.add_row("fraction of the roofline", f"{_percent(result['roofline_fraction'])} ({bound})")
    head.add_row("MAC utilisation", _percent(result["mac_utilisation"]))
    head.add_row("HBM utilisation", _percent(result["hbm_utilisation"]))
    blocks = result["prefetch"]
    head.add_row("blocks fetched ahead", ", ".join(
        f"{kind} {blocks[kind]:,} ({moved / 1024:,.0f} KiB)"
        for kind, moved in blocks["bytes"].items()))
    if "storage" in result:
        pages = result["storage"]
        head.add_row("pages from storage", ", ".join(
            f"{name.replace('_', ' ')} {pages[name]:,}" for name in (
                "demand_fetches", "prefetches", "useful", "late", "useless", "fills", "under_way",
                "evictions", "write_backs")))
        head.add_row("reads waited for a page", f"{pages['miss_cycles']:,} channel cycles, others "
                     f"behind them {pages['blocked_cycles']:,}")
    if "qdq" in verified:
        head.add_row("against the QDQ model", f"{verified['qdq']['mismatches']:,} of "
                     f"{verified['qdq']['outputs']:,} outputs differ, by "
                     f"{verified['qdq']['largest_steps']} steps at most")
    for name, text in verified["host"].items():
        head.add_row("on the host", f"{name} ({text})")
    for kind, apart in verified.get("distances", {}).items():
        head.add_row(f"{kind} from float", f"{apart['mean_steps']:.2f} steps on average, "
                     f"{apart['largest_steps']:.2f} at most; {apart['rounded_otherwise']:,} of "
                     f"{apart['values']:,} rounded otherwise")
    if "task" in result:
        task = result["task"]
        head.add_row("held-out samples right", f"{task['correct']} of {task['samples']} "
                     f"({_percent(task['accuracy'])}); ONNX Runtime {task['golden_correct']}, "
                     f"same prediction for {task['same_predictions']}")
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
    layers = result["layers"]
    for table in (data, stalls):
        for column in table.columns[1:]:
            column.justify = "right"
    return [head, *([layer_table(layers)] if len(layers) > 1 else []), data, stalls]


def layer_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """A row a step: cycles, bound, HBM and MAC utilisation; then all steps with MACs."""
    table = Table("layer", "split", "cycles", "bound", "HBM used", "MACs used", "", title="layers")
    for layer in layers:
        bounds = layer["roofline"]
        bound = max(bounds, key=lambda term: bounds[term])
        share = layer["mac_utilisation"]
        table.add_row(
            layer["name"], layer["plan"].split(",")[0], _number(layer["cycles"]),
            f"{bound} {_number(bounds[bound])}", _percent(layer["hbm_utilisation"]),
            *((_percent(share), _bar(share)) if layer["macs"] else ("", "")),
        )
    busy = [layer for layer in layers if layer["macs"]]
    if busy:
        cycles = sum(layer["cycles"] for layer in busy)
        share = sum(layer["mac_utilisation"] * layer["cycles"] for layer in busy) / cycles
        table.add_section()
        table.add_row("with MACs", "", _number(cycles),
                      f"compute {_number(sum(each['roofline']['compute'] for each in busy))}",
                      _percent(sum(each["hbm_utilisation"] * each["cycles"] for each in busy)
                               / cycles), _percent(share), _bar(share))
    for column in table.columns[2:6]:
        column.justify = "right"
    return table


def _bar(share: float, width: int = 6) -> str:
    eighths = round(8 * width * min(1, share))
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


SUMMARY: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "cycles": lambda r: _number(r["cycles"]),
    "of roofline": lambda r: _percent(r["roofline_fraction"]),
    "roofline term": lambda r: max(r["roofline"], key=lambda term: r["roofline"][term]),
    "MAC utilisation": lambda r: _percent(r["mac_utilisation"]),
    "HBM utilisation": lambda r: _percent(r["hbm_utilisation"]),
    "outputs": lambda r: _number(r["verified"]["outputs"]),
    "mismatches": lambda r: _number(r["verified"]["mismatches"]),
    "useful blocks": lambda r: _number(r["prefetch"]["useful"]),
    "late blocks": lambda r: _number(r["prefetch"]["late"]),
    "useless blocks": lambda r: _number(r["prefetch"]["useless"]),
}
"""Rows of a table with one run a column, above its bytes and stalls; blocks are prefetched ones,
mismatches those with ONNX Runtime."""
BYTES = {
    "hbm_read": "HBM read", "hbm_write": "HBM write", "mesh_link_req": "req links",
    "mesh_link_up": "up links", "mesh_link_down": "down links",
    "scratchpad_read": "spad read", "scratchpad_write": "spad write",
    "array_load": "array load", "commands": "commands",
}


def summary_table(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """One labelled run per column: figures, KiB at every boundary, stalls that occurred."""
    table = Table("", *(label for label, _ in rows), title=title)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"
        column.justify = "right"
    results = [result for _, result in rows]
    for name, show in SUMMARY.items():
        table.add_row(name, *map(show, results))
    table.add_section()
    for name, words in BYTES.items():
        table.add_row(f"KiB {words}", *(_number(r["bytes"][name] / 1024) for r in results))
    table.add_section()
    for cause in results[0]["stalls"]:
        values = [r["stalls"][cause] for r in results]
        if any(values):
            table.add_row(f"{cause.replace('_', ' ')} stall", *map(_number, values))
    table.add_section()
    table.add_row("simulated, kHz", *(
        _number(r["host"]["kilocycles_per_second"]) for r in results))
    return table


def compare_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Runs under varied settings, the baseline first."""
    names = list(results[0]["varied"])
    rows = [(", ".join(map(str, r["varied"].values())), r) for r in results]
    return summary_table(f"{results[0]['workload']}: {', '.join(names)}", rows)


def dram_table(result: Mapping[str, Any]) -> Table:
    """One trace on one pseudo-channel."""
    settings = result["settings"]
    title = (f"{result['trace']}: {settings['timing']}, map {settings['address_map']}, refresh "
             f"{settings['refresh']}, window {result['window']}")
    table = Table(title=title, show_header=False)
    table.add_row("requests", f"{result['reads']:,} reads, {result['writes']:,} writes")
    table.add_row("cycles", _number(result["cycles"]))
    table.add_row("bandwidth, of peak", f"{100 * result['bandwidth_fraction']:.2f}%")
    if result["reads"]:
        table.add_row("read latency", f"mean {result['latency_mean']:.1f}, p50 "
                      f"{result['latency_p50']:.0f}, p99 {result['latency_p99']:.0f} cycles")
    table.add_row("of it in the front end", f"{result['front_end_delay']} cycles")
    table.add_row("row hits", _percent(result["row_hit_rate"]))
    table.add_row("commands", ", ".join(f"{k} {v:,}" for k, v in result["commands"].items()))
    if "ecc" in result:
        table.add_row("ECC", ", ".join(f"{k.replace('_', ' ')} {v:,}"
                                       for k, v in result["ecc"].items()))
    table.add_row("refreshes still owed", str(result["refreshes_owed"]))
    table.add_row("timing violations", str(result["violations"]))
    table.add_row("simulation", f"{result['run_seconds']:.1f} s")
    return table


def mesh_tables(result: Mapping[str, Any]) -> list[Table]:
    """The curve of a mesh; its figures, BookSim's where there are some, and what was checked."""
    title = (f"{result['traffic']} on {result['size']}, {result['buffer_depth']} flits an input, "
             f"{result['arbiter']}")
    curve = Table("offered", "mean latency", "max", "accepted", "least node", "", title=title)
    for column in curve.columns[:5]:
        column.justify = "right"
    for point in result["curve"]:
        mean, most, offered = point["latency_mean"], point["latency_max"], point["offered"]
        curve.add_row(
            "trace" if offered is None else f"{offered:.3f}",
            "-" if mean is None else f"{mean:,.1f}", "-" if most is None else _number(most),
            f"{point['accepted']:.4f}", f"{point['worst_node']:.4f}", _bar(point["accepted"]),
        )
    rows = result["booksim"]
    figures = Table("", "Headrace", *(row["name"] for row in rows))
    for name, key in (("latency_mean", ""), ("zero_load_latency", "zero_load_latency"),
                      ("saturation", "saturation"),
                      ("accepted_at_full_load", "accepted"), ("worst_node_accepted", "")):
        if result[name] is not None:
            theirs = (f"{row[key]:.3f}" if key else "" for row in rows)
            figures.add_row(name.replace("_", " "), f"{result[name]:.3f}", *theirs)
    figures.add_row("injected", _number(result["injected"]))
    figures.add_row("delivered", _number(result["delivered"]))
    figures.add_row("reordered or doubled", _number(result["reordered"]))
    figures.add_row("links crossed a delivery", f"{result['link_flits_per_delivery']:.3f}")
    figures.add_row("simulation", f"{result['run_seconds']:.1f} s, "
                    f"{result['kilocycles_per_second']:.0f} kHz")
    return [curve, figures]


def plan_tables(result: Mapping[str, Any]) -> list[Table]:
    """Per memory what each strategy needs."""
    tables = []
    for memory in result["memories"].values():
        table = Table("strategy", "KiB", "over the bound", "", title=memory["title"])
        bound = memory["lower_bound_bytes"]
        for name, found in memory["strategies"].items():
            marks = ["least" if found["proven"] else "not proven least" if name == "exact" else "",
                     "the compiler's" if name == "greedy_by_size" else ""]
            table.add_row(name.replace("_", " "), _number(found["bytes"] / 1024),
                          f"{found['bytes'] / bound:.3f}x" if bound else "",
                          ", ".join(filter(None, marks)))
        table.add_section()
        table.add_row("lower bound", _number(bound / 1024), "", f"{len(memory['items'])} items")
        for column in table.columns[1:3]:
            column.justify = "right"
        tables.append(table)
    return tables


def _planning_table(study: Mapping[str, Any]) -> Table:
    """A row a strategy of each trace: high water with all the room, HBM traffic of spills by size
    of the memory."""
    sizes = list(dict.fromkeys(row["machine"]["memory"] for row in study["rows"]))
    table = Table("strategy", "high water", "of bound", *(
        f"spilled, {size.split()[0]}" for size in sizes[1:]),
        title=f"{study['experiment']}: {study['idea']}; high water in KiB with all the room, KiB "
        "written and read in HBM by size of the memory over the bound", title_justify="left")
    traces: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in study["rows"]:
        cases = traces.setdefault(row["workload"], {})
        cases.setdefault(row["case"], {})[row["machine"]["memory"]] = row

    def kibibytes(row: Mapping[str, Any], *boundaries: str) -> str:
        return f"{sum(row[boundary] for boundary in boundaries) / 1024:,.0f}"

    for trace, cases in traces.items():
        table.add_section()
        table.add_row(f"[bold]{trace}[/bold]")
        for case, found in cases.items():
            room = found[sizes[0]]["footprint_bytes"]
            table.add_row(
                case, kibibytes(room, "high_water"),
                f"{room['high_water'] / room['lower_bound']:.3f}", *(
                    kibibytes(found[size]["traffic_bytes"], "hbm_read", "hbm_write")
                    for size in sizes[1:]))
        table.add_row("lower bound", kibibytes(room, "lower_bound"), "1.000", *(
            kibibytes(found[size], "spill_bound_bytes") for size in sizes[1:]))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def experiment_table(study: Mapping[str, Any]) -> Table:
    """A row a case: cycles, bytes and link bytes over the group's baseline's, modelled energy.

    The bytes are those of the outermost memory that the study has.
    """
    if study["experiment"] == "planning":
        return _planning_table(study)
    outer = "storage" if any("storage_read" in r["traffic_bytes"] for r in study["rows"]) else "hbm"
    table = Table("case", "cycles", "of base", f"{outer.replace('hbm', 'HBM')} KiB", "of base",
                  "links", "uJ", "",
                  title=f"{study['experiment']}: {study['idea']}", title_justify="left")
    base: Mapping[str, Any] = {}
    group = None
    for row in study["rows"]:
        if row["group"] != group:
            group = row["group"]
            base = next(r for r in study["rows"] if r["group"] == group and r["is_baseline"])
            table.add_section()
            table.add_row(f"[bold]{group}[/bold]")
        moved, before = (
            sum(r["traffic_bytes"].get(f"{outer}_{way}", 0) for way in ("read", "write"))
            for r in (row, base)
        )
        table.add_row(
            row["case"] + (" (baseline)" if row["is_baseline"] else ""), _number(row["cycles"]),
            f"{row['cycles'] / base['cycles']:.3f}", _number(moved / 1024), f"{moved / before:.3f}",
            f"{row['traffic_bytes']['mesh_link'] / base['traffic_bytes']['mesh_link']:.3f}"
            if "mesh_link" in row["traffic_bytes"] else "-",
            f"{row['energy_pj']['mid'] / 1e6:,.2f}", _bar(row["cycles"] / base["cycles"] / 2),
        )
    for column in table.columns[1:7]:
        column.justify = "right"
    return table


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
