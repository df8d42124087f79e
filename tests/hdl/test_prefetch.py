# SPDX-License-Identifier: Apache-2.0
"""Prefetch policies and the command fields that the sequencer changes, without a simulator."""

import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from emu.config import Prefetch
from emu.errors import UserError
from emu.isa import Opcode
from hdl.packets import COMMANDS, WORD_BITS
from hdl.prefetch import registry
from hdl.prefetch.policy import Policy
from hdl.prefetch.registry import (
    POLICIES,
    PolicySelect,
    policy_number,
    register,
    registered_logic,
)
from hdl.sequencer.indexes import INDEXED, pieces

CASES = [
    # distance, waiting, crossing, frequency, threshold, depth: policies that fetch
    ((0, 1, 0, 0, 0, 4), set(POLICIES)),
    ((1, 0, 0, 0, 0, 4), {"double_buffer", "run_ahead", "next_layer", "oracle"}),
    ((2, 0, 0, 0, 0, 4), {"run_ahead", "next_layer", "oracle"}),
    ((4, 0, 0, 0, 0, 4), {"run_ahead", "next_layer", "oracle"}),
    ((5, 0, 0, 9, 0, 4), {"oracle"}),
    ((1, 0, 1, 0, 0, 4), {"oracle"}),
    ((1, 0, 1, 3, 3, 4), {"oracle"}),
    ((1, 0, 1, 4, 3, 4), {"next_layer", "oracle"}),
    ((5, 0, 1, 4, 3, 4), {"oracle"}),
]


def test_registry_numbers_the_policies_in_order():
    assert Prefetch().policy in POLICIES
    assert [policy_number(name) for name in POLICIES] == list(range(len(POLICIES)))


def test_unknown_policy_is_named():
    with pytest.raises(UserError, match="prefetch policy 'psychic': not one of demand, "):
        policy_number("psychic")


def test_decisions():
    """Every policy in every case, and a register value without a policy, which is demand."""
    select, seen = PolicySelect(), []

    async def testbench(ctx):
        for values, fetching in CASES:
            names = ("distance", "waiting", "crossing", "frequency", "threshold", "depth")
            for name, value in zip(names, values, strict=True):
                ctx.set(getattr(select, name), value)
            for number in range(8):
                ctx.set(select.policy, number)
                name = list(POLICIES)[number] if number < len(POLICIES) else "demand"
                seen.append((values, name, ctx.get(select.fetch), int(name in fetching)))

    simulator = Simulator(select)
    simulator.add_testbench(testbench)
    simulator.run()
    assert len(seen) == 8 * len(CASES)
    assert [case for case in seen if case[2] != case[3]] == []


def policy(decide):
    """A policy class that fetches by ``decide(self)``."""

    class Some(Policy):
        def elaborate(self, platform):
            m = Module()
            m.d.comb += self.fetch.eq(decide(self))
            return m

    return Some


@pytest.fixture
def clean(monkeypatch):
    """Registrations end with the test."""
    monkeypatch.setattr(registry, "POLICIES", dict(POLICIES))
    return registry


def test_a_registered_policy_has_a_number_and_is_known_by_its_logic(clean):
    assert registered_logic() == ""
    few = register("few")(policy(lambda self: self.unused < 2))
    assert clean.policy_number("few") == 5 and clean.POLICIES["few"] is few
    logic = registered_logic()
    register("few")(policy(lambda self: self.unused < 2))
    assert clean.policy_number("few") == 5 and registered_logic() == logic
    register("few")(policy(lambda self: self.unused < 3))
    assert registered_logic() != logic
    assert clean.source_file("few") == __file__ and clean.source_file("demand") is None


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("Few", Policy, "the name must be like my_policy"),
        ("demand", Policy, "is built in"),
        ("few", object, "must be a class derived from Policy"),
        ("few", lambda: None, "must be a class derived from Policy"),
    ],
)
def test_what_cannot_be_registered(clean, name, kind, message):
    with pytest.raises(UserError, match=message):
        register(name)(kind)


def test_the_register_is_full_at_eight(clean):
    for number in range(3):
        register(f"p{number}")(policy(lambda self: 1))
    with pytest.raises(UserError, match="the register's 8 numbers are taken by demand, "):
        register("p3")(policy(lambda self: 1))


def test_a_policy_with_a_fault_is_named_with_its_place(clean):
    register("few")(policy(lambda self: self.unused_frames < 2))
    with pytest.raises(UserError, match=r"prefetch policy 'few': AttributeError: .*unused_frames"):
        registered_logic()


def test_no_policy_stops_a_lookup(clean):
    register("never")(policy(lambda self: 0))
    select, seen = PolicySelect(), []

    async def testbench(ctx):
        ctx.set(select.policy, clean.policy_number("never"))
        for waiting in (0, 1):
            ctx.set(select.waiting, waiting)
            seen.append(ctx.get(select.fetch))

    simulator = Simulator(select)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen == [0, 1]


@pytest.mark.parametrize("opcode", INDEXED)
def test_pieces_cover_an_indexed_field(opcode: Opcode):
    place = COMMANDS[opcode][INDEXED[opcode]]
    parts = pieces(opcode, INDEXED[opcode])
    assert [word * WORD_BITS + low - bit for word, low, bit, _ in parts] == [place.offset] * len(
        parts
    )
    assert sum(width for *_, width in parts) == place.width
