# SPDX-License-Identifier: Apache-2.0
"""The simulation's profile: lines to units, and the sampler in a process of its own."""

import json
import subprocess
import sys

import pytest

from hdl.tile import PLANES, QUEUES
from sim import profile, sampler

GENERATED = """\
void Vtile___024root___nba_sequent__TOP__0(Vtile___024root* vlSelf) {
    // Body
    vlSelfRef.tile__DOT__own_x = vlSelfRef.x;
    vlSelfRef.__Vdly__tile__DOT__compute__DOT__row
        = (1U & vlSelfRef.tile__DOT__vector__DOT__busy);
    __Vtemp_1[0U] = 0U;
    vlSelfRef.tile__DOT__router_up_gated = vlSelfRef.clk;
}
bool Vtile___024root___eval_triggers_vec__act(Vtile___024root* vlSelf) {
    __Vtrigger = vlSelfRef.tile__DOT__compute__DOT__clk;
}
void Vtile___024root___eval_nba(Vtile___024root* vlSelf) {
    if ((1ULL & vlSelfRef.__VnbaTriggered[0U])) {
        vlSelfRef.tile__DOT__blocks__DOT__table__DOT__hit = 1U;
    }
}
"""


def test_every_line_belongs_to_the_unit_whose_signal_it_computes():
    step = profile.STEPPING
    assert profile.units_of("tile", GENERATED) == [
        "other", "other", "other", "compute", "compute", "compute", "routers", "routers",
        step, step, step, "other", step, "parameter store", "parameter store", "parameter store",
    ]


def test_units_know_the_parts_of_a_tile():
    known = profile.UNITS["tile"]
    assert {*QUEUES, *(f"router_{plane}" for plane in PLANES)} <= set(known)
    units = {*known.values(), *profile.UNITS["hbm_channel"].values(), *profile.REST.values()}
    assert units | {profile.STEPPING} == set(profile.NAMES)


def test_sampler_counts_where_a_process_is(tmp_path):
    library, result = sampler.compile_into(tmp_path), tmp_path / "samples.json"
    text = (
        "import sys\nfrom sim.sampler import sampling\n"
        "with sampling(*sys.argv[1:]):\n    sum(i * i for i in range(5_000_000))\n"
    )
    subprocess.run([sys.executable, "-c", text, str(library), str(result)], check=True)
    samples = json.loads(result.read_text())
    assert sum(samples["addresses"].values()) + sum(samples["elsewhere"].values()) > 50


@pytest.mark.rtl
@pytest.mark.slow
def test_shares_of_a_small_chip():
    shares = profile.unit_shares("tiny.conv3x3", chip="small")
    assert tuple(shares) == profile.NAMES
    assert abs(sum(shares.values()) - 1) < 1e-9
    assert shares["compute"] > 0.02 and shares["other"] < 0.2
