# SPDX-License-Identifier: Apache-2.0
"""What experiments have in common: cases run on the RTL chip, cached by content, compared.

A case is one run of the chip, outputs checked. Its row is kept under a hash of the chip's Verilog,
the compiled program and the policy, so that an interrupted experiment goes on where it stopped.
Footprint, traffic, stalls and modelled energy are reported apart.
"""

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from emu.compiler import Program, compile_network
from emu.config import load_config
from emu.errors import UserError
from emu.network.layers import Network
from emu.network.workloads import load_network
from emu.planner import place
from sim.cache import cache_home
from sim.designs import design_key
from sim.execute import Options, run
from sim.files import check_cache, check_writable, write
from sim.measure import Counters, array_cycles, array_passes

SCHEMA = 1
LEVELS = ("low", "mid", "high")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """One run: what it is called, on which machine.

    workload: A built-in workload's name; with ``network``, what that is, in words.

    group: Cases of one group have equal resources and are compared; ``is_baseline`` marks the one
        that the others are compared with.
    """

    name: str
    group: str
    workload: str
    chip: str = "base"
    settings: tuple[str, ...] = ()
    is_baseline: bool = False
    network: Callable[[], Network] | None = None
    task: Callable[[], dict[str, Any]] | None = None
    """A variant of the workload, and its task's error, if it has one."""
    samples: int = 1
    """That one run takes: of a batch, or tokens."""


@dataclass(frozen=True)
class Experiment:
    """A study.

    cases: The cases; ``quick`` for the short version.
    null_case, losing_case: The groups in which the idea can do nothing, and in which it loses (with
        why), as the study expects them; `findings` says what was seen.
    findings: Sentences from the rows.
    row: How a case becomes a row; by default the chip runs its workload.
    measure: Rows of a study whose hardware is not the chip; ``quick``, progress.
    """

    name: str
    idea: str
    baseline: str
    cases: Callable[[bool], Sequence[Case]]
    null_case: str
    losing_case: str
    findings: Callable[[Sequence[Mapping[str, Any]]], list[str]] = field(default=lambda rows: [])
    row: Callable[[Any, Progress], dict[str, Any]] | None = None
    measure: Callable[[bool, Progress], list[dict[str, Any]]] | None = None


def coefficients() -> dict[str, dict[str, float]]:
    """Energy of an event in pJ, by event and level."""
    with Path(__file__).with_name("energy.toml").open("rb") as file:
        return tomllib.load(file)


def modelled_energy(result: Mapping[str, Any], macs: int) -> dict[str, float]:
    """pJ by level: counters times coefficients."""
    counters, moved = Counters(result["counters"]), result["bytes"]
    events = {
        "mac": macs,
        "scratchpad_word": (moved["scratchpad_read"] + moved["scratchpad_write"]) / 16,
        "hbm_activate": counters.total(r"hbm_\d+\.(?:.*\.)?activates"),
        "hbm_bit": 8 * (moved["hbm_read"] + moved["hbm_write"] + moved.get("hbm_fill", 0)),
        "storage_bit": 8 * (moved.get("storage_read", 0) + moved.get("storage_write", 0)),
        "mesh_link_bit": 8 * moved["mesh_link"],
    }
    hbm = result["chip"]["hbm"]
    if hbm["edge_kib"]:
        events["edge_word"] = counters.total(r"hbm_\d+\..*(?:edge|kept)_words")
    if hbm["sum_rows"]:
        events["row_word"] = counters.total(r"hbm_\d+\..*row_words")
    table = coefficients()
    return {level: round(sum(count * table[event][level] for event, count in events.items()))
            for level in LEVELS}


def kept(name: str, sources: Iterable[Path], make: Callable[[], Any]) -> Any:
    """What ``make`` returns (plain values), made once as long as the sources are the same."""
    key = hashlib.sha256(name.encode())
    for path in sources:
        key.update(path.read_bytes())
    file = cache_home() / "experiments" / f"{key.hexdigest()[:24]}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write(str(file), json.dumps(make()).encode())
    return json.loads(file.read_text())


def dram(counters: Mapping[str, int]) -> dict[str, float]:
    """Columns, activates and the share of columns that needed none of their own."""
    read = Counters(counters).total
    columns = read(r"controller\.reads") + read(r"controller\.writes")
    return {"columns": columns, "activates": read(r"controller\.activates"),
            "row_hit_rate": round(read(r"controller\.row_hits") / max(columns, 1), 4)}


def arrays(counters: Mapping[str, int], tiles: int, cycles: int) -> dict[str, float]:
    """How many tiles' arrays are in no pass, on the average over the run. In a pass are also the
    cycles in which it is shorter than the load of the next weights."""
    read = Counters(counters).total
    inside = sum(read(rf"compute\.{name}") for name in ("cycles_busy", "stall_short",
                                                        "stall_weight"))
    return {"tiles": tiles, "idle_tiles": round(tiles - inside / cycles, 2)}


POLICY = ("prefetch.policy=", "prefetch.threshold=")
"""Settings that only registers see: the program is the same."""


@lru_cache(maxsize=1)
def _compiled(
    workload: str, make: Callable[[], Network] | None, chip: str, settings: tuple[str, ...]
) -> Program:
    network = make() if make else load_network(workload)
    return compile_network(network, load_config(chip, settings), check=False)


def _key(case: Case) -> tuple[str, Program]:
    """(hash of everything that the row depends on, the program)."""
    config = load_config(case.chip, case.settings)
    others = tuple(s for s in case.settings if not s.startswith(POLICY))
    program = replace(_compiled(case.workload, case.network, case.chip, others), config=config)
    network = program.network
    assert network is not None
    key = hashlib.sha256(design_key(config).encode())
    key.update(program.words.tobytes())
    for values in (network.given or {}).values():
        key.update(values.tobytes())
    key.update((config.prefetch.model_dump_json() + config.storage.model_dump_json()).encode())
    key.update(f"{SCHEMA} {case.workload} {Path(__file__).read_text()}".encode())
    key.update(Path(__file__).with_name("energy.toml").read_bytes())
    return key.hexdigest()[:24], program


def chip_row(case: Case, progress: Progress) -> dict[str, Any]:
    """The row of a case that the chip runs."""
    key, program = _key(case)
    file = cache_home() / "experiments" / f"{key}.json"
    if file.exists():
        return json.loads(file.read_text()) | _named(case)
    result = run(case.workload, chip=case.chip, settings=case.settings, options=Options(),
                 progress=lambda text: progress(f"{case.group}, {case.name}: {text}"),
                 network=program.network, program=program)
    counters = Counters(result["counters"])
    footprint = {name: place(items).high_water for name, items in program.memories.items()}
    row = {
        "machine": {"chip": case.chip, "settings": list(case.settings)},
        "workload": case.workload,
        # What the planner needs at once for all activations, for those in HBM, and in one tile.
        "footprint_bytes": {
            "hbm_image": 16 * len(program.words),
            "constants": 16 * sum(r.constant_words for r in program.rooflines), **footprint,
        },
        "traffic_bytes": result["bytes"],
        "initial_load_bytes": program.pinned_bytes,  # in `traffic_bytes`, too
        "planned_read_bytes": program.planned_read_bytes,
        "cycles": result["cycles"],
        "stall_cycles": result["stalls"],
        "prefetch": result["prefetch"],
        "tiles": {"busy_cycles": array_cycles(counters, program.config),
                  "passes": array_passes(counters, program.config)},
        "dram": dram(result["counters"]),
        "arrays": arrays(result["counters"], program.config.mesh.tiles, result["cycles"]),
        **({"pages": result["storage"]} if program.paging else {}),
        "energy_pj": modelled_energy(result, program.macs),
        "verified": {name: result["verified"][name] for name in ("outputs", "mismatches")},
    }
    if case.task:
        row["task"] = case.task()
    file.parent.mkdir(parents=True, exist_ok=True)
    write(str(file), json.dumps(row).encode())
    return row | _named(case)


def _named(case: Case) -> dict[str, Any]:
    return {"case": case.name, "group": case.group, "is_baseline": case.is_baseline,
            "samples": case.samples}


def experiment(
    names: Iterable[str] = (), *, quick: bool = False, output: str | None = None,
    progress: Progress = lambda text: None, jobs: int = 1,
) -> list[dict[str, Any]]:
    """Run the experiments called ``names``, all if there are none; the README names the keys.

    jobs: Rows made at a time, each by a process of its own if more than one.

    Raises
    ------
    UserError: If there is no such experiment, or ``output`` cannot be written.
    RunError: If a run fails: no row is made of it.
    """
    from sim.experiments.pool import made
    from sim.experiments.studies import EXPERIMENTS

    wanted = list(names) or list(EXPERIMENTS)
    unknown = [name for name in wanted if name not in EXPERIMENTS]
    if unknown:
        raise UserError(f"experiment {unknown[0]}: must be one of {', '.join(EXPERIMENTS)}")
    check_writable(output)
    check_cache()
    if jobs < 1:
        raise UserError(f"jobs: must be at least 1, not {jobs}")
    found = made(wanted, quick, jobs, progress)
    return [
        {"schema": SCHEMA, "experiment": name, "idea": study.idea, "baseline": study.baseline,
         "quick": quick, "rows": found[name][0], "null_case": study.null_case,
         "losing_case": study.losing_case, "findings": study.findings(found[name][0]),
         "skipped": found[name][1]}
        for name, study in ((name, EXPERIMENTS[name]) for name in wanted)
    ]


def row_of(study: Experiment, case: Case, progress: Progress) -> dict[str, Any]:
    """The row of one of its cases: kept, or made."""
    return (study.row or chip_row)(case, progress)


def compared(rows: Sequence[Mapping[str, Any]], measure: Callable[[Mapping[str, Any]], float]):
    """(group, case, value over the group's baseline) of every case that is no baseline."""
    bases = {row["group"]: measure(row) for row in rows if row["is_baseline"]}
    for row in rows:
        base = bases.get(row["group"])
        if not row["is_baseline"] and base:
            yield row["group"], row["case"], measure(row) / base
