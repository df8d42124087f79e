# SPDX-License-Identifier: Apache-2.0
"""Lifetimes of tensors: of a residual network, its training step, a chain, requests."""

import pytest

from emu.compiler import compile_network
from emu.config import load_config
from emu.lifetimes import TOKEN_BYTES, chain, inference, requests, training_step
from emu.network.workloads import load_network
from emu.planner import lower_bound


@pytest.fixture(scope="module")
def network():
    return load_network("tiny.residual")


def test_inference_is_what_the_compiler_places(network):
    program = compile_network(network, load_config("small"), check=False)
    trace = inference(network, program.memories["activations"], "x")
    assert sorted(trace.items, key=str) == sorted(program.memories["activations"], key=str)
    made = {layer.target.name: index for index, layer in enumerate(network.layers)}
    assert all(item.first == made.get(item.name, 0) for item in trace.items)
    sources = [s.name for layer in network.layers for s in layer.sources]
    assert [sources.count(item.name) for item in trace.items] == list(trace.reads)
    assert [item.first for item in trace.items] == sorted(item.first for item in trace.items)


def test_training_keeps_activations_for_the_backward_pass(network):
    trace = training_step(network, "x")
    items = {item.name: item for item in trace.items}
    n = len(network.layers)
    for index, layer in enumerate(network.layers):
        activation, gradient = items[layer.target.name], items[f"{layer.target.name} gradient"]
        assert (activation.first, activation.last) == (index, 2 * n - 1 - index)
        assert gradient.size == activation.size and gradient.last == activation.last
        for source in layer.sources:  # the gradient of what it reads is there when it ends
            if source.name in items and f"{source.name} gradient" in items:
                assert items[f"{source.name} gradient"].first <= activation.last
    weights = [item for item in trace.items if item.name.endswith("weights' gradient")]
    assert weights and all(item.last == 2 * n for item in weights)
    assert [item.first for item in trace.items] == sorted(item.first for item in trace.items)


def test_a_chain_needs_two_tensors():
    assert lower_bound(chain(5, 300, "x").items) == 600
    assert [item.size for item in chain(5, 300, "x").in_words(256)] == [2] * 5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_requests_stay_within_what_is_known_beforehand(seed):
    trace = requests(seed, "x", 200, slots=12)
    assert trace == requests(seed, "x", 200, slots=12) != requests(seed + 1, "x", 200, slots=12)
    steps = {item.first for item in trace.items}
    alive = [sum(i.first <= step <= i.last for i in trace.items) for step in steps]
    assert 6 < max(alive) <= 12
    assert all(16 * TOKEN_BYTES <= item.size <= trace.most for item in trace.items)
    assert len({item.size for item in trace.items}) > 50
