# SPDX-License-Identifier: Apache-2.0
"""All prefetch policies, by name and number, and the one that a register selects."""

import inspect
import re
import traceback
from collections.abc import Callable

from amaranth.back import rtlil
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
BUILT_IN = tuple(POLICIES)
POLICY_BITS = 3
"""Width of the ``prefetch.policy`` registers."""


def register(name: str) -> Callable[[type[Policy]], type[Policy]]:
    """Class decorator: makes a `Policy` selectable as ``prefetch.policy=name``.

    It works from any file: chips generated afterwards in this process contain the policy, and the
    build cache knows it by its logic. A name may be registered again, which replaces the policy.

    Raises
    ------
    UserError
        If the name is not an identifier or built in, the class is no `Policy`, or all numbers of
        the register are taken.
    """

    def add(kind: type[Policy]) -> type[Policy]:
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise UserError(f"prefetch policy {name!r}: the name must be like my_policy")
        if name in BUILT_IN:
            raise UserError(f"prefetch policy {name!r} is built in: choose another name")
        if not (isinstance(kind, type) and issubclass(kind, Policy)):
            raise UserError(f"prefetch policy {name!r}: must be a class derived from Policy")
        if name not in POLICIES and len(POLICIES) == 1 << POLICY_BITS:
            raise UserError(
                f"prefetch policy {name!r}: the register's {1 << POLICY_BITS} numbers are taken by "
                f"{', '.join(POLICIES)}"
            )
        POLICIES[name] = kind
        return kind

    return add


def registered_logic() -> str:
    """What generated chips contain beyond the built-in policies, as text: equal for equal logic.

    Raises
    ------
    UserError
        If a registered policy cannot be elaborated.
    """
    return "".join(f"policy {name}\n{_logic(name)}" for name in POLICIES if name not in BUILT_IN)


def _logic(name: str) -> str:
    """RTLIL of a policy."""
    try:
        return rtlil.convert(POLICIES[name](), name=name, emit_src=False)
    except Exception as error:  # anything that the policy's author may have done
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())
        raise UserError(
            f"prefetch policy {name!r}: {type(error).__name__}: {text} ({last.filename}, line "
            f"{last.lineno})"
        ) from None


def source_file(name: str) -> str | None:
    """The Python file that registered policy ``name``; None if built in or without a file."""
    try:
        return None if name in BUILT_IN else inspect.getsourcefile(POLICIES[name])
    except TypeError:  # typed in at a prompt
        return None


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
    """The policy of number ``policy``; a number without a policy means `demand`.

    What a lookup waits for is always fetched, so that no policy can stop the machine.
    """

    def __init__(self):
        super().__init__(
            {
                **{name: In(width) for name, width in POLICY_INPUTS.items()},
                "policy": In(POLICY_BITS),
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
                    m.d.comb += self.fetch.eq(self.waiting | policy.fetch)
        return m
