# SPDX-License-Identifier: Apache-2.0
"""Build a design in Verilator or Icarus, in a content-addressed cache, and run benches on it."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cocotb_tools.check_results import get_results
from cocotb_tools.runner import Icarus

from emu.errors import UserError
from hdl.verilog import Design
from sim import lockstep
from sim.cache import alone, cache_home, digest, keep_log
from sim.verilating import VERILATE, WheelVerilator, control_file, libraries, write
from sim.waves import Waves, icarus_module


class RecordingIcarus(Icarus):
    """Icarus that writes VCD where `sim.waves` tells it to, instead of cocotb's own dump."""

    def _test_command(self) -> list[Any]:
        return [["-vcd" if a == "-none" else a for a in command]
                for command in super()._test_command()]


def stepped(design: Design, simulator: str, waves: str = "", optimise: bool = True) -> bool:
    """Whether `build` makes each macro of ``design`` a model of its own, see `sim.lockstep`.

    Not for waves, which show the whole hierarchy, and not for a short build.
    """
    return simulator == "verilator" and optimise and not waves and lockstep.usable(design)


def counter_paths(design: Design, simulator: str, waves: str = "") -> dict[str, str]:
    """Dotted counter name to where a bench finds it in a build of the same arguments."""
    return (lockstep.counter_paths(design) if stepped(design, simulator, waves)
            else design.counter_paths())


def available(simulator: str) -> bool:
    """Whether ``simulator`` ("verilator" or "icarus") can be used here."""
    if simulator == "icarus":
        return shutil.which("iverilog") is not None and shutil.which("vvp") is not None
    return shutil.which("g++") is not None and shutil.which("make") is not None


def top_ports(design: Design) -> list[str]:
    """Port names of the top module, read from its Verilog."""
    text = design.files[f"{design.top}.v"]
    start = text.index(f"module {design.top}(")
    inside = text[start:].split("(", 1)[1].split(")", 1)[0]
    return [name.strip().lstrip("\\").strip() for name in inside.split(",") if name.strip()]


def build(
    design: Design, simulator: str, *, waves: str = "", optimise: bool = True, lines: bool = False
) -> Path:
    """Build ``design``; returns the folder. A second call with the same input returns at once.

    A build is made under a temporary name and renamed when complete, so that an interrupted one
    is never taken for a finished one.

    Parameters
    ----------
    waves: "" to record nothing, or "vcd" or "fst".
    optimise: Compile for speed (long runs), not for a short build (component benches).
    lines: Keep the tables that lead from machine code back to lines, see `sim.profile`.
    """
    if not available(simulator):
        need = "iverilog" if simulator == "icarus" else "g++ and make"
        raise UserError(f"simulator {simulator}: install {need} first")
    vlt = control_file(design) + "".join(
        f'public_flat_rw -module "{design.top}" -var "{port}"\n' for port in top_ports(design)
    )
    pieces = lockstep.pieces(design) if stepped(design, simulator, waves, optimise) else {}
    key = hashlib.sha256()
    tools = [version(name) for name in ("verilator", "cocotb", "amaranth", "pyosys")]
    gxx = ""
    if simulator == "verilator":
        gxx = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True,
                             check=False).stdout
    # Waves are of short stretches, so what matters there is the build.
    levels = _levels(optimise and not waves, lines)
    runtime = cache_home() / f"runtime-{digest(tools[0], gxx, levels[-1], waves)[:20]}"
    for part in [simulator, waves, *levels, *tools, gxx, sys.executable, vlt]:
        key.update(part.encode() + b"\0")
    for name in sorted(design.files):
        key.update(name.encode() + b"\0" + design.files[name].encode())
    for name in sorted(pieces):
        key.update(name.encode() + b"\0" + pieces[name].encode())
    folder = cache_home() / f"{design.top}-{simulator}-{key.hexdigest()[:20]}"
    complete = folder / "complete"
    if not complete.exists():
        with alone(folder):
            if not complete.exists():  # by now another process may have made it
                _make(design, simulator, folder, vlt, pieces, waves, levels, runtime,
                      [*tools, gxx])
    os.utime(complete)
    return folder


def _make(design, simulator, folder, vlt, pieces, waves, levels, runtime, tools) -> None:
    work = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    models: dict[str, Path] = {}
    try:
        if pieces:
            models = libraries(design, lockstep.macros(design), levels, tools)
            top = f"{design.top}.v"
            sources = write({top: design.files[top], **pieces}, work)
            control = lockstep.control(design, vlt)
            _compile(design, simulator, work, sources, control, "", levels, runtime, models)
        else:
            sources = write(design.files, work)
            _compile(design, simulator, work, sources, vlt, waves, levels, runtime, models)
        for path in [p for p in work.rglob("*") if p.suffix in (".gch", ".o", ".a")]:
            path.unlink()  # nine tenths of the folder's size
        for macro, model in models.items():
            (work / macro).symlink_to(model)
        (work / "complete").touch()
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _levels(optimise: bool, lines: bool) -> tuple[str, ...]:
    """How make compiles the model, what runs once of it, and Verilator's own files (the last)."""
    more = " -g" if lines else ""
    return (f"OPT_FAST={'-O2' if optimise else '-O0'}{more}", f"OPT_SLOW=-O0{more}",
            "OPT_GLOBAL=-O2")


def _lend(runtime: Path, work: Path) -> tuple[str, ...]:
    """Copy Verilator's own objects, which do not depend on the design, into a build folder."""
    objects = sorted(runtime.glob("*.o"))
    for path in objects:
        shutil.copyfile(path, work / path.name)
    return tuple(path.name for path in objects)


def _keep(runtime: Path, work: Path) -> None:
    """Keep Verilator's own objects of a build for later builds with the same flags."""
    with alone(runtime):
        if not runtime.exists():
            temporary = runtime.with_name(f"{runtime.name}.{os.getpid()}")
            temporary.mkdir()
            for path in work.glob("verilated*.o"):
                shutil.copyfile(path, temporary / path.name)
            temporary.rename(runtime)


def _compile(design, simulator, work, sources, vlt, waves, levels, runtime, models) -> None:
    if simulator == "verilator":
        (work / "control.vlt").write_text(vlt)
        runner: Any = WheelVerilator()
        args = list(VERILATE)
        if waves:
            args += [f"--trace-{waves}", "--trace-structs"]
        if any(path.suffix == ".cpp" for path in sources):
            args += [str(path) for path in sources if path.suffix == ".cpp"]
            for macro, model in models.items():
                args += ["-CFLAGS", f"-I{model}", str(model / f"libV{macro}.a")]
        sources = [work / "control.vlt", *(p for p in sources if p.suffix != ".cpp")]
        runner.lent, runner.levels = _lend(runtime, work), levels
    else:
        runner, args = Icarus(), ["-g2005"]
        if waves:
            (work / "headrace_waves.v").write_text(icarus_module(design.top))
            sources.append(work / "headrace_waves.v")
            args += ["-s", "headrace_waves"]
    runner.waves = bool(waves)
    try:
        runner.build(
            sources=sources, hdl_toplevel=design.top, build_dir=work, build_args=args,
            timescale=("1ns", "1ps"), waves=bool(waves) and simulator == "verilator",
            always=True, log_file=work / "build.log",
        )
    except RuntimeError as error:
        raise RuntimeError(f"{error}: see {keep_log(work)}") from None
    if simulator == "verilator":
        _keep(runtime, work)


def run(
    design: Design,
    folder: Path,
    simulator: str,
    module: str,
    *,
    workdir: Path,
    plusargs: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    seed: int = 1,
    testcase: str | None = None,
    gpi_clock: bool = False,
    waves: Waves | None = None,
) -> tuple[int, int]:
    """Run the cocotb tests of ``module`` on a built design; returns (tests, failures).

    ``gpi_clock`` is for benches that never write between clock edges: Icarus then trusts cocotb's
    writes, which a free-running clock needs and a bench that drives signals cannot bear.
    """
    icarus = RecordingIcarus if waves else Icarus
    runner: Any = WheelVerilator() if simulator == "verilator" else icarus()
    workdir.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).resolve().parent.parent)
    extra = dict(env or {})
    extra["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    extra["COCOTB_RANDOM_SEED"] = str(seed)
    extra["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # cocotb asks pytest for assertions' texts alone
    if gpi_clock:
        extra["COCOTB_TRUST_INERTIAL_WRITES"] = "1"
    args, test_args = list(plusargs), []
    if waves:
        extra |= waves.environment()
        path = str(Path(waves.path).resolve())
        if simulator == "verilator":
            test_args += ["--trace", "--trace-file", path]
        else:
            args += [f"+wave_file={path}", f"+wave_start={waves.start // 1000}",
                     f"+wave_end={min(waves.end // 1000, 1 << 62)}"]
    if simulator == "verilator":
        args += ["+verilator+rand+reset+2", f"+verilator+seed+{seed % (1 << 31) or 1}"]
    results = runner.test(
        test_module=module, hdl_toplevel=design.top, hdl_toplevel_lang="verilog",
        build_dir=folder, test_dir=workdir, plusargs=args, test_args=test_args,
        extra_env=extra, seed=seed,
        testcase=testcase, results_xml=str(workdir.resolve() / "results.xml"),
        log_file=workdir / "run.log", timescale=("1ns", "1ps"),
    )
    return get_results(results)


def bench_names() -> list[str]:
    """Dotted names of every component bench under `sim.benches`."""
    home = Path(__file__).parent / "benches"
    return sorted(
        ".".join(path.relative_to(home).with_suffix("").parts)
        for path in home.rglob("*.py")
        if not path.name.startswith("_")
    )


def variant_names(name: str) -> list[str]:
    """Variants of one bench."""
    return list(importlib.import_module(f"sim.benches.{name}").VARIANTS)


def run_bench(
    name: str, simulator: str, *, workdir: Path, seed: int = 1, waves: Waves | None = None,
    quick: bool = False, variants: Iterable[str] = (),
) -> dict[str, tuple[int, int]]:
    """Build and run one component bench under every variant it names, see `sim.benches`.

    ``variants`` limits it to these, ``quick`` asks for a short run of those in its ``QUICK``.

    Raises
    ------
    UserError: If there is no such variant.
    """
    from hdl.verilog import generate

    module = importlib.import_module(f"sim.benches.{name}")
    factories = module.VARIANTS
    short = getattr(module, "QUICK", ()) if quick else ()
    chosen = list(variants or short or factories)
    for variant in chosen:
        if variant not in factories:
            raise UserError(f"{name} has no variant {variant!r}, only {', '.join(factories)}")
    report = {}
    for variant in chosen:
        design = generate(factories[variant](), name.split(".")[-1])
        folder = build(design, simulator, waves=waves.format if waves else "", optimise=False)
        (workdir / variant).mkdir(parents=True, exist_ok=True)
        prepare = getattr(module, "prepare", None)
        plusargs = prepare((workdir / variant).resolve()) if prepare else ()
        report[variant] = run(
            design, folder, simulator, f"sim.benches.{name}", workdir=workdir / variant,
            env={"HEADRACE_VARIANT": variant, "HEADRACE_QUICK": str(int(quick))}, seed=seed,
            plusargs=plusargs, waves=waves,
        )
    return report


if __name__ == "__main__":  # python -m sim.runner BENCH [SIM] [SEED]
    bench, sim = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "verilator"
    outcome = run_bench(bench, sim, workdir=Path("build") / "sim" / bench / sim,
                        seed=int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    print(json.dumps(outcome))
    sys.exit(any(failed or not tests for tests, failed in outcome.values()))
