# SPDX-License-Identifier: Apache-2.0
"""Machines that are no preset: other meshes, one channel, little memory, by TOML and by --set."""

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.config import load_config
from emu.network.workloads import load_network
from sim.execute import Options, run
from tests.emu import network_models as models

TINY = ("tiny.conv3x3", "tiny.conv1x1", "tiny.matmul", "tiny.depthwise", "tiny.strided",
        "tiny.chain")
ODD = """\
[mesh]
rows = 3
cols = 5

[hbm]
channels = 1
mib = 8

[scratchpad]
kib = 64
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A chip by TOML: 3x5 tiles with 64 KiB each behind one channel."""
    path = tmp_path_factory.mktemp("chip") / "odd.toml"
    path.write_text(ODD)
    return str(path)


@pytest.mark.rtl
@pytest.mark.parametrize("workload", [
    *TINY, pytest.param("resnet50.res4_3x3", marks=pytest.mark.slow)])
def test_three_by_five_tiles_and_one_channel(odd, workload):
    result = run(workload, chip=odd, options=Options(seed=2))
    assert result["chip"]["name"] == "odd" and result["chip"]["mesh"]["cols"] == 5
    assert result["verified"]["outputs"] > 0 and result["verified"]["mismatches"] == 0


@pytest.mark.rtl
def test_inputs_too_large_for_a_scratchpad_even_for_one_pixel(odd, tmp_path):
    """Then input groups are cut too, and loaded again for every output group."""
    path = tmp_path / "m.onnx"
    path.write_bytes(models.conv_model(
        np.random.default_rng(1), x=(1, 660, 7, 100), outputs=24, kernel=(7, 7)))
    program = compile_network(load_network(path), load_config(odd), check=False)
    assert any("part" in plan for plan in program.plans), program.plans
    verified = run(str(path), chip=odd)["verified"]
    assert verified["outputs"] == 94 * 24 and verified["mismatches"] == 0


@pytest.mark.rtl
@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
@pytest.mark.parametrize("workload", TINY)
def test_one_tile_with_64_kib(simulator, workload):
    settings = ("mesh.rows=1", "mesh.cols=1", "hbm.channels=1", "scratchpad.kib=64")
    result = run(workload, chip="small", settings=settings, options=Options(simulator=simulator))
    assert result["verified"]["outputs"] > 0 and result["verified"]["mismatches"] == 0


MACHINES = {
    "one tile": ("mesh.rows=1", "mesh.cols=1", "hbm.channels=1"),
    "one tile between two channels": ("mesh.rows=1", "mesh.cols=1"),
    "a row": ("mesh.rows=1", "mesh.cols=5", "hbm.channels=4", "mesh.arbiter=age"),
    "a column": ("mesh.rows=5", "mesh.cols=1", "hbm.refresh=none", "mesh.multicast=false"),
    "as little as there can be": (
        "scratchpad.kib=16", "scratchpad.banks=2", "core.accumulator_rows=16",
        "core.queue_depth=1", "mesh.buffer_depth=2", "hbm.read_queue=8", "hbm.write_queue=8",
        "prefetch.outstanding=16"),
    "everything else": (
        "core.packed_cells=false", "core.requantise_lanes=16", "hbm.timing=hbm2_b",
        "hbm.address_map=M1", "hbm.refresh=all_bank", "hbm.scheduler=fr_fcfs_cap",
        "hbm.page_policy=timeout", "storage.enabled=true", "scratchpad.banks=16",
        "mesh.buffer_depth=16"),
}


@pytest.mark.slow
@pytest.mark.rtl
@pytest.mark.parametrize("name", MACHINES)
def test_machine(name):
    for workload in (*TINY, "gpt2.decode_qkv"):
        result = run(workload, chip="small", settings=MACHINES[name], options=Options(seed=3))
        assert result["verified"]["mismatches"] == 0
