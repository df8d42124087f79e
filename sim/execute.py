# SPDX-License-Identifier: Apache-2.0
"""Run a workload on the RTL chip: compile, build, simulate, compare, count.

`run` is what ``headrace run`` calls and what a Python user imports; `compare` runs several machines
or policies under one workload.
"""

import itertools
import json
import math
import resource
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.compiler import Program, compile_network
from emu.config import Config, load_config
from emu.errors import UserError
from emu.network import trained
from emu.network.golden import Golden, evaluate, load_inputs, qdq_mismatches, random_inputs
from emu.network.layers import Network
from emu.network.workloads import load_network
from hdl.prefetch.registry import policy_number, registered_logic, source_file
from sim import doctor, paging, runner, sampler
from sim.cache import cache_home
from sim.designs import design_of
from sim.errors import ConservationError, RunError
from sim.files import check_cache, check_writable, npz, write
from sim.measure import measure
from sim.waves import Waves

SCHEMA = 1
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run, apart from the machine and the workload."""

    simulator: str = "verilator"
    seed: int = 1
    inputs: str | None = None
    waves: Waves | None = None
    cycle_limit: int | None = None
    keep: str | None = None
    profile: str | None = None
    """File for samples of where the simulation's time goes, see `sim.profile`."""


def _simulate(
    program: Program, image: list[NDArray[np.uint8]], options: Options, progress: Progress
) -> dict:
    config = program.config
    progress("generating Verilog")
    design = design_of(config)
    progress(f"building with {options.simulator} (cached by content)")
    begin = time.perf_counter()
    wave_format = options.waves.format if options.waves else ""
    try:
        folder = runner.build(design, options.simulator, waves=wave_format,
                              lines=options.profile is not None)
    except RuntimeError as error:
        raise RunError(f"the build failed: {error}") from None
    build_seconds = time.perf_counter() - begin
    workdir = Path(options.keep) if options.keep else Path(tempfile.mkdtemp(prefix="headrace-"))
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        images, dumps = workdir / "images", workdir / "dump"
        for path in (images, dumps):
            path.mkdir(exist_ok=True)
        program.write_images(image, images)
        limit = options.cycle_limit or program.cycle_limit
        job = {
            "policy": policy_number(config.prefetch.policy),
            "depth": config.prefetch.depth,
            "threshold": config.prefetch.threshold,
            "cycle_limit": limit,
            "edge_first": program.constants_line if config.hbm.edge_kib else None,
            "pager": paging.registers(program) if program.paging else None,
            "counters": runner.counter_paths(design, options.simulator, wave_format),
            "result": str(workdir / "result.json"),
            "profile": options.profile,
            "sampler": str(sampler.compile_into(folder)) if options.profile else None,
        }
        (workdir / "job.json").write_text(json.dumps(job))
        plusargs = (f"+images={images}", f"+storage={images}", f"+dump={dumps}",
                    f"+dump_words={program.dump_words}")
        progress("simulating")
        try:
            tests, failures = runner.run(
                design, folder, options.simulator, "sim.chip_bench", workdir=workdir,
                plusargs=plusargs, env={"HEADRACE_JOB": str(workdir / "job.json")},
                seed=options.seed, gpi_clock=True, waves=options.waves,
            )
        except RuntimeError as error:  # it crashed, or was killed
            log = _keep_log(workdir)
            raise RunError(f"the simulator ended early: {error}: see {log}") from None
        if failures or not tests or not (workdir / "result.json").exists():
            raise RunError(f"the simulation failed: see {_keep_log(workdir)}")
        result = json.loads((workdir / "result.json").read_text())
        result["build_seconds"] = build_seconds
        if result["outcome"] != "done":
            raise RunError(_stopped(config, result, limit, workdir))
        result["image"] = program.read_dump(dumps)
        return result
    finally:
        if not options.keep:
            shutil.rmtree(workdir, ignore_errors=True)


def _keep_log(workdir: Path) -> Path:
    kept = cache_home() / "last-failure.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    log = workdir / "run.log"
    kept.write_text(log.read_text(errors="replace") if log.exists() else "no log was written\n")
    return kept


def _stopped(config: Config, result: Mapping[str, Any], limit: int, workdir: Path) -> str:
    """One line on why the machine did not finish, with the state of each engine."""
    status = result["status"].rjust(8 * config.mesh.tiles, "0")
    states = []
    for index in range(config.mesh.tiles):
        end = len(status) - 8 * index
        bits = status[end - 8 : end]
        names = ("error", "done", "", "", "store", "load", "vector", "compute")
        active = [name for name, bit in zip(names, bits, strict=True) if name and bit == "1"]
        y, x = divmod(index, config.mesh.cols)
        states.append(f"tile {x},{y}: {'+'.join(active) or 'idle'}")
    why = "reached its cycle limit" if result["outcome"] == "limit" else "raised error"
    return (
        f"the chip {why} after {result['cycles']} cycles (limit {limit}); error channels "
        f"{result['error_channels']}; {'; '.join(states)}; log: {_keep_log(workdir)}"
    )


def _compare(expected: Golden, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Outputs, how many differ, and the conditions if they were not compared with ONNX Runtime."""
    total = wrong = 0
    for name, value in expected.outputs.items():
        got = outputs[name]
        if got.shape != value.shape or got.dtype != value.dtype:
            raise RunError(f"output {name}: got {got.dtype}{got.shape}, "
                           f"expected {value.dtype}{value.shape}")
        total += value.size
        wrong += int(np.count_nonzero(got != value))
    return {"outputs": total, "mismatches": wrong, "conditions": list(expected.conditions),
            "distances": expected.distances}


def run(
    workload: str,
    *,
    chip: str = "base",
    settings: Iterable[str] = (),
    options: Options | None = None,
    output: str | None = None,
    progress: Progress = lambda text: None,
    network: Network | None = None,
    program: Program | None = None,
) -> dict[str, Any]:
    """Run ``workload`` (a built-in name or an ``.onnx`` path) on the RTL chip.

    network: What to run instead of the workload, whose inputs and task it has: a variant of it,
        which no command line repeats. program: What that compiles to, if somebody knows already;
        no token game is played over it.

    Returns the result of schema version 1; see the README for its keys.

    Raises
    ------
    UserError: For bad input, before anything is built.
    RunError: If outputs differ, a conservation check fails or the machine does not end.
    """
    check_writable(output)
    return _execute(_prepare(workload, chip, settings, options or Options(), progress, network,
                             program), output, progress)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A run with nothing left that its user could have got wrong."""

    workload: str
    inputs: dict[str, NDArray]
    expected: Golden
    program: Program
    options: Options
    replay: str


def _prepare(
    workload: str, chip: str, settings: Iterable[str], options: Options, progress: Progress,
    network: Network | None = None, program: Program | None = None,
) -> _Job:
    """Check everything, compute what to expect, and compile, which finds what does not fit."""
    settings = list(settings)
    config = load_config(chip, settings)
    policy_number(config.prefetch.policy)
    policy_number(config.storage.policy)
    registered_logic()
    if options.seed < 0:
        raise UserError(f"seed {options.seed}: must not be negative")
    if options.cycle_limit is not None and options.cycle_limit < 1:
        raise UserError(f"cycle limit {options.cycle_limit}: must be at least 1")
    if options.waves:
        options.waves.check(options.simulator)
    check_cache()
    missing = doctor.missing_for(options.simulator)
    if missing:
        raise UserError(
            f"simulator {options.simulator} needs the distribution's {' and '.join(missing)}: "
            "install first, then see headrace doctor"
        )
    network = network or load_network(workload)
    inputs = (
        load_inputs(network, options.inputs) if options.inputs
        else trained.samples(workload, network) or random_inputs(network, options.seed)
    )
    progress("compiling")
    return _Job(
        workload=workload, inputs=inputs, expected=evaluate(network, inputs),
        program=program or compile_network(network, config), options=options,
        replay=replay_command(workload, chip, settings, options),
    )


def _execute(job: _Job, output: str | None, progress: Progress) -> dict[str, Any]:
    """Simulate, compare, measure."""
    program, options, replay = job.program, job.options, job.replay
    try:
        simulated = _simulate(program, program.image(job.inputs), options, progress)
    except RunError as error:
        raise RunError(f"{error}; replay: {replay}") from None
    progress("comparing with ONNX Runtime")
    outputs = program.outputs(simulated.pop("image"))
    verified = _compare(job.expected, outputs)
    if program.network is not None and program.network.boundary:
        count, wrong, most = qdq_mismatches(program.network, job.inputs, job.expected.outputs)
        verified["qdq"] = {"outputs": count, "mismatches": wrong, "largest_steps": most}
    verified["host"] = _host(program.network, outputs) if program.network else {}
    try:
        result = measure(program, simulated, job.workload)
    except ConservationError as error:
        raise RunError(f"{error}; replay: {replay}") from None
    task = None if options.inputs else trained.score(result["workload"], outputs)
    if task:
        golden = trained.score(result["workload"], job.expected.outputs)
        assert golden is not None
        task["golden_correct"] = golden["correct"]
        task["same_predictions"] = sum(
            a == b for a, b in zip(task["predictions"], golden["predictions"], strict=True))
        result["task"] = task
    result |= {
        "schema": SCHEMA,
        "verified": verified,
        "versions": {name: version(name) for name in
                     ("headrace", "amaranth", "cocotb", "verilator", "pyosys", "onnxruntime")},
        "seed": options.seed,
    }
    result["host"] |= {
        "simulator": options.simulator,
        "peak_memory_mib": _peak_memory_mib(),
    }
    if output:
        write(output, npz(outputs))
    if verified["mismatches"]:
        raise RunError(
            f"{verified['mismatches']} of {verified['outputs']} outputs differ from ONNX Runtime; "
            f"replay: {replay}"
        )
    return result


def _host(network: Network, outputs: Mapping[str, NDArray]) -> dict[str, str]:
    """What of the network the host does, and on how many bytes."""
    elements = {tensor.name: math.prod(tensor.shape) for tensor in network.inputs}
    elements |= {name: value.size for name, value in outputs.items()}
    own = network.boundary.host_operators(elements) if network.boundary else {}
    return {**own, **network.host}


def replay_command(workload: str, chip: str, settings: Iterable[str], options: Options) -> str:
    """The command line that repeats a run."""
    words = ["headrace", "run", workload, "--chip", chip]
    words += [word for setting in settings for word in ("--set", setting)]
    words += ["--sim", options.simulator, "--seed", str(options.seed)]
    if options.inputs:
        words += ["--input", options.inputs]
    policy_file = source_file(load_config(chip, settings).prefetch.policy)
    if policy_file:
        words += ["--load", policy_file]
    return shlex.join(words)


def _peak_memory_mib() -> float:
    """Largest resident size of this process or of any of its children, in MiB."""
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return round(peak / 1024, 1)


def compare(
    workload: str,
    vary: Mapping[str, Iterable[str]],
    *,
    chip: str = "base",
    settings: Iterable[str] = (),
    options: Options | None = None,
    progress: Progress = lambda text: None,
) -> list[dict[str, Any]]:
    """One result per combination of ``vary`` (setting name to values), the baseline first.

    Raises
    ------
    UserError: For bad input in any combination, before anything is built.
    RunError: As `run`.
    """
    settings, jobs = list(settings), []
    for values in itertools.product(*vary.values()):
        varied = dict(zip(vary, values, strict=True))
        change = [f"{name}={value}" for name, value in varied.items()]
        job = _prepare(workload, chip, [*settings, *change], options or Options(), progress)
        jobs.append((varied, job))
    results = []
    for varied, job in jobs:
        progress(" ".join(f"{name}={value}" for name, value in varied.items()))
        results.append({"varied": varied, **_execute(job, None, progress)})
    return results
