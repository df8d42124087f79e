# SPDX-License-Identifier: Apache-2.0
"""Built-in networks that were trained: models, held-out samples, the task's score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.layers import Network

DATA = Path(__file__).parent / "data"


def digits(name: str, seed: int) -> Any:
    """The QDQ model that `tools/train_digits.py` wrote; the seed plays no part."""
    import onnx

    return onnx.load(DATA / "digits.onnx")


def samples(workload: str, network: Network) -> dict[str, NDArray] | None:
    """The held-out inputs of a trained workload, quantised; None if it has none of its own."""
    if workload != "digits":
        return None
    with np.load(DATA / "digits.npz") as archive:
        image = archive["image"].astype(np.float32) / 16
    return {"image": network.boundary.quantise("image", image)}


def score(workload: str, outputs: Mapping[str, NDArray]) -> dict[str, Any] | None:
    """How many held-out samples ``outputs`` get right; None if the workload has none.

    ``predictions`` are the classes, sample by sample.
    """
    if workload == "digits":
        found = outputs["logits"].argmax(1)
    elif workload == "digits_moe":  # (1, 10, 1, tokens) a step, in their order
        found = np.concatenate([each.argmax(1).reshape(-1) for each in outputs.values()])
    else:
        return None
    with np.load(DATA / "digits.npz") as archive:
        labels = archive["label"]
    right = int(np.count_nonzero(found == labels))
    return {"samples": len(labels), "correct": right, "accuracy": right / len(labels),
            "predictions": found.tolist()}


__all__ = ["digits", "samples", "score"]
