# SPDX-License-Identifier: Apache-2.0
"""Is this machine able to build and run Headrace? One line for the first thing that is missing.

Runs before anything is installed, so it uses the standard library alone.
"""

from __future__ import annotations  # an older Python must get as far as the message

import ctypes.util
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path


def has_shared_library() -> bool:
    """Whether libpython exists as a shared library: cocotb loads the interpreter from it."""
    names = [sysconfig.get_config_var(key) for key in ("INSTSONAME", "LDLIBRARY")]
    folder = sysconfig.get_config_var("LIBDIR") or "/usr/lib"
    arch = sysconfig.get_config_var("MULTIARCH") or ""
    for name in names:
        shared = name and (".so" in name or ".dylib" in name)
        if shared and any(Path(place, name).exists() for place in (folder, Path(folder, arch))):
            return True
    return ctypes.util.find_library("python{}.{}".format(*sys.version_info)) is not None


def missing() -> str | None:
    """What to install first, or None."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs on whatever Python is there)
        return f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: install python3"
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        return "Python's venv module is missing: install python3-venv"
    if not has_shared_library():
        version = "{}.{}".format(*sys.version_info)
        return f"Python's shared library is missing: install libpython{version}"
    for tool, package in (("g++", "g++"), ("make", "make"), ("perl", "perl")):
        if shutil.which(tool) is None:
            return f"{tool} is missing: install {package}"
    return None


if __name__ == "__main__":
    problem = missing()
    if problem:
        print(f"headrace: {problem}", file=sys.stderr)
        sys.exit(2)
