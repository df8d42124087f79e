# SPDX-License-Identifier: Apache-2.0
"""From components to Verilog: readable, hierarchical, one module per macro and part."""

import gc
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from amaranth.back import rtlil
from amaranth.lib import wiring

from hdl.counter import PREFIX
from hdl.macro import MacroLibrary

PASSES = (
    # Enables and resets as part of the flip-flop: a simulator then skips the logic in front of a
    # register that does not load, and reset is no input of every next-state function. Verilator
    # runs a pipeline of arithmetic in a third of the time. Without opt_clean first, opt_dff sees
    # every wire in use and leaves most registers as they are.
    "proc -norom", "opt_expr", "opt_clean", "opt_dff", "pmuxtree", "opt_clean",
    "memory_collect", "wreduce t:$mul t:$add t:$sub",
    # A net that many drive in parts costs Icarus a resolution of all its bits per part and change:
    # a chip runs two to five times as fast without, and Verilator sees no false loops.
    "splitnets -driver",
)
_YOSYS = (
    "import sys; from pyosys import libyosys as ys; d = ys.Design(); "
    "[ys.run_pass(p, d) for p in sys.argv[1:]]"
)


class GenerationError(Exception):
    """Yosys refused the design: a fault of ours, never of the user's input."""


@dataclass
class Design:
    """Generated Verilog: ``files`` by name, ``counters`` of each module, ``children`` by module.

    Of the top module also ``connections``, what each port of each instance of a macro is connected
    to (a net or a constant, as RTLIL writes it), and ``logic_nets``, the nets that anything else
    touches: ports and the top's own logic.
    """

    top: str
    files: dict[str, str] = field(default_factory=dict)
    counters: dict[str, list[str]] = field(default_factory=dict)
    children: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    macros: list[str] = field(default_factory=list)
    connections: dict[str, dict[str, str]] = field(default_factory=dict)
    logic_nets: list[str] = field(default_factory=list)

    def macros_below(self, module: str) -> set[str]:
        """Macros instantiated anywhere in ``module``."""
        below = {child for _, child in self.children.get(module, ())}
        return (below & set(self.macros)).union(*map(self.macros_below, below))

    def counter_paths(self) -> dict[str, str]:
        """Dotted counter name to its path below the top module (also dotted)."""
        paths: dict[str, str] = {}

        def walk(module: str, path: tuple[str, ...]) -> None:
            for name in self.counters.get(module, ()):
                paths[".".join([*path, name.removeprefix(PREFIX)])] = ".".join([*path, name])
            for instance, child in self.children.get(module, ()):
                walk(child, (*path, instance))

        walk(self.top, ())
        return paths


def _without_zero_init(text: str) -> str:
    """Drop `$meminit_v2` cells of all-zero data: SRAM is not initialised."""
    cell = re.compile(r"^  cell \$meminit_v2 .*?^  end\n", re.M | re.S)

    def keep(match: re.Match[str]) -> str:
        value = re.search(r"connect \\DATA (\S+)", match[0])
        zero = value and re.fullmatch(r"(\d+'[0]+|0)", value[1])
        return "" if zero else match[0]

    return cell.sub(keep, text)


def _without_fields(text: str) -> str:
    """Drop the wires that only name the fields of structures: two thirds of all wires."""
    field = r"\\[^\s.\[]*[.\[]\S*"
    return re.sub(
        rf"(?:^  attribute .*\n)*^  wire .*{field}\n|^connect {field} .*\n", "", text, flags=re.M
    )


def _plain_names(text: str) -> str:
    """Module names without dots or quotes (`tile.scratchpad` becomes `tile_scratchpad`)."""

    def plain(match: re.Match[str]) -> str:
        return match[1] + re.sub(r"[^A-Za-z0-9_\\]", "_", match[2]) + match[3]

    text = re.sub(r"^(module )(\\\S+)(.*)$", plain, text, flags=re.M)
    return re.sub(r"^(  cell )(\\\S+)( .*)$", plain, text, flags=re.M)


def _scan(text: str, design: Design) -> None:
    """Record counters and hierarchy of the RTLIL ``text``."""
    module = ""
    lines = rf"^module \\(\S+)|^  wire .*\\({PREFIX}\w+)$|^  cell \\(\S+) \\(\S+)"
    for match in re.finditer(lines, text, re.M):
        name, counter, kind, instance = match.groups()
        if name:
            module = name
            design.counters[module] = []
            design.children[module] = []
        elif counter:
            design.counters[module].append(counter)
        else:
            design.children[module].append((instance, kind))


def _scan_top(text: str, design: Design) -> None:
    """Record how the macros in the top module's RTLIL ``text`` are connected."""
    text = text[text.index(f"module \\{design.top}\n"):]
    inside: dict[str, str] | None = None
    nets: set[str] = set()
    aliases: list[tuple[set[str], set[str]]] = []

    def names(expression: str) -> set[str]:
        return set(re.findall(r"(?:(?<=\\)|(?=\$))(\S+)", expression))

    for line in text.splitlines():
        if match := re.match(r"  cell (\S+) \\?(\S+)", line):
            macro = match[1].removeprefix("\\")
            inside = design.connections.setdefault(match[2], {}) if macro in design.macros else None
        elif line == "  end":
            inside = None
        elif match := re.match(r"  wire .*\b(?:input|output) .*\\(\S+)$", line):
            nets.add(match[1])
        elif match := re.match(r"connect (\{.*?\}|\S+) (.*)", line):
            aliases.append((names(match[1]), names(match[2])))
        elif match := re.match(r"    connect \\(\S+) (.*)", line):
            if inside is not None:
                inside[match[1]] = match[2].removeprefix("\\")
            else:
                nets |= names(match[2])
        elif line.startswith("    "):
            nets |= names(line)
    before = -1
    while len(nets) != before:
        before = len(nets)
        for left, right in aliases:
            if left & nets:
                nets |= right
    design.logic_nets = sorted(nets)


def _wake_constants(text: str) -> str:
    """Let `always @*` processes that only assign a constant run at time 0.

    A signal of which one part is a process and another a constant gets such processes; nothing
    they read ever changes, so an event-driven simulator would leave that part X. Yosys's own
    wake-up register, which its other processes read, does the same for them.
    """

    def wake(module: re.Match[str]) -> str:
        register = re.search(r"^  reg (\\\$auto\$verilog_backend\S+) +=", module[0], re.M)
        if not register:
            return module[0]
        return re.sub(
            r"^  always @\*\n    ([^;]+ = \d+'[hbd][0-9a-f]+;)$",
            lambda found: f"  always @* begin\n    if ({register[1]} ) begin end\n"
                          f"    {found[1]}\n  end",
            module[0], flags=re.M,
        )

    return re.sub(r"^module .*?^endmodule", wake, text, flags=re.M | re.S)


class _Yosys:
    """Yosys processes working in one folder, each of its own: an error there ends the process."""

    def __init__(self) -> None:
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def __enter__(self) -> "_Yosys":
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name)
        return self

    def __exit__(self, *error: object) -> None:
        for process, _ in self._running:
            process.kill()
            process.wait()
        self._folder.cleanup()

    def start(self, commands: list[str]) -> None:
        """Run passes in the background."""
        log = self.path / f"{len(self._running)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", _YOSYS, *commands],
                cwd=self.path, stdout=out, stderr=subprocess.STDOUT,
            )
        self._running.append((process, log))

    def finish(self) -> None:
        """Wait for all that was started."""
        for process, log in self._running:
            if process.wait():
                raise GenerationError(f"Yosys: {log.read_text(errors='replace')[-2000:]}")


def _convert(yosys: _Yosys, name: str, text: str, assertions: bool) -> None:
    """Start turning module ``name``'s RTLIL ``text`` into ``name``.v."""
    (yosys.path / f"{name}.il").write_text(text)
    strip = [] if assertions else ["chformal -remove", "delete t:$print"]
    yosys.start([f"read_rtlil {name}.il", *PASSES, *strip,
                 f"write_verilog -norename -noattr {name}.v"])


def _verilog_of(yosys: _Yosys, name: str) -> str:
    text = (yosys.path / f"{name}.v").read_text()
    return _wake_constants(text.split("*/\n", 1)[1].lstrip())  # Yosys names itself first


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: Amaranth makes millions of objects and drops none until the end, so
    that looking for some to collect takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def feedthrough(design: Design, macro: str) -> list[str]:
    """Outputs of ``macro`` that depend combinationally on one of its inputs.

    A chip's macros have none: their borders are registers, which a floor plan needs and
    `sim.lockstep` relies on. Plain Verilog sources count as combinational from end to end.
    """
    whole = design.macros_below(macro) | {macro}
    with _Yosys() as yosys:
        commands = []
        for name, text in design.files.items():
            module = name.removesuffix(".v")
            if module in whole:
                commands += [f"read_verilog {name}"]
            elif module not in design.macros and module != design.top:
                text = re.sub(r"\);.*", ");\nendmodule\n", text, count=1, flags=re.S)
                commands += [f"read_verilog -lib {name}"]
            else:
                continue
            (yosys.path / name).write_text(text)
        yosys.start([*commands, f"hierarchy -top {macro}", "proc", "flatten", "opt_clean",
                     "tee -q -o found select -list i:* %coe* o:* %i"])
        yosys.finish()
        return sorted(line.split("/", 1)[1]
                      for line in (yosys.path / "found").read_text().splitlines() if "/" in line)


def generate(
    component: wiring.Component,
    name: str,
    *,
    assertions: bool = False,
    twins: bool = True,
    fields: bool = True,
) -> Design:
    """Verilog-2005 of ``component`` as module ``name`` and of every macro below it.

    Parameters
    ----------
    assertions: Keep Amaranth's assertions as SystemVerilog asserts (Verilator builds only).
    twins: Let parts take the form that simulates fastest, see `MacroLibrary`.
    fields: Name the fields of structures, for waves.
    """
    library = MacroLibrary(twins=twins)
    texts: dict[str, str] = {}
    pending = {name: lambda: component}
    with _Yosys() as yosys:
        while pending:
            for macro, factory in pending.items():
                with _uncollected():
                    raw = rtlil.convert(factory(), name=macro, platform=library, emit_src=False)
                text = _plain_names(_without_zero_init(raw))
                texts[macro] = text if fields else _without_fields(text)
                _convert(yosys, macro, texts[macro], assertions)
            pending = {k: v for k, v in library.factories.items() if k not in texts}
        design = Design(top=name, macros=[key for key in texts if key != name])
        for text in texts.values():
            _scan(text, design)
        _scan_top(texts[name], design)
        yosys.finish()
        design.files = {f"{macro}.v": _verilog_of(yosys, macro) for macro in texts}
    design.files |= {f"{key}.v": source for key, source in library.sources.items()}
    return design
