# SPDX-License-Identifier: Apache-2.0
"""Simulate a chip of many equal macros fast: each macro is compiled once and stepped in lockstep.

Verilator flattens a design and orders all of its logic at once. Sixteen tiles then become sixteen
different pieces of machine code, tens of megabytes that no instruction cache holds. Here every
macro below the top (tile, HBM channel) is a Verilator model of its own, compiled once, and each
instance is an object of that model. The top module and its logic stay Verilog; in it a macro is a
shell that steps its object:

- at the rising clock edge the shell gives its object the chip-wide inputs (reset, start, ...) and
  evaluates it, then passes on the outputs that the top's own logic reads;
- at the falling edge it copies what the objects of other macros drive into its object's inputs.

Nothing is sampled while anything changes, so the order of the shells does not matter. This is exact
as long as no output of a macro depends combinationally on one of its inputs, which
`hdl.verilog.feedthrough` checks for each macro. It is what Verilator's own hierarchical mode does,
with one evaluation a cycle instead of one per changed input.

Counters of an object are read through its shell: `sample` fills the array ``counters``.
"""

import re
from dataclasses import dataclass

from hdl.verilog import Design

SAMPLE = "sample"
"""Register of a shell whose rising edge fills its array ``counters``."""


@dataclass(frozen=True)
class Port:
    """A port of a macro: ``output`` or input, ``width`` in bits."""

    name: str
    output: bool
    width: int

    @property
    def member(self) -> str:
        """Its name in the C++ of Verilator, which escapes double underscores."""
        return mangled(self.name)

    @property
    def wide(self) -> bool:
        return self.width > 64

    @property
    def c_type(self) -> str:
        if self.wide:
            return "svBitVecVal*"
        return "unsigned long long" if self.width > 32 else "unsigned int"

    @property
    def dpi_type(self) -> str:
        if self.wide:
            return f"bit [{self.width - 1}:0]"
        return "longint unsigned" if self.width > 32 else "int unsigned"


def mangled(name: str) -> str:
    """``name`` as Verilator writes it in C++."""
    name = re.sub(r"__", "___05F", name)
    return re.sub(r"[^A-Za-z0-9_]", lambda found: f"__0{ord(found[0]):02x}", name)


def usable(design: Design) -> bool:
    """Whether ``design`` has macros to step."""
    return bool(_instances(design))


def macros(design: Design) -> list[str]:
    """Macros right below the top, each once."""
    return sorted(set(_instances(design).values()))


def pieces(design: Design) -> dict[str, str]:
    """File name to text of what stands for the macros in a build of the top: shells and glue."""
    wiring = wiring_of(design)
    shells = {f"{name}.sv": shell(design, name, wiring.shared[name]) for name in macros(design)}
    return {**shells, "headrace_lockstep.cpp": glue(design)}


def control(design: Design, text: str) -> str:
    """Verilator's configuration ``text`` without the modules inside of macros."""
    gone = {module for module in design.counters if module not in (design.top, *macros(design))}
    return "".join(
        line for line in text.splitlines(keepends=True)
        if not (match := re.search(r'-module "([^"]+)"', line)) or (
            match[1] not in gone and not (match[1] in macros(design) and "-var" in line))
    )


def counter_paths(design: Design) -> dict[str, str]:
    """Dotted counter name to where a bench reads it: an index into the shell's array.

    The counters of the top's own logic keep their plain paths.
    """
    instances, paths = _instances(design), {}
    order = {macro: _counters(design, macro) for macro in set(instances.values())}
    for name, path in design.counter_paths().items():
        instance, _, rest = path.partition(".")
        if instance in instances:
            index = order[instances[instance]].index(rest)
            path = f"{instance}.counters[{index}]"
        paths[name] = path
    return paths


def _instances(design: Design) -> dict[str, str]:
    """Instance name to macro, of the macros right below the top."""
    return {name: kind for name, kind in design.children[design.top] if kind in design.macros}


def _counters(design: Design, macro: str) -> list[str]:
    """Paths below ``macro`` of its counters, in the order of the shell's array."""
    return list(Design(macro, {}, design.counters, design.children).counter_paths().values())


def ports_of(design: Design, macro: str) -> list[Port]:
    """Ports of ``macro``, clock left out."""
    text = design.files[f"{macro}.v"]
    text = text[text.index(f"module {macro}("):]
    text = text[: text.index("endmodule")]
    found = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?\\?(\S+) ?;", text, re.M)
    return [
        Port(name, way == "output", int(high or 0) + 1)
        for way, high, name in found if name != "clk"
    ]


@dataclass
class Wiring:
    """How the macros of a design are connected.

    ``copies``: (instance, input) to the (instance, output) that drives it, where nothing of the
    top's logic lies between. ``constants``: (instance, input) to its value. ``shared``: ports by
    macro that the shell has to carry, for some instance at least.
    """

    copies: dict[tuple[str, str], tuple[str, str]]
    constants: dict[tuple[str, str], int]
    shared: dict[str, list[Port]]


def wiring_of(design: Design) -> Wiring:
    instances = _instances(design)
    ports = {macro: ports_of(design, macro) for macro in set(instances.values())}
    nets: dict[tuple[str, str], str] = {}
    drivers: dict[str, tuple[str, str]] = {}
    for instance, macro in instances.items():
        for port in ports[macro]:
            expression = design.connections[instance].get(port.name, "")
            net = re.sub(r" \[\d+(:0)?\]$", "", expression)
            nets[instance, port.name] = net
            if port.output and net:
                drivers[net] = (instance, port.name)
    wiring = Wiring({}, {}, {macro: [] for macro in ports})
    for instance, macro in instances.items():
        for port in ports[macro]:
            key, net = (instance, port.name), nets[instance, port.name]
            constant = re.fullmatch(r"\d+'([01]+)", net)
            if not port.output and constant:
                wiring.constants[key] = int(constant[1], 2)
            elif not port.output and net in drivers and net not in design.logic_nets:
                wiring.copies[key] = drivers[net]
            elif port not in wiring.shared[macro] and (
                not port.output or net in design.logic_nets
            ):
                wiring.shared[macro].append(port)
    return wiring


def shell(design: Design, macro: str, shared: list[Port]) -> str:
    """SystemVerilog module that stands for ``macro`` in the top."""
    ports = ports_of(design, macro)
    names = ", ".join(["clk", *(f"\\{port.name} " for port in ports)])
    lines = [f"module {macro}({names});", "  input clk;"]
    outputs = [port for port in shared if port.output]
    for port in ports:
        way = ("output reg" if port in outputs else "output") if port.output else "input"
        lines.append(f"  {way} [{port.width - 1}:0] \\{port.name} ;")
    arguments = ", ".join(
        f"{'output' if p.output else 'input'} {p.dpi_type} p{i}" for i, p in enumerate(shared)
    )
    actual = ", ".join(
        f"next{i}" if p.output else f"\\{p.name} " for i, p in enumerate(shared)
    )
    counters = len(_counters(design, macro))
    lines += [
        f'  import "DPI-C" function chandle {macro}_make(input string name);',
        f'  import "DPI-C" function void {macro}_step(input chandle handle, {arguments});',
        f'  import "DPI-C" function void {macro}_exchange(input chandle handle);',
        f'  import "DPI-C" function int {macro}_counter(input chandle handle, input int index);',
        "  chandle handle;",
        f"  reg {SAMPLE} /*verilator public_flat_rw*/;",
        f"  reg [31:0] counters [0:{max(counters - 1, 0)}] /*verilator public_flat_rd*/;",
        "  integer i;",
        *(f"  {p.dpi_type} next{i};" for i, p in enumerate(shared) if p.output),
        f'  initial begin {SAMPLE} = 0; handle = {macro}_make($sformatf("%m")); end',
        "  always @(posedge clk) begin",
        f"    {macro}_step(handle, {actual});",
        *(f"    \\{p.name} <= next{i}{'' if p.wide else f'[{p.width - 1}:0]'};"
          for i, p in enumerate(shared) if p.output),
        "  end",
        f"  always @(negedge clk) {macro}_exchange(handle);",
        f"  always @(posedge {SAMPLE})",
        f"    for (i = 0; i < {counters}; i = i + 1) counters[i] = {macro}_counter(handle, i);",
        "endmodule",
    ]
    return "\n".join(lines) + "\n"


def glue(design: Design) -> str:
    """C++ behind the shells: the objects, their connections and their counters."""
    instances, wiring = _instances(design), wiring_of(design)
    kinds = macros(design)
    lines = [
        "// Objects of the macros, stepped by their shells; generated.",
        "#include <cstdio>", "#include <cstdlib>", "#include <cstring>", "#include <string>",
        '#include "svdpi.h"', '#include "verilated.h"',
        *(f'#include "V{macro}.h"\n#include "V{macro}___024root.h"' for macro in kinds),
        "namespace {",
        *(f"V{macro}* {name} = nullptr;" for name, macro in instances.items()),
        "template <class T> struct Object { T* model; void (*exchange)(); unsigned number; };",
    ]
    ports = {macro: {p.name: p for p in ports_of(design, macro)} for macro in kinds}
    for instance, macro in instances.items():
        copies = [(p, wiring.copies[instance, p]) for p in ports[macro]
                  if (instance, p) in wiring.copies]
        lines += [
            f"void exchange_{instance}() {{",
            *(f"    {instance}->{mangled(p)} = {source}->{mangled(output)};"
              for p, (source, output) in copies),
            "}",
        ]
    lines.append("}  // namespace\n")
    for macro in kinds:
        lines += _functions(design, wiring, macro)
    return "\n".join(lines) + "\n"


def _functions(design: Design, wiring: Wiring, macro: str) -> list[str]:
    """The four functions that the shell of ``macro`` imports."""
    members = [name for name, kind in _instances(design).items() if kind == macro]
    ports = {port.name: port for port in ports_of(design, macro)}
    shared = wiring.shared[macro]
    lines = [
        # The inside of the model's eval(), whose outside takes a lock and a thread-local: a tenth
        # of the time at two calls a cycle and instance.
        f"void V{macro}___024root___eval(V{macro}___024root*);",
        f'extern "C" void* {macro}_make(const char* path) {{',
        "    std::string name(path);",
        "    name = name.substr(name.rfind('.') + 1);",
        f"    auto* object = new Object<V{macro}>();",
        f"    object->model = new V{macro}(Verilated::threadContextp(), name.c_str());",
        "    object->model->clk = 0;",
    ]
    for number, instance in enumerate(members):
        lines += [
            f'    if (name == "{instance}") {{',
            f"        {instance} = object->model;",
            f"        object->exchange = exchange_{instance};",
            f"        object->number = {number};",
        ]
        for port in ports.values():
            value = wiring.constants.get((instance, port.name))
            if value is None:
                continue
            if port.wide:
                if value:
                    raise ValueError(f"{macro}.{port.name}: constant wider than 64 bits")
                lines.append(f"        VL_ZERO_W({port.width}, {instance}->{port.member});")
            else:
                lines.append(f"        {instance}->{port.member} = {value}ULL;")
        lines += ["        object->model->eval();", "        return object;", "    }"]
    lines += [
        '    std::fprintf(stderr, "unknown instance %s\\n", path);', "    std::abort();", "}",
        f'extern "C" void {macro}_step(void* handle, '
        + ", ".join(f"{'const ' if p.wide and not p.output else ''}{p.c_type}"
                    f"{'*' if p.output and not p.wide else ''} p{i}"
                    for i, p in enumerate(shared)) + ") {",
        f"    auto& object = *static_cast<Object<V{macro}>*>(handle);",
        "    auto& model = *object.model;",
    ]
    for i, port in enumerate(shared):
        if port.output:
            continue
        own = [n for n, instance in enumerate(members)
               if (instance, port.name) not in wiring.copies
               and (instance, port.name) not in wiring.constants]
        size = 4 * -(-port.width // 32)
        assign = (f"std::memcpy(&model.{port.member}, p{i}, {size});" if port.wide
                  else f"model.{port.member} = p{i};")
        if len(own) < len(members):
            assign = f"if ({' || '.join(f'object.number == {n}' for n in own)}) {assign}"
        lines.append(f"    {assign}")
    lines += ["    model.clk = 1;", f"    V{macro}___024root___eval(model.rootp);"]
    for i, port in enumerate(shared):
        if port.output:
            size = 4 * -(-port.width // 32)
            lines.append(f"    std::memcpy(p{i}, &model.{port.member}, {size});" if port.wide
                         else f"    *p{i} = model.{port.member};")
    root = f"object.model->rootp->{mangled(macro)}__DOT__"
    lines += [
        "}",
        f'extern "C" void {macro}_exchange(void* handle) {{',
        f"    auto& object = *static_cast<Object<V{macro}>*>(handle);",
        "    object.exchange();",
        "    object.model->clk = 0;",
        f"    V{macro}___024root___eval(object.model->rootp);",
        "}",
        f'extern "C" int {macro}_counter(void* handle, int index) {{',
        f"    auto& object = *static_cast<Object<V{macro}>*>(handle);",
        "    switch (index) {",
        *(f"    case {i}: return {root}{'__DOT__'.join(mangled(part) for part in path.split('.'))};"
          for i, path in enumerate(_counters(design, macro))),
        "    }",
        "    return 0;",
        "}",
    ]
    return lines
