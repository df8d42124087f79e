# SPDX-License-Identifier: Apache-2.0
"""Clock gating: an engine that has nothing to do gets no clock edges.

In silicon this saves the clock tree's power. Here it also saves the simulator's time: logic behind
a gated clock is not evaluated in a cycle without an edge.
"""

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    DomainRenamer,
    Instance,
    Module,
    ResetSignal,
    Signal,
    Value,
)
from amaranth.lib import wiring

from hdl.macro import MacroLibrary

NAME = "headrace_clock_gate"
LINGER = 8
"""Cycles that a clock keeps running after its engine was last awake, for pipelines to empty."""

_TEXT = f"""\
// SPDX-License-Identifier: Apache-2.0
// Clock gate: an edge of clk passes when enable was high in the half cycle before it.
module {NAME}(
  input clk,
  input enable,
  output gated
);
  reg open;
  always @(negedge clk) open <= enable;
  assign gated = clk & open;
endmodule
"""


def gate(m: Module, name: str, component: wiring.Component, wake: Value, platform) -> None:
    """Add ``component`` to ``m`` as submodule ``name``, in a clock domain of that name.

    The clock runs in reset, in cycles in which ``wake`` is high and for `LINGER` cycles after.
    ``wake`` must be high whenever an input asks something of the component, in that very cycle, and
    as long as it has anything to do. Then the component does what it would do without a gate.
    Without a `MacroLibrary` (Amaranth's own simulator) there is no gate.
    """
    if not isinstance(platform, MacroLibrary):
        m.submodules[name] = component
        return
    platform.add_source(NAME, _TEXT)
    domain = ClockDomain(name, local=True)
    m.domains += domain
    m.submodules[name] = DomainRenamer(name)(component)
    recent, gated = Signal(LINGER, name=f"{name}_awake"), Signal(name=f"{name}_gated")
    m.d.sync += recent.eq(Cat(wake, recent))
    m.submodules[f"{name}_gate"] = Instance(
        NAME, i_clk=ClockSignal(), i_enable=Cat(wake, recent, ResetSignal()).any(), o_gated=gated
    )
    m.d.comb += [domain.clk.eq(gated), domain.rst.eq(ResetSignal())]
