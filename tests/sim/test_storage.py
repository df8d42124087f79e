# SPDX-License-Identifier: Apache-2.0
"""Decodes on the RTL of the storage tier: counts against the model, every byte, time that leaps."""

from dataclasses import replace

import pytest

from emu.config import load_config
from emu.errors import UserError
from emu.storage import Decode, decode, demand_cache
from sim.errors import RunError
from sim.experiments.framework import Case
from sim.experiments.hierarchy import HIERARCHY, MACHINE, _design
from sim.storage.run import Play, conserved, play

POLICY = ("storage.policy", "storage.depth", "storage.threshold")
SHAPE = Decode(layers=2, dense=5, cache=1, experts=4, expert_pages=2, chosen=2, table=8, rows=2,
               tokens=3, seed=4)


def machine(policy="demand", **storage):
    """A small cache before quick storage, or what ``storage`` says."""
    sizes = {"latency": 2000, "cache_pages": 12, **storage}
    return load_config("base", [
        *MACHINE, f"storage.policy={policy}", "storage.depth=8",
        *(f"storage.{name}={value}" for name, value in sizes.items())])


def played(policy="demand", *, exact=False, leap=True, shape=SHAPE, **storage):
    return play(machine(policy, **storage), decode(shape), Play(exact=exact, leap=leap),
                made=_design())


@pytest.mark.rtl
def test_demand_moves_what_the_model_says():
    references = decode(SHAPE)
    for frames, replacement in ((8, "ring"), (12, "random"), (30, "ring")):
        found = played(cache_pages=frames, replacement=replacement)["cache"]
        want = demand_cache(references, frames, replacement)
        assert (found["fills"], found["evictions"], found["write_backs"]) == (
            want.fills, want.evictions, want.write_backs + want.flushed)
        assert found["hits"] == len(references) - want.fills
        assert found["prefetches"] == found["late"] == 0
    # In the last everything fits.
    assert want.fills == len(set(references.page.tolist())) and not want.evictions


@pytest.mark.rtl
def test_policies_hide_latency():
    """`play` has checked every byte of each."""
    demand, ahead, further = map(played, ("demand", "run_ahead", "next_layer"))
    oracle = played("oracle", exact=True)
    assert oracle["cycles"] < further["cycles"] < ahead["cycles"] < demand["cycles"]
    # Within a region nothing is fetched in vain, nor by who knows what comes.
    for result in (ahead, oracle):
        assert result["cache"]["fills"] == demand["cache"]["fills"]
        assert result["cache"]["useful"] == result["cache"]["prefetches"] > 0
    assert further["cache"]["fills"] > demand["cache"]["fills"]
    assert further["cache"]["useless"] + further["unused"] > 0
    assert oracle["cache"]["demand_fetches"] == 1


@pytest.mark.rtl
def test_a_leap_changes_nothing_but_the_refreshes():
    for policy in ("demand", "next_layer"):
        slow, fast = played(policy, leap=False), played(policy)
        assert fast["steps"] < 0.6 * slow["steps"]
        assert fast["cache"] == slow["cache"] and fast["bytes"] == slow["bytes"]
        assert fast["cycles"] == pytest.approx(slow["cycles"], rel=0.002)


@pytest.mark.rtl
def test_what_fits_is_fetched_once():
    chain = replace(SHAPE, experts=0, chosen=0, table=0, rows=0)
    result = played("next_layer", shape=chain, cache_pages=12)
    assert result["cache"]["fills"] == 12 and result["cache"]["evictions"] == 0
    assert result["token_cycles"][1] == pytest.approx(result["token_cycles"][2], rel=0.02)
    assert result["token_cycles"][0] > 2 * result["token_cycles"][1]


@pytest.mark.rtl
def test_a_lost_byte_is_seen():
    config, references = machine(), decode(SHAPE)
    result = played()
    assert conserved(config, references, result) == []
    for part, name, text in (("cache", "fills", "fills"), ("device", "read_words", "storage words"),
                             ("bytes", "hbm_write", "HBM bytes written"),
                             ("cache", "write_backs", "page writes")):
        broken = {**result, part: {**result[part], name: result[part][name] - 1}}
        assert any(problem.startswith(text) for problem in conserved(config, references, broken))
    assert conserved(config, references, {**result, "wrong_words": 1}) == [
        "wrong words stored: 1 instead of 0"]


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.parametrize(("file", "right", "wrong", "message"), [
    # Storage keeps a wrong bit of what is written back.
    ("headrace_storage_cells.v", "cells[write_address] = write_data;",
     "cells[write_address] = write_data ^ 1;", "wrong words stored: "),
    # The device gives a page's first words twice.
    ("headrace_storage_cells.v", "assign read_data = cells[read_address];",
     "assign read_data = cells[read_address & ~128];", "mismatches: "),
])
def test_a_fault_is_seen(file, right, wrong, message):
    made = _design()
    assert right in made.files[file]
    files = {**made.files, file: made.files[file].replace(right, wrong)}
    with pytest.raises(RunError, match=f"the run is not consistent: .*{message}"):
        play(machine(), decode(SHAPE), made=replace(made, files=files))


def test_what_does_not_fit_is_refused_before_a_build():
    with pytest.raises(UserError, match=r"cache_pages 1024: hbm\.mib=2 holds 512 pages of 4 KiB"):
        play(load_config("base", ["hbm.mib=2", "storage.cache_pages=1024"]), decode(SHAPE))
    with pytest.raises(UserError, match=r"page \d+ is beyond storage.pages=16"):
        play(load_config("base", ["storage.pages=16"]), decode(replace(SHAPE, table=10)))
    with pytest.raises(UserError, match="references: must be at most 65536"):
        play(load_config("base", []), decode(replace(SHAPE, tokens=4000)))
    with pytest.raises(UserError, match="prefetch policy 'psychic': not one of"):
        play(load_config("base", ["storage.policy=psychic"]), decode(SHAPE))


def test_the_study_has_one_baseline_a_group_and_equal_resources():
    for quick in (False, True):
        groups: dict[str, list[Case]] = {}
        for case in HIERARCHY.cases(quick):
            groups.setdefault(case.group, []).append(case)
        for cases in groups.values():
            assert sum(case.is_baseline for case in cases) == 1
            assert len({case.name for case in cases}) == len(cases)
            tiers = [case for case in cases if case.settings]  # the others have no storage
            assert len({(getattr(case, "shape", case.workload), getattr(case, "seeds", ()),
                         *(text for text in case.settings if text.split("=")[0] not in POLICY))
                        for case in tiers}) == 1
