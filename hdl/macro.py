# SPDX-License-Identifier: Apache-2.0
"""Elaborate once, instantiate many: a component that becomes a module of its own.

Elaborating sixteen copies of a core takes Amaranth twenty times as long as one. Wrapped in a
`Macro`, a component elaborates to an `Instance` of a separately converted module when Verilog is
generated (the platform is a `MacroLibrary`) and to itself otherwise.
"""

from collections.abc import Callable

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Shape, ShapeCastable
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import Member, Out


class MacroLibrary:
    """The platform of a generation: collects macros and plain Verilog sources by module name.

    Parameters
    ----------
    twins: The Verilog is to be simulated: parts that have a twin which does the same in every cycle
        but simulates faster (scratchpad, MAC array) become that twin. Otherwise they become what
        silicon should hold.
    """

    def __init__(self, *, twins: bool = True) -> None:
        self.twins = twins
        self.factories: dict[str, Callable[[], wiring.Component]] = {}
        self.sources: dict[str, str] = {}

    def add(self, name: str, factory: Callable[[], wiring.Component]) -> None:
        self.factories.setdefault(name, factory)

    def add_source(self, name: str, text: str) -> None:
        """Module ``name`` is the plain Verilog ``text``; instantiate it with `Instance`."""
        self.sources.setdefault(name, text)


def plain(signature: wiring.Signature) -> wiring.Signature:
    """``signature`` with bit vectors instead of structures.

    Structures in the ports of 64 tiles are a third of the time that a chip takes to elaborate, and
    a wire for every field of every port in its Verilog.
    """
    if isinstance(signature, stream.Signature):
        shape = Shape.cast(signature.members["payload"].shape)
        return stream.Signature(
            shape, always_valid=signature.always_valid, always_ready=signature.always_ready
        )
    members = {}
    for name, member in signature.members.items():
        if member.is_signature:
            unflipped = member.signature if member.flow == Out else member.signature.flip()
            member = Member(member.flow, plain(unflipped)).array(*member.dimensions)
        elif isinstance(member.shape, ShapeCastable) and member.init is None:
            member = Member(member.flow, Shape.cast(member.shape)).array(*member.dimensions)
        members[name] = member
    return wiring.Signature(members)


def plain_signature(factory: Callable[[], wiring.Component]) -> wiring.Signature:
    """`plain` of the signature of what ``factory`` makes."""
    model = factory()
    model._MustUse__silence = True  # made for its signature only, never elaborated
    return plain(model.signature)


class Macro(wiring.Component):
    """A component as a module of its own, with the same ports, those of structures as bit vectors.

    Parameters
    ----------
    name: Module name; two macros of one name must be identical.
    factory: Makes the component. What differs between instances is an input port, never a
        constant inside.
    signature: `plain` of the component's signature, if known, so that no component need be made
        for each instance to learn it.
    label: Prefix of the names of the wires at its ports.
    """

    def __init__(
        self,
        name: str,
        factory: Callable[[], wiring.Component],
        signature: wiring.Signature | None = None,
        label: str = "",
    ):
        self._name = name
        self._factory = factory
        super().__init__(plain_signature(factory) if signature is None else signature)
        if label:
            for _, _, port in self.signature.flatten(self):
                port.name = f"{label}__{port.name}"

    def join(self, name: str, other: "Macro", facing: str) -> None:
        """Make interface ``name`` the wires of ``other``'s interface ``facing``.

        For the elaborated design the same as `connect`, which would cost a chip of 64 tiles half of
        its time: an assignment, and two signals, for every wire between two macros.
        """
        setattr(self, name, wiring.flipped(getattr(other, facing)))

    def elaborate(self, platform):
        if isinstance(platform, MacroLibrary):
            platform.add(self._name, self._factory)
            ports = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
            for path, member, value in self.signature.flatten(self):
                direction = "i" if member.flow == wiring.In else "o"
                ports[f"{direction}_" + "__".join(str(part) for part in path)] = value
            return Instance(self._name, **ports)
        m = Module()
        m.submodules.component = component = self._factory()
        wiring.connect(m, wiring.flipped(self), component)
        return m
