# SPDX-License-Identifier: Apache-2.0
"""Prefetch policies and the command fields that the sequencer changes, without a simulator."""

import pytest
from amaranth.sim import Simulator

from emu.config import Prefetch
from emu.errors import UserError
from emu.isa import Opcode
from hdl.packets import COMMANDS, WORD_BITS
from hdl.prefetch.registry import POLICIES, PolicySelect, policy_number
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


@pytest.mark.parametrize("opcode", INDEXED)
def test_pieces_cover_an_indexed_field(opcode: Opcode):
    place = COMMANDS[opcode][INDEXED[opcode]]
    parts = pieces(opcode, INDEXED[opcode])
    assert [word * WORD_BITS + low - bit for word, low, bit, _ in parts] == [place.offset] * len(
        parts
    )
    assert sum(width for *_, width in parts) == place.width
