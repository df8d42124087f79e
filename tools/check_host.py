# SPDX-License-Identifier: Apache-2.0
"""Is this machine able to build and run Headrace? One line for the first thing that is missing.

Runs before anything is installed, so it uses the standard library alone.
"""

import importlib.util
import shutil
import sys
import sysconfig


def missing() -> str | None:
    """What to install first, or None."""
    if sys.version_info < (3, 11):
        return f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: install python3"
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        return "Python's venv module is missing: install python3-venv"
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") and sys.platform != "darwin":
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
