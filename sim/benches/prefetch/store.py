# SPDX-License-Identifier: Apache-2.0
"""Parameter store and prefetch unit: every word that compute would read is the right one, under
all policies, with words, releases and lookups in any order, few frames and nothing that hangs."""

import os

import cocotb
from cocotb.triggers import with_timeout

from emu.isa import Opcode
from hdl.prefetch.registry import POLICIES, policy_number
from sim.benches import sized
from sim.benches.prefetch._world import Group, World, make_layers, passes, seed

VARIANTS = {"private": lambda: Group(1), "shared": lambda: Group(3)}
MEMBERS = {"private": 1, "shared": 3}
HOLD = {1: 1, 2: 2, 5: 4, 64: 6}


def members() -> int:
    return MEMBERS[os.environ["HEADRACE_VARIANT"]]


def world(dut, layers, rng, *, frames, policy, **options):
    return World(dut, layers, members=members(), frames=frames, hold=HOLD[frames],
                 policy=policy_number(policy), rng=rng, **options)


@cocotb.test
@cocotb.parametrize(policy=list(POLICIES), frames=[1, 2, 5])
async def in_order(dut, policy, frames):
    """A chain of layers in stream order: each block is fetched once, never out of bounds."""
    rng = seed()
    shapes = sized([3, 1, 5, 2, 4], [3, 1, 4])
    layers = make_layers(rng, shapes, members=members(), frequency=int(rng.integers(1, 4)))
    depth, threshold = int(rng.integers(1, 5)), int(rng.integers(0, 4))
    it = world(dut, layers, rng, frames=frames, policy=policy, depth=depth, threshold=threshold)
    order = [(n, b) for n, fields in layers.items() for b in range(fields["blocks"])]
    lookups = passes(rng, layers, it.hold)
    for tile in it.tiles:
        tile.lookups = list(lookups)
    it.describe(start=0 if members() == 1 and policy != "demand" else None)
    leader = it.tiles[-1]

    def bounded(layer, block):
        place = order.index((layer, block))
        seen = leader.used + [lookup[:2] for lookup in leader.lookups[:1]]
        furthest = max(order.index(block) for block in seen)  # kept blocks are revisited
        ahead = place - furthest
        inside = layer == order[furthest][0] or frequency(layer) > threshold
        limit = {"demand": 0, "double_buffer": 1, "run_ahead": depth, "next_layer": depth}
        if policy in limit:
            assert ahead <= limit[policy], (ahead, policy)
            assert inside or ahead <= 0, (layer, seen[-1])

    def frequency(layer):
        return layers[layer]["frequency"] if policy == "next_layer" else -1

    it.on_fetch = bounded
    await it.reset()
    await with_timeout(it.run(), 400, "us")
    assert it.fetched == order, "fetched in stream order, each once"
    for tile in it.tiles:
        assert tile.used == [lookup[:2] for lookup in lookups]
    it.check()
    t = leader.number
    assert policy != "demand" or it.counter(t, "prefetched_blocks") == 0
    assert policy == "demand" or frames < 5 or it.counter(t, "prefetched_blocks") > 0
    assert it.counter(t, "useless") == 0


@cocotb.test
@cocotb.parametrize(policy=list(POLICIES), frames=[1, 2, 5, 64])
async def any_order(dut, policy, frames):
    """Jumps that no policy foresees. Only a private store may be wrong about the future."""
    rng = seed()
    layers = make_layers(rng, [3, 2, 6, 4], members=members(), chain=members() == 1, frequency=9)
    for fields in layers.values():
        if members() == 1:  # children anywhere, loops too
            fields |= {"child_valid": 1, "child": int(rng.integers(len(layers)))}
    it = world(dut, layers, rng, frames=frames, policy=policy, depth=3)
    it.describe()
    if members() == 1:
        it.overlap = True
        for _ in range(sized(50, 20)):
            layer = int(rng.integers(len(layers)))
            block = int(rng.integers(layers[layer]["blocks"]))
            run = int(rng.integers(1, 4))
            it.tiles[0].lookups += [
                (layer, b, 1) for b in range(block, min(block + run, layers[layer]["blocks"]))
            ]
    else:  # whole layers again and again
        lookups = []
        for _ in range(sized(4, 2)):
            layer = int(rng.integers(len(layers)))
            lookups += passes(rng, {layer: layers[layer]}, it.hold)
        for tile in it.tiles:
            tile.lookups = list(lookups)
    await it.reset()
    await with_timeout(it.run(), 400, "us")
    it.check()
    if frames == 64 and members() == 1:  # all fits: nothing is fetched twice
        assert len(set(it.fetched)) == len(it.fetched)


@cocotb.test
@cocotb.parametrize(policy=["demand", "oracle"])
async def pinned(dut, policy):
    """A pinned layer is fetched once while another streams past it; unpinned it may be replaced."""
    rng = seed()
    layers = make_layers(rng, [2, 7], members=members(), chain=False)
    it = world(dut, layers, rng, frames=5, policy=policy)
    it.hold = 2
    it.command(Opcode.PIN, layer=0)
    it.describe()
    rounds = [(0, 0, 1), (0, 1, 1), *[(1, b, 1) for b in range(7)]] * 4
    for tile in it.tiles:
        tile.lookups = list(rounds)
    await it.reset()
    await with_timeout(it.run(), 400, "us")
    assert [f for f in it.fetched if f[0] == 0] == [(0, 0), (0, 1)]
    it.command(Opcode.UNPIN, layer=0)
    for tile in it.tiles:
        tile.lookups = rounds * 2
    await with_timeout(it.run(), 400, "us")
    again = [f for f in it.fetched if f[0] == 0]
    assert len(again) > 2, "replaced by the streaming layer"
    if members() > 1:
        assert len(again) == 2 + 2 * 8
    it.check()


@cocotb.test
@cocotb.parametrize(policy=["demand", "run_ahead", "oracle"])
async def placed_again(dut, policy):
    """FRAMES moves the ring and forgets everything, prefetched blocks included."""
    rng = seed()
    layers = make_layers(rng, [3, 4], members=members())
    it = world(dut, layers, rng, frames=5, policy=policy)
    if members() == 1:  # nobody looks at the child's blocks
        layers[1]["child_valid"] = 1
        layers[1]["child"] = 0
    it.describe()
    lookups = passes(rng, layers, 2)
    for tile in it.tiles:
        tile.lookups = list(lookups)
    await it.reset()
    await with_timeout(it.run(), 400, "us")
    first = len(it.fetched)
    it.base, it.frames, it.hold = 5000, 3, 2
    it.describe()
    for tile in it.tiles:
        tile.lookups = list(lookups)
    await with_timeout(it.run(), 400, "us")
    assert len(it.fetched) >= first + 7
    it.check()
    t = it.tiles[-1].number
    assert members() > 1 or policy != "oracle" or it.counter(t, "useless") > 0


@cocotb.test
async def latency(dut):
    """A hit is ready two cycles after it is presented; a demand fetch is requested six after."""
    rng = seed()
    layers = make_layers(rng, [2], members=members())
    it = world(dut, layers, rng, frames=5, policy="demand", slow=-1.0)
    it.describe()
    times: dict[str, int] = {}
    it.on_fetch = lambda layer, block: times.setdefault("fetch", it.cycle)
    for tile in it.tiles:
        tile.lookups = [(0, 0, 0)]
    await it.reset()
    await with_timeout(it.run(), 100, "us")
    for tile in it.tiles:
        tile.lookups = [(0, 0, 0)] * 10
    begin, stalls = it.cycle, it.counter(0, "stall_cycles")
    while it.tiles[0].lookups:
        await it.step()
    assert it.cycle - begin <= 3 * 10 + 1
    assert it.counter(0, "stall_cycles") == stalls
