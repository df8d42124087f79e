# SPDX-License-Identifier: Apache-2.0
"""All prefetch policies, by name and number, and the one that a register selects."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.errors import UserError
from hdl.prefetch.demand import Demand
from hdl.prefetch.double_buffer import DoubleBuffer
from hdl.prefetch.next_layer import NextLayer
from hdl.prefetch.oracle import Oracle
from hdl.prefetch.policy import POLICY_INPUTS, Policy
from hdl.prefetch.run_ahead import RunAhead

POLICIES: dict[str, type[Policy]] = {
    "demand": Demand,
    "double_buffer": DoubleBuffer,
    "run_ahead": RunAhead,
    "next_layer": NextLayer,
    "oracle": Oracle,
}
"""Policies in the order of their numbers in ``prefetch.policy`` registers."""


def policy_number(name: str) -> int:
    """Register value of policy ``name``.

    Raises
    ------
    UserError
        If there is no such policy.
    """
    if name not in POLICIES:
        raise UserError(f"prefetch policy {name!r}: not one of {', '.join(POLICIES)}")
    return list(POLICIES).index(name)


class PolicySelect(wiring.Component):
    """The policy of number ``policy``; a number without a policy means `demand`."""

    def __init__(self):
        super().__init__(
            {
                **{name: In(width) for name, width in POLICY_INPUTS.items()},
                "policy": In(3),
                "fetch": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.fetch.eq(self.waiting)
        with m.Switch(self.policy):
            for number, (name, kind) in enumerate(POLICIES.items()):
                m.submodules[name] = policy = kind()
                for port in POLICY_INPUTS:
                    m.d.comb += getattr(policy, port).eq(getattr(self, port))
                with m.Case(number):
                    m.d.comb += self.fetch.eq(policy.fetch)
        return m
