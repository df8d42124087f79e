# SPDX-License-Identifier: Apache-2.0
"""Elaborate once, instantiate many: a component that becomes a module of its own.

Elaborating sixteen copies of a core takes Amaranth twenty times as long as one. Wrapped in a
`Macro`, a component elaborates to an `Instance` of a separately converted module when Verilog is
generated (the platform is a `MacroLibrary`) and to itself otherwise.
"""

from collections.abc import Callable

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal
from amaranth.lib import wiring


class MacroLibrary:
    """The platform of a generation: collects macros and plain Verilog sources by module name."""

    def __init__(self) -> None:
        self.factories: dict[str, Callable[[], wiring.Component]] = {}
        self.sources: dict[str, str] = {}

    def add(self, name: str, factory: Callable[[], wiring.Component]) -> None:
        self.factories.setdefault(name, factory)

    def add_source(self, name: str, text: str) -> None:
        """Module ``name`` is the plain Verilog ``text``; instantiate it with `Instance`."""
        self.sources.setdefault(name, text)


class Macro(wiring.Component):
    """A component as a module of its own, with the same ports.

    Parameters
    ----------
    name: Module name; two macros of one name must be identical.
    factory: Makes the component. What differs between instances is an input port, never a
        constant inside.
    signature: The component's signature, if known, so that it need not be made for each instance.
    """

    def __init__(
        self,
        name: str,
        factory: Callable[[], wiring.Component],
        signature: wiring.Signature | None = None,
    ):
        self._name = name
        self._factory = factory
        if signature is None:
            model = factory()
            model._MustUse__silence = True  # made for its signature only, never elaborated
            signature = model.signature
        super().__init__(signature)

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
