# SPDX-License-Identifier: Apache-2.0
"""Waveforms: VCD or FST, of the whole chip or one scope, between two times.

Verilator ignores ``$dumpvars`` scopes and ``$dumpoff``, so the window is built into the simulation
main that cocotb ships, by three substitutions in a copy; Icarus gets a small dump module.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import cocotb_tools.config

from emu.errors import UserError

FOREVER = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Waves:
    """What to record: ``path`` (.vcd or .fst), dotted ``scope`` below the top, times in ps."""

    path: str
    scope: str = ""
    start: int = 0
    end: int = FOREVER

    @property
    def format(self) -> str:
        return Path(self.path).suffix.removeprefix(".")

    def check(self, simulator: str) -> None:
        """Refuse what cannot be recorded here, before anything is built."""
        folder = Path(self.path).resolve().parent
        if not folder.is_dir():
            raise UserError(f"cannot write {self.path}: no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise UserError(f"cannot write {self.path}: folder {folder} is not writable")
        if self.format not in ("vcd", "fst"):
            raise UserError(f"--waves {self.path}: the name must end in .vcd or .fst")
        if self.format == "fst" and simulator == "verilator":
            missing = [
                package for header, package in (("lz4.h", "liblz4-dev"), ("zlib.h", "zlib1g-dev"))
                if not Path("/usr/include", header).exists()
            ]
            if missing:
                raise UserError(f"--waves {self.path}: FST needs {' and '.join(missing)}: install "
                                "them, or use .vcd")
        if self.format == "fst" and simulator == "icarus":
            raise UserError(f"--waves {self.path}: Icarus records .vcd here; use --sim verilator")

    def environment(self) -> dict[str, str]:
        return {"HEADRACE_WAVE_SCOPE": self.scope, "HEADRACE_WAVE_START": str(self.start),
                "HEADRACE_WAVE_END": str(self.end)}


def verilator_main(folder: Path) -> Path:
    """cocotb's simulation main with the recording window, written into ``folder``."""
    text = Path(cocotb_tools.config.share_dir, "lib", "verilator", "verilator.cpp").read_text()
    changes = (
        ("#include <memory>", "#include <cstdlib>\n#include <memory>"),
        (
            "        top->trace(tfp, 99);\n",
            "        top->trace(tfp, 99);\n"
            '        if (const char *scope = std::getenv("HEADRACE_WAVE_SCOPE"))\n'
            "            if (*scope) tfp->dumpvars(99, scope);\n",
        ),
        (
            "        if (tfp) {\n            tfp->dump(main_time);",
            '        static const char *t0 = std::getenv("HEADRACE_WAVE_START");\n'
            '        static const char *t1 = std::getenv("HEADRACE_WAVE_END");\n'
            "        static const vluint64_t wave_start =\n"
            "            t0 ? std::strtoull(t0, nullptr, 10) : 0;\n"
            "        static const vluint64_t wave_end =\n"
            "            t1 ? std::strtoull(t1, nullptr, 10) : ~0ULL;\n"
            "        if (tfp && main_time >= wave_start && main_time <= wave_end) {\n"
            "            tfp->dump(main_time);",
        ),
    )
    for old, new in changes:
        if text.count(old) != 1:
            raise RuntimeError("cocotb's verilator.cpp has changed: see sim/waves.py")
        text = text.replace(old, new)
    path = folder / "headrace_main.cpp"
    path.write_text(text)
    return path


def icarus_module(top: str) -> str:
    """A module that records what its plusargs say (scope is fixed: Icarus needs it at compile)."""
    return f"""module headrace_waves();
  reg [8*1024-1:0] path;
  reg [63:0] start, stop;
  initial if ($value$plusargs("wave_file=%s", path)) begin
    $dumpfile(path);
    $dumpvars(0, {top});
    if ($value$plusargs("wave_start=%d", start) && start > 0) begin
      $dumpoff;
      #(start) $dumpon;
    end else start = 0;
    if ($value$plusargs("wave_end=%d", stop)) begin
      #(stop - start) $dumpoff;
    end
  end
endmodule
"""
