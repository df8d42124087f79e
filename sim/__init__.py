# SPDX-License-Identifier: Apache-2.0
"""Running the machine. ``from sim import run, compare`` is the whole interface for scripts."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Lazy, so that `headrace verilog` needs neither a simulator nor ONNX.
    if name in ("run", "compare", "Options"):
        from sim import execute

        return getattr(execute, name)
    raise AttributeError(name)
