# SPDX-License-Identifier: Apache-2.0
"""Macros stepped as models of their own do what the chip as one model does."""

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.config import load_config
from hdl.verilog import feedthrough, generate
from sim import lockstep, runner
from sim.designs import design_of
from sim.execute import Options, run


class Through(wiring.Component):
    """A register, and a wire past it."""

    def __init__(self):
        super().__init__({"a": In(8), "registered": Out(8), "through": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.registered.eq(self.a)
        m.d.comb += self.through.eq(self.a + self.registered)
        return m


@pytest.fixture(scope="module")
def small():
    return design_of(load_config("small", []))


def test_a_combinational_path_is_found():
    assert feedthrough(generate(Through(), "through"), "through") == ["through"]


@pytest.mark.parametrize("macro", ["tile", "hbm_channel"])
def test_macros_have_registered_borders(small, macro):
    assert feedthrough(small, macro) == []


def test_a_channel_with_a_pager_has_registered_borders():
    made = design_of(load_config("small", ["storage.enabled=true"]))
    assert feedthrough(made, "hbm_channel") == []


def test_links_are_copied_and_only_chip_wide_signals_pass_the_shells(small):
    wiring = lockstep.wiring_of(small)
    assert {port.name for port in wiring.shared["tile"]} == {
        "rst", "start", "prefetch__policy", "prefetch__depth", "prefetch__threshold",
        "done", "error", "status", "step",
    }
    assert {port.name for port in wiring.shared["hbm_channel"]} == {"rst", "dump", "idle", "error"}
    assert wiring.copies["tile_1_0", "down_in_west__payload"] == (
        "tile_0_0", "down_out_east__payload")


def test_every_counter_keeps_its_name(small):
    assert lockstep.counter_paths(small).keys() == small.counter_paths().keys()


def test_names_as_verilator_escapes_them():
    assert lockstep.mangled("req_in__payload$3") == "req_in___05Fpayload__024" + "3"


@pytest.mark.slow
def test_same_cycles_and_counters_as_one_model(monkeypatch):
    stepped = run("tiny.conv3x3", chip="small", options=Options())
    monkeypatch.setattr(runner, "stepped", lambda *args, **kwargs: False)
    whole = run("tiny.conv3x3", chip="small", options=Options())
    assert stepped["cycles"] == whole["cycles"]
    assert stepped["counters"] == whole["counters"]
