# SPDX-License-Identifier: Apache-2.0
"""Networks whose constants lie in storage, on the RTL chip: outputs, pages, conservation."""

import pytest

from emu.config import load_config
from emu.network.transformers import decoder
from sim import paging
from sim.errors import ConservationError
from sim.execute import run
from sim.measure import Counters

STORED = ("storage.enabled=true", "storage.latency=2000", "storage.bytes_per_cycle=16")
FRAMES = ("storage.cache_pages=16",)


def ran(policy, *settings, network=None):
    return run("tiny.chain" if network is None else "decoder", chip="small",
               settings=(*STORED, f"storage.policy={policy}", *settings), network=network)


@pytest.fixture(scope="module")
def decoding():
    """Three tokens through 27 pages a channel, by policy, with sixteen frames."""
    network = decoder("d", 7, layers=2, width=64, heads=4, cached=13, steps=3)
    return {policy: ran(policy, *FRAMES, network=network)
            for policy in ("demand", "run_ahead", "next_layer")}


@pytest.mark.rtl
def test_parameters_beyond_the_frames(decoding):
    for result in decoding.values():
        pages, moved = result["storage"], result["bytes"]
        assert result["verified"]["outputs"] > 0 and not result["verified"]["mismatches"]
        assert pages["evictions"] > 16 and pages["write_backs"] == 0
        assert moved["storage_read"] == moved["hbm_fill"] >= 4096 * pages["fills"]
        assert moved["storage_write"] == 0


@pytest.mark.rtl
def test_policies_hide_latency(decoding):
    cycles = {policy: result["cycles"] for policy, result in decoding.items()}
    assert cycles["next_layer"] < cycles["run_ahead"] < cycles["demand"]
    demand = decoding["demand"]["storage"]
    assert demand["prefetches"] == demand["late"] == 0
    assert decoding["next_layer"]["storage"]["useful"] > 0


@pytest.mark.rtl
def test_what_fits_is_fetched_once():
    result = ran("demand")
    pages = result["storage"]
    assert result["verified"]["outputs"] > 0 and not result["verified"]["mismatches"]
    assert pages["fills"] == pages["demand_fetches"] and not pages["evictions"]
    assert result["bytes"]["hbm_fill"] == 4096 * pages["fills"]


@pytest.mark.rtl
@pytest.mark.parametrize(("name", "text"), [
    ("hbm_0.fill_words", "words that leave storage = words written into frames"),
    ("hbm_1.pager.cache.demand_fetches", "pages fetched = pages that storage was asked for"),
    ("hbm_0.pager.cache.write_backs", "write-backs = pages written to storage"),
    ("hbm_0.pager.device.write_words", "words written to storage = 0"),
    ("hbm_1.pager.paged_reads", "reads of HBM and of frames = requests of the mesh"),
    ("hbm_1.pager.cache.evictions", "pages fetched - evicted <= frames"),
])
def test_a_lost_byte_is_seen(decoding, name, text):
    result = decoding["demand"]
    config = load_config("small", [*STORED, *FRAMES])
    counters = dict(result["counters"])
    assert paging.measure(config, Counters(counters)) == result["storage"]
    counters[name] += -17 if name.endswith("evictions") else 1
    with pytest.raises(ConservationError, match=text):
        paging.measure(config, Counters(counters))
