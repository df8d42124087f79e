# SPDX-License-Identifier: Apache-2.0
"""Whole networks by their published layer tables, with seeded weights; batch 1.

ResNets are those of He et al. (2015) with the stride of a bottleneck in its 3x3 convolution
("v1.5"), batch normalisation folded away.
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


def tiny_residual(name: str, seed: int) -> Any:
    """A strided convolution, a maximum pool, two bottlenecks, an average and a classifier."""
    net = Composer(name, seed, (1, 3, 32, 32))
    x = net.conv("conv1", net.x, 16, 7, stride=2, rectified=True)
    x = net.max_pool("pool1", x, 3, 2, 1)
    x = _bottleneck(net, "block1", x, 8, 1)
    x = _bottleneck(net, "block2", x, 8, 2)
    x = _bottleneck(net, "block3", x, 8, 1)
    return net.model(net.gemm("fc", net.average("pool", x), 10))
