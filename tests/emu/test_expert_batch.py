# SPDX-License-Identifier: Apache-2.0
"""Experts for many tokens: routes, the three ways to fetch weights, absent entries, bad input."""

from dataclasses import replace

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import Interpreter, execute
from emu.isa import ABSENT, VectorOp
from emu.network.exact import exact, run_layer
from emu.network.experts import moe_batch, moe_chain
from emu.network.layers import ExpertLayer, Operand
from emu.network.recorded import LAYERS, recorded
from emu.network.trained import DATA
from emu.vector_model import early_write, run_vector, unsupported

EXPERTS = 6


def experts(tokens, k, inputs, outputs, own=False, table=False):
    rng = np.random.default_rng(tokens + k)
    x = Operand("x", (1, inputs, 1, tokens * k if own else tokens), True, 5)
    numbers = Operand("n", (1, 16, 1, 2 * tokens), False, 0)
    layer = ExpertLayer(
        name="experts", sources=(x, numbers), k=k, y_zero=7,
        target=Operand("y", (1, outputs, 1, tokens * k), True, 0),
        weights=rng.integers(-127, 128, (EXPERTS, outputs, inputs)).astype(np.int8),
        bias=rng.integers(-9999, 9999, (EXPERTS, outputs)).astype(np.int32),
        scale=rng.uniform(0.5, 1, (EXPERTS, outputs)).astype(np.float32) / np.float32(
            130 * np.sqrt(inputs)),
        table=rng.permutation(256).astype(np.uint8) if table else None,
    )
    lists = np.zeros((2 * tokens, 4), np.uint32)
    lists[::2, :k] = [rng.choice([0, 2, 3, 5], k, replace=False) for _ in range(tokens)]
    chosen = lists.view(np.uint8).reshape(-1, 16).T.reshape(numbers.shape)
    return layer, rng.integers(-128, 128, x.shape).astype(np.int8), chosen


@pytest.mark.parametrize("mode", ["distinct", "all", "per_token", "sorted"])
@pytest.mark.parametrize("chip", ["small", "base"])
@pytest.mark.parametrize(("tokens", "k", "inputs", "outputs", "own"), [
    (1, 2, 40, 100, False), (9, 2, 64, 128, False), (5, 2, 48, 33, True), (3, 3, 32, 64, False),
    (40, 1, 32, 80, False),
])
def test_experts(mode, chip, tokens, k, inputs, outputs, own):
    layer, x, chosen = experts(tokens, k, inputs, outputs, own, table=own)
    want = run_layer(layer, x, chosen)
    assert len(np.unique(want)) > 60
    program = compile_network([layer], load_config(chip, [f"prefetch.experts={mode}"]))
    for eager in (True, False):
        got = execute(program, {"x": x, "n": chosen}, eager=eager)["y"]
        np.testing.assert_array_equal(got, want)


def test_only_what_occurs_is_loaded():
    """Four of six experts occur among nine tokens, none of them twice."""
    layer, x, chosen = experts(9, 2, 64, 128)
    loaded = {}
    for mode in ("distinct", "all", "per_token"):
        program = compile_network([layer], load_config("small", [f"prefetch.experts={mode}"]))
        interpreter = Interpreter(program.config, program.global_image({"x": x, "n": chosen}))
        interpreter.run()
        loaded[mode] = interpreter.counts.load_words
    weights = 128 * 64 // 16 + 8 * 8
    assert loaded["all"] - loaded["distinct"] == 2 * weights
    assert loaded["per_token"] - loaded["distinct"] == (18 - 4) * weights


def route(op, lists, **fields):
    data = np.zeros((40, 16), np.uint8)
    data[3 : 3 + len(lists)] = np.array(lists, np.uint32).view(np.uint8)
    data[0, :4] = np.array([2], np.uint32).view(np.uint8)
    given = {"op": op, "base": 3, "step": 1, "pixels": len(lists), "out": 20, "b_base": 0,
             "b_mode": 0, "causal": 0, "channels": 6, "k": 2, "groups": 0} | fields
    assert unsupported(given) is None
    return run_vector(given, data)[1].view(np.uint32)


def test_routes():
    lists = [[5, 2, 0, 0], [2, 0, 9, 9], [5, 1, 2, 2]]
    found = route(VectorOp.DISTINCT, lists, groups=6)
    assert found[:, 0].tolist() == [0, 1, 2, 5, ABSENT, ABSENT]
    assert not found[:, 1:].any()
    assert route(VectorOp.DISTINCT, lists, groups=2)[:, 0].tolist() == [0, 1]
    assert route(VectorOp.DISTINCT, lists, groups=6, causal=1)[:, 0].tolist() == list(range(6))
    assert route(VectorOp.PLACES, lists).tolist() == [[1, 2, 6, 6]]
    assert route(VectorOp.PLACES, lists, b_mode=1).tolist() == [[6, 1, 2, 6], [6, 6, 6, 6]]
    assert "PLACES of 3" in (unsupported({"op": VectorOp.PLACES, "k": 3, "pixels": 1, "b_mode": 1,
                                          "groups": 0}) or "")


def test_sort():
    """Blocks of four rows: numbers rising, places in order, what finds no block left out."""
    lists = [[5, 2, 0, 0], [2, 0, 9, 9], [5, 1, 2, 2], [2, 5, 0, 0], [3, 2, 0, 0], [2, 1, 0, 0]]
    common = {"height": 4, "b_base": 30, "table": 35}
    found = route(VectorOp.SORT, lists, groups=7, **common)
    assert found[:7, 0].tolist() == [0, 1, 2, 2, 3, 5, ABSENT]
    rows = [[3, 12, 12, 12], [5, 11, 12, 12], [1, 2, 6, 9], [10, 12, 12, 12], [8, 12, 12, 12],
            [0, 4, 7, 12], [12, 12, 12, 12]]
    assert found[7:14].tolist() == rows
    assert found[14:].tolist() == [[0 if r == 12 else r // 2 for r in row] for row in rows]
    own = route(VectorOp.SORT, lists, groups=3, b_mode=1, **common)
    assert own[:3, 0].tolist() == [0, 1, 2] and own[3:6].tolist() == rows[:3]
    assert own[6:].tolist() == [[0 if r == 12 else r for r in row] for row in rows[:3]]
    odd = {"op": VectorOp.SORT, "k": 2, "pixels": 1, "groups": 1, "b_mode": 0, "height": 6}
    assert "blocks of 6 rows" in (unsupported(odd) or "")


def test_blocks_of_sorted_tokens():
    """Room for each expert's last block to have one row; as few rows as 16 where more do not fit.
    """
    layer, _, _ = experts(120, 2, 64, 80)
    for pinned, text in ((0, "in 10 blocks of 48"), (16, "in 13 blocks of 32"),
                         (24, "in 20 blocks of 16")):
        settings = ["prefetch.experts=sorted", "scratchpad.kib=64",
                    f"scratchpad.pinned_kib={pinned}"]
        program = compile_network([layer], load_config("small", settings))
        assert text in program.plans[0]
    with pytest.raises(UserError, match=r"120 tokens: raise scratchpad\.kib"):
        compile_network([layer], load_config("small", [
            "prefetch.experts=sorted", "scratchpad.kib=32"]))


def test_cache():
    """Slots keep experts from step to step: each that comes again is not loaded again."""
    network = moe_batch("m", 1, tokens=1, steps=6, zipf=1.0, experts=8, width=48, inner=80)
    want = exact(network, network.given)
    loaded, compulsory = {}, {}
    for mode, slots in (("distinct", 4), ("cached", 2), ("cached", 4), ("cached", 8)):
        settings = [f"prefetch.experts={mode}", f"prefetch.expert_slots={slots}"]
        program = compile_network(network, load_config("small", settings))
        interpreter = Interpreter(program.config, program.global_image(network.given))
        found = program.graph_outputs(interpreter.run())
        for name, values in want.items():
            np.testing.assert_array_equal(found[name], values)
        loaded[mode, slots] = interpreter.counts.load_words
        compulsory[mode] = program.compulsory_bytes["hbm_read"]
    # Of two layers of an expert in 6 steps, only the first step's must be loaded.
    assert compulsory["distinct"] - compulsory["cached"] == 5 * 16 * (2 * 3 * 5 * 16 + 8 * 8)
    assert loaded["cached", 4] < loaded["cached", 2] < loaded["distinct", 4]
    with pytest.raises(UserError, match=r"2 experts may occur at once, beside a cache of 1"):
        compile_network(network, load_config(
            "small", ["prefetch.experts=cached", "prefetch.expert_slots=1"]))
    with pytest.raises(UserError, match=r"lower prefetch\.expert_slots"):
        compile_network(network, load_config("small", [
            "prefetch.experts=cached", "prefetch.expert_slots=16", "scratchpad.kib=16"]))


def test_retain():
    """Numbers that are held stay; others take what is free, from the pointer on."""
    data = np.zeros((60, 16), np.uint8)

    def run(lists, held, pointer):
        data[3 : 3 + len(lists)] = np.array(lists, np.uint32).view(np.uint8)
        data[40:44, :4] = np.array(held, np.uint32)[:, None].view(np.uint8)
        data[50, 0] = pointer
        fields = {"op": VectorOp.RETAIN, "base": 3, "step": 1, "pixels": len(lists), "out": 20,
                  "b_base": 40, "b_mode": 0, "causal": 0, "channels": 8, "k": 2, "groups": 4,
                  "table": 50}
        assert unsupported(fields) is None and early_write(fields) is None
        where, words = run_vector(fields, data)
        assert where.tolist() == [*range(40, 44), *range(20, 24), 50]
        return words.view(np.uint32)[:, 0].tolist()

    none = ABSENT
    assert run([[5, 2, 0, 0]], [none] * 4, 0) == [2, 5, none, none, 2, 5, none, none, 2]
    assert run([[5, 7, 0, 0]], [2, 5, none, none], 2) == [2, 5, 7, none, none, none, 7, none, 3]
    assert run([[1, 3, 0, 0]], [2, 5, 7, none], 3) == [3, 5, 7, 1, 3, none, none, 1, 1]
    assert run([[1, 3, 0, 0]], [3, 5, 7, 1], 1) == [3, 5, 7, 1, none, none, none, none, 1]


def test_refusals():
    layer, _, _ = experts(300, 1, 32, 16)
    with pytest.raises(UserError, match="300 inputs of 6 experts: up to 256"):
        compile_network([layer], load_config("small"))
    layer, _, _ = experts(5, 3, 32, 16, own=True)
    with pytest.raises(UserError, match="inputs of their own for 3 experts"):
        compile_network([layer], load_config("small"))
    layer, _, _ = experts(200, 1, 1024, 16)
    with pytest.raises(UserError, match=r"200 tokens: raise scratchpad\.kib"):
        compile_network([layer], load_config("small", ["scratchpad.kib=64"]))


def test_recorded_routing():
    """The trained mixture's weights give the routing that was recorded, and the chip finds it."""
    with np.load(DATA / "experts.npz") as archive:
        w = {name: archive[name].astype(np.float32) * archive[f"{name}.scale"]
             for name in archive.files if f"{name}.scale" in archive.files}
    with np.load(DATA / "digits.npz") as archive:
        images, labels = archive["image"].reshape(-1, 64), archive["label"]
    h = images / np.float32(16) @ w["first"].T
    for layer in range(LAYERS):
        scores = h @ w[f"router{layer}"].T
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        two = np.argsort(-p, 1, kind="stable")[:, :2]
        kept = recorded(len(h), layer, 1).T
        found = np.argsort(-kept.astype(int), 1, kind="stable")[:, :2]
        # Float sums may differ in their last bits by machine: close scores may change places.
        assert (np.sort(found, 1) == np.sort(two, 1)).all(1).mean() > 0.98
        mixed = np.zeros_like(h)
        for expert in range(8):
            gate = p[:, expert] * (two == expert).any(1)
            up, down = w[f"up{layer}"][expert], w[f"down{layer}"][expert]
            mixed += gate[:, None] * (np.maximum(h @ up.T, 0) @ down.T)
        h = h + mixed
    assert abs(int(((h @ w["last"].T).argmax(1) == labels).sum()) - 348) <= 1
    network = moe_batch("m", 2, tokens=20, experts=8, width=48, inner=80, layer=1)
    top = exact(network, network.given, every=True)["top"]
    words = np.ascontiguousarray(top.reshape(16, -1).T).view(np.uint32)[::2, :2]
    want = np.argsort(-recorded(20, 1, 2).T.astype(int), 1, kind="stable")[:, :2]
    np.testing.assert_array_equal(words, want)


@pytest.mark.parametrize("slots", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ahead(slots):
    """What is fetched by another list changes transfers, not results; a foreseen list that is right
    loads no expert twice, and the words say so."""
    found = {}
    for foresight in ("router", "oracle"):
        network = moe_chain("m", 1, steps=3, width=48, inner=80, foresight=foresight)
        want = exact(network, network.given)
        for ahead in ("none", "known", "predicted"):
            program = compile_network(network, load_config("small", [
                "prefetch.experts=cached", f"prefetch.expert_slots={slots}",
                f"prefetch.experts_ahead={ahead}"]))
            for eager in (True, False):
                interpreter = Interpreter(program.config, program.global_image(network.given),
                                          eager=eager)
                outputs = program.graph_outputs(interpreter.run())
                for name, values in want.items():
                    np.testing.assert_array_equal(outputs[name], values)
            made = [name for name in program.layer_names if name.startswith("foreseen")]
            assert len(made) == (6 if ahead == "predicted" else 0)
            found[foresight, ahead] = interpreter.counts.load_words
    assert found["router", "none"] == found["oracle", "none"]
    # Lists alone: a word for each of three tiles of the second matrix, layer and token.
    known = found["router", "known"] - found["router", "none"]
    assert known == 3 * 3 * 3
    # For two layers, a word for each of four and three tiles, and the lists' own way into HBM.
    assert found["oracle", "predicted"] - found["oracle", "known"] < 150
    assert found["router", "predicted"] > found["oracle", "predicted"] + 500


def test_ahead_needs_a_cache():
    with pytest.raises(UserError, match=r"experts_ahead=known fetches into the slots of prefetch"):
        load_config("small", ["prefetch.experts_ahead=known"])


def test_foreseen_lists_of_one_token():
    """An expert layer of one token takes no cache; a foreseen list changes nothing."""
    layer, x, chosen = experts(1, 2, 40, 100)
    numbers = layer.sources[1]
    early = Operand("early", numbers.shape, False, 0)
    layer = replace(layer, sources=(*layer.sources, early))
    want = run_layer(layer, x, chosen, chosen)
    program = compile_network([layer], load_config("small"))
    np.testing.assert_array_equal(execute(program, {"x": x, "n": chosen})["y"], want)
