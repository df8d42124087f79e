# SPDX-License-Identifier: Apache-2.0
"""Every timing rule that sets A and B can reach is met to the cycle, as the independent checker
measures it: a controller that is a cycle too careful somewhere would fail here.
"""

import numpy as np
import pytest

from sim import dram, runner
from sim.memory.reach import independent_check

SIMULATOR = "icarus" if runner.available("icarus") else "verilator"

RULES = {
    "BUS_row", "tRC", "tRP", "tRAS", "tRRDL", "tRRDS", "tRTP", "tWR", "tRCDRD", "tRCDWR",
    "tCCDL_R", "tCCDL_W", "tCCDS_R", "tCCDS_W", "tWTRL", "tWTRS", "tRTW", "tRFC", "tRFCpb",
    "tRREFD", "tRP_REF", "tRC_REF", "tRFC_REF", "tRFCpb_REFPB", "tRREFD_REFPB",
    "tRRDS_REFPB", "tRRDL_REFPB",
}
UNREACHABLE = {
    "BUS_col": "two columns are tCCD_S = 2 apart, the bus alone would allow 1",
    "tRFCpb_REFAB": "a channel refreshes either all banks or one by one",
    "DQ_OVERLAP": "tCCD_S is a burst's two data cycles; tRTW and tWTR keep directions apart",
}
"""Rules that the command stream never meets at their limit. Also: the automatic precharges RDA and
WRA are never given, and tRRD_L from REFPB to ACT is shorter than tRREFD."""
FAW = {"hbm2_a": "tFAW 15 is less than 4 x tRRD_S 4"}
"""Sets in which tFAW is unreachable."""


def requests(rng, count, *, writes, banks, rows, gaps=(0,), start=0):
    """Lines of a trace under map M1: random rows, banks and columns."""
    cycle = start
    for _ in range(count):
        cycle += int(rng.choice(gaps))
        row, bank, column = rng.integers(rows), rng.integers(banks), rng.integers(16)
        kind = "W" if rng.random() < writes else "R"
        yield f"{cycle} {row << 14 | bank << 10 | column << 6:x} {kind}\n"


def traces(rng):
    """(refresh, lines): dense traffic; two banks, the others idle; refreshes owed and then idle,
    with requests that come while one lasts (one is due every 3900 cycles)."""
    conflicts = requests(rng, 220, writes=0, banks=1, rows=9999)
    return [
        ("per_bank", requests(rng, 900, writes=0.4, banks=16, rows=4)),
        ("per_bank", requests(rng, 1500, writes=0.3, banks=2, rows=64)),
        ("all_bank", [*conflicts, *requests(rng, 60, writes=0.4, banks=4, rows=4, start=14600)]),
    ]


@pytest.mark.rtl
@pytest.mark.parametrize("timing", ["hbm2_a", "hbm2_b"])
def test_every_rule_at_its_limit(timing, tmp_path):
    slack: dict[str, int] = {}
    for refresh, lines in traces(np.random.default_rng(1)):
        trace, commands = tmp_path / "trace", tmp_path / "commands"
        trace.write_text("".join(lines))
        settings = [f"hbm.timing={timing}", "hbm.address_map=M1", f"hbm.refresh={refresh}"]
        result = dram(str(trace), settings=settings, commands=str(commands), simulator=SIMULATOR)
        found = independent_check(commands, timing, refresh)
        assert found["violations"] == {} and result["violations"] == 0
        for rule, least in found["min_slack"].items():
            slack[rule] = min(least, slack.get(rule, least))
    reachable = RULES if timing in FAW else RULES | {"tFAW"}
    assert {rule for rule, least in slack.items() if least == 0} == reachable
    assert slack.keys() - reachable <= UNREACHABLE.keys() | {"tFAW"}
