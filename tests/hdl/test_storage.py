# SPDX-License-Identifier: Apache-2.0
"""The page cache's prefetch pointer, without a simulator: order, what is passed over, its end."""

import shutil
from pathlib import Path

import pytest
from amaranth.sim import Simulator

from emu.config import Config, Storage
from hdl.prefetch.registry import policy_number
from hdl.storage.device import StorageDevice
from hdl.storage.packets import REGION_BITS
from hdl.storage.pointer import FARTHEST, PagePointer
from hdl.storage.tier import StorageTier
from hdl.verilog import generate
from tests.hdl.test_verilog import call, verilator

REGIONS = [
    # first, pages, child, frequency, optional, scattered
    (0, 4, 1, 255, 0, 0),
    (4, 2, 2, 10, 1, 0),
    (6, 2, 3, 200, 1, 0),
    (8, 9, 4, 255, 0, 1),
    (20, 3, 0, 255, 0, 0),
]


def walk(policy, *, page, region, depth=8, threshold=0, frames=64, absent=(), follow=(),
         limit=20):
    """Candidates as (page, fetched) after a lookup of ``page``; all but ``absent`` are there."""
    pointer, seen = PagePointer(), []

    async def testbench(ctx):
        for number, values in enumerate(REGIONS):
            names = ("first", "pages", "child", "frequency", "optional", "scattered")
            ctx.set(pointer.region, {"region": number, **dict(zip(names, values, strict=True))})
            ctx.set(pointer.describe, 1)
            await ctx.tick()
        ctx.set(pointer.describe, 0)
        for name, value in (("policy", policy_number(policy)), ("depth", depth),
                            ("threshold", threshold)):
            ctx.set(getattr(pointer.prefetch, name), value)
        ctx.set(pointer.frames, frames)
        ctx.set(pointer.exact, int(bool(follow)))
        ctx.set(pointer.reference, {"page": page, "region": region})
        ctx.set(pointer.enter, 1)
        await ctx.tick()
        ctx.set(pointer.enter, 0)
        for _ in range(400):
            if follow:
                ahead = ctx.get(pointer.peek) - 1
                ctx.set(pointer.peek_valid, int(ahead < len(follow)))
                ctx.set(pointer.peek_reference,
                        {"page": follow[ahead] if ahead < len(follow) else 0, "region": region})
            if ctx.get(pointer.valid):
                candidate = ctx.get(pointer.page)
                there = absent != "all" and candidate not in absent
                fetch = bool(ctx.get(pointer.fetch))
                if not there:
                    seen.append((candidate, fetch))
                ctx.set(pointer.step, int(there or fetch))
                ctx.set(pointer.refuse, int(not there and not fetch))
            elif not ctx.get(pointer.moving):
                break
            await ctx.tick()
            ctx.set(pointer.step, 0)
            ctx.set(pointer.refuse, 0)
            if len(seen) >= limit:
                break

    simulator = Simulator(pointer)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return seen


def fetched(*arguments, **options):
    return [page for page, fetch in walk(*arguments, **options) if fetch]


def test_demand_fetches_nothing():
    assert fetched("demand", page=0, region=0, absent="all") == []


def test_double_buffer_is_one_page_ahead_inside_the_region():
    assert fetched("double_buffer", page=0, region=0, absent="all") == [1]
    assert fetched("double_buffer", page=3, region=0, absent="all") == []


def test_run_ahead_ends_with_the_region_or_the_depth():
    assert fetched("run_ahead", page=0, region=0, absent="all") == [1, 2, 3]
    assert fetched("run_ahead", page=0, region=0, absent="all", depth=2) == [1, 2]


def test_next_layer_passes_over_unlikely_and_scattered_regions():
    assert fetched("next_layer", page=2, region=0, absent="all", threshold=100) == [
        3, 6, 7, 20, 21, 22, 0, 1]
    assert fetched("next_layer", page=2, region=0, absent="all", threshold=5) == [
        3, 4, 5, 6, 7, 20, 21, 22]


def test_pages_that_are_there_count_as_distance():
    assert fetched("next_layer", page=2, region=0, absent=(6, 21, 0), depth=5) == [6]
    assert fetched("next_layer", page=2, region=0, absent=(6, 21, 0), depth=7) == [6, 21]


def test_a_lookup_inside_an_optional_region_goes_on_in_it():
    assert fetched("run_ahead", page=4, region=1, absent="all") == [5]


def test_a_scattered_region_is_not_walked():
    assert fetched("run_ahead", page=9, region=3, absent="all") == []
    assert fetched("next_layer", page=9, region=3, absent="all", depth=3) == [20, 21, 22]


def test_it_stops_at_the_frames_and_at_the_farthest_distance():
    assert len(fetched("oracle", page=0, region=0, absent="all", frames=6)) == 5
    assert len(fetched("oracle", page=0, region=0, absent="all", frames=1000, limit=500)) == (
        FARTHEST - 1)


def test_a_loop_of_unwanted_regions_ends(monkeypatch):
    monkeypatch.setattr(f"{__name__}.REGIONS", [
        (0, 4, 1, 255, 0, 0), (4, 2, 2, 1, 1, 0), (6, 2, 1, 1, 1, 0)])
    seen = walk("next_layer", page=3, region=0, absent="all", threshold=9, limit=1000)
    assert not any(fetch for _, fetch in seen) and len(seen) <= 1 << REGION_BITS


def test_exact_candidates_are_the_next_references():
    follow = [30, 31, 2, 9]
    assert fetched("oracle", page=0, region=0, absent="all", follow=follow) == follow


def test_the_tier_is_for_verilog_only():
    with pytest.raises(TypeError, match="StorageDevice holds Verilog cells"):
        StorageDevice(Storage()).elaborate(None)
    assert StorageTier(Config()).now.shape().width == 32


def test_verilator_lint(tmp_path):
    design = generate(StorageTier(Config()), "storage_tier", twins=False, fields=False)
    for name, text in design.files.items():
        (tmp_path / name).write_text(text)
    waivers = Path(__file__).parents[2] / "hdl" / "waivers.vlt"
    call(verilator(), "--lint-only", "-Wall", shutil.copy(waivers, tmp_path), *design.files,
         "--top-module", "storage_tier", cwd=tmp_path)
