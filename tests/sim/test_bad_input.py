# SPDX-License-Identifier: Apache-2.0
"""Everything a user can get wrong: exit code 2, one line, before anything is built or written."""

import os

import numpy as np
import pytest
from onnx import helper

from sim import designs, doctor, execute, runner
from sim.cli import main
from tests.emu import network_models as models


def _convolution(**changes):
    return models.conv_model(np.random.default_rng(1), **changes)


def _absolute():
    node = helper.make_node("Abs", ["x"], ["y"], "absolute")
    return models.model([node], {"x": ("s8", (1, 8, 4, 4))}, {"y": ("s8", (1, 8, 4, 4))}, {})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder of wrong files; whatever builds or generates fails the test."""

    def built(*args, **kwargs):
        raise AssertionError("bad input must be found before a build")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "build", built)
    monkeypatch.setattr(designs, "generate", built)
    monkeypatch.setattr("hdl.product.generate", built)
    for name, text in {
        "unknown.toml": "[mesh]\nrows = 2\ncolumns = 2\n",
        "section.toml": "[cache]\nkib = 64\n",
        "type.toml": '[mesh]\nrows = "2"\n',
        "three.toml": "[hbm]\nchannels = 3\n",
        "edge.toml": "[mesh]\nrows = 1\ncols = 1\n",
        "base.toml": "base = [1]\n",
        "text.toml": "mesh.rows equals 2\n",
        "empty.onnx": "",
        "text.onnx": "not a model",
    }.items():
        (tmp_path / name).write_text(text)
    good = _convolution()
    (tmp_path / "good.onnx").write_bytes(good)
    (tmp_path / "cut.onnx").write_bytes(good[: len(good) // 2])
    (tmp_path / "abs.onnx").write_bytes(_absolute())
    (tmp_path / "types.onnx").write_bytes(_convolution(x=("n", 8, 7, 6)))
    (tmp_path / "wide.onnx").write_bytes(_convolution(x=(1, 16, 40, 40), kernel=(40, 40)))
    (tmp_path / "tall.onnx").write_bytes(_convolution(x=(1, 8, 80, 6), kernel=(70, 1)))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    image = np.zeros((1, 8, 7, 6), np.int8)
    np.savez("good.npz", x=image)
    np.savez("key.npz", z=image)
    np.savez("more.npz", x=image, z=image)
    np.savez("shape.npz", x=image[:, :4])
    np.savez("dtype.npz", x=image.astype(np.int32))
    np.savez("objects.npz", x=np.array([None]))
    np.save("array.npz", image)
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    data = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[:100])
    (tmp_path / "folder").mkdir()
    return tmp_path


TINY = ["run", "tiny.conv3x3", "--chip", "small"]
GOOD = ["run", "good.onnx", "--chip", "small", "--input"]
WAVES = [*TINY, "--waves", "w.vcd"]
CASES = [
    # workloads
    (["run", "no.such.layer"], "no.such.layer: not a built-in workload"),
    (["run", "missing.onnx"], "missing.onnx: not a built-in workload"),
    (["run", "folder"], "folder: not a built-in workload"),
    (["run", "empty.onnx"], "empty.onnx: not an ONNX file"),
    (["run", "text.onnx"], "text.onnx: not an ONNX file"),
    (["run", "cut.onnx"], "cut.onnx: not"),
    (["run", "abs.onnx"], "abs.onnx: unsupported nodes: Abs absolute"),
    (["run", "types.onnx"], "types.onnx: input x has a dynamic shape"),
    # machines
    ([*TINY, "--chip", "huge"], "chip 'huge': not a preset (base, small, wafer)"),
    ([*TINY, "--chip", "folder"], "chip 'folder': not a preset"),
    ([*TINY, "--chip", "unknown.toml"], "unknown.toml: mesh.columns: no such setting"),
    ([*TINY, "--chip", "section.toml"], "section.toml: cache: no such setting"),
    ([*TINY, "--chip", "type.toml"], "type.toml: mesh.rows: Input should be a valid integer"),
    ([*TINY, "--chip", "three.toml"], "hbm.channels must be a power of two, not 3"),
    ([*TINY, "--chip", "edge.toml"], "hbm.channels must be at most twice mesh.cols"),
    ([*TINY, "--chip", "base.toml"], "base.toml: base = [1] is not a preset"),
    ([*TINY, "--chip", "text.toml"], "text.toml: not valid TOML"),
    ([*TINY, "--chip", "binary.toml"], "binary.toml: not valid TOML"),
    ([*TINY, "--set", "mesh.rows=99"],
     "small with --set: mesh.rows: Input should be less than or equal to 16, not 99"),
    ([*TINY, "--set", "mesh.rows"], "--set mesh.rows: write it as section.name=value"),
    ([*TINY, "--set", "mesh.rowz=2"], "mesh.rowz: no such setting"),
    ([*TINY, "--set", "scratchpad.kib=7"], "scratchpad.kib must be a power of two"),
    ([*TINY, "--set", "prefetch.policy=psychic"], "'psychic': not one of demand, double_buffer"),
    # too large
    (["run", "gpt2.decode_ffn", "--chip", "small", "--set", "hbm.mib=1"],
     " MiB too many: raise hbm.mib or hbm.channels"),
    (["run", "wide.onnx", "--chip", "small", "--set", "scratchpad.kib=16"],
     "does not fit the scratchpad of 1024 words: one output pixel needs at least "),
    (["run", "tall.onnx", "--chip", "small"], "kernel 70 exceeds the limit of 63"),
    # inputs
    ([*GOOD, "missing.npz"], "missing.npz: cannot be read: No such file"),
    ([*GOOD, "folder"], "folder: cannot be read: Is a directory"),
    ([*GOOD, "text.onnx"], "text.onnx: not an .npz file"),
    ([*GOOD, "array.npz"], "array.npz: not an .npz file"),
    ([*GOOD, "objects.npz"], "objects.npz: not an .npz file of plain arrays"),
    ([*GOOD, "cut.npz"], "cut.npz: not an .npz file"),
    ([*GOOD, "key.npz"], "key.npz: x is missing; z is no input (x)"),
    ([*GOOD, "more.npz"], "more.npz: z is no input (x)"),
    ([*GOOD, "shape.npz"], "x is int8[1, 4, 7, 6], int8[1, 8, 7, 6] expected"),
    ([*GOOD, "dtype.npz"], "x is int32[1, 8, 7, 6], int8[1, 8, 7, 6] expected"),
    # outputs
    ([*TINY, "--output", "/nowhere/out.npz"], "cannot write /nowhere/out.npz: folder /nowhere"),
    ([*TINY, "--output", "folder"], "cannot write 'folder': it is a folder"),
    ([*TINY, "--json", "/nowhere/out.json"], "cannot write /nowhere/out.json: folder /nowhere"),
    ([*TINY, "--json", ""], "cannot write '': it is a folder"),
    (["verilog", "-o", "/nowhere/out"], "cannot write /nowhere/out"),
    (["verilog", "-o", "text.onnx"], "cannot write text.onnx: it is a file"),
    # waves
    ([*TINY, "--waves", "x.txt"], "the name must end in .vcd or .fst"),
    ([*TINY, "--waves", "/nowhere/w.vcd"], "cannot write /nowhere/w.vcd"),
    ([*TINY, "--wave-tile", "0,0"], "--wave-tile and --wave-cycles need --waves FILE"),
    ([*TINY, "--wave-cycles", "1:2"], "--wave-tile and --wave-cycles need --waves FILE"),
    ([*WAVES, "--wave-tile", "0"], "--wave-tile 0: write it as X,Y"),
    ([*WAVES, "--wave-tile", "a,b"], "--wave-tile a,b: write it as X,Y"),
    ([*WAVES, "--wave-tile", "0,2"], "--wave-tile 0,2: the last tile of this chip is 1,1"),
    ([*WAVES, "--wave-cycles", "9"], "--wave-cycles 9: write it as A:B"),
    ([*WAVES, "--wave-cycles", "9:x"], "--wave-cycles 9:x: write it as A:B"),
    ([*WAVES, "--wave-cycles", "9:9"], "--wave-cycles 9:9: A must be less than B"),
    ([*WAVES, "--sim", "icarus", "--wave-tile", "0,0"], "Icarus records the whole chip"),
    ([*TINY, "--sim", "icarus", "--waves", "w.fst"], "use --sim verilator"),
    # numbers
    ([*TINY, "--seed", "-1"], "seed -1: must not be negative"),
    ([*TINY, "--cycle-limit", "0"], "cycle limit 0: must be at least 1"),
    # compare
    (["compare", "tiny.conv3x3", "--vary", "prefetch.policy"], "section.name=value,value"),
    (["compare", *TINY[1:], "--vary", "prefetch.depth=1,64"], "prefetch.depth: Input should be"),
    (["compare", *TINY[1:], "--vary", "prefetch.policy=demand,psychic"], "'psychic': not one of"),
]


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=lambda value: " ".join(value)[-60:]
                         if isinstance(value, list) else "")
def test_bad_input(folder, arguments, message, capsys):
    before = sorted(folder.iterdir())
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("headrace: ") and error.count("\n") == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["run"], ["run", "x", "--sim", "modelsim"], ["run", "x", "--seed", "one"],
     ["run", "x", "--cycle-limit"], ["compare", "x"]],
)
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("simulator", "tools", "packages"),
    [
        ("icarus", ["iverilog", "vvp"], "iverilog"),
        ("verilator", ["g++"], "g++"),
        ("verilator", ["make", "perl"], "make and perl"),
    ],
)
def test_missing_tools(folder, monkeypatch, simulator, tools, packages, capsys):
    monkeypatch.setattr(
        doctor.shutil, "which", lambda name, *more: None if name in tools else f"/bin/{name}"
    )
    assert main([*TINY, "--sim", simulator]) == 2
    assert capsys.readouterr().err == (
        f"headrace: simulator {simulator} needs the distribution's {packages}: install first, then "
        "see headrace doctor\n"
    )


def test_missing_shared_library(folder, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_libpython", lambda: False)
    assert main(TINY) == 2
    assert "needs the distribution's libpython3: install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cache", "message"),
    [("/proc/nowhere", "cannot keep builds in /proc/nowhere"), ("a b", "make refuses spaces"),
     ("text.onnx", "cannot keep builds in text.onnx: File exists")],
)
def test_cache_folder(folder, monkeypatch, cache, message, capsys):
    monkeypatch.setenv("HEADRACE_CACHE", cache)
    assert main(TINY) == 2
    error = capsys.readouterr().err
    assert message in error and "set HEADRACE_CACHE" in error and error.count("\n") == 1


@pytest.mark.parametrize("option", ["--output", "--json", "--waves"])
def test_folder_without_permission(folder, monkeypatch, option, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert main([*TINY, option, "folder/file.vcd"]) == 2
    assert "not writable" in capsys.readouterr().err


def test_a_full_disk_is_one_line(monkeypatch, folder, capsys):
    def full(config):
        raise OSError(28, "No space left on device", "/cache/x")

    monkeypatch.setattr(execute, "design_of", full)
    assert main(TINY) == 2
    assert capsys.readouterr().err == "headrace: /cache/x: No space left on device\n"
