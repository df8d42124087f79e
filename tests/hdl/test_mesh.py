# SPDX-License-Identifier: Apache-2.0
"""Mesh: no cycle among channels, arbiters in a cycle-true model, error messages."""

import gc
import itertools
from graphlib import CycleError, TopologicalSorter

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import data
from amaranth.sim import Simulator

from emu.config import Config, Mesh
from emu.errors import UserError
from hdl.mesh.arbiter import ARBITERS, WEIGHT_BITS, make_arbiter
from hdl.mesh.plane import STEPS
from hdl.mesh.route import OPPOSITE, SIDES
from hdl.mesh.router import Router, plane_router
from hdl.packets import Dest, UpFlit


def model(router: Router) -> Router:
    """``router``, which is only looked at and never elaborated."""
    router._MustUse__silence = True
    return router


def channel_graph(router: Router, cols: int, rows: int, *, turns_anywhere: bool = False) -> dict:
    """Channel -> channels that a flit in it may wait for; a channel is (x, y, input side).

    Connections from the second dimension into the first count only where the router lets a flit
    use them: at the boundary of their edge input, or out of the mesh.
    """
    inside = set(itertools.product(range(cols), range(rows)))
    first = ("west", "east") if router.order == "x_first" else ("north", "south")
    graph: dict = {}
    for x, y in inside:
        for output, sources in router.connections.items():
            if output == "core":
                continue
            dx, dy = STEPS[output]
            to = (x + dx, y + dy, OPPOSITE[output])
            if to[:2] not in inside:
                to = (x, y, f"out {output}")
            for source in sources:
                turn = source != "core" and source not in first and output in first
                sx, sy = STEPS.get(source, (0, 0))
                at_edge = (x + sx, y + sy) not in inside
                leaves = to[2].startswith("out")
                if turn and not (at_edge or leaves or turns_anywhere):
                    continue
                graph.setdefault((x, y, source), set()).add(to)
    return graph


def is_acyclic(graph: dict) -> bool:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return False
    return True


@pytest.mark.parametrize("plane", ["req", "up", "down"])
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 4), (4, 1), (1, 1)])
def test_planes_have_no_channel_cycle(plane, size):
    cols, rows = size
    config = Config(mesh=Mesh(cols=cols, rows=rows), hbm={"channels": 1})
    graph = channel_graph(model(plane_router(plane, config)), cols, rows)
    assert graph and is_acyclic(graph)


@pytest.mark.parametrize("order", ["x_first", "y_first"])
def test_all_edges_and_exits_have_no_channel_cycle(order):
    router = model(Router(UpFlit, order, cols=4, rows=4, edges=SIDES, exits=SIDES))
    assert is_acyclic(channel_graph(router, 4, 4))
    assert not is_acyclic(channel_graph(router, 4, 4, turns_anywhere=True))  # the check can fail


def test_only_the_connections_that_dimension_order_allows():
    links = model(plane_router("up", Config())).connections
    assert set(links["east"]) == {"west", "core"}
    assert set(links["west"]) == {"east", "core"}
    assert set(links["north"]) == {"south", "west", "east", "core"}
    assert set(links["core"]) == {*SIDES, "core"}
    links = model(plane_router("down", Config())).connections
    assert set(links["north"]) == {"south"}
    assert set(links["east"]) == {"west", "north", "south"}


@pytest.mark.parametrize("name", list(ARBITERS))
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_arbiters_are_stable_and_fair(name, count):
    rng = np.random.default_rng(3)
    arbiter = make_arbiter(name, count)
    waits = [0] * count  # grants taken by others while a request waits
    taken_by = [0] * count

    async def bench(ctx):
        requests, held = 0, 0
        for _ in range(2000):
            requests |= int(rng.integers(0, 1 << count))
            take = int(rng.integers(0, 2))
            ctx.set(arbiter.requests, requests)
            ctx.set(arbiter.taken, take)
            grant = ctx.get(arbiter.grant)
            assert (grant == 0) == (requests == 0) and grant & ~requests == 0
            assert grant & (grant - 1) == 0
            assert not held or grant == held
            held = 0 if take else grant
            if take and grant:
                for i in range(count):
                    waits[i] = 0 if grant >> i & 1 or not requests >> i & 1 else waits[i] + 1
                    assert waits[i] < count
                    taken_by[i] += grant >> i & 1
                requests &= ~grant
            await ctx.tick()

    top = Module()
    top.submodules.arbiter = arbiter
    top.d.sync += Signal(name="clocked").eq(1)  # an arbiter of one has no state
    simulator = Simulator(top)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    assert min(taken_by) > 0.5 * max(taken_by)


def test_weights_are_shares_under_lasting_contention():
    """All request all the time: in a round each goes as often as its weight says."""
    weights = (12, 3, 1)
    arbiter = make_arbiter("weighted", len(weights))
    taken_by = [0] * len(weights)

    async def bench(ctx):
        ctx.set(arbiter.weights, sum(w << WEIGHT_BITS * k for k, w in enumerate(weights)))
        ctx.set(arbiter.requests, 0b111)
        for cycle in range(16 * 50 + 8):
            ctx.set(arbiter.taken, 1)
            for k in range(len(weights)):
                taken_by[k] += cycle >= 8 and ctx.get(arbiter.grant) >> k & 1
            await ctx.tick()

    simulator = Simulator(arbiter)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    assert taken_by == [50 * weight for weight in weights]


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")  # refused, so unused
def test_errors_name_the_parameter():
    with pytest.raises(UserError, match=r"must be one of round_robin, age, weighted, not 'x'"):
        make_arbiter("x", 2)
    with pytest.raises(ValueError, match="requesters must be at least 1, not 0"):
        make_arbiter("age", 0)
    with pytest.raises(TypeError, match="flit must be a StructLayout with a member dest"):
        Router(data.StructLayout({"data": 8}), "x_first", cols=2, rows=2)
    with pytest.raises(ValueError, match="order must be one of x_first, y_first, not 'xy'"):
        Router(data.StructLayout({"dest": Dest}), "xy", cols=2, rows=2)
    with pytest.raises(ValueError, match="depth must be at least 1, not 0"):
        Router(data.StructLayout({"dest": Dest}), "x_first", cols=2, rows=2, depth=0)
    gc.collect()  # here, where the filter above holds
