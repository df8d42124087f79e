# SPDX-License-Identifier: Apache-2.0
"""Play a trace on the RTL controller and measure."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from emu.config import Hbm, load_config
from emu.errors import UserError
from emu.hbm_timing import BANKS, TIMINGS
from hdl.hbm.controller import HbmController
from hdl.verilog import Design, generate
from sim import doctor, runner
from sim.errors import RunError
from sim.files import check_cache, check_writable, write
from sim.memory.player import COMMANDS, TAGS, TraceBench
from sim.memory.trace import LINE_BYTES, Trace, read_trace

BYTES_PER_CYCLE = 16
TOP = "trace_bench"
ECC = {
    "injected": "read_path.injector.injected", "corrected": "read_path.corrected",
    "uncorrectable": "read_path.uncorrectable", "merged_columns": "partial.merged_writes",
    "stall_cycles": "partial.stall_cycles",
}
"""Counters of the controller that a channel with ECC adds."""
SLOWEST = 120
"""Cycles that a request may take at most, refresh aside: more than two row cycles."""

Progress = Callable[[str], None]


def dram_config(settings: Iterable[str]) -> Hbm:
    """The pseudo-channel of ``settings``: all 512 MiB unless they say otherwise.

    Raises
    ------
    UserError: If a setting is not one of ``hbm``, unknown or impossible.
    """
    settings = list(settings)
    for setting in settings:
        if not setting.startswith("hbm."):
            raise UserError(f"--set {setting}: headrace dram has a memory channel only: hbm.*")
    return load_config("base", ["hbm.mib=512", *settings]).hbm


def dram(
    trace: str,
    *,
    settings: Iterable[str] = (),
    window: int = 32,
    commands: str | None = None,
    latencies: str | None = None,
    masked: int = 0,
    simulator: str = "verilator",
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Play the trace file ``trace`` with at most ``window`` 64-byte reads under way.

    Returns the figures that the README names. ``commands`` names a file for the command stream,
    ``tick COMMAND group bank row column`` a line; ``latencies`` one for the latency of each read,
    in the order of their last words. Of the writes each ``masked``-th has a byte mask (0: none).

    Raises
    ------
    UserError: For bad input, before anything is built.
    RunError: If the build fails or the controller does not end.
    """
    hbm = dram_config(settings)
    requests = read_trace(trace)
    _check(hbm, requests, window, masked, simulator)
    for path in (commands, latencies):
        check_writable(path)
    check_cache()
    progress("building (cached by content)")
    began = time.perf_counter()
    design = generate(TraceBench(hbm), TOP)
    try:
        folder = runner.build(design, simulator)
    except RuntimeError as error:
        raise RunError(f"the build failed: {error}") from None
    built = time.perf_counter()
    progress("simulating")
    workdir = Path(tempfile.mkdtemp(prefix="headrace-"))
    try:
        _play(requests, window, masked, bool(commands), (design, folder, simulator), workdir)
        result = _measure(hbm, requests, workdir)
        for name, path in (("commands", commands), ("latencies", latencies)):
            if path:
                write(path, (workdir / name).read_bytes())
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    return {
        "trace": requests.name, "window": window, "settings": hbm.model_dump(), **result,
        "build_seconds": round(built - began, 2),
        "run_seconds": round(time.perf_counter() - built, 2),
    }


def _check(hbm: Hbm, requests: Trace, window: int, masked: int, simulator: str) -> None:
    if masked < 0:
        raise UserError(f"masked {masked}: must not be negative")
    if not 1 <= window <= 1 << 16:
        raise UserError(f"window {window}: must be 1 to 65536")
    if window > TAGS and hbm.read_queue > TAGS:
        raise UserError(f"window {window}: must be at most {TAGS} if hbm.read_queue is "
                        f"above {TAGS}")
    beyond = np.flatnonzero(requests.lines >= hbm.mib * 1024 * 1024 // LINE_BYTES)
    if len(beyond):
        address = int(requests.lines[beyond[0]]) * LINE_BYTES
        raise UserError(f"address {address:#x} of request {beyond[0] + 1} is beyond "
                        f"hbm.mib={hbm.mib}")
    missing = doctor.missing_for(simulator)
    if missing:
        raise UserError(f"simulator {simulator} needs {' and '.join(missing)}: install first")


def _play(
    requests: Trace, window: int, masked: int, log: bool, build: tuple[Design, Path, str],
    workdir: Path,
) -> None:
    """Run the trace; leaves its latencies, totals and perhaps commands in ``workdir``."""
    (workdir / "trace").write_bytes(requests.records())
    # Tags bound the reads under way: never, if the queue holds no more columns, see `_check`.
    plusargs = [f"+window={min(window, TAGS)}", f"+masked={masked}"]
    for name in ("trace", "latencies", "totals", *(["commands"] if log else [])):
        plusargs.append(f"+{name}={workdir / name}")
    limit = int(requests.cycles.max()) + SLOWEST * len(requests) + 100_000
    design, folder, simulator = build
    env = {
        "HEADRACE_LIMIT": str(limit),
        "HEADRACE_COUNTERS": json.dumps(runner.counter_paths(design, simulator)),
        "HEADRACE_FOUND": str(workdir / "counters"),
    }
    try:
        tests, failed = runner.run(
            design, folder, simulator, "sim.memory.bench", workdir=workdir,
            plusargs=tuple(plusargs), env=env, gpi_clock=True,
        )
    except RuntimeError as error:  # it crashed, or was killed
        raise RunError(f"the simulator ended early: {error}") from None
    if failed or not tests:
        raise RunError(f"the controller did not end the trace in {limit} cycles")


def _measure(hbm: Hbm, requests: Trace, workdir: Path) -> dict[str, Any]:
    """Figures of a run from what the player wrote."""
    lines = (line.split() for line in (workdir / "totals").read_text().splitlines())
    totals = {name: int(value) for name, value in lines}
    counts = {name: totals[str(i)] for i, name in enumerate(COMMANDS) if totals[str(i)]}
    latencies = np.array((workdir / "latencies").read_text().split(), np.int64)
    reads = int((~requests.writes).sum())
    columns = counts.get("RD", 0) + counts.get("WR", 0)
    counters = json.loads((workdir / "counters").read_text())
    ecc = {name: counters.get(f"controller.{path}", 0) for name, path in ECC.items()}
    columns -= ecc["merged_columns"]
    if len(latencies) != reads or columns != 2 * len(requests):
        raise RunError(f"{reads} reads gave {len(latencies)} answers, {len(requests)} requests "
                       f"gave {columns} columns")
    refreshes = {"none": 0, "all_bank": 1, "per_bank": BANKS}[hbm.refresh]
    due = totals["cycles"] * refreshes // TIMINGS[hbm.timing].refi
    p50, p99 = (float(np.percentile(latencies, q)) if reads else None for q in (50, 99))
    return {
        "reads": reads, "writes": len(requests) - reads, "cycles": totals["cycles"],
        "bandwidth_fraction":
            len(requests) * LINE_BYTES / (BYTES_PER_CYCLE * totals["cycles"]),
        "latency_mean": float(latencies.mean()) if reads else None,
        "latency_p50": p50, "latency_p99": p99,
        "row_hit_rate": 1 - counts["ACT"] / (columns + ecc["merged_columns"]),
        "commands": counts, "violations": totals["violations"],
        "refreshes_owed": max(0, due - counts.get("REFAB", 0) - counts.get("REFPB", 0)),
        "front_end_delay": HbmController.FRONT_END_DELAY,
        **({"ecc": ecc} if hbm.ecc else {}),
    }
