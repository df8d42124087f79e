# SPDX-License-Identifier: Apache-2.0
"""``make bench``: every figure this project claims, measured here and now; JSON beside it."""

import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from emu.config import load_config
from emu.errors import UserError
from emu.minilm.model import PACKAGE
from emu.minilm.network import compare_pairs
from hdl.chip import TOP, Chip
from hdl.prefetch.registry import POLICIES
from hdl.verilog import generate
from sim.errors import RunError
from sim.execute import compare, run
from sim.memory import reach
from sim.profile import unit_shares

REPORT = Path("build", "bench.json")
SHARED_LAYER = "bert_base.ffn1"
"""The layer under which the units' shares are sampled."""


@dataclass(frozen=True)
class Figure:
    """One claim: what, how much it is at least (or at most), what was measured, its unit."""

    name: str
    bound: float
    higher_is_better: bool
    measured: float
    unit: str

    @property
    def reached(self) -> bool:
        better = self.measured >= self.bound
        return better if self.higher_is_better else self.measured <= self.bound


def _wafer_verilog() -> Iterator[Figure]:
    begin = time.perf_counter()
    generate(Chip(load_config("wafer")), TOP)
    yield Figure("Verilog of wafer", 10, False, time.perf_counter() - begin, "s")


def _layers() -> Iterator[Figure]:
    for name, bound in (("resnet50.res4_3x3", 1.10), ("bert_base.ffn1", 1.06)):
        results = compare(name, {"prefetch.policy": list(POLICIES)})
        best = min(results, key=lambda result: result["cycles"])
        policy = best["policy"]["name"]
        ratio = best["cycles"] / max(best["roofline"].values())
        yield Figure(f"{name} cycles over the roofline, {policy}", bound, False, ratio, "x")
        differ = sum(result["verified"]["mismatches"] for result in results)
        yield Figure(f"{name} outputs that differ, all policies", 0, False, differ, "")
        speed = max(result["host"]["kilocycles_per_second"] for result in results)
        yield Figure(f"simulation of base during {name}", 45, True, speed, "kHz")
        memory = max(result["host"]["peak_memory_mib"] for result in results)
        yield Figure(f"host memory of {name}", 2048, False, memory, "MiB")


def _decode() -> Iterator[Figure]:
    for timing in ("hbm2_a", "hbm2_b"):
        for refresh, bound in (("per_bank", 0.90), ("all_bank", 0.85)):
            settings = [f"hbm.timing={timing}", f"hbm.refresh={refresh}"]
            result = run("gpt2.decode_ffn", settings=settings)
            yield Figure(f"gpt2.decode_ffn HBM utilisation, {timing}, {refresh}", bound, True,
                         result["hbm_utilisation"], "")


def _networks() -> Iterator[Figure]:
    for name, limit in (("resnet50", 60), ("resnet152", 180), ("mobilenetv2", 60), ("digits", 60)):
        begin = time.perf_counter()
        result = run(name)
        seconds = time.perf_counter() - begin
        yield Figure(f"{name}, all in all, builds cached", limit, False, seconds, "s")
        yield Figure(f"{name} outputs that differ", 0, False, result["verified"]["mismatches"], "")
        if name == "resnet50":
            layers = [each for each in result["layers"] if each["macs"] and each["name"] != "fc"]
            busy = sum(each["mac_utilisation"] * each["cycles"] for each in layers)
            yield Figure("resnet50 MAC utilisation over all convolutions", 0.85, True,
                         busy / sum(each["cycles"] for each in layers), "")
        if "task" in result:
            task = result["task"]
            yield Figure("digits predicted as ONNX Runtime does", 1, True,
                         task["same_predictions"] / task["samples"], "")


def _transformers() -> Iterator[Figure]:
    result = run("gpt2_small.decode")
    yield Figure("gpt2_small.decode HBM utilisation", 0.85, True, result["hbm_utilisation"], "")
    differ = result["verified"]["mismatches"]
    yield Figure("gpt2_small.decode outputs that differ", 0, False, differ, "")
    if not importlib.util.find_spec(PACKAGE):
        print("minilm is left out: its extra is not installed", file=sys.stderr)
        return
    begin = time.perf_counter()
    run("minilm")
    yield Figure("minilm, 128 tokens, all in all", 60, False, time.perf_counter() - begin, "s")
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        path = str(Path(folder, "means.npz"))
        run("minilm.pairs", output=path)
        with np.load(path) as outputs:
            ours, theirs = compare_pairs(outputs["mean"])
    yield Figure("minilm, 20 pairs, cosines on RTL against float, mean difference", 0.02, False,
                 float(np.abs(ours - theirs).mean()), "")


def _dram() -> Iterator[Figure]:
    rows = list(reach.measure())
    yield Figure("memory traces, least bandwidth over the better simulator's", reach.BANDWIDTH,
                 True, min(row.bandwidth / row.best_bandwidth for row in rows), "x")
    yield Figure("memory traces, most mean latency over the better simulator's (front end apart)",
                 reach.LATENCY, False,
                 max((row.latency - row.front_end_delay) / row.best_latency for row in rows), "x")
    yield Figure("memory traces, illegal commands", 0, False, sum(r.violations for r in rows), "")
    yield Figure("sequential reads, M2, per-bank refresh, of peak", reach.SEQUENTIAL, True,
                 reach.sequential(rows).bandwidth, "")


def _warm_demo() -> Iterator[Figure]:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sim.demo"], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    yield Figure("make run, warm", 60, False, time.perf_counter() - begin, "s")


def _share_table(shares: Mapping[str, float]) -> Table:
    table = Table("unit", "share of the simulation's time", title=f"base, {SHARED_LAYER}")
    table.columns[1].justify = "right"
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{100 * share:.1f}%")
    return table


def main() -> int:
    """Measure everything; returns 1 if a figure is not reached."""
    console = Console()
    figures = []
    table = Table("figure", "bound", "measured", "", title=f"{platform.processor() or 'this host'}")
    for group in (_wafer_verilog, _layers, _decode, _networks, _transformers, _dram, _warm_demo):
        for figure in group():
            figures.append(figure)
            sign = ">=" if figure.higher_is_better else "<="
            table.add_row(figure.name, f"{sign} {figure.bound:g} {figure.unit}",
                          f"{figure.measured:.3f} {figure.unit}",
                          "reached" if figure.reached else "NOT reached")
    console.print(table)
    shares = unit_shares(SHARED_LAYER)
    console.print(_share_table(shares))
    REPORT.parent.mkdir(exist_ok=True)
    report = {"figures": [asdict(f) | {"reached": f.reached} for f in figures],
              "unit_shares": shares, "machine": platform.platform()}
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    return int(not all(figure.reached for figure in figures))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
