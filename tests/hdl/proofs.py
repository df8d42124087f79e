# SPDX-License-Identifier: Apache-2.0
"""Proofs with Yosys' SAT solver, and copies of hardware that are broken on purpose.

A *property* is a component around the hardware: its inputs are free, `Assume` and `Assert`
statements say what is taken for granted and what must hold. `prove` is by temporal induction,
`holds_for` from reset on for some cycles; `survives` runs the same property under random inputs in
Amaranth's simulator, which is the bench that must also catch what a proof refuses.
"""

import inspect
import textwrap
from collections.abc import Callable

import numpy as np
from amaranth.back import rtlil
from amaranth.hdl import Assert, Elaboratable, Module, Shape, Signal
from amaranth.lib import wiring
from amaranth.sim import Simulator
from pyosys import libyosys

SCRIPT = ("hierarchy -check -top top; proc; flatten; opt_clean; memory; opt_clean; async2sync; "
          "chformal -lower; opt_clean")


class Property(Elaboratable):
    """Base of properties: free inputs by `free`, facts by `given` and `claim`.

    Simulation drives free inputs at random; a cycle whose facts would not hold is drawn again.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Signal] = {}
        self.facts: list = []
        self.claims: list = []

    def free(self, name: str, shape) -> Signal:
        """An input that may be anything in every cycle."""
        self.inputs[name] = Signal(Shape.cast(shape), name=name)
        return self.inputs[name]

    def given(self, condition) -> None:
        self.facts.append(condition)

    def claim(self, condition) -> None:
        self.claims.append(condition)

    def inside(self, m: Module, component: wiring.Component) -> Module:
        """``component`` elaborated into ``m``: what it made inside can then be looked at."""
        component._MustUse__silence = True
        inner = component.elaborate(None)
        m.submodules.hardware = inner
        return inner

    def build(self, m: Module) -> None:
        """Instantiate the hardware in ``m``, state facts and claims."""
        raise NotImplementedError

    def elaborate(self, platform):
        from amaranth.hdl import Assume

        self.inputs, self.facts, self.claims = {}, [], []
        m = Module()
        self.build(m)
        self.allowed, self.broken = Signal(name="allowed"), Signal(name="broken")
        m.d.comb += self.allowed.eq(_all(self.facts))
        m.d.comb += self.broken.eq(~_all(self.claims))
        if platform == "formal":
            m.d.comb += [Assume(self.allowed), Assert(~self.broken)]
        return m


def _all(conditions):
    result = 1
    for condition in conditions:
        result = result & condition
    return result


def _solved(prop: Property, options: str, tmp_path) -> bool:
    module = prop.elaborate("formal")  # it makes the inputs
    ports = list(prop.inputs.values())
    top = rtlil.convert(module, name="top", ports=ports, platform="formal", emit_src=False)
    path = tmp_path / "top.il"
    path.write_text(top)
    design = libyosys.Design()
    libyosys.run_pass("tee -q read_rtlil " + str(path), design)
    log = tmp_path / "sat.log"
    for command in SCRIPT.split("; "):
        libyosys.run_pass(f"tee -q {command}", design)
    # Without -verify the result is in the log; an error would end the process.
    libyosys.run_pass(f"tee -q -o {log} sat {options} -prove-asserts -set-assumes "
                      "top", design)
    text = log.read_text()
    libyosys.run_pass("delete", design)
    if "SUCCESS!" in text:
        return True
    if "FAIL!" in text or "model found" in text.lower() or "-> proof failed" in text:
        return False
    raise AssertionError(f"the solver gave no answer: {text[-400:]}")


def prove(prop: Property, tmp_path, steps: int = 12) -> bool:
    """Whether all claims hold for ever: true from reset on, and kept by induction over at most
    ``steps`` cycles."""
    return _solved(prop, f"-tempinduct -maxsteps {steps}", tmp_path)


def holds_for(prop: Property, tmp_path, cycles: int) -> bool:
    """Whether all claims hold in the first ``cycles`` cycles."""
    return _solved(prop, f"-tempinduct-baseonly -maxsteps {cycles}", tmp_path)


def survives(prop: Property, cycles: int = 3000, seed: int = 1) -> bool:
    """Whether no claim breaks under random inputs that keep to the facts."""
    rng = np.random.default_rng(seed)
    outcome = []

    async def bench(ctx):
        for _ in range(cycles):
            for _ in range(40):
                for signal in prop.inputs.values():
                    ctx.set(signal, int(rng.integers(0, 1 << len(signal))))
                if ctx.get(prop.allowed):
                    break
            else:
                for signal in prop.inputs.values():
                    ctx.set(signal, 0)
                if not ctx.get(prop.allowed):
                    raise AssertionError("no random input keeps to the facts")
            if ctx.get(prop.broken):
                outcome.append("broken")
                return
            await ctx.tick()

    simulator = Simulator(prop)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    return not outcome


def broken(component: type[wiring.Component], method: str, *changes: str) -> type:
    """A copy of ``component`` whose ``method`` says something else: ``old, new, old, new ...``."""
    source = textwrap.dedent(inspect.getsource(getattr(component, method)))
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert source.count(old) == 1, f"{component.__name__}.{method}: {source.count(old)} x {old}"
        source = source.replace(old, new)
    scope = dict(inspect.getmodule(component).__dict__)
    exec(source, scope)
    function: Callable = scope[method]
    return type(f"Broken{component.__name__}", (component,), {method: function})
