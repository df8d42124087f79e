# SPDX-License-Identifier: Apache-2.0
"""A stream written by hand leaves the same HBM image on the chip and in the interpreter.

It holds what compiled layers do not use yet: operations on rows, a gather by numbers that the chip
found itself, words for another tile, resident weights read by columns, an int32 drain.
"""

import numpy as np
import pytest

from emu.compiler import Program, compile_network
from emu.compiler.images import from_channels
from emu.config import load_config
from emu.interpreter import Interpreter
from emu.interpreter import execute as interpret
from emu.isa import COMMAND_BYTES, COMMAND_WORDS, Opcode, VectorOp, WeightMode
from emu.network.layers import AddLayer, MultiplyLayer, Operand, PoolLayer, TableLayer
from emu.normalise import norm_parameters, parameter_words
from emu.requantise import add_scales, add_table
from emu.softmax import softmax_table
from sim import execute
from tests.emu.programs import DATA, load, program, rect, store

X, TABLE, PARAMETERS, WEIGHTS, BIAS = 0, 100, 200, 300, 400
SOFTMAX, NORM, TOP, VALUES, SUMS, FOUND, PRODUCT = 500, 600, 700, 750, 800, 900, 600
RESULTS = 3000


def vector(op: VectorOp, **fields: int):
    """Eight rows of 27 channels at X."""
    return Opcode.VECTOR, {
        "op": op, "base": X, "plane": 8, "step": 1, "groups": 2, "pixels": 8, "channels": 27,
        "out_group": 8, "out_step": 1, "a_signed": 1, "clip_low": -128, "clip_high": 127,
    } | fields


def here(sem: int, **fields: int) -> dict:
    """When done +1 on a semaphore of tile 0, 0."""
    return {"signal0_valid": 1, "signal0_sem": sem, "signal0_rect": 0} | fields


def wait(sem: int, count: int = 1, place: int = 0) -> dict:
    return {f"wait{place}_sem": sem, f"wait{place}_count": count}


def streams():
    compute = {
        "base": SOFTMAX, "plane": 8, "row": 8, "step": 1, "height": 1, "width": 8, "sy": 1,
        "sx": 1, "kh": 1, "kw": 1, "in_groups": 2, "out_width": 8, "pixels": 8, "w_resident": 1,
        "w_base": WEIGHTS, "w_tile_stride": 16, "w_mode": WeightMode.COLUMN, "out_groups": 1,
        "a_signed": 1, "a_zero": -128, "w_signed": 1, "w_zero": 3, "first": 1, "last": 1,
        "out": SUMS, "out_step": 4, "out_int32": 1, "params": BIAS,
    }
    first = (
        load(X, DATA, 16, sem_valid=1, sem=1),
        load(TABLE, DATA + 100, 64, sem_valid=1, sem=1),
        load(PARAMETERS, DATA + 200, 16, sem_valid=1, sem=1),
        load(WEIGHTS, DATA + 300, 104, sem_valid=1, sem=2),
        vector(VectorOp.SOFTMAX, out=SOFTMAX, table=TABLE, scale0=256, out_zero=-128,
               channels=20, causal=1, **wait(1, 96), **here(3, signal1_valid=1, signal1_sem=10)),
        vector(VectorOp.LAYER_NORM, out=NORM, table=PARAMETERS, scale0=100, a_zero=5, out_zero=2,
               **here(4)),
        vector(VectorOp.TOP_K, out=TOP, k=3, b_mode=1, b_base=VALUES, b_step=1,
               **here(5, signal1_valid=1, signal1_sem=6)),
        (Opcode.COMPUTE, compute | wait(2, 104) | wait(3, place=1) | here(7)),
        load(FOUND, DATA, 2, count2=3, s_stride2=2, f_stride2=4, gather=1, gather_base=TOP + 3,
             sem_valid=1, sem=8, **wait(6)),
        store(SOFTMAX, X, 16, to_tiles=1, rect=rect(x0=1, x1=1), sem_valid=1, sem=9, **wait(10)),
        *(
            store(place, RESULTS + place, count, **waits)
            for place, count, waits in (
                (SOFTMAX, 16, {}), (NORM, 16, wait(4)), (TOP, 8, wait(5)), (VALUES, 8, {}),
                (SUMS, 32, wait(7)), (FOUND, 6, wait(8, 6)),
            )
        ),
    )
    product = vector(
        VectorOp.MULTIPLY, out=PRODUCT, kh=1, kw=1, sx=1, sy=1, height=1, width=8, row=8,
        out_width=8, b_base=X, b_plane=8, b_step=1, b_mode=2, a_zero=-128, b_zero=-128, b_signed=1,
        scale0=int(np.float32(0.01).view(np.uint32)), **wait(9, 16), **here(1),
    )
    product[1]["signal0_rect"] = rect(x0=1, x1=1)
    second = (product, store(PRODUCT, RESULTS, 16, **wait(1)))
    return first, second


@pytest.fixture(scope="module")
def image():
    first, second = streams()
    config, words = program(*first, second=second, config=load_config("small"))
    words[DATA + 100 : DATA + 164] = softmax_table(32, 0.05).view(np.uint8).reshape(64, 16)
    rng = np.random.default_rng(1)
    parameters = norm_parameters(
        rng.normal(1, 0.2, 27), rng.normal(0, 0.2, 27), in_scale=0.1, out_scale=0.03, epsilon=1e-3
    )
    words[DATA + 200 : DATA + 216] = parameter_words(parameters)
    return config, words


def test_the_interpreter_accepts_it(image):
    config, words = image
    results = [Interpreter(config, words.copy(), eager=eager).run() for eager in (True, False)]
    np.testing.assert_array_equal(*results)
    changed = (results[0] != words).any(axis=1)
    assert not changed[:RESULTS].any() and changed[RESULTS:].sum() > 90


def on_chip(hand: Program, image, simulator: str):
    """The HBM image after a run on the RTL."""
    options = execute.Options(simulator=simulator)
    return execute._simulate(hand, image, options, lambda text: None)["image"]


@pytest.mark.rtl
def test_chip_and_interpreter_agree(image, simulator):
    config, words = image
    raw = {}
    for tile in range(config.mesh.tiles):
        entry = int(words[tile].view(np.uint64)[0])
        base, count = entry & (1 << 28) - 1, entry >> 32
        data = words[base : base + count * COMMAND_WORDS].tobytes()
        y, x = divmod(tile, config.mesh.cols)
        raw[x, y] = [data[k : k + COMMAND_BYTES] for k in range(0, len(data), COMMAND_BYTES)]
    hand = Program(
        config=config, streams=raw, words=words, tensors={}, input_names=(), output_names=(),
        rooflines=(), plans=(), step_reads=(),
    )
    got = from_channels(config, on_chip(hand, hand.image({}), simulator))[: len(words)]
    want = Interpreter(config, words.copy()).run()
    wrong = np.flatnonzero((got != want).any(axis=1))
    assert not len(wrong), f"{len(wrong)} words differ, the first {wrong[0]}"


@pytest.mark.rtl
@pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
def test_layers_of_the_vector_engine(simulator):
    """Pools and element-wise layers as compiled: chip and interpreter agree."""
    rng = np.random.default_rng(1)
    shape = (1, 40, 9, 13)
    a, b, y = (Operand(name, shape, True, zero) for name, zero in (("a", 3), ("b", -7), ("y", 9)))
    halved = Operand("y", (1, 40, 5, 7), True, 3)
    scales = add_scales(0.03, 0.05, 0.06)
    table = add_table(*scales, a_zero=3, c_zero=-7, out_zero=9, c_signed=True)
    clip = {"clip_low": -128, "clip_high": 120}
    pool = {
        "name": "pool", "source": a, "target": halved, "kernel": (3, 3), "strides": (2, 2),
        "scale": np.float32(0.1), "clip_low": -128, "clip_high": 127,
    }
    layers = (
        PoolLayer(kind="max", pads=(1, 1, 1, 1), **pool),
        PoolLayer(kind="average", pads=(1, 1, 1, 1), **pool),
        AddLayer(name="add", sources=(a, b), target=y, scale=scales[0], table=table, **clip),
        MultiplyLayer(name="mul", sources=(a, b), target=y, scale=np.float32(0.02), **clip),
        TableLayer(name="table", source=a, target=y, table=rng.permutation(256).astype(np.uint8)),
    )
    for layer in layers:
        compiled = compile_network([layer], load_config("small"))
        inputs = {o.name: rng.integers(-128, 128, shape).astype(np.int8) for o in layer.sources}
        want = interpret(compiled, inputs)["y"]
        got = compiled.outputs(on_chip(compiled, compiled.image(inputs), simulator))["y"]
        np.testing.assert_array_equal(got, want)
        assert len(np.unique(got)) > 20
