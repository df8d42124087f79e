# SPDX-License-Identifier: Apache-2.0
"""Commands played on the RTL allocation unit, one after another, as fast as it takes them."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from emu.allocator import Answer, Command
from emu.errors import UserError
from hdl.allocator.ports import answer_layout, command_layout
from hdl.allocator.unit import Allocator
from hdl.verilog import Design, generate
from sim import doctor, runner
from sim.errors import RunError
from sim.streams import pack, unpack


@dataclass(frozen=True)
class Step:
    """An answer of the hardware, and its registers then: ``high_water``, ``spilled_words``."""

    answer: Answer
    high_water: int
    spilled_words: int


@cache
def _design(words: int, areas: int) -> Design:
    return generate(Allocator(words, areas), "allocator")


def play(
    commands: Sequence[Command], *, words: int, areas: int, simulator: str = "verilator",
) -> list[Step]:
    """Play ``commands`` on a unit of these sizes; the build is cached.

    Raises
    ------
    UserError: If the simulator is not installed.
    RunError: If the build fails or the unit does not answer.
    """
    missing = doctor.missing_for(simulator)
    if missing:
        raise UserError(f"simulator {simulator} needs {' and '.join(missing)}: install first")
    layouts = command_layout(words, areas), answer_layout(words, areas)
    packed = [pack(layouts[0], asdict(command)) for command in commands]
    design = _design(words, areas)
    workdir = Path(tempfile.mkdtemp(prefix="headrace-"))
    try:
        np.array(packed, np.uint64).tofile(workdir / "commands")
        folder = runner.build(design, simulator)
        tests, failed = runner.run(
            design, folder, simulator, "sim.planning.bench", workdir=workdir,
            env={"HEADRACE_JOB": str(workdir)},
        )
        if failed or not tests:
            raise RunError("the allocation unit did not answer")
        found = np.fromfile(workdir / "answers", np.uint64).reshape(-1, 4).tolist()
    except RuntimeError as error:
        raise RunError(f"the allocation unit's build or simulation failed: {error}") from None
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    steps, cycles = [], 0
    for payload, high_water, spilled_words, now in found:
        answer = Answer(**unpack(layouts[1], payload), cycles=now - cycles)
        steps.append(Step(answer, high_water, spilled_words))
        cycles = now
    return steps
