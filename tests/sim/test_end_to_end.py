# SPDX-License-Identifier: Apache-2.0
"""Layers through the whole small chip, in both simulators, equal to ONNX Runtime."""

import pytest

from sim.execute import Options, run

LAYERS = ("tiny.conv3x3", "tiny.conv1x1", "tiny.matmul", "tiny.depthwise", "tiny.strided")
POLICIES = ("demand", "double_buffer", "run_ahead", "next_layer", "oracle")


@pytest.mark.rtl
@pytest.mark.parametrize("workload", LAYERS)
def test_layer(workload, simulator):
    result = run(workload, chip="small", options=Options(simulator=simulator, seed=3))
    assert result["verified"]["outputs"] > 0
    assert result["verified"]["mismatches"] == 0


@pytest.mark.rtl
def test_policies_move_the_same_bytes():
    results = {
        policy: run("tiny.conv3x3", chip="small", settings=[f"prefetch.policy={policy}"])
        for policy in POLICIES
    }
    assert len({result["bytes"]["hbm_read"] for result in results.values()}) == 1
    assert results["run_ahead"]["cycles"] <= results["demand"]["cycles"]


@pytest.mark.rtl
def test_multicast_reads_less():
    settings = ["mesh.multicast=false"]
    unicast = run("tiny.conv3x3", chip="small", settings=settings)
    multicast = run("tiny.conv3x3", chip="small")
    assert multicast["bytes"]["hbm_read"] < unicast["bytes"]["hbm_read"]


@pytest.mark.rtl
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_initial_state_does_not_show(seed):
    result = run("tiny.conv3x3", chip="small", options=Options(seed=seed))
    assert result["verified"]["mismatches"] == 0
