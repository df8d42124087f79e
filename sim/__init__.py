# SPDX-License-Identifier: Apache-2.0
"""Running the machine. ``from sim import run, compare, dram`` is the interface for scripts."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Lazy, so that `headrace verilog` needs neither a simulator nor ONNX.
    if name in ("run", "compare", "Options"):
        from sim import execute

        return getattr(execute, name)
    if name == "dram":
        from sim.memory.run import dram

        return dram
    raise AttributeError(name)
