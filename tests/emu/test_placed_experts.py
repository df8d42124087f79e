# SPDX-License-Identifier: Apache-2.0
"""Experts on tiles of their own: whose they are, which rows a tile has, results, bad input."""

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.compiler.expert_owners import BLOCK, Share, copies, owners, shares
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import Interpreter, execute
from emu.isa import ABSENT, VectorOp
from emu.network.exact import exact, run_layer
from emu.network.experts import moe_batch
from emu.vector_model import early_write, run_vector, unsupported
from tests.emu.test_expert_batch import EXPERTS, experts

PLACED = "mapping.experts=placed"


def collect(lists, **fields):
    data = np.zeros((40, 16), np.uint8)
    data[3 : 3 + len(lists)] = np.array(lists, np.uint32).view(np.uint8)
    given = {"op": VectorOp.COLLECT, "base": 3, "step": 1, "pixels": len(lists), "k": 2,
             "out": 20, "b_base": 24, "table": 30, "b_mode": 0, "causal": 0, "height": 4, "kh": 1,
             "kw": 0, "groups": 2} | fields
    assert unsupported(given) is None and early_write(given) is None
    where, words = run_vector(given, data)
    count = given["groups"]
    assert where.tolist() == [*range(24, 24 + count), *range(30, 30 + count), 20, 21]
    found = words.view(np.uint32)
    rows = found[-1, 0]
    assert found[-2:, 1:].any() == 0
    places, sources = found[:-2].reshape(2, -1).tolist()
    assert set(places[rows:]) | set(sources[rows:]) <= {ABSENT}
    return int(found[-2, 0]), places[:rows], sources[:rows]


def test_collect():
    """Number 5 is in words 0, 2, 3 and 4, behind another in two of them."""
    lists = [[5, 2, 5, 5], [2, 0, 5, 9], [3, 5, 0, 0], [5, 4, 0, 0], [1, 5, 0, 0]]
    assert collect(lists, channels=5) == (5, [0, 5, 6, 9], [0, 2, 3, 4])
    assert collect(lists, channels=5, b_mode=1)[2] == [0, 5, 6, 9]
    assert collect(lists, channels=7) == (ABSENT, [], [])
    # By turns of one or two: copies share the rows.
    assert collect(lists, channels=5, height=1, kh=2)[1] == [0, 6]
    assert collect(lists, channels=5, height=1, kh=2, kw=1)[1] == [5, 9]
    assert collect(lists, channels=5, height=3, kh=2, kw=1) == (5, [9], [4])
    assert collect(lists, channels=5, height=4, kh=2, kw=1)[0] == ABSENT
    many = [[5, 2, 0, 0]] * 9
    assert collect(many, channels=5, groups=2)[1] == list(range(0, 16, 2))  # no room for the ninth
    odd = {"op": VectorOp.COLLECT, "k": 2, "pixels": 1, "groups": 1, "b_mode": 0, "height": 1}
    assert "copy 2 of 2 in blocks of 1" in (unsupported(odd | {"kh": 2, "kw": 2}) or "")


def test_rows_of_a_share():
    """Blocks of 16 go to three copies in turn: of 70 rows 32, 22 and 16."""
    assert [Share(0, copy, 3).most(70) for copy in range(3)] == [32, 22, 16]
    assert [Share(0, copy, 2).most(5) for copy in range(2)] == [5, 1]
    for tokens in range(1, 200):
        rows = np.arange(tokens) // BLOCK
        for count in (1, 2, 3):
            for copy in range(count):
                want = max(1, int((rows % count == copy).sum()))
                assert Share(0, copy, count).most(tokens) == want


def test_shares():
    """The busiest expert has a copy in the group that has least to do."""
    tokens = {0: 20, 1: 120, 2: 40, 3: 60}
    # 120 rows; 64 and 56; 48, 40 and 32: then 60 is more.
    assert copies(tokens, 3, 3) == {0: 1, 1: 3, 2: 1, 3: 2}
    # A second copy has rows from 17 tokens on, a third from 33.
    assert copies(tokens, 99, 3) == {0: 2, 1: 3, 2: 3, 3: 3}
    assert copies({0: 16, 1: 17, 2: 0}, 99, 8) == {0: 1, 1: 2, 2: 1}
    assert [[s.expert for s in each] for each in shares(tokens, 0, 4)] == [[1], [3], [2], [0]]
    # 64, 60, 56, 40 and 20.
    assert [[(s.expert, s.copy) for s in each] for each in shares(tokens, 1, 4)] == [
        [(1, 0)], [(3, 0)], [(1, 1)], [(2, 0), (0, 0)]]
    assert [sorted(s.expert for s in each) for each in shares(tokens, 0, 2)] == [[1], [0, 2, 3]]
    # Few tokens take a pass of 16 rows, too: two experts of 3 tokens are more than one of 20.
    assert [sorted(s.expert for s in each) for each in shares({0: 20, 1: 3, 2: 3}, 0, 2)] == [
        [0], [1, 2]]


def test_owners():
    """Six experts of five output groups: four groups of four tiles on 4x4, or eight of two."""
    layer, _, _ = experts(9, 2, 64, 80)
    found = owners(load_config("base", [PLACED]), layer)
    assert {tuple(s.expert for s in owner.shares) for owner in found.values()} == {
        (0, 4), (1, 5), (2,), (3,)}
    assert sorted(owner.count for owner in found.values()) == [1] * 12 + [2] * 4
    found = owners(load_config("base", [PLACED, "mapping.expert_tiles=2"]), layer)
    assert len(found) == 12 and {len(owner.shares) for owner in found.values()} == {1}


@pytest.mark.parametrize("more", [[], ["mapping.expert_copies=2"], ["mapping.expert_tiles=2"]])
@pytest.mark.parametrize("chip", ["small", "base"])
@pytest.mark.parametrize(("tokens", "k", "inputs", "outputs", "own"), [
    (1, 2, 40, 100, False), (9, 2, 64, 128, False), (5, 2, 48, 33, True), (3, 3, 32, 64, True),
    (40, 1, 32, 80, False), (120, 2, 64, 80, False),
])
def test_placed(more, chip, tokens, k, inputs, outputs, own):
    layer, x, chosen = experts(tokens, k, inputs, outputs, own, table=own)
    want = run_layer(layer, x, chosen)
    program = compile_network([layer], load_config(chip, [PLACED, *more]))
    for eager in (True, False):
        got = execute(program, {"x": x, "n": chosen}, eager=eager)["y"]
        np.testing.assert_array_equal(got, want)


def test_one_token_of_its_own():
    """A list that is one pixel of what the top-k unit found, as of one token."""
    layer, x, chosen = experts(1, 2, 40, 100)
    n = layer.sources[1]
    alone = type(n)(n.name, (1, 16, 1, 1), n.is_signed, n.zero)
    layer = type(layer)(**{**vars(layer), "sources": (layer.sources[0], alone)})
    program = compile_network([layer], load_config("small", [PLACED]))
    got = execute(program, {"x": x, "n": chosen[..., :1]})["y"]
    np.testing.assert_array_equal(got, run_layer(layer, x, chosen[..., :1]))


def test_only_what_occurs_is_loaded():
    """Four of six experts occur; every row is read once by each tile of its expert."""
    layer, x, chosen = experts(9, 2, 64, 128)
    assert len(np.unique(np.ascontiguousarray(chosen.reshape(16, -1).T).view(np.uint32)[::2, :2])
               ) == 4 < EXPERTS
    weights, depth = 128 * 64 // 16 + 8 * 8, 4
    for size in (1, 2):
        program = compile_network([layer], load_config(
            "small", [PLACED, f"mapping.expert_tiles={size}"]))
        interpreter = Interpreter(program.config, program.global_image({"x": x, "n": chosen}))
        interpreter.run()
        lists, rows = 9, size * 18 * depth  # the list once for all
        assert interpreter.counts.load_words == lists + rows + 4 * weights
        assert program.planned_read_bytes == 16 * (lists + rows + EXPERTS * weights)


@pytest.mark.parametrize(("zipf", "layer"), [(1.0, None), (0.0, 1)])
def test_by_a_trace(zipf, layer):
    """Copies are of the experts most used in another trace, which is as popular."""
    network = moe_batch("m", 1, tokens=120, experts=8, width=48, inner=80, zipf=zipf, layer=layer)
    up = next(each for each in network.layers if each.name == "up")
    assert sum(up.frequency) == (2 * 512 if layer is None else 2 * 120)
    want = exact(network, network.given)
    program = compile_network(network, load_config("small", [PLACED, "mapping.expert_copies=3"]))
    assert "placed with 3 copies in 4 groups of 1 tiles" in program.plans[2]
    found = execute(program, network.given)
    for name, values in want.items():
        np.testing.assert_array_equal(found[name], values)


def test_refusals():
    layer, _, _ = experts(300, 1, 32, 16)
    with pytest.raises(UserError, match="all 300 tokens may choose one expert, up to 256"):
        compile_network([layer], load_config("small", [PLACED]))
    layer, _, _ = experts(200, 1, 1024, 16)
    with pytest.raises(UserError, match="up to 255 are supported: run fewer"):
        compile_network([experts(256, 1, 2048, 16)[0]], load_config("small", [PLACED]))
    with pytest.raises(UserError, match=r"200 tokens: raise scratchpad\.kib"):
        compile_network([layer], load_config("small", [PLACED, "scratchpad.kib=64"]))
    with pytest.raises(UserError, match="4x4 tiles have no 3 equal groups of 5"):
        owners(load_config("base").model_copy(update={"mapping": type(
            load_config("base").mapping).model_construct(experts="placed", expert_tiles=5,
                                                         expert_copies=0)}), layer)
    for settings, text in (
        ([PLACED, "prefetch.experts=all"], "prefetch.experts must be distinct, not all"),
        (["mapping.expert_copies=1"], "need mapping.experts=placed"),
        ([PLACED, "mapping.expert_tiles=3"], "must be a power of two, or 0, not 3"),
    ):
        with pytest.raises(UserError, match=text):
            load_config("base", settings)
    odd = type(layer)(**{**vars(layer), "frequency": (1, 2)})
    with pytest.raises(UserError, match="frequencies of 2 experts, there are 6"):
        compile_network([odd], load_config("small", [PLACED]))
