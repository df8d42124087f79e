# SPDX-License-Identifier: Apache-2.0
"""The trained `digits` network: held-out accuracy on the RTL chip, image by image."""

import pytest

from sim import run


@pytest.mark.rtl
def test_the_chip_classifies_as_onnxruntime_does():
    found = run("digits", chip="small")
    assert found["verified"]["mismatches"] == 0
    task = found["task"]
    assert task["samples"] == task["same_predictions"] == 360
    assert task["correct"] == task["golden_correct"] >= 350
    assert found["verified"]["qdq"]["mismatches"] <= 36  # 1% of the logits, by a step
    assert list(found["verified"]["host"]) == ["QuantizeLinear image", "DequantizeLinear logits"]
