# SPDX-License-Identifier: Apache-2.0
"""Built-in workloads: whole networks and single layers by shape, tiny ones for tests, and files by
path.

Weights are random but seeded by the workload's name; the shapes are those of the networks.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from emu.errors import UserError
from emu.minilm.model import PACKAGE
from emu.minilm.network import long_sentence, pairs
from emu.network.builder import Conv, Gemm, build_model
from emu.network.experts import moe_block
from emu.network.golden import session
from emu.network.importer import import_onnx
from emu.network.layers import Network
from emu.network.mixture import digits_moe
from emu.network.recommender import dlrm
from emu.network.segments import has_own
from emu.network.trained import digits
from emu.network.transformers import decoder, encoder
from emu.network.zoo import mobilenetv2, resnet, tiny_residual

MAX_STEPS = 64


@dataclass(frozen=True)
class Workload:
    """A built-in workload: ``build(name, seed)`` makes its model, or the network itself.

    steps: It takes ``steps=N``, from a name that ends in ``:N``.
    package: The Python package that it needs, if any.
    """

    name: str
    description: str
    macs: int
    weight_bytes: int
    build: Callable[..., Any]
    steps: bool = False
    package: str = ""


def _square(inputs: int, outputs: int, size: int, kernel: int = 1, **more) -> Conv:
    """A square convolution with padding that keeps the size (at stride 1)."""
    pad = (kernel - 1) // 2
    return Conv(
        inputs=inputs,
        outputs=outputs,
        size=(size, size),
        kernel=(kernel, kernel),
        pads=(pad,) * 4,
        **more,
    )


_LIST: tuple[tuple[str, str, Conv | Gemm | tuple[Conv | Gemm, ...]], ...] = (
    (
        "resnet50.conv1",
        "7x7 stride 2, 224x224, 3 to 64 channels, ReLU",
        _square(3, 64, 224, 7, stride=2, relu=True),
    ),
    ("resnet50.res2_1x1", "1x1, 56x56, 64 to 256 channels", _square(64, 256, 56)),
    ("resnet50.res2_3x3", "3x3, 56x56, 64 channels, ReLU", _square(64, 64, 56, 3, relu=True)),
    ("resnet50.res3_3x3", "3x3, 28x28, 128 channels, ReLU", _square(128, 128, 28, 3, relu=True)),
    (
        "resnet50.res4_1x1",
        "1x1, 14x14, 1024 to 256 channels, ReLU",
        _square(1024, 256, 14, relu=True),
    ),
    ("resnet50.res4_3x3", "3x3, 14x14, 256 channels, ReLU", _square(256, 256, 14, 3, relu=True)),
    ("resnet50.res5_3x3", "3x3, 7x7, 512 channels, ReLU", _square(512, 512, 7, 3, relu=True)),
    ("resnet50.fc", "classifier, 2048 to 1000, batch 1", Gemm(rows=1, inputs=2048, outputs=1000)),
    (
        "mobilenetv2.expand",
        "1x1, 56x56, 24 to 144 channels, ReLU6",
        _square(24, 144, 56, relu=True, ceiling=100),
    ),
    (
        "mobilenetv2.depthwise",
        "3x3 depthwise, 56x56, 144 channels, ReLU6",
        _square(144, 144, 56, 3, groups=144, relu=True, ceiling=100),
    ),
    (
        "bert_base.projection",
        "attention projection, 128 tokens, 768 to 768",
        Gemm(rows=128, inputs=768, outputs=768),
    ),
    (
        "bert_base.ffn1",
        "first feed-forward matrix, 128 tokens, 768 to 3072",
        Gemm(rows=128, inputs=768, outputs=3072),
    ),
    (
        "gpt2.decode_qkv",
        "one token through the attention inputs, 768 to 2304",
        Gemm(rows=1, inputs=768, outputs=2304),
    ),
    (
        "gpt2.decode_ffn",
        "one token through a feed-forward matrix, 768 to 3072",
        Gemm(rows=1, inputs=768, outputs=3072),
    ),
    (
        "dlrm.top",
        "largest top matrix, batch 128, 3456 to 1024, ReLU",
        Gemm(rows=128, inputs=3456, outputs=1024, relu=True),
    ),
    (
        "tiny.conv3x3",
        "test: 3x3, 10x10, 32 to 48 channels, ReLU",
        _square(32, 48, 10, 3, relu=True),
    ),
    (
        "tiny.conv1x1",
        "test: 1x1, 6x7, 48 to 40 channels, uint8 x uint8",
        Conv(inputs=48, outputs=40, size=(6, 7), activation="u8", weight="u8"),
    ),
    ("tiny.matmul", "test: 2 x 4 rows, 72 to 50", Gemm(rows=8, inputs=72, outputs=50, lead=2)),
    (
        "tiny.depthwise",
        "test: 3x3 depthwise, 9x9, 20 channels, ReLU",
        _square(20, 20, 9, 3, groups=20, relu=True),
    ),
    (
        "tiny.strided",
        "test: 5x3 stride 2, uneven padding, 13x11, 24 to 16 channels",
        Conv(inputs=24, outputs=16, size=(13, 11), kernel=(5, 3), stride=2, pads=(2, 0, 1, 1)),
    ),
    (
        "tiny.chain",
        "test: 3x3, strided 1x1 and a classifier in a row",
        (
            _square(16, 24, 8, 3, relu=True),
            _square(24, 32, 8, stride=2),
            Gemm(rows=1, inputs=512, outputs=20),
        ),
    ),
    (
        "tiny.inverted",
        "test: an inverted residual block, 28x28, 16 to 96, 3x3 depthwise stride 2, 96 to 24",
        (
            _square(16, 96, 28, relu=True),
            _square(96, 96, 28, 3, stride=2, groups=96, relu=True),
            _square(96, 24, 14),
        ),
    ),
)
_NETWORKS = (
    Workload(
        "resnet50", "whole, v1.5, 224x224, 1000 classes", 4_089_184_256, 25_502_912,
        partial(resnet, blocks=(3, 4, 6, 3)),
    ),
    Workload(
        "resnet152", "whole, v1.5, 224x224, 1000 classes", 11_513_626_624, 60_040_384,
        partial(resnet, blocks=(3, 8, 36, 3)),
    ),
    Workload(
        "mobilenetv2", "whole, 224x224, 1000 classes, ReLU6", 300_774_272, 3_469_760, mobilenetv2
    ),
    Workload(
        "digits", "trained CNN, 360 held-out 8x8 digits at once", 215_884_800, 23_824, digits,
    ),
    Workload(
        "tiny.residual", "test: 32x32, three bottlenecks between two pools, a classifier",
        760_128, 7_344, tiny_residual,
    ),
    Workload(
        "gpt2_small.decode",
        "one token (:N: N tokens) through 12 blocks, 768 wide, 12 heads, 128 tokens cached",
        87_312_384, 84_934_656,
        partial(decoder, layers=12, width=768, heads=12, cached=128), steps=True,
    ),
    Workload(
        "minilm", "the trained sentence embedder of extra [minilm], a text of 128 tokens",
        2_340_421_632, 29_464_320, long_sentence, package=PACKAGE,
    ),
    Workload(
        "minilm.pairs", "the same, 20 pairs of sentences side by side",
        6_901_000_704, 29_464_320, pairs, package=PACKAGE,
    ),
    Workload(
        "dlrm", "8 samples: bottom MLP, 26 bags of 214 embeddings in all, top MLP",
        43_309_056, 8_741_632,
        partial(dlrm, batch=8),
    ),
    Workload(
        "moe_block", "one token through a block of 8 experts of 768 x 3072, the top 2 of them",
        9_467_904, 37_779_456,
        partial(moe_block, experts=8, width=768, inner=3072),
    ),
    Workload(
        "digits_moe", "trained mixture of 3 x 8 experts, 360 held-out 8x8 digits, 90 at a time",
        14_400_000, 307_456, partial(digits_moe, tokens=90, steps=4),
    ),
    Workload(
        "tiny.moe", "test: one token, the top 2 of 5 experts of 48 x 80",
        17_136, 40_176,
        partial(moe_block, experts=5, width=48, inner=80),
    ),
    Workload(
        "tiny.dlrm", "test: 3 samples, 3 bags, MLPs of 32", 10_464, 5_888,
        partial(dlrm, batch=3, lookups=(2, 1, 70), rows=50, bottom=(32, 16), top=(32, 16)),
    ),
    Workload(
        "tiny.transformer", "test: 20 tokens through 2 blocks, 64 wide, 4 heads",
        2_068_480, 98_304, partial(encoder, layers=2, width=64, heads=4, tokens=20),
    ),
    Workload(
        "tiny.decode", "test: one token (:N: N tokens) through 2 blocks, 64 wide, 13 tokens cached",
        101_888, 98_304, partial(decoder, layers=2, width=64, heads=4, cached=13), steps=True,
    ),
)


def _layers(name: str, text: str, parts: Conv | Gemm | tuple[Conv | Gemm, ...]) -> Workload:
    chain = parts if isinstance(parts, tuple) else (parts,)
    return Workload(
        name, text, sum(part.macs for part in chain), sum(part.weight_bytes for part in chain),
        lambda label, seed: build_model(label, chain, seed),
    )


WORKLOADS = {
    item.name: item for item in (*_NETWORKS, *(_layers(*entry) for entry in _LIST))
}


def list_workloads() -> tuple[Workload, ...]:
    """All built-in workloads; none is built."""
    return tuple(WORKLOADS.values())


def _steps(workload: Workload, count: str) -> dict[str, int]:
    """The number behind a workload's name."""
    if not workload.steps:
        raise UserError(f"{workload.name}:{count}: {workload.name} takes no number of steps")
    if not count:
        return {"steps": 1}
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_STEPS):
        raise UserError(
            f"{workload.name}:{count}: a number of steps from 1 to {MAX_STEPS} expected"
        )
    return {"steps": int(count)}


def load_network(name_or_path: str | Path) -> Network:
    """The network of a built-in workload or of an ONNX file, which ONNX Runtime accepts.

    Raises
    ------
    UserError
        If there is neither such a workload nor such a file, or the file is refused.
    """
    name, colon, count = str(name_or_path).partition(":")
    workload = WORKLOADS.get(name)
    if workload is not None:
        options = _steps(workload, count) if colon or workload.steps else {}
        model = workload.build(workload.name, zlib.crc32(workload.name.encode()), **options)
        if isinstance(model, Network):
            return model
        return import_onnx(model.SerializeToString(), workload.name)
    path = Path(name_or_path)
    if not path.is_file():
        near = sorted(n for n in WORKLOADS if n.split(".")[0] == str(name_or_path).split(".")[0])
        raise UserError(
            f"{name_or_path}: not a built-in workload ({', '.join(near) or 'see headrace list'}) "
            "and not an ONNX file"
        )
    network = import_onnx(path)
    if not has_own(network.model):
        session(network)
    return network


__all__ = ["WORKLOADS", "Workload", "list_workloads", "load_network"]
