# SPDX-License-Identifier: Apache-2.0
"""Running the machine. For scripts: ``from sim import run, compare, plan, dram, mesh``."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Lazy, so that `headrace verilog` needs neither a simulator nor ONNX.
    if name in ("run", "compare", "Options"):
        from sim import execute

        return getattr(execute, name)
    if name == "dram":
        from sim.memory.run import dram

        return dram
    if name == "plan":
        from sim.plan import plan

        return plan
    if name == "mesh":
        from sim.noc.run import mesh

        return mesh
    raise AttributeError(name)
