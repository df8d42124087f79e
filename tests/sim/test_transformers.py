# SPDX-License-Identifier: Apache-2.0
"""Transformers on the RTL chip: outputs equal their integer definition, caches grow in HBM."""

import pytest

from sim.execute import Options, run


@pytest.mark.rtl
@pytest.mark.parametrize("workload", ["tiny.transformer", "tiny.decode:3", "tiny.dlrm", "tiny.moe"])
def test_tiny(workload):
    result = run(workload, chip="small", options=Options(seed=2))
    assert result["verified"]["mismatches"] == 0 < result["verified"]["outputs"]
    assert result["verified"]["conditions"] == ["integer_definition"]
    for layer in result["layers"]:
        assert 0 < layer["hbm_utilisation"] < 1.5


@pytest.mark.slow
@pytest.mark.rtl
def test_gpt2():
    """A token through all of GPT-2's blocks; weights alone are 663,552 cycles of HBM."""
    result = run("gpt2_small.decode")
    assert result["verified"]["mismatches"] == 0
    products = [layer for layer in result["layers"] if layer["name"].endswith(("ffn1", "ffn2"))]
    assert len(products) == 24
    assert result["hbm_utilisation"] > 0.75
