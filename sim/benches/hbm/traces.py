# SPDX-License-Identifier: Apache-2.0
"""Controller: published traces against what DRAMsim3 and Ramulator 2 reach on them.

64-byte requests in order, each offered from its cycle on, with a window of outstanding reads.
Latency is from the acceptance of a read's first half to its last word on the bus. All-bank
refreshes still owed at the end are charged as if they had stopped the channel. The first 1000
requests of a trace are run with wider limits; ``HEADRACE_TRACE_REQUESTS=0`` runs all, with the real
limits.
"""

import gzip
import json
import os
from pathlib import Path

import cocotb
from cocotb.triggers import RisingEdge, with_timeout

from emu.config import Hbm
from hdl.hbm.controller import HbmController
from hdl.hbm.packets import LineRead, LineWrite, ReadWord
from sim.benches.hbm._support import CommandLog, reset
from sim.streams import pack

DATA = Path(__file__).resolve().parents[3] / "tests" / "data" / "dram"
EXPECTED = json.loads((DATA / "expected.json").read_text())
TRACES = sorted({entry["trace"] for entry in EXPECTED})
REFRESH = {"none": "none", "ab": "all_bank", "pb": "per_bank"}
REQUESTS = int(os.environ.get("HEADRACE_TRACE_REQUESTS", "1000"))

VARIANTS = {
    f"{address_map}_{short}": lambda m=address_map, r=refresh: HbmController(
        Hbm.model_validate({"mib": 512, "address_map": m, "refresh": r}))
    for address_map in ("M1", "M2")
    for short, refresh in REFRESH.items()
}
QUICK = ("M1_pb", "M2_ab", "M2_none")


def load(name: str) -> list[tuple[int, int, bool]]:
    """(earliest cycle, 64-byte line, is a write) of each request."""
    text = gzip.decompress((DATA / f"{name}.trace.gz").read_bytes()).decode()
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    requests = [(int(cycle), int(address, 16) >> 6, kind == "W") for cycle, address, kind in rows]
    return requests[:REQUESTS] if REQUESTS else requests


class Player:
    """Offers a trace and times it. Values sampled at an edge are those of the cycle before it."""

    TAG = pack(ReadWord, {"tag": (1 << 6) - 1})

    def __init__(self, dut, requests, window: int):
        self.dut, self.requests, self.window = dut, requests, window
        self.accepted: dict[int, int] = {}
        self.words: dict[int, int] = {}
        self.latencies: list[int] = []
        self.free = list(range(min(64, window)))
        self.last = 0

    def arrive(self, cycle: int) -> None:
        tag = int(self.dut.words__payload.value) >> 128 & 63
        self.words[tag] += 1
        self.last = cycle - 1  # a word leaves the controller one cycle after it was on the bus
        if self.words[tag] == 4:
            self.latencies.append(cycle - 1 - self.accepted.pop(tag))
            self.free.append(tag)

    def offer(self, cycle: int, position: int) -> tuple | None:
        """Drive the next request if it may go; returns (port, tag)."""
        dut = self.dut
        if position == len(self.requests):
            return None
        earliest, line, write = self.requests[position]
        if cycle < earliest or not (write or self.free):
            return None
        if write:
            dut.write__payload.value = pack(LineWrite, {"line": line, "halves": 3, "slot": 0})
            dut.write__valid.value = 1
            return dut.write__ready, dut.write__valid, None
        tag = self.free.pop(0)
        self.words[tag] = 0
        dut.read__payload.value = pack(LineRead, {"line": line, "words": 15, "tag": tag})
        dut.read__valid.value = 1
        return dut.read__ready, dut.read__valid, tag

    async def run(self) -> int:
        dut, cycle, position, offered = self.dut, 0, 0, None
        while position < len(self.requests) or self.accepted or not int(dut.idle.value):
            offered = offered or self.offer(cycle, position)
            await RisingEdge(dut.clk)
            if int(dut.words__valid.value):
                self.arrive(cycle)
            if offered and int(offered[0].value):
                offered[1].value = 0
                if offered[2] is not None:
                    self.accepted[offered[2]] = cycle - 1
                position, offered = position + 1, None
            cycle += 1
        return max(self.last, cycle if any(r[2] for r in self.requests) else 0) + 1


@cocotb.test
@cocotb.parametrize(trace=TRACES)
async def published(dut, trace):
    address_map, refresh = os.environ["HEADRACE_VARIANT"].split("_")
    entry = next((e for e in EXPECTED if (e["trace"], e["mapping"], e["refresh"])
                  == (trace, address_map, refresh)), None)
    if entry is None:
        return
    window = json.loads((DATA / "index.json").read_text())[trace]["window_64B"]
    for name, value in {"read__valid": 0, "write__valid": 0, "words__ready": 1, "starved": 0,
                        "write_data": 0, "write_mask": 0xFFFF, "phy__read_data": 0}.items():
        getattr(dut, name).value = value
    await reset(dut)
    for _ in range(1100):  # the conflict filter clears itself
        await RisingEdge(dut.clk)
    requests = load(trace)
    player = Player(dut, requests, window)
    log = CommandLog(dut, "phy__row", "phy__column")
    if os.environ.get("HEADRACE_COMMANDS"):
        cocotb.start_soon(log.run())
    refreshes = int(dut.count_refreshes.value)
    cycles = await with_timeout(player.run(), 1000, "us")
    log.save(f"commands_{trace}.txt")
    refreshes = int(dut.count_refreshes.value) - refreshes
    if refresh == "ab":
        cycles += max(0, cycles // 3900 - refreshes) * (260 + 14)
    share = len(requests) * 4 / cycles
    latency = sum(player.latencies) / len(player.latencies)
    best = max(entry.get(f"bw_{tool}", 0) for tool in ("dramsim3", "ramulator2"))
    least = min(entry.get(f"lat_{tool}", 1e9) for tool in ("dramsim3", "ramulator2"))
    dut._log.info("RESULT %s %s %s bandwidth %.4f (%.4f, %+.2f%%) latency %.1f (%.1f, %+.1f%%)",
                  trace, address_map, refresh, share, best, 100 * (share / best - 1), latency,
                  least, 100 * (latency / least - 1))
    assert player.latencies and not player.accepted
    bandwidth_limit, latency_limit = (0.97, 1.15) if REQUESTS else (0.99, 1.10)
    assert share >= bandwidth_limit * best
    assert latency <= latency_limit * least
