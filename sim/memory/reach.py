# SPDX-License-Identifier: Apache-2.0
"""``make bench-dram``: every reference trace beside DRAMsim3 and Ramulator 2; needs the checkout.

All-bank refreshes still owed at the end are charged as if they had stopped the channel.
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from emu.errors import UserError
from emu.hbm_timing import TIMINGS
from sim.errors import RunError
from sim.memory.run import dram
from sim.memory.trace import LINE_BYTES

DATA = Path(__file__).resolve().parents[2] / "tests" / "data" / "dram"
REFRESH = {"none": "none", "ab": "all_bank", "pb": "per_bank"}
TOOLS = ("dramsim3", "ramulator2")
BANDWIDTH, LATENCY, SEQUENTIAL = 0.99, 1.10, 0.97
"""Bounds: bandwidth and mean latency over the better simulator's, sequential reads over peak."""


def _reference(name: str) -> Any:
    path = DATA / name
    if not path.is_file():
        raise UserError(f"{path} is missing: run this in a checkout of the project")
    return json.loads(path.read_text())


def _checker() -> ModuleType:
    """The independent command checker: a reference of its own, no module of the project."""
    spec = importlib.util.spec_from_file_location("hbm_check", DATA / "hbm_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def independent_check(commands: Path, timing: str, refresh: str) -> dict[str, Any]:
    """What the independent checker finds in a file of ``--commands``: violations, slack, counts."""
    lines = (line.split() for line in commands.read_text().splitlines())
    parameters = _reference("timing_sets.json")[timing[-1].upper()]
    return _checker().check(
        [(int(tick), command, *map(int, where)) for tick, command, *where in lines], parameters,
        refresh={"all_bank": "ab", "per_bank": "pb"}.get(refresh),
    )


@dataclass(frozen=True)
class Row:
    """One trace under one map and refresh: ours, the better simulator's, what was illegal."""

    name: str
    address_map: str
    refresh: str
    bandwidth: float
    best_bandwidth: float
    latency: float
    best_latency: float
    front_end_delay: int
    violations: int

    @property
    def reached(self) -> bool:
        return (self.bandwidth >= BANDWIDTH * self.best_bandwidth and not self.violations
                and self.latency <= LATENCY * self.best_latency + self.front_end_delay)


def _measure(entry: dict[str, Any], window: int, folder: Path) -> Row:
    timing = f"hbm2_{entry['params'].lower()}"
    settings = {"timing": timing, "address_map": entry["mapping"],
                "refresh": REFRESH[entry["refresh"]]}
    commands = folder / "commands"
    result = dram(
        str(DATA / f"{entry['trace']}.trace.gz"), window=window, commands=str(commands),
        settings=[f"hbm.{name}={value}" for name, value in settings.items()],
    )
    cycles = result["cycles"]
    if entry["refresh"] == "ab":
        cycles += result["refreshes_owed"] * (TIMINGS[timing].rfc + TIMINGS[timing].rp)
    found = independent_check(commands, timing, settings["refresh"])
    return Row(
        name=entry["trace"], address_map=entry["mapping"], refresh=settings["refresh"],
        bandwidth=result["bandwidth_fraction"] * result["cycles"] / cycles,
        best_bandwidth=max(entry.get(f"bw_{tool}") or 0 for tool in TOOLS),
        latency=result["latency_mean"],
        best_latency=min(entry.get(f"lat_{tool}") or 1e9 for tool in TOOLS),
        front_end_delay=result["front_end_delay"],
        violations=result["violations"] + sum(found["violations"].values()),
    )


def measure() -> Iterator[Row]:
    """Every entry of the reference figures in turn."""
    index = _reference("index.json")
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        for entry in _reference("expected.json"):
            yield _measure(entry, index[entry["trace"]]["window_64B"], Path(folder))


def sequential(rows: list[Row]) -> Row:
    """The trace that `SEQUENTIAL` is about."""
    return next(row for row in rows if (row.name, row.address_map, row.refresh)
                == ("a_seq_rd_sat", "M2", "per_bank"))


def reach_table(rows: list[Row]) -> Table:
    table = Table(
        "trace", "map", "refresh", "of peak", "best", "ratio", "latency", "best", "ratio",
        "illegal", "", title="one pseudo-channel, set A, beside the better of two simulators")
    for row in rows:
        table.add_row(
            row.name, row.address_map, row.refresh, f"{row.bandwidth:.4f}",
            f"{row.best_bandwidth:.4f}", f"{row.bandwidth / row.best_bandwidth:.3f}",
            f"{row.latency:.1f}", f"{row.best_latency:.1f}",
            f"{row.latency / row.best_latency:.3f}", str(row.violations),
            "" if row.reached else "NOT reached")
    for column in table.columns[3:10]:
        column.justify = "right"
    return table


def ecc_table() -> Table:
    """What ECC costs: nothing but for masked writes, which are read, merged and written."""
    table = Table("trace, M2", "writes masked", "cycles", "with ECC", "bytes", "with ECC",
                  "columns merged", "bits flipped, corrected", title="the cost of ECC")
    for name, masked in (("a_seq_rd_sat", 0), ("d_mix21_seq", 0), ("d_mix21_seq", 4)):
        path = str(DATA / f"{name}.trace.gz")
        settings = ["hbm.address_map=M2"]
        plain = dram(path, settings=settings, masked=masked)
        coded = dram(path, masked=masked, settings=[
            *settings, "hbm.ecc=true", "hbm.ecc_inject=single,0.01,7"])
        moved = [LINE_BYTES // 2 * (each["commands"].get("RD", 0) + each["commands"].get("WR", 0))
                 for each in (plain, coded)]
        ecc = coded["ecc"]
        table.add_row(
            name, f"one in {masked}" if masked else "none", f"{plain['cycles']:,}",
            f"{coded['cycles']:,}", f"{moved[0]:,}", f"{moved[1]:,}",
            f"{ecc['merged_columns']:,}", f"{ecc['injected']:,}, {ecc['corrected']:,}")
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def main() -> int:
    """Print the table; returns 1 if a figure is not reached."""
    rows = list(measure())
    console = Console(width=120)
    console.print(reach_table(rows))
    console.print(ecc_table())
    best = sequential(rows).bandwidth
    print(f"sequential reads, M2, per-bank refresh: {best:.4f} of peak "
          f"(bound {SEQUENTIAL}); of each latency {rows[0].front_end_delay} cycles are the front "
          "end's")
    return int(not all(row.reached for row in rows) or best < SEQUENTIAL)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
