# SPDX-License-Identifier: Apache-2.0
"""Verilog as a product: a folder of files that is usable without us."""

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from amaranth.hdl import Shape

from emu.config import Config
from emu.errors import UserError
from hdl.chip import TOP, Chip
from hdl.verilog import Design, generate

TESTBENCH_WORKLOAD = "tiny.conv3x3"
FILE_LIST = "files.f"

_TESTBENCH = """// SPDX-License-Identifier: Apache-2.0
// Streams {workload} through the chip and compares its memory with what it must hold.
`timescale 1ns/1ps
module tb;
  reg clk = 0, rst = 1, start = 0, dump = 0;
  wire done, error;
  {top} dut (.clk(clk), .rst(rst), .start(start), .dump(dump), .done(done), .error(error),
    .prefetch__policy(3'd{policy}), .prefetch__depth(6'd{depth}),
    .prefetch__threshold(8'd{threshold}){unused});
  reg [8*512-1:0] name;
  reg [7:0] got [0:{size}-1];
  reg [7:0] want [0:{size}-1];
  integer channel, file, n, i, wrong;
  integer cycle = -5;  // from the first with start high

  always #1 clk = ~clk;

  always @(posedge clk) begin
    cycle <= cycle + 1;
    if (cycle == -2) rst <= 0;
    if (cycle == -1) start <= 1;
    if (cycle >= 0 && !dump) begin
      if (done === 1'b1) begin
        $display("done after %0d cycles", cycle);
        dump <= 1;
      end else if (error === 1'b1 || cycle == {limit}) begin
        if (error === 1'b1) $display("FAIL: error after %0d cycles", cycle);
        else $display("FAIL: not done after %0d cycles", cycle);
        $finish;
      end
    end
  end

  always @(posedge dump) begin
    repeat (3) @(posedge clk);
    wrong = 0;
    for (channel = 0; channel < {channels}; channel = channel + 1) begin
      $sformat(name, "dump/channel_%0d.bin", channel);
      file = $fopen(name, "rb");
      if (file != 0) begin n = $fread(got, file); $fclose(file); end
      if (file == 0 || n != {size}) wrong = wrong + 1;
      $sformat(name, "expected/channel_%0d.bin", channel);
      file = $fopen(name, "rb");
      if (file != 0) begin n = $fread(want, file); $fclose(file); end
      if (file == 0 || n != {size}) wrong = wrong + 1;
      for (i = 0; i < {size}; i = i + 1) if (got[i] !== want[i]) wrong = wrong + 1;
    end
    if (wrong == 0) $display("PASS");
    else $display("FAIL: %0d bytes differ", wrong);
    $finish;
  end
endmodule
"""
_ARGUMENTS = "+images=images +dump=dump +dump_words={words}"
_SCRIPTS = {
    # Delays need C++20, which not every installation of Verilator asks its compiler for. Code that
    # is not optimised compiles in a third of the time and is fast enough here.
    "verilator.sh": (
        "verilator --binary --timing -j 2 -CFLAGS '-std=c++20 -O0' --timescale 1ns/1ps \\\n"
        "  waivers.vlt -f {files} tb.v --top-module tb -Mdir obj_tb\n"
        "./obj_tb/Vtb {arguments}\n"
    ),
    "icarus.sh": "iverilog -g2005 -s tb -o tb.vvp -f {files} tb.v\nvvp -n tb.vvp {arguments}\n",
}
"""The command lines that end in PASS."""


def _ports(config: Config) -> list[dict[str, Any]]:
    """Name, direction and width of each port of the chip but its clock and reset."""
    chip = Chip(config)
    chip._MustUse__silence = True  # made for its ports only
    return [
        {"name": "__".join(map(str, path)), "direction": member.flow.name.lower(),
         "width": Shape.cast(value.shape()).width}
        for path, member, value in chip.signature.flatten(chip)
    ]


def _unused_ports(config: Config) -> str:
    """Connections of the ports that the testbench has no use for."""
    used = {"start", "dump", "done", "error"}
    return "".join(
        # Pagers are told of no constants in storage: `last` is 0 too.
        f",\n    .{port['name']}({port['width']}'d0)" if port["direction"] == "in"
        else f",\n    .{port['name']}()"
        for port in _ports(config)
        if port["name"] not in used and not port["name"].startswith("prefetch__")
    )


def manifest(config: Config, design: Design) -> dict[str, Any]:
    """Ports, counters with their paths, parameters and versions of a generated chip."""
    return {
        "schema": 1,
        "top": design.top,
        "ports": [{"name": "clk", "direction": "in", "width": 1},
                  {"name": "rst", "direction": "in", "width": 1}, *_ports(config)],
        "counters": design.counter_paths(),
        "parameters": config.model_dump(),
        "files": sorted(design.files),
        "versions": {name: version(name) for name in ("headrace", "amaranth", "pyosys")},
    }


def _testbench(config: Config, folder: Path) -> None:
    """Add tb.v, images, the expected memory and the two command lines."""
    from emu.compiler import compile_network
    from emu.compiler.images import to_channels
    from emu.interpreter import Interpreter
    from emu.network.golden import random_inputs
    from emu.network.workloads import load_network
    from hdl.prefetch.registry import policy_number

    network = load_network(TESTBENCH_WORKLOAD)
    program = compile_network(network, config)
    inputs = random_inputs(network, 1)
    final = Interpreter(config, program.global_image(inputs)).run()
    for name in ("images", "expected"):
        (folder / name).mkdir()
    program.write_images(program.image(inputs), folder / "images")
    for channel, words in enumerate(to_channels(config, final)):
        words.tofile(folder / "expected" / f"channel_{channel}.bin")  # as the array dumps them
    (folder / "tb.v").write_text(_TESTBENCH.format(
        workload=TESTBENCH_WORKLOAD, top=TOP, policy=policy_number(config.prefetch.policy),
        depth=config.prefetch.depth, threshold=config.prefetch.threshold,
        unused=_unused_ports(config), size=program.dump_words * 16, limit=program.cycle_limit,
        channels=config.hbm.channels,
    ))
    arguments = _ARGUMENTS.format(words=program.dump_words)
    for name, text in _SCRIPTS.items():
        path = folder / name
        lines = text.format(files=FILE_LIST, arguments=arguments)
        path.write_text(f"#!/bin/sh\nset -e\nmkdir -p dump\n{lines}")
        path.chmod(0o755)


def write_product(config: Config, folder: Path, *, testbench: bool = False) -> list[str]:
    """Write the chip of ``config`` into ``folder``: Verilog, file list, manifest, lint waivers.

    Everything is written beside the folder first and moved in when complete. Returns the names.

    Raises
    ------
    UserError: If the folder cannot be written.
    """
    parent = folder.resolve().parent
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write {folder}: it is a file")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {folder}: {parent} is missing or not writable")
    design = generate(Chip(config), TOP, twins=False, fields=False)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    try:
        for name, text in design.files.items():
            (work / name).write_text(text)
        (work / FILE_LIST).write_text("".join(f"{name}\n" for name in sorted(design.files)))
        (work / "manifest.json").write_text(json.dumps(manifest(config, design), indent=1) + "\n")
        waivers = package_files("hdl").joinpath("waivers.vlt").read_text()
        (work / "waivers.vlt").write_text(waivers)
        if testbench:
            _testbench(config, work)
        names = sorted(path.name for path in work.iterdir())
        folder.mkdir(exist_ok=True)
        for name in names:
            target = folder / name
            if target.is_dir():
                shutil.rmtree(target)
            (work / name).replace(target)
        return names
    finally:
        shutil.rmtree(work, ignore_errors=True)
