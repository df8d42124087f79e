# SPDX-License-Identifier: Apache-2.0
"""The model of VECTOR commands against the element-wise definitions, and in the token game."""

import numpy as np
import pytest

from emu import requantise as rq
from emu.interpreter import Interpreter, ProgramError
from emu.isa import Opcode, VectorOp
from emu.normalise import norm_parameters, normalise, parameter_words
from emu.softmax import softmax, softmax_table
from emu.vector_model import early_write, read_addresses, run_vector, unsupported, write_addresses
from tests.emu.programs import load, program, store

PLAIN = {
    "base": 16, "plane": 12, "row": 4, "step": 1, "height": 3, "width": 4, "y0": 0, "x0": 0,
    "sy": 1, "sx": 1, "kh": 1, "kw": 1, "groups": 2, "out_width": 4, "first_x": 0, "pixels": 12,
    "b_base": 80, "b_plane": 12, "b_step": 1, "b_mode": 0, "out": 120, "out_group": 12,
    "out_step": 1, "table": 160, "a_signed": 1, "b_signed": 1, "a_zero": 0, "b_zero": 0,
    "out_zero": 0, "clip_low": -128, "clip_high": 127,
    "scale0": int(np.float32(0.05).view(np.uint32)), "scale1": 0, "channels": 32, "k": 1,
    "causal": 0,
}
POOL = PLAIN | {"kh": 3, "kw": 2, "y0": -1, "x0": -1, "sx": 2, "out_width": 2, "pixels": 5,
                "first_x": 1}


@pytest.fixture
def memory():
    data = np.random.default_rng(3).integers(0, 256, (256, 16)).astype(np.uint8)
    table = np.random.default_rng(4).uniform(-100, 100, 256).astype(np.float32)
    data[160:224] = table.view(np.uint8).reshape(64, 16)
    return data


def image(memory, f, group):
    ys, xs = np.mgrid[0 : f["height"], 0 : f["width"]]
    words = f["base"] + group * f["plane"] + ys * f["row"] + xs * f["step"]
    return rq.from_bytes(memory[words], bool(f["a_signed"])).transpose(2, 0, 1)


@pytest.mark.parametrize("is_signed", [0, 1])
@pytest.mark.parametrize("op", [VectorOp.MAX_POOL, VectorOp.SUM_POOL])
def test_pools(memory, op, is_signed):
    low = -128 * is_signed
    f = POOL | {"op": op, "a_signed": is_signed, "a_zero": low + 120, "out_zero": low + 130,
                "clip_low": low, "clip_high": low + 255}
    kind = {"kernel": (3, 2), "stride": (1, 2), "origin": (-1, -1), "out": (3, 2)}
    where, words = run_vector(f, memory)
    assert where.tolist() == [120 + 12 * g + p for g in range(2) for p in range(5)]
    for g in range(2):
        if op == VectorOp.MAX_POOL:
            want = rq.max_pool(image(memory, f, g), **kind)
        else:
            want = rq.sum_pool(
                image(memory, f, g), np.float32(0.05), in_zero=f["a_zero"], zero=f["out_zero"],
                low=low, high=low + 255, **kind,
            )
        want = rq.to_bytes(want.reshape(16, -1).T[1:6])
        np.testing.assert_array_equal(words[5 * g : 5 * g + 5], want)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("op", [VectorOp.ADD, VectorOp.MULTIPLY, VectorOp.TABLE])
def test_element_wise(memory, op, mode):
    f = PLAIN | {"op": op, "b_mode": mode, "a_zero": 0 if op == VectorOp.ADD else 7, "b_zero": -3}
    _, words = run_vector(f, memory)
    a = rq.from_bytes(memory[16:40], True)
    b = rq.from_bytes(
        memory[80:104] if mode == 0 else memory[[80] * 12 + [92] * 12] if mode == 1
        else memory[np.tile(np.arange(80, 92), 2)][:, :1].repeat(16, axis=1), True,
    )
    scale, table = np.float32(0.05), memory[160:224].reshape(-1)
    if op == VectorOp.ADD:
        want = rq.add_by_table(a, b, scale, table.view(np.float32))
    elif op == VectorOp.MULTIPLY:
        want = rq.multiply(a, b, scale, a_zero=7, b_zero=-3, zero=0, low=-128, high=127)
    else:
        want = rq.lookup(a, table[:256])
    np.testing.assert_array_equal(words, rq.to_bytes(want))


def test_softmax_of_growing_rows(memory):
    table = softmax_table(32, 0.1)
    memory[160:224] = table.view(np.uint8).reshape(64, 16)
    f = PLAIN | {"op": VectorOp.SOFTMAX, "scale0": 256, "channels": 5, "causal": 1}
    f["out_zero"] = -128
    where, words = run_vector(f, memory)
    assert where[:4].tolist() == [120, 132, 121, 133]
    got = words.reshape(12, 32)
    for p in range(12):
        row = memory[[16 + p, 28 + p]].reshape(-1)[: 5 + p].view(np.int8)
        want = softmax(row, table, 256, is_signed=True, zero=-128)
        np.testing.assert_array_equal(got[p, : 5 + p], rq.to_bytes(want))
        assert (got[p, 5 + p :] == 128).all()


@pytest.mark.parametrize("op", [VectorOp.LAYER_NORM, VectorOp.RMS_NORM])
def test_norms(memory, op):
    rng = np.random.default_rng(2)
    parameters = norm_parameters(
        rng.normal(1, 0.3, 27), rng.normal(0, 0.5, 27), in_scale=0.05, out_scale=0.02, epsilon=1e-2
    )
    memory[160:176] = parameter_words(parameters)
    f = PLAIN | {"op": op, "channels": 27, "scale0": parameters.epsilon, "a_zero": 4, "out_zero": 9}
    _, words = run_vector(f, memory)
    rows = memory[16:40].reshape(2, 12, 16).transpose(1, 0, 2).reshape(12, 32)[:, :27]
    want = normalise(
        rows.view(np.int8), parameters, in_zero=4, zero=9, centred=op == VectorOp.LAYER_NORM
    )
    got = words.reshape(12, 32)
    np.testing.assert_array_equal(got[:, :27], rq.to_bytes(want))
    assert (got[:, 27:] == 9).all()


def test_top_k(memory):
    memory[16:40] = np.random.default_rng(8).integers(0, 4, (24, 16))
    f = PLAIN | {"op": VectorOp.TOP_K, "channels": 30, "k": 5, "b_mode": 1, "out_step": 2}
    where, words = run_vector(f, memory)
    assert where[:6].tolist() == [120, 121, 80, 122, 123, 81]
    for p in range(12):
        row = memory[[16 + p, 28 + p]].reshape(-1)[:30].astype(int).tolist()
        best = sorted(range(30), key=lambda c: (-row[c], c))[:5]
        numbers = words[3 * p : 3 * p + 2].reshape(-1).view(np.uint32)
        assert numbers.tolist() == best + [0, 0, 0]
        assert words[3 * p + 2].tolist() == [row[c] for c in best] + [0] * 11


def test_reads_name_the_word_they_are_for():
    address, word = read_addresses(POOL | {"op": VectorOp.MAX_POOL})
    assert (np.diff(word) >= 0).all() and word[-1] == 9
    # Pixel 0 is column 1 of row 0: taps x 1, 2 of rows 0 and 1; row -1 lies outside.
    assert address[word == 0].tolist() == [17, 18, 21, 22]
    address, word = read_addresses(PLAIN | {"op": VectorOp.ADD, "b_mode": 1})
    assert address[word == 13].tolist() == [29, 92]


def test_what_cannot_run():
    assert unsupported(PLAIN | {"op": VectorOp.ADD}) is None
    assert unsupported(PLAIN | {"op": 31}) == "VECTOR has no operation 31"
    assert unsupported(PLAIN | {"op": 0, "kw": 0}) == "VECTOR with kw = 0"
    assert unsupported(PLAIN | {"op": VectorOp.ADD, "b_mode": 3}).endswith("mode 3")
    for fields, reason in (
        ({"op": VectorOp.SOFTMAX, "scale0": 257}, "SOFTMAX with factor 257, not 1 to 256"),
        ({"op": VectorOp.SOFTMAX, "scale0": 1, "causal": 1}, "VECTOR on 43 channels in 2 groups"),
        ({"op": VectorOp.LAYER_NORM, "channels": 0}, "VECTOR with channels = 0"),
        ({"op": VectorOp.LAYER_NORM, "channels": 33}, "VECTOR on 33 channels in 2 groups"),
        ({"op": VectorOp.RMS_NORM, "scale1": 1 << 13}, "normalisation with epsilon 3518"),
        ({"op": VectorOp.TOP_K, "k": 9}, "TOP_K with k = 9, not 1 to 8"),
        ({"op": VectorOp.TOP_K, "k": 3, "channels": 2}, "TOP_K with k = 3, not 1 to 2"),
    ):
        assert unsupported(PLAIN | fields).startswith(reason)
    with pytest.raises(ValueError, match="no operation 31"):
        run_vector(PLAIN | {"op": 31}, np.zeros((1, 16), np.uint8))


def test_in_place_only_where_no_later_word_reads():
    assert early_write(PLAIN | {"op": VectorOp.TABLE, "out": 16}) is None
    assert early_write(PLAIN | {"op": VectorOp.TABLE, "out": 17}) == 17
    assert early_write(POOL | {"op": VectorOp.MAX_POOL, "out": 18, "out_group": 12}) == 18
    rows = PLAIN | {"op": VectorOp.LAYER_NORM}
    assert early_write(rows | {"out": 16}) is None
    assert early_write(rows | {"out": 17}) == 17
    assert early_write(rows | {"table": 120, "out_step": 2}) == 120
    assert len(write_addresses(PLAIN | {"op": VectorOp.TABLE})) == 24


LOAD = load(0, 1024, 104, sem_valid=1, sem=3)


def vector(**fields):
    wait = {"wait0_sem": 3, "wait0_count": 104}
    return Opcode.VECTOR, PLAIN | {"op": VectorOp.MULTIPLY} | wait | fields


def test_interpreter_runs_vector_commands():
    signal = {"signal0_valid": 1, "signal0_sem": 4, "signal0_rect": 0}
    out = store(120, 3500, 24, wait0_sem=4, wait0_count=1)
    config, words = program(LOAD, vector(**signal), out)
    after = Interpreter(config, words, eager=False).run()
    _, want = run_vector(vector()[1], words[1024:1280])
    np.testing.assert_array_equal(after[3500:3524], want)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"op": 31}, "tile 0,0: VECTOR has no operation 31"),
        ({"op": int(VectorOp.TABLE)}, "VECTOR reads scratchpad word 160, never written"),
        ({"b_base": 81}, "VECTOR reads scratchpad word 104, never written"),
        ({"out": 1015}, "VECTOR reaches words 1015 .. 1038, limit 1024"),
        ({"out": 17}, "VECTOR writes word 17 before it reads it"),
    ],
)
def test_interpreter_checks_vector_commands(fields, message):
    config, words = program(LOAD, vector(**fields))
    with pytest.raises(ProgramError, match=message):
        Interpreter(config, words, values=False).run()
