# SPDX-License-Identifier: Apache-2.0
"""Transformers on the RTL chip: outputs equal their integer definition, caches grow in HBM."""

import numpy as np
import onnx
import pytest

from emu.network.quantise import Options as Quantiser
from emu.network.quantise import quantise
from sim.execute import Options, run
from tests.emu.float_models import samples, transformer


@pytest.mark.rtl
@pytest.mark.parametrize("workload", ["tiny.transformer", "tiny.decode:3", "tiny.dlrm", "tiny.moe"])
def test_tiny(workload):
    result = run(workload, chip="small", options=Options(seed=2))
    assert result["verified"]["mismatches"] == 0 < result["verified"]["outputs"]
    assert result["verified"]["conditions"] == ["integer_definition"]
    for layer in result["layers"]:
        assert 0 < layer["hbm_utilisation"] < 1.5


@pytest.mark.rtl
def test_pinned_weights():
    """Loaded once, used by four steps; equal outputs, a third of HBM's bytes less."""
    streamed, pinned = (
        run("tiny.decode:4", chip="small", settings=[f"scratchpad.pinned_kib={kib}"])
        for kib in (0, 64)
    )
    assert pinned["verified"]["mismatches"] == 0 < pinned["verified"]["outputs"]
    assert pinned["bytes"]["hbm_read"] < 0.67 * streamed["bytes"]["hbm_read"]


@pytest.mark.rtl
def test_a_float_model(tmp_path):
    """A transformer as exporters write it: quantised, imported, run; distances are measured."""
    pytest.importorskip("onnxruntime.quantization")
    onnx.save(transformer(), tmp_path / "float.onnx")
    np.savez(tmp_path / "samples.npz", **samples())
    onnx.save(quantise(tmp_path / "float.onnx", tmp_path / "samples.npz", Quantiser()),
              tmp_path / "q.onnx")
    verified = run(str(tmp_path / "q.onnx"), chip="small")["verified"]
    assert verified["mismatches"] == 0 < verified["outputs"]
    assert verified["conditions"] == ["own_operators"]
    assert verified["qdq"]["largest_steps"] <= 8
    assert verified["distances"]["layer normalisation"]["largest_steps"] < 0.51
    assert [name.split()[0] for name in verified["host"]] == ["DequantizeLinear"]


@pytest.mark.slow
@pytest.mark.rtl
def test_gpt2():
    """A token through all of GPT-2's blocks; weights alone are 663,552 cycles of HBM."""
    result = run("gpt2_small.decode")
    assert result["verified"]["mismatches"] == 0
    products = [layer for layer in result["layers"] if layer["name"].endswith(("ffn1", "ffn2"))]
    assert len(products) == 24
    assert result["hbm_utilisation"] > 0.75
