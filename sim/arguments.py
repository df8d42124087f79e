# SPDX-License-Identifier: Apache-2.0
"""The command line's grammar: each command's arguments. `sim.cli` says what they do."""

import argparse
import os

from emu.config import PRESETS

ERROR_EXIT = 2


class OneLineParser(argparse.ArgumentParser):
    """Errors as one line."""

    def error(self, message: str):
        self.exit(ERROR_EXIT, f"headrace: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = OneLineParser(prog="headrace",
                           description="The command line: ``headrace COMMAND``. Each command is "
                           "also a Python function.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", parser_class=OneLineParser, metavar="COMMAND")
    for name, text, add in (
        ("verilog", "write the chip's Verilog and manifest", _verilog),
        ("run", "run a workload on the RTL chip", _run),
        ("compare", "one table over several settings", _compare),
        ("dram", "play a memory trace on one HBM pseudo-channel", _dram),
        ("experiment", "studies of the memory ideas on the RTL chip", _experiment),
        ("quantize", "make a QDQ model of a float one", _quantise),
        ("plan", "how a network's tensors share memory", _plan),
        ("mesh", "load-latency curve of the mesh alone", _mesh),
        ("list", "workloads, chips and policies", _add_load),
        ("doctor", "what is installed and works", lambda parser: None),
    ):
        add(commands.add_parser(name, help=text))
    return parser


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chip", default="base", metavar="C",
                        help=f"preset ({', '.join(PRESETS)}) or TOML file (default: base)")
    parser.add_argument("--set", action="append", default=[], dest="settings",
                        metavar="SECTION.NAME=VALUE", help="change one setting; may be repeated")
    _add_load(parser)


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--load", action="append", default=[], metavar="F.py",
                        help="run a Python file first that registers prefetch policies")


def _add_settings(parser: argparse.ArgumentParser, section: str) -> None:
    parser.add_argument("--set", action="append", default=[], dest="settings",
                        metavar=f"{section}.NAME=VALUE",
                        help="change one setting; may be repeated")


def _add_simulator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sim", default="verilator", choices=("verilator", "icarus"))


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="F", help="write the result here (- for the terminal)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workload", help="built-in name (see headrace list) or .onnx file")
    _add_machine(parser)
    _add_simulator(parser)
    parser.add_argument("--seed", type=int, default=1, help="seeds inputs and the simulator")
    parser.add_argument("--input", metavar="F.npz", help="inputs by graph input name")
    parser.add_argument("--cycle-limit", type=int, metavar="N",
                        help="stop after N cycles (default: from the workload)")
    _add_json(parser)


def _verilog(parser: argparse.ArgumentParser) -> None:
    _add_machine(parser)
    parser.add_argument("-o", "--output", default="out", metavar="DIR")
    parser.add_argument("--testbench", action="store_true",
                        help="add tb.v, a small image and the command lines that end in PASS")


def _run(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--output", metavar="F.npz", help="keep what the chip computed")
    parser.add_argument("--chart", metavar="F.html", help="write a page of the layers")
    parser.add_argument("--waves", metavar="F", help="record waveforms: .vcd, or .fst")
    parser.add_argument("--wave-tile", metavar="X,Y", help="record one tile only")
    parser.add_argument("--wave-cycles", metavar="A:B", help="record from cycle A to cycle B")


def _compare(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--vary", action="append", required=True, metavar="NAME=A,B,...",
                        help="setting and its values, baseline first; may be repeated")


def _dram(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", help="file of '<cycle> <hex byte address> <R|W>' lines (or .gz)")
    parser.add_argument("--window", type=int, default=32, metavar="N",
                        help="64-byte reads under way at most (default: 32)")
    _add_settings(parser, "hbm")
    parser.add_argument("--commands", metavar="F", help="write the DRAM commands here")
    parser.add_argument("--latencies", metavar="F", help="write the latency of each read here")
    parser.add_argument("--masked", type=int, default=0, metavar="N",
                        help="give every N-th write a byte mask (default: none)")
    _add_simulator(parser)
    _add_json(parser)


def _experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")
    parser.add_argument("--quick", action="store_true", help="a short version on the small chip")
    parser.add_argument("--json", metavar="F", help="write the results here (- for the terminal)")
    parser.add_argument("--chart", metavar="F.html", help="write a page of bars")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), metavar="N",
                        help="rows made at a time (default: %(default)s, 1 a core, 4 at most)")


def _quantise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="float .onnx file")
    parser.add_argument("--calibrate", required=True, metavar="F.npz",
                        help="samples by input name, along the first axis")
    parser.add_argument("-o", "--output", required=True, metavar="Q.onnx")
    parser.add_argument("--observer", default="min_max", metavar="O",
                        help="min_max (default) or percentile")
    parser.add_argument("--percentile", type=float, default=99.99, metavar="P",
                        help="of values kept, for the percentile observer (default: 99.99)")
    parser.add_argument("--int4", default="", metavar="NODE,...",
                        help="nodes whose weights get 4 bits, or all")


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workload", help="built-in name (see headrace list) or .onnx file")
    _add_machine(parser)
    parser.add_argument("--strategy", default="greedy_by_size", metavar="S",
                        help="whose offsets to show: none, first_fit, best_fit, power_of_two, "
                        "greedy_by_size (default) or exact")
    parser.add_argument("--picture", metavar="F.html", help="write offset against time as a page")
    _add_json(parser)


def _mesh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traffic", required=True, metavar="T",
                        help="uniform, transpose, neighbor, exchange, hotspot:x,y, broadcast:x,y, "
                        "scatter:x,y or trace:FILE of '<cycle> <src> <dst> <flits>' lines")
    parser.add_argument("--size", default="4x4", metavar="COLSxROWS", help="nodes (default: 4x4)")
    _add_settings(parser, "mesh")
    parser.add_argument("--multicast", type=float, default=0.0, metavar="P",
                        help="chance that a packet goes to a random rectangle (default: 0)")
    parser.add_argument("--soak", type=int, default=0, metavar="N",
                        help="N cycles at full load instead of a curve")
    parser.add_argument("--seed", type=int, default=1, help="of the generators")
    parser.add_argument("--plot", metavar="F.html",
                        help="write the curve as a page, with BookSim's figures beside it where "
                        "there are some")
    _add_simulator(parser)
    _add_json(parser)
