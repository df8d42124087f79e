# SPDX-License-Identifier: Apache-2.0
"""Models changed at random, as damage or an enemy would: still protobuf, no longer meaningful."""

import random

import onnx

HUGE = (0, -1, 1, 2, 7, 1 << 20, 1 << 31, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-45)


def _attribute(proto, rng):
    nodes = [node for node in proto.graph.node if node.attribute]
    if not nodes:
        return
    attribute = rng.choice(rng.choice(nodes).attribute)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(HUGE)
        if rng.random() < 0.3:
            attribute.ints.append(rng.choice(HUGE))
    elif attribute.HasField("i"):
        attribute.i = rng.choice(HUGE)
    elif attribute.HasField("f"):
        attribute.f = rng.choice(FLOATS)
    else:
        attribute.s = bytes(rng.randrange(256) for _ in range(3))


def _names(proto):
    return ["", "nobody", *(name for node in proto.graph.node
                            for name in (*node.input, *node.output)),
            *(t.name for t in proto.graph.initializer)]


def _wire(proto, rng):
    node = rng.choice(proto.graph.node)
    names = node.input if rng.random() < 0.7 else node.output
    if names:
        names[rng.randrange(len(names))] = rng.choice(_names(proto))


def _drop(proto, rng):
    fields = rng.choice((proto.graph.node, proto.graph.initializer, proto.graph.input,
                         proto.graph.output, rng.choice(proto.graph.node).input))
    if fields:
        del fields[rng.randrange(len(fields))]


def _operator(proto, rng):
    node = rng.choice(proto.graph.node)
    node.op_type = rng.choice([n.op_type for n in proto.graph.node] + ["Loop", "Identity", "Gather",
                                                                       "Concat", "Split", "Slice"])
    if rng.random() < 0.2:
        node.domain = rng.choice(["", "com.microsoft", "headrace", "elsewhere"])


def _tensor(proto, rng):
    tensor = rng.choice(proto.graph.initializer)
    kind = rng.randrange(4)
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(HUGE)
    elif kind == 1:
        tensor.data_type = rng.randrange(25)
    elif kind == 2:
        tensor.raw_data = bytes(rng.randrange(256) for _ in range(len(tensor.raw_data)))
    else:
        tensor.dims.append(rng.choice(HUGE))


def _value(proto, rng):
    value = rng.choice([*proto.graph.input, *proto.graph.output])
    if rng.random() < 0.3:
        value.type.tensor_type.elem_type = rng.randrange(25)
        return
    dims = value.type.tensor_type.shape.dim
    if dims:
        dims[rng.randrange(len(dims))].dim_value = rng.choice(HUGE)


def _copy(proto, rng):
    node = rng.choice(proto.graph.node)
    proto.graph.node.insert(rng.randrange(len(proto.graph.node) + 1), node)


CHANGES = (_attribute, _wire, _drop, _operator, _tensor, _value, _copy)


def changed(data: bytes, seed: int) -> bytes:
    """``data`` with one to three random changes."""
    rng = random.Random(seed)
    proto = onnx.load_model_from_string(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if proto.graph.node and proto.graph.initializer:
            rng.choice(CHANGES)(proto, rng)
    return proto.SerializeToString()
