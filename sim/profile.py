# SPDX-License-Identifier: Apache-2.0
"""What each unit of the chip costs to simulate: shares of the run's time.

The simulation is built with line tables (`runner.build`, ``lines``), run under `sim.sampler`, and
every sample is traced back: address -> line of Verilator's C++ -> the signal that its statement
computes -> the unit whose signal that is. Neither the tables nor the samples slow the code down;
what is counted is what `sim.execute` times, from the start signal to done.
"""

import json
import re
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from emu.errors import UserError

UNITS = {
    "tile": {
        "compute": "compute", "drain": "compute", "vector": "vector", "load": "load",
        "store": "store", "sequencer": "sequencer", "blocks": "parameter store",
        "scratchpad": "scratchpad", "semaphores": "semaphores", "network": "network interface",
        "landing": "network interface", "router_req": "routers", "router_up": "routers",
        "router_down": "routers",
    },
    "hbm_channel": {"checker": "HBM checker", "array": "DRAM array"},
}
"""Macro -> submodule -> unit."""
REST = {"tile": "other", "hbm_channel": "HBM controller"}
STEPPING = "stepping overhead"
NAMES = (
    "compute", "vector", "load", "store", "sequencer", "parameter store", "scratchpad",
    "semaphores", "network interface", "routers", "HBM controller", "HBM checker", "DRAM array",
    STEPPING, "other",
)
_FUNCTION = re.compile(r"^\S.* V\w+___(\w+)\(.*\{$")
_TRIGGERED = re.compile(r"__V(?:ico|act|nba)Triggered")
_SCHEDULE = re.compile(r"eval_triggers|trigger_|eval_phase|eval_act|eval_ico|eval$")


def unit_shares(
    workload: str, chip: str = "base", settings: Iterable[str] = ()
) -> dict[str, float]:
    """Unit to its share of the simulation time of ``workload`` in Verilator; they add up to 1.

    ``stepping overhead`` is what is no unit's logic: clocking and copying between macros, the top
    module, cocotb. ``other`` is the tile's own registers and what cannot be traced back.
    """
    from sim.execute import Options, run

    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        options = Options(profile=str(Path(folder, "samples.json")))
        run(workload, chip=chip, settings=settings, options=options)
        samples = json.loads(Path(folder, "samples.json").read_text())
    return shares(samples)


def shares(samples: dict) -> dict[str, float]:
    """Unit to share of ``samples``, as `sim.sampler` writes them."""
    counts: Counter[str] = Counter(dict.fromkeys(NAMES, 0))
    program = Path(samples["program"])
    lines = _line_table(program)
    starts = [address for address, _ in lines]
    sources = _Sources(program.parent)
    for text, samples_there in samples["addresses"].items():
        place = bisect_right(starts, int(text)) - 1
        counts[sources.unit(lines[place][1]) if place >= 0 else STEPPING] += samples_there
    counts[STEPPING] += sum(samples["elsewhere"].values())
    total = counts.total()
    if not total:
        raise UserError("the run was too short to be sampled: take a longer workload")
    return {unit: counts[unit] / total for unit in NAMES}


def _line_table(program: Path) -> list[tuple[int, tuple[str, int]]]:
    """(address, (file, line)) in ascending order, from the program's debugging information.

    Code inlined from a header belongs to the statement that uses it, which is the one before it:
    only lines of generated files are kept, and where the code of a file ends.
    """
    command = ["objdump", "--wide", "--dwarf=decodedline", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError("profiling needs objdump: install binutils")
    row = re.compile(r"^(\S+)\s+(\d+|-)\s+0x([0-9a-f]+)", re.M)
    table = []
    for name, line, address in row.findall(done.stdout):
        if line == "-":
            table.append((int(address, 16), ("", 0)))
        elif name.startswith("V"):
            table.append((int(address, 16), (name, int(line))))
    return sorted(table)


class _Sources:
    """Generated C++ files of the macros by name, and which unit each of their lines works for."""

    def __init__(self, folder: Path):
        self._macros = {path.name: (macro, path) for macro in UNITS
                        for path in (folder / macro).glob(f"V{macro}_*.cpp")}
        self._units: dict[str, list[str]] = {}

    def unit(self, place: tuple[str, int]) -> str:
        name, line = place
        if name not in self._macros:
            return STEPPING
        if name not in self._units:
            macro, path = self._macros[name]
            self._units[name] = units_of(macro, path.read_text())
        return self._units[name][line - 1]


def units_of(macro: str, text: str) -> list[str]:
    """The unit of each line: of the first unit's signal in its statement, else the one before."""
    signal = re.compile(rf"(?:\b|__){macro}__DOT__(\w+?)(?=__DOT__|\b)")
    units: list[str] = []
    unit, scheduling, statement = STEPPING, False, []
    for line in text.splitlines():
        function = _FUNCTION.match(line)
        if function:
            scheduling = bool(_SCHEDULE.search(function[1]))
            unit = STEPPING if scheduling else REST[macro]
        statement.append(line)
        if not line.rstrip().endswith((";", "{", "}", ":")):
            continue
        whole = " ".join(statement)
        found = [_unit(macro, name) for name in signal.findall(whole)]
        if not scheduling and _TRIGGERED.search(whole):
            unit = STEPPING
        elif not scheduling and found:
            unit = next((name for name in found if name != REST[macro]), REST[macro])
        units += [unit] * len(statement)
        statement = []
    return units + [unit] * len(statement)


def _unit(macro: str, name: str) -> str:
    """The unit that submodule or signal ``name``, right below ``macro``, belongs to."""
    owners = (unit for part, unit in UNITS[macro].items()
              if name == part or name.startswith(f"{part}_"))
    return next(owners, REST[macro])
