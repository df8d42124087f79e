# SPDX-License-Identifier: Apache-2.0
"""Pseudo-channel: bandwidth and latency against derived bounds; values are not looked at here.

Bound of a stream: 16 bytes per cycle, minus what refresh takes, minus filling and draining the
pipeline once (about 60 cycles: activate, tRCD, CL and the last words).
"""

import itertools
import os

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge, with_timeout

from emu.config import load_config
from hdl.hbm.channel import HbmChannel
from hdl.packets import ReqFlit, UpFlit
from sim.benches.hbm._support import read_flit, reset, write_flit
from sim.streams import Source, pack


def _channel(*settings: str) -> HbmChannel:
    return HbmChannel(load_config("base", ["hbm.mib=4", *settings]))


VARIANTS = {
    "none": lambda: _channel("hbm.refresh=none"),
    "none_m2": lambda: _channel("hbm.refresh=none", "hbm.address_map=M2"),
    "per_bank": lambda: _channel(),
    "all_bank": lambda: _channel("hbm.refresh=all_bank"),
    "per_bank_b": lambda: _channel("hbm.timing=hbm2_b"),
}
QUICK = ("none_m2", "per_bank", "all_bank")

SEQUENTIAL = {"none": 0.98, "none_m2": 0.98, "per_bank": 0.97, "per_bank_b": 0.97,
              # tRFC 260 of tREFI 3900, and closing and opening rows around it: 20 to 40 cycles.
              "all_bank": 0.915}
# A segment is four activates (one in each bank group) for 16 data cycles: tRRD 4 just allows it.
# Set B: four activates in tFAW 30, so 16 of 30 cycles.
RANDOM = {"none": 0.92, "none_m2": 0.92, "per_bank": 0.90, "per_bank_b": 0.50, "all_bank": 0.85}
REFRESHES = ("per_bank", "per_bank_b", "all_bank")
POSTPONED = 9
# All rows differ, as in random segments, but banks come in turn. Without the permutation of banks
# all streams meet in the same four banks, each row is used once: 16 data cycles in tRC 48.
STREAMS = {"none": 0.92, "none_m2": 0.2, "per_bank": 0.90, "per_bank_b": 0.50, "all_bank": 0.85}
FILL = 60
WORDS = 4 * 65536


async def receive(dut, words):
    """Count words until all came; returns the cycles that took."""
    dut.down__ready.value = 1
    cycles = seen = 0
    while seen < words:
        await ReadOnly()
        seen += int(dut.down__valid.value)
        await RisingEdge(dut.clk)
        cycles += 1
    return cycles


async def stream(port, flits, clk, valid, words, skip=0):
    """Offer ``flits`` without a pause until ``words`` came; words and cycles after ``skip`` cycles.

    Values read at an edge are those of the cycle before it, so Python wakes once a cycle.
    """
    payload, offered, ready = port
    position = cycles = seen = before = 0
    payload.value, offered.value = flits[0], 1
    while seen < words:
        await RisingEdge(clk)
        cycles += 1
        if position < len(flits) and int(ready.value):
            position += 1
            if position < len(flits):
                payload.value = flits[position]
            else:
                offered.value = 0
        seen += int(valid.value)
        if cycles == skip:
            before = seen
    return seen - before, cycles - skip


def _port(dut, name):
    return tuple(getattr(dut, f"{name}__{part}") for part in ("payload", "valid", "ready"))


async def measure(dut, addresses):
    """Share of peak, after all refreshes that may be postponed are."""
    skip = POSTPONED * 3900 if os.environ["HEADRACE_VARIANT"] in REFRESHES else FILL
    count = (skip + 20000) // 16
    dut.request__valid.value, dut.write__valid.value, dut.down__ready.value = 0, 0, 1
    dut.channel.value, dut.dump.value = 0, 0
    await reset(dut)
    flits = [pack(ReqFlit, read_flit(next(addresses), 16, 0, 0, 0)) for _ in range(count)]
    job = stream(_port(dut, "request"), flits, dut.clk, dut.down__valid, 16 * count, skip)
    words, cycles = await with_timeout(job, 200, "us")
    assert int(dut.error.value) == 0
    return words / cycles


@cocotb.test
async def sequential(dut):
    share = await measure(dut, itertools.count(0, 16))
    dut._log.info("sequential: %.4f of peak", share)
    assert share >= SEQUENTIAL[os.environ["HEADRACE_VARIANT"]]


@cocotb.test
async def random_segments(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    share = await measure(
        dut, (int(rng.integers(WORDS // 16)) * 16 for _ in itertools.count()))
    dut._log.info("random segments: %.4f of peak", share)
    assert share >= RANDOM[os.environ["HEADRACE_VARIANT"]]


@cocotb.test
async def sixteen_streams(dut):
    """Sixteen tiles read contiguous areas of their own in turn."""
    share = await measure(dut, (
        tile * (WORDS // 16) + 16 * i for i in itertools.count() for tile in range(16)))
    dut._log.info("sixteen streams: %.4f of peak", share)
    assert share >= STREAMS[os.environ["HEADRACE_VARIANT"]]


@cocotb.test
async def first_word(dut):
    """Latency of an idle channel: front 2, command 1 each, tRCD 14, cl 14, queue 1, output 1."""
    requests = Source(dut, "request", ReqFlit)
    dut.write__valid.value, dut.channel.value, dut.dump.value = 0, 0, 0
    await reset(dut)
    for _ in range(20):
        await RisingEdge(dut.clk)
    latencies = []
    for _ in range(2):
        send = cocotb.start_soon(requests.send([read_flit(64, 1, 0, 0, 0)]))
        latencies.append(await with_timeout(receive(dut, 1), 1, "us"))
        await send
        for _ in range(60):
            await RisingEdge(dut.clk)
    dut._log.info("closed %d, open %d cycles", *latencies)
    assert latencies[0] - latencies[1] == 14
    assert latencies[1] <= 14 + 8


@cocotb.test
async def write_stream(dut):
    """Full lines of one tile: 16 bytes per cycle too, acknowledged."""
    dut.request__valid.value, dut.write__valid.value, dut.down__ready.value = 0, 0, 1
    dut.channel.value, dut.dump.value = 0, 0
    await reset(dut)
    for _ in range(1100):  # the conflict filter clears itself
        await RisingEdge(dut.clk)
    count = 8192
    flits = [pack(UpFlit, write_flit(a, 0, 0xFFFF, 1, 1, False)) for a in range(count)]
    job = stream(_port(dut, "write"), flits, dut.clk, dut.down__valid, count // 4)
    _, cycles = await with_timeout(job, 60, "us")
    dut._log.info("writes: %.4f of peak", count / cycles)
    assert int(dut.error.value) == 0
    assert count / (cycles - FILL) >= 0.9
