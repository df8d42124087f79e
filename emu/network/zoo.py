# SPDX-License-Identifier: Apache-2.0
"""Whole networks by their published layer tables, with seeded weights; batch 1.

ResNets are those of He et al. (2015) with the stride of a bottleneck in its 3x3 convolution
("v1.5"); MobileNetV2 is that of Sandler et al. (2018) at width 1. Batch normalisation is folded
away.
"""

from typing import Any

from emu.network.composer import Composer, Value


def _bottleneck(net: Composer, name: str, x: Value, width: int, stride: int) -> Value:
    """1x1, 3x3, 1x1 to four times the width, beside an identity or a projection."""
    shortcut = x
    y = net.conv(f"{name}.a", x, width, rectified=True)
    y = net.conv(f"{name}.b", y, width, 3, stride=stride, rectified=True)
    y = net.conv(f"{name}.c", y, 4 * width)
    if stride > 1 or x.channels != 4 * width:
        shortcut = net.conv(f"{name}.shortcut", x, 4 * width, stride=stride)
    return net.add(f"{name}.add", y, shortcut, rectified=True)


def resnet(name: str, seed: int, *, blocks: tuple[int, int, int, int]) -> Any:
    """A ResNet of bottlenecks for 224x224 images and 1000 classes."""
    net = Composer(name, seed, (1, 3, 224, 224))
    x = net.conv("conv1", net.x, 64, 7, stride=2, rectified=True)
    x = net.max_pool("pool1", x, 3, 2, 1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            x = _bottleneck(net, f"res{stage + 2}.{block}", x, 64 << stage, stride)
    return net.model(net.gemm("fc", net.average("pool5", x), 1000))


_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
             (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2's stages: expansion, channels, blocks, stride of the first."""
_SIX = 160
"""Steps from 0 to the 6 of a ReLU6."""


def _inverted(net: Composer, name: str, x: Value, expansion: int, width: int, stride: int) -> Value:
    """Expansion, depthwise 3x3 and a linear projection, beside an identity where one fits."""
    y = x
    if expansion > 1:
        y = net.conv(f"{name}.expand", y, expansion * x.channels, ceiling=_SIX)
    y = net.conv(f"{name}.depthwise", y, y.channels, 3, stride=stride, groups=y.channels,
                 ceiling=_SIX)
    y = net.conv(f"{name}.project", y, width)
    return net.add(f"{name}.add", x, y) if stride == 1 and x.channels == width else y


def mobilenetv2(name: str, seed: int) -> Any:
    """MobileNetV2 for 224x224 images and 1000 classes."""
    net = Composer(name, seed, (1, 3, 224, 224))
    x = net.conv("conv1", net.x, 32, 3, stride=2, ceiling=_SIX)
    for stage, (expansion, width, count, stride) in enumerate(_INVERTED):
        for block in range(count):
            x = _inverted(net, f"stage{stage + 1}.{block}", x, expansion, width,
                          1 if block else stride)
    x = net.conv("conv2", x, 1280, ceiling=_SIX)
    return net.model(net.gemm("fc", net.average("pool", x), 1000))


def tiny_residual(name: str, seed: int) -> Any:
    """A strided convolution, a maximum pool, two bottlenecks, an average and a classifier."""
    net = Composer(name, seed, (1, 3, 32, 32))
    x = net.conv("conv1", net.x, 16, 7, stride=2, rectified=True)
    x = net.max_pool("pool1", x, 3, 2, 1)
    x = _bottleneck(net, "block1", x, 8, 1)
    x = _bottleneck(net, "block2", x, 8, 2)
    x = _bottleneck(net, "block3", x, 8, 1)
    return net.model(net.gemm("fc", net.average("pool", x), 10))
