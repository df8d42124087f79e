# SPDX-License-Identifier: Apache-2.0
"""ONNX models of random layers and chains of them, for sweeps over the RTL."""

import numpy as np
from onnx import helper

from tests.emu import network_models as models
from tests.emu.network_models import COMBINATIONS, TYPES, conv_node, draw, gemm_node, operands

CHANNELS = (1, 3, 8, 16, 17, 33, 40, 64, 96, 130)
"""Channel counts on either side of the array's 16."""
MOST_MACS = 20_000_000
"""Keeps one layer under a second or two of simulation."""


def random_layer(seed: int, large: bool = False) -> tuple[str, bytes]:
    """(description, model) of layer ``seed``; ``large``: inputs of up to a MiB."""
    rng = np.random.default_rng([seed, large])
    kind = str(rng.choice(["dense", "dense", "dense", "depthwise", "grouped", "matmul", "gemm"]))
    activation, weight = COMBINATIONS[rng.integers(3)]
    common = dict(
        activation=activation, weight=weight, per_channel=bool(rng.integers(2)),
        bias=bool(rng.integers(2)),
    )
    if kind in ("matmul", "gemm"):
        text, parts = _product(rng, kind == "gemm", large, **common)
    else:
        text, parts = _convolution(rng, kind, large, **common)
    nodes, inputs, outputs, constants = parts
    if seed % 4 == 3:
        text = f"{text} 4-bit weights"
        _nibbles(constants, weight)
    fused = str(rng.choice(["", "", "relu" if activation == "s8" else "", "clip"]))
    if fused:
        nodes[0].output[0] = "before"
        nodes.append(_activation(rng, fused, activation, constants))
    signs = f"{activation}/{weight}{' per channel' if common['per_channel'] else ''}"
    bias = "" if common["bias"] else " no bias"
    return (
        f"{seed}: {kind} {text} {signs}{bias} {fused}",
        models.model(nodes, inputs, outputs, constants),
    )


def _nibbles(constants, weight):
    """Weights of 4 bits, which the compiler packs, and outputs that fill their type again."""
    low = 8 if weight == "s8" else 0
    values = constants["w"].astype(np.int64) % (8 + low) - low
    constants["w"] = values.astype(constants["w"].dtype)
    constants["wz"] = (constants["wz"] % 8).astype(constants["wz"].dtype)
    constants["ys"] = np.float32(constants["ys"] / 16)


def _activation(rng, fused, activation, constants):
    if fused == "relu":
        return helper.make_node("Relu", ["before"], ["y"], "relu")
    zero = int(constants["yz"])
    dtype = TYPES[activation][0]
    info = np.iinfo(dtype)
    low, high = sorted(int(v) for v in np.clip(zero + rng.integers(-90, 90, 2), info.min, info.max))
    constants["low"], constants["high"] = dtype(low), dtype(high)
    return helper.make_node("Clip", ["before", "low", "high"], ["y"], "clip")


def _convolution(rng, kind, large, *, activation, weight, per_channel, bias):
    kernel, stride, dilation = (1, 1), (1, 1), (1, 1)
    if rng.integers(3):
        kernel = ((3, 3), (7, 7), (1, 5), (5, 3), (2, 4), (3, 3))[rng.integers(6)]
    if rng.integers(2):
        stride = tuple(int(v) for v in rng.integers(1, 4, 2))
    if rng.integers(3) == 0:
        dilation = tuple(int(v) for v in rng.integers(1, 4, 2))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = [int(v) for v in rng.integers(0, 4, 4)] if rng.integers(2) else [0] * 4
    batch = int(rng.choice([1, 1, 1, 2, 3, 8]))
    most = 70 if large else 20
    size = [int(rng.integers(1, most)) for _ in range(2)]
    if rng.integers(6) == 0:
        size = list(span)  # one output pixel without padding
    size = [max(size[i], span[i] - pads[i] - pads[i + 2], 1) for i in range(2)]
    inputs, outputs, groups = int(rng.choice(CHANNELS)), int(rng.choice(CHANNELS)), 1
    if kind == "depthwise":
        outputs = groups = inputs
    elif kind == "grouped":
        groups = int(rng.integers(2, 6))
        inputs, outputs = (groups * int(rng.choice([1, 3, 8, 16, 20])) for _ in range(2))
    out = [(size[i] + pads[i] + pads[i + 2] - span[i]) // stride[i] + 1 for i in range(2)]
    depth = inputs // groups * kernel[0] * kernel[1]
    while batch * depth * outputs * out[0] * out[1] > MOST_MACS and batch > 1:
        batch -= 1
    weights = draw(rng, (outputs, inputs // groups, *kernel), weight)
    constants = operands(
        rng, weights, outputs, depth, activation=activation, weight=weight,
        per_channel=per_channel, bias=bias,
    )
    node = conv_node(
        bias=bias, group=groups, strides=stride, dilations=dilation, pads=pads, kernel_shape=kernel
    )
    text = (
        f"{batch}x{inputs}x{size[0]}x{size[1]} to {outputs}, {kernel[0]}x{kernel[1]} stride "
        f"{stride} dilation {dilation} pads {pads} groups {groups}"
    )
    return text, (
        [node], {"x": (activation, (batch, inputs, *size))},
        {"y": (activation, (batch, outputs, *out))}, constants,
    )


def _product(rng, gemm, large, *, activation, weight, per_channel, bias):
    depth, outputs = int(rng.integers(1, 2000 if large else 300)), int(rng.integers(1, 300))
    rows = int(rng.choice([1, 2, 8, 37, 128, 600 if large else 200]))
    lead, transposed, flip = (), 0, 0
    if gemm:
        transposed, flip = (int(v) for v in rng.integers(0, 2, 2))
        bias_here = bias
    else:
        bias_here = False
        lead = ((), (2,), (1, 3))[rng.integers(3)]
    weights = draw(rng, (outputs, depth) if flip else (depth, outputs), weight)
    constants = operands(
        rng, weights, outputs, depth, activation=activation, weight=weight,
        per_channel=per_channel, bias=bias_here,
    )
    if gemm:
        shape = (depth, rows) if transposed else (rows, depth)
        node = gemm_node(bias=bias_here, transA=transposed, transB=flip)
    else:
        shape = (*lead, rows, depth)
        names = ["xs", "xz", "w", "ws", "wz", "ys", "yz"]
        node = helper.make_node("QLinearMatMul", ["x", *names], ["y"], "matmul")
    result = (rows, outputs) if gemm else (*lead, rows, outputs)
    return f"{shape} to {outputs}{' A transposed' if transposed else ''}", (
        [node], {"x": (activation, shape)}, {"y": (activation, result)}, constants,
    )


def random_chain(seed: int, most: int = 6) -> tuple[str, bytes]:
    """(description, model) of two to ``most`` layers, each reading what the one before wrote."""
    rng = np.random.default_rng([seed, 7])
    activation, weight = COMBINATIONS[rng.integers(3)]
    batch, channels = int(rng.choice([1, 1, 2, 5])), int(rng.choice(CHANNELS))
    size = [int(n) for n in rng.integers(4, 24, 2)]
    inputs = {"x": (activation, (batch, channels, *size))}
    nodes: list = []
    constants: dict = {}
    text = f"{seed}: {activation}/{weight} {batch}x{channels}x{size[0]}x{size[1]}"
    count = int(rng.integers(2, most + 1))
    source = "x"
    for number in range(count):
        prefix, target = f"l{number}.", f"t{number}"
        last = number == count - 1
        if last and rng.integers(2):  # a classifier
            depth, outputs = channels * size[0] * size[1], int(rng.integers(1, 200))
            weights = draw(rng, (depth, outputs), weight)
            nodes.append(helper.make_node("Flatten", [source], [f"flat{number}"], f"f{number}"))
            nodes.append(gemm_node(f"flat{number}", target, prefix, f"g{number}"))
            size, shape = [1, 1], (batch, outputs)
        else:
            kernel = [min(int(rng.choice([1, 1, 3, 5])), n) for n in size]
            stride = [int(n) for n in rng.choice([1, 1, 1, 2], 2)] if number < 6 else [1, 1]
            pads = [int(n) for n in rng.integers(0, 2, 4)]
            depthwise = channels > 1 and not rng.integers(4)
            outputs = channels if depthwise else int(rng.choice(CHANNELS))
            depth = (1 if depthwise else channels) * kernel[0] * kernel[1]
            weights = draw(rng, (outputs, 1 if depthwise else channels, *kernel), weight)
            nodes.append(conv_node(
                source, target, prefix, f"c{number}", group=channels if depthwise else 1,
                strides=stride, pads=pads, kernel_shape=kernel,
            ))
            size = [
                (size[i] + pads[i] + pads[i + 2] - kernel[i]) // stride[i] + 1 for i in range(2)
            ]
            shape = (batch, outputs, *size)
        found = operands(rng, weights, outputs, depth, activation=activation, weight=weight)
        if number:
            found |= {"xs": constants[f"l{number - 1}.ys"], "xz": constants[f"l{number - 1}.yz"]}
        constants |= {prefix + role: value for role, value in found.items()}
        source, channels = target, outputs
        if activation == "s8" and rng.integers(2):
            nodes.append(helper.make_node("Relu", [target], [f"r{number}"], f"relu{number}"))
            source = f"r{number}"
        text += f" > {list(shape[1:])}"
    return text, models.model(nodes, inputs, {source: (activation, shape)}, constants)
