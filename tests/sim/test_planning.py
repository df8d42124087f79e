# SPDX-License-Identifier: Apache-2.0
"""The study of memory planning: its checks catch what is wrong, its findings say who loses."""

from dataclasses import replace

import pytest

from emu.allocator import Allocator
from emu.errors import UserError
from emu.lifetimes import chain, requests
from sim.charts import experiment_page
from sim.experiments import planning
from sim.planning.player import Step


def answered(commands):
    """What the hardware would answer."""
    unit, steps = Allocator(planning.WORDS, planning.AREAS), []
    for command in commands:
        answer = unit.execute(command)
        steps.append(Step(answer, unit.counters.high_water, unit.counters.spilled_words))
    return steps


@pytest.fixture
def modelled(monkeypatch):
    """The unit's model in place of the hardware."""
    monkeypatch.setattr(planning.player, "play", lambda commands, **_: answered(commands))


def wrong_by(trace, change, strategy="best_fit"):
    items = trace.in_words(planning.WORD)
    job = next(job for job in planning._jobs(trace, items, 900) if job.strategy == strategy)
    commands, allocated = planning._commands(items, job)
    steps = answered(commands)
    change(steps)
    return planning._verify(items, job, steps, commands, allocated)[0]


@pytest.mark.parametrize("strategy", ["best_fit", "greedy_by_size", "none"])
def test_a_wrong_answer_is_a_mismatch(strategy):
    def at(index, **changes):
        def change(steps):
            answer = replace(steps[index].answer, **changes)
            steps[index] = replace(steps[index], answer=answer)
        return change

    trace = chain(6, 96 * 1024, "x")
    assert wrong_by(trace, lambda steps: None, strategy) == 0
    assert wrong_by(trace, at(-2, offset=17), strategy)
    assert wrong_by(trace, at(-2, cycles=99), strategy)
    assert wrong_by(trace, at(0, refused=True), strategy)

    def registers(steps):
        steps[-1] = replace(steps[-1], high_water=1, spilled_words=7)

    assert wrong_by(trace, registers, strategy) >= 2


def test_an_overlap_is_a_mismatch(monkeypatch):
    """A plan that puts all areas at one place: the unit follows it, the check finds it."""
    trace = chain(3, 4096, "x")
    items = trace.in_words(planning.WORD)
    job = planning.Job("none", 64, (0, 0, 0))
    commands, allocated = planning._commands(items, job)
    assert planning._verify(items, job, answered(commands), commands, allocated)[0] == 2


def test_findings(modelled):
    rows = [row for trace in (requests(1, "requests", 60), chain(6, 96 * 1024, "chain"))
            for row in planning._measure(lambda trace=trace: trace, True)]
    assert not any(row["verified"]["mismatches"] for row in rows)
    found = planning._findings(rows)
    assert any(text.startswith("requests: slots loses") for text in found)
    assert not any("chain" in text and "loses" in text for text in found)
    assert "chain: best fit needs 1.000 of the bound, greedy_by_size 1.000 of that" in found[-3]
    for row in rows:
        moved = row["traffic_bytes"]
        assert row["spill_bound_bytes"] <= moved["hbm_read"] + moved["hbm_write"]
        assert row["footprint_bytes"]["high_water"] <= row["machine"]["memory_bytes"]
    study = {"experiment": "planning", "idea": "x", "rows": rows}
    assert "lower bound" in experiment_page([study])


def test_a_missing_simulator_is_named(monkeypatch):
    monkeypatch.setattr(planning.player.doctor, "missing_for", lambda simulator: ["a compiler"])
    with pytest.raises(UserError, match="simulator verilator needs a compiler"):
        planning.player.play([], words=16, areas=2)
