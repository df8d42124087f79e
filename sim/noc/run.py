# SPDX-License-Identifier: Apache-2.0
"""Load-latency curves of the RTL mesh, and soaks that check every flit."""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from emu.config import WORD_BYTES, Config, load_config
from emu.errors import UserError
from hdl.verilog import generate
from sim import doctor, runner
from sim.cache import cache_home
from sim.errors import RunError
from sim.files import check_cache, check_writable, write
from sim.noc.nodes import MeshBench
from sim.noc.reference import BOOKSIM, SIZE
from sim.noc.traffic import AT_A_NODE, Pattern, Traffic, parse_traffic

TOP = "mesh_bench"
FACTOR = 3
"""Saturation: the highest load whose mean latency is below this many times that at zero load."""
ZERO_LOAD = 0.01
WARM, MEASURED = 1000, 5000
LOADS = (*(k / 20 for k in range(1, 20)), 1.0)
NODE_LOADS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)
"""For traffic that one node limits."""

Progress = Callable[[str], None]


def mesh_config(size: str, settings: Iterable[str]) -> Config:
    """The machine of which only the mesh is used.

    Raises
    ------
    UserError: If ``size`` is not ``COLSxROWS``, or a setting not one of ``mesh``.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", size)
    if not found:
        raise UserError(f"size {size}: write it as COLSxROWS, 4x4 for example")
    settings = list(settings)
    for setting in settings:
        if not setting.startswith("mesh."):
            raise UserError(f"--set {setting}: headrace mesh has a mesh only: mesh.*")
    cols, rows = found.groups()
    return load_config("base", ["hbm.channels=1", f"mesh.cols={int(cols)}",
                                f"mesh.rows={int(rows)}", *settings])


def mesh(
    traffic: str,
    *,
    size: str = "4x4",
    settings: Iterable[str] = (),
    multicast: float = 0.0,
    soak: int = 0,
    seed: int = 1,
    plot: str | None = None,
    simulator: str = "verilator",
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """The load-latency curve of ``traffic``; the README names the keys of what is returned.

    Parameters
    ----------
    multicast: Chance that a packet goes to a random rectangle instead.
    soak: Instead of a curve, this many cycles at full load.
    plot: File for a page with the curve, beside BookSim's figures where there are some.

    Raises
    ------
    UserError: For bad input, before anything is built.
    RunError: If the build fails, a flit is lost, doubled, reordered or misled, or never arrives.
    """
    config = mesh_config(size, settings)
    parsed = parse_traffic(traffic, config.mesh)
    _check(multicast, soak, seed, simulator, plot)
    progress("building (cached by content)")
    began = time.perf_counter()
    design = generate(MeshBench(config), TOP)
    try:
        folder = runner.build(design, simulator)
    except RuntimeError as error:
        raise RunError(f"the build failed: {error}") from None
    built = time.perf_counter()
    progress("simulating")
    workdir = Path(tempfile.mkdtemp(prefix="headrace-"))
    try:
        job = _job(config, parsed, multicast, soak, seed, design, workdir)
        points = _simulate(job, design, folder, simulator, workdir)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    seconds = time.perf_counter() - built
    result = _measure(config, parsed, points, multicast, seed)
    result |= {"build_seconds": round(built - began, 2), "run_seconds": round(seconds, 2),
               "kilocycles_per_second": sum(p["totals"]["now"] for p in points) / seconds / 1000}
    _refuse_faults(result)
    if plot:
        from sim.noc.plot import page

        write(plot, page(result).encode())
    return result


def _check(multicast: float, soak: int, seed: int, simulator: str, plot: str | None) -> None:
    if not 0 <= multicast <= 1:
        raise UserError(f"multicast {multicast}: must be 0 to 1")
    if soak < 0 or soak >= 1 << 31:
        raise UserError(f"soak {soak}: must be 0 to {(1 << 31) - 1} cycles")
    if not 0 <= seed < 1 << 31:
        raise UserError(f"seed {seed}: must be 0 to {(1 << 31) - 1}")
    check_writable(plot)
    check_cache()
    missing = doctor.missing_for(simulator)
    if missing:
        raise UserError(f"simulator {simulator} needs {' and '.join(missing)}: install first")


def _job(config, traffic: Traffic, multicast, soak, seed, design, workdir: Path) -> dict[str, Any]:
    trace = traffic.trace
    if trace is not None:
        for node in range(config.mesh.tiles):
            (workdir / f"node_{node}.bin").write_bytes(trace.records(node))
    loads = NODE_LOADS if traffic.pattern in AT_A_NODE else LOADS
    limit = 0 if trace is None else int(trace.cycles.max()) + 64 * int(trace.flits.sum()) + 10_000
    paths = design.counter_paths()
    links = [path for name, path in paths.items()
             if re.search(r"\.flits_(north|south|west|east)$", name)]
    return {
        "pattern": int(traffic.pattern), "node": traffic.node, "nodes": config.mesh.tiles,
        "warm": WARM if trace is None else 1, "measured": MEASURED, "zero_load": ZERO_LOAD,
        "zero_cycles": max(MEASURED, 400_000 // config.mesh.tiles), "loads": loads,
        "factor": FACTOR, "multicast": multicast, "soak": soak, "seed": seed, "limit": limit,
        "links": links, "result": str(workdir / "result.json"),
    }


def _simulate(job, design, folder, simulator: str, workdir: Path) -> list[dict[str, Any]]:
    path = workdir / "job.json"
    path.write_text(json.dumps(job))
    plusargs = (f"+packets={workdir}",) if job["pattern"] == Pattern.TRACE else ()
    try:
        tests, failed = runner.run(
            design, folder, simulator, "sim.noc.bench", workdir=workdir, plusargs=plusargs,
            env={"HEADRACE_JOB": str(path)}, gpi_clock=True,
        )
    except RuntimeError as error:  # it crashed, or was killed
        raise RunError(f"the simulator ended early: {error}") from None
    if failed or not tests:
        log = cache_home() / "last-failure.log"
        log.write_text((workdir / "run.log").read_text(errors="replace")
                       if (workdir / "run.log").exists() else "no log was written\n")
        raise RunError(f"the simulation failed: see {log}")
    return json.loads(Path(job["result"]).read_text())


def _measure(config, traffic: Traffic, points, multicast: float, seed: int) -> dict[str, Any]:
    nodes = config.mesh.tiles
    curve = []
    for point in points:
        end, cycles = point["at_end"], max(1, point["measured_cycles"])
        accepted = [count / cycles for count in end["accepted"]]
        got = end["measured"]
        curve.append({
            "offered": point["offered"], "sustained": point["sustained"],
            "latency_mean": end["latency"] / got if got and point["sustained"] else None,
            "latency_max": max(end["slowest"]) if point["sustained"] else None,
            "accepted": sum(accepted) / nodes, "worst_node": min(accepted),
        })
    totals = [point["totals"] for point in points]
    zero = curve[0]["latency_mean"]
    below = [p["offered"] for p in curve
             if p["offered"] is not None and p["latency_mean"] is not None and zero is not None
             and p["latency_mean"] < FACTOR * zero]
    is_sweep = len(points) > 1
    full = curve[-1]
    links = sum(point["link_flits"] for point in points)
    delivered = sum(t["delivered"] for t in totals)
    hops = traffic.hops(config.mesh)
    return {
        "traffic": traffic.name, "size": f"{config.mesh.cols}x{config.mesh.rows}",
        "buffer_depth": config.mesh.buffer_depth, "arbiter": config.mesh.arbiter,
        "multicast": multicast, "seed": seed,
        "mean_hops": hops,
        "zero_load_latency": zero if is_sweep else None,
        "latency_mean": zero if traffic.trace is not None else None,
        "saturation": max(below) if is_sweep and below else None,
        "accepted_at_full_load": full["accepted"] if full["offered"] == 1.0 else None,
        "worst_node_accepted": full["worst_node"] if full["offered"] == 1.0 else None,
        "cycles": sum(t["now"] for t in totals),
        "injected": sum(t["injected"] for t in totals), "delivered": delivered,
        "reordered": sum(t["reordered"] for t in totals),
        "stray": sum(t["stray"] for t in totals),
        "same_checksum": all(t["sent_checksum"] == t["got_checksum"] for t in totals),
        "ended": all(point["emptied"] for point in points),
        "lost_at_source": sum(t["lost"] for t in totals),
        "link_bytes": links * WORD_BYTES, "link_flits_per_delivery": links / max(1, delivered),
        "curve": curve,
        "booksim": [vars(row) | {"name": row.name} for row in BOOKSIM.get(traffic.name, ())
                    if (config.mesh.cols, config.mesh.rows) == SIZE],
    }


def _refuse_faults(result: dict[str, Any]) -> None:
    faults = [
        text for wrong, text in (
            (not result["ended"], "flits never arrived"),
            (result["injected"] != result["delivered"],
             f"{result['injected']:,} flits injected, {result['delivered']:,} delivered"),
            (result["reordered"], f"{result['reordered']:,} flits reordered or doubled"),
            (result["stray"], f"{result['stray']:,} flits at nodes they were not sent to"),
            (not result["same_checksum"], "sequence numbers differ at both ends"),
        ) if wrong
    ]
    if faults:
        raise RunError(f"mesh {result['traffic']}: {'; '.join(faults)}")
