# SPDX-License-Identifier: Apache-2.0
"""Built-in workloads: what the list promises, and outputs that would show an error."""

import numpy as np
import pytest

from emu.errors import UserError
from emu.network.exact import exact
from emu.network.golden import INTEGERS, evaluate, random_inputs
from emu.network.layers import ConvLayer
from emu.network.workloads import WORKLOADS, list_workloads, load_network

REQUIRED = {
    "resnet50": "conv1 res2_3x3 res3_3x3 res4_3x3 res5_3x3 res4_1x1 fc",
    "mobilenetv2": "expand depthwise",
    "bert_base": "projection ffn1",
    "gpt2": "decode_qkv decode_ffn",
    "dlrm": "top",
    "tiny": "conv3x3 conv1x1 matmul depthwise strided chain residual transformer decode dlrm moe",
}


def test_list():
    listed = list_workloads()
    required = {f"{net}.{part}" for net, parts in REQUIRED.items() for part in parts.split()}
    assert required | {"resnet50", "resnet152", "mobilenetv2"} <= {item.name for item in listed}
    assert len({item.name for item in listed}) == len(listed)
    for item in listed:
        assert item.description and "\n" not in item.description
        assert item.macs > 0 and item.weight_bytes > 0
    assert WORKLOADS["resnet50.res4_3x3"].macs == 14 * 14 * 256 * 256 * 9
    assert WORKLOADS["gpt2.decode_ffn"].weight_bytes == 768 * 3072


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_workload(name):
    workload = WORKLOADS[name]
    if workload.package:
        pytest.importorskip(workload.package)
    network = load_network(name)
    assert (network.name, network.macs, network.weight_bytes) == (
        name,
        workload.macs,
        workload.weight_bytes,
    )
    result = evaluate(network, random_inputs(network, 1))
    if network.model is None:
        assert result.conditions == (INTEGERS,)
        for values in result.outputs.values():
            assert np.unique(values).size > min(60, values.size // 2)
            assert np.mean(np.abs(values.astype(int) + 0.5) > 127) < 0.05
        return
    assert not result.conditions
    (values,) = result.outputs.values()
    layer = network.layers[-1]
    assert np.unique(values).size > min(60, values.size // 2)
    assert np.mean(values == layer.clip_low) < 0.6
    assert np.mean(values == layer.clip_high) < 0.05


def test_steps():
    one, three = load_network("tiny.decode"), load_network("tiny.decode:3")
    assert three.macs > 3 * one.macs and three.outputs[0].shape == (1, 64, 1, 3)
    assert len({id(layer.weights) for layer in three.layers if isinstance(layer, ConvLayer)}) == (
        len([layer for layer in one.layers if isinstance(layer, ConvLayer)]))
    for name in ("tiny.decode:0", "tiny.decode:x", "tiny.decode:65"):
        with pytest.raises(UserError, match="a number of steps from 1 to 64 expected"):
            load_network(name)
    with pytest.raises(UserError, match="resnet50 takes no number of steps"):
        load_network("resnet50:2")


def test_weights_are_reproducible():
    first, second = (load_network("tiny.conv3x3").layers[0] for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    other = load_network("tiny.strided").layers[0]
    assert not np.array_equal(first.weights.reshape(-1)[:100], other.weights.reshape(-1)[:100])


@pytest.mark.parametrize(
    ("name", "layers", "sums"), [("resnet50", 56, 16), ("mobilenetv2", 54, 10)]
)
def test_residual_networks_neither_saturate_nor_vanish(name, layers, sums):
    network = load_network(name)
    assert len(network.layers) == layers
    assert sum(bool(x.residual) for x in _convolutions(network)) == sums
    tensors = exact(network, random_inputs(network, 2), every=True)
    for layer in network.layers:
        values = tensors[layer.target.name].astype(np.int32)
        assert np.mean(values == 127) < 0.02, layer.name
        assert np.mean(values == -128) < 0.6, layer.name
        assert values.std() > 20, layer.name
        if values[0, 0].size > 1:  # pixels of one channel differ
            assert np.median(values.std(axis=(0, 2, 3))) > 18, layer.name


def _convolutions(network):
    return [layer for layer in network.layers if isinstance(layer, ConvLayer)]
