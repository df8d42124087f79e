# SPDX-License-Identifier: Apache-2.0
"""The sentence embedder: tokens, files, and how far its integers are from the float model."""

import json

import numpy as np
import pytest

from emu.errors import UserError
from emu.minilm import model as minilm
from emu.minilm.network import Scale, build, calibrate, compare_pairs, pairs
from emu.minilm.sentences import CALIBRATION, LONG, PAIRS
from emu.minilm.tokens import Tokenizer
from emu.network.exact import exact

VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", "un", "##able", "##a", "the", "cafe", "!", "'", "s", "中"]


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({
        "model": {"type": "WordPiece", "vocab": {v: k for k, v in enumerate(VOCABULARY)}},
        "normalizer": {"lowercase": True},
    }))
    return Tokenizer.load(path, 8)


@pytest.mark.parametrize(("text", "pieces"), [
    ("Unable", "un ##able"), ("the Café!", "the cafe !"), ("una\tTHE's", "un ##a the ' s"),
    ("the中the", "the 中 the"), ("unx\u0000 the", "[UNK] the"), ("un" * 60, "[UNK]"), ("", ""),
    ("the the the the the the the the", "the the the the the the"),
])
def test_tokens(tokenizer, text, pieces):
    names = [VOCABULARY[number] for number in tokenizer(text)]
    assert names == ["[CLS]", *pieces.split(), "[SEP]"]


def test_bad_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    for text in ("", "{}", '{"model": {"type": "BPE", "vocab": {}}, "normalizer": '
                 '{"lowercase": true}}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"tokenizer.json: (not a|an uncased)"):
            Tokenizer.load(path, 8)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="not a safetensors file"):
        minilm.read_safetensors(path)


def test_package_missing(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r'no-such-package: pip install "headrace\[minilm\]"'):
        minilm.load_minilm()


def test_scale():
    scale = Scale.of(-0.5, 2.05)
    assert scale.zero == -78 and scale.quantise(np.array([-9, 0, 0.1, 9])).tolist() == [
        -128, -78, -68, 127]
    np.testing.assert_allclose(scale.real(np.array([-78, -68])), [0, 0.1], atol=1e-7)


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip(minilm.PACKAGE)
    return minilm.load_minilm()


def test_texts(trained):
    assert len(trained.tokenizer(LONG)) == minilm.LONGEST
    assert not {text for pair in PAIRS for text in pair} & {*CALIBRATION, LONG}
    assert trained.tokenizer("It's a test.") == [101, 2009, 1005, 1055, 1037, 3231, 1012, 102]
    near, far = (trained.embed(text) for text in PAIRS[0])
    assert near @ far > 0.7 > 0.2 > near @ trained.embed(CALIBRATION[2])


def test_cosines(trained):
    """In exact integers, as the chip computes them."""
    network = pairs("minilm.pairs", 0)
    ours, theirs = compare_pairs(exact(network, network.given)["mean"])
    assert len(ours) == len(PAIRS) == 20
    assert np.abs(ours - theirs).mean() < 0.02


def test_one_sentence_is_what_it_is_among_others(trained):
    scales = calibrate(trained, CALIBRATION[:3])
    first, second = (trained.tokenizer(text) for text in PAIRS[1])
    alone = build(trained, scales, [second])
    both = build(trained, scales, [first, second])
    np.testing.assert_array_equal(
        exact(alone, alone.given)["mean"][..., 0], exact(both, both.given)["mean"][..., 1])
