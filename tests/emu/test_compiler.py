# SPDX-License-Identifier: Apache-2.0
"""Whole layers: compiled, interpreted in both orders of arrival, equal to plain numpy."""

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.compiler.geometry import geometry_of
from emu.config import load_config
from emu.errors import UserError
from emu.interpreter import execute
from tests.emu.compiler_layers import golden, make_input, make_layer, nibbles

SAME = dict(k=(3, 3), pads=(1, 1, 1, 1))
MACHINES = {
    "base": ("base", ()),
    "small": ("small", ()),
    "one tile": ("small", ("mesh.rows=1", "mesh.cols=1", "hbm.channels=1", "scratchpad.kib=16")),
    "odd": ("base", ("mesh.rows=3", "mesh.cols=5", "core.accumulator_rows=64")),
    "unicast": ("base", ("mesh.multicast=false", "scratchpad.kib=32")),
    "tight": ("base", ("mesh.rows=2", "mesh.cols=8", "scratchpad.kib=16",
                       "core.accumulator_rows=16", "core.queue_depth=1")),
    "wafer": ("wafer", ("scratchpad.kib=16",)),
}


def check(layers, config):
    """Compile and interpret a chain; every order of arrival must give numpy's result."""
    program = compile_network(layers, config)
    assert program.planned_read_bytes >= program.compulsory_bytes["hbm_read"]
    inputs = make_input(np.random.default_rng(7), layers[0])
    expected = inputs
    for layer in layers:
        expected = golden(layer, expected)
    name = layers[-1].output_name
    for eager in (True, False):
        found = execute(program, {layers[0].input_name: inputs}, eager=eager)
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)
    return program


def random_layer(rng, name="layer"):
    """A layer of random shape: dense, depthwise, grouped, wide or large."""
    kind = rng.choice(["dense", "depthwise", "grouped", "rows"])
    h, w, k = *(int(v) for v in rng.integers(1, 20, 2)), (1, 1)
    c, m, groups = int(rng.integers(1, 200)), int(rng.integers(1, 200)), 1
    if kind == "depthwise":
        c = m = groups = int(rng.integers(2, 70))
    elif kind == "grouped":
        groups = int(rng.integers(2, 6))
        c, m = (groups * int(v) for v in rng.integers(1, 20, 2))
    elif kind == "rows":
        c, m, h = int(rng.integers(200, 1500)), int(rng.integers(1, 700)), 1
    if kind != "rows":
        k = (int(rng.integers(1, min(8, h + 1))), int(rng.integers(1, min(8, w + 1))))
    s = d = (1, 1)
    if rng.integers(2):
        s = tuple(int(v) for v in rng.integers(1, 4, 2))
    pads = tuple(int(v) for v in rng.integers(0, 4, 4)) if rng.integers(2) else (0, 0, 0, 0)
    if rng.integers(3) == 0:
        d = tuple(
            int(rng.integers(1, 3)) if 2 * (k[i] - 1) < (h, w)[i] + pads[i] + pads[i + 2] else 1
            for i in range(2)
        )
    x_signed, w_signed, y_signed = (bool(v) for v in rng.integers(0, 2, 3))
    return make_layer(
        rng, c=c, m=m, h=h, w=w, n=int(rng.choice([1, 1, 2, 8])), k=k, s=s, d=d, pads=pads,
        groups=groups, x_signed=x_signed, w_signed=w_signed, y_signed=y_signed, name=name,
    )


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("seed", range(8))
def test_random_layers(machine, seed):
    chip, settings = MACHINES[machine]
    rng = np.random.default_rng([seed, list(MACHINES).index(machine)])
    config = load_config(chip, settings)
    layer = random_layer(rng)
    try:
        check([nibbles(layer) if seed % 2 else layer], config)
    except UserError as error:
        assert "does not fit" in str(error)


@pytest.mark.parametrize("machine", ["base", "small", "one tile"])
@pytest.mark.parametrize("shape", [
    dict(k=(3, 3), pads=(1, 1, 1, 1)), dict(k=(3, 3), s=(2, 2), pads=(1, 1, 1, 1)),
    dict(k=(3, 3), s=(2, 2), pads=(0, 0, 1, 1)), dict(k=(5, 5), pads=(2, 2, 2, 2)),
    dict(k=(5, 5), s=(2, 2), pads=(2, 2, 2, 2)), dict(k=(1, 7), pads=(0, 3, 0, 3)),
    dict(k=(3, 2), pads=(1, 4, 1, 4)), dict(k=(3, 3), d=(2, 1), pads=(2, 1, 2, 1)),
    dict(k=(2, 4), s=(1, 3)), dict(k=(3, 3), d=(1, 2), pads=(1, 2, 1, 2)),
], ids=str)
def test_depthwise(machine, shape):
    """Three kernel columns a pass, where that is quicker; padding, strides, tails of channels."""
    chip, settings = MACHINES[machine]
    rng = np.random.default_rng(5)
    for c, h, w in ((16, 7, 7), (40, 13, 18), (20, 33, 9)):
        layer = make_layer(rng, c=c, m=c, h=h, w=w, groups=c, **shape)
        check([layer], load_config(chip, settings))
        tapped = shape.get("d", (1, 1))[1] == 1 and shape.get("s") != (1, 3)
        assert geometry_of(layer).tapped == tapped


@pytest.mark.parametrize("machine", ["base", "small", "unicast"])
def test_weights_of_four_bits_move_as_nibbles(machine):
    """Half the bytes, the same result; a setting keeps them in bytes."""
    chip, settings = MACHINES[machine]
    layer = nibbles(make_layer(np.random.default_rng(2), c=64, m=64, h=5, w=5, **SAME))
    packed = check([layer], load_config(chip, settings))
    plain = check([layer], load_config(chip, (*settings, "core.packed_weights=false")))
    tiles = 4 * 4 * 9
    saved = plain.compulsory_bytes["hbm_read"] - packed.compulsory_bytes["hbm_read"]
    assert saved == tiles * 128


@pytest.mark.parametrize("seed", range(12))
def test_random_chains(seed):
    rng = np.random.default_rng([seed, 99])
    chip, settings = list(MACHINES.values())[seed % len(MACHINES)]
    shape = (int(rng.integers(1, 3)), int(rng.integers(1, 100)), 12, 9)
    layers, zero = [], None
    for index in range(int(rng.integers(2, 6))):
        n, c, h, w = shape
        depthwise = c > 1 and rng.integers(3) == 0
        size = int(rng.choice([1, 3])) if min(h, w) >= 3 else 1
        layer = make_layer(
            rng, c=c, m=c if depthwise else int(rng.integers(1, 300)), h=h, w=w, n=n,
            k=(size, size), s=(int(rng.integers(1, 3)),) * 2, pads=(size // 2,) * 4,
            groups=c if depthwise else 1, x_zero=zero, name=f"layer {index}", source=f"t{index}",
            target=f"t{index + 1}",
        )
        layers.append(layer)
        shape, zero = layer.output_shape, layer.y_zero
    check(layers, load_config(chip, settings))


LARGER = {
    "3x3 split by channels": ("base", (), dict(c=256, m=256, h=14, w=14, **SAME), "1x16 keep"),
    "3x3 split by pixels": ("base", (), dict(c=64, m=64, h=56, w=56, **SAME), "8x2 keep"),
    "weights again per band": (
        "small", ("scratchpad.kib=16",), dict(c=256, m=64, h=20, w=20, **SAME), "bands"),
    "cut input groups": (
        "small", ("scratchpad.kib=16", "mesh.rows=1", "mesh.cols=1", "hbm.channels=1"),
        dict(c=2048, m=40, h=2, w=2, k=(2, 2)), "part"),
    "one token": ("base", (), dict(c=768, m=768), "1x16 chunk"),
    "more groups than parameters fit": (
        "small", ("mesh.rows=1", "mesh.cols=1", "hbm.channels=1", "scratchpad.kib=16"),
        dict(c=16, m=1024), ""),
    "depthwise, batch": (
        "small", (), dict(c=48, m=48, h=30, w=30, n=2, groups=48, **SAME), "keep"),
}


@pytest.mark.parametrize("name", LARGER)
def test_larger_layers(name):
    chip, settings, shape, plan = LARGER[name]
    layer = make_layer(np.random.default_rng(5), **shape)
    program = check([layer], load_config(chip, settings))
    assert plan in program.plans[0]


def test_multicast_reads_every_word_once():
    layer = make_layer(np.random.default_rng(1), c=256, m=256, h=14, w=14, **SAME)
    program = compile_network([layer], load_config())
    assert program.planned_read_bytes == program.compulsory_bytes["hbm_read"]
    unicast = compile_network([layer], load_config("base", ["mesh.multicast=false"]))
    assert unicast.compulsory_bytes == program.compulsory_bytes
    assert unicast.planned_read_bytes > 2 * program.planned_read_bytes


def test_compulsory_words_are_those_that_loads_name():
    """One row a tile: rows between those of a stride, and words right of the last, stay in HBM."""
    strided = dict(h=12, w=12, s=(4, 5), pads=(4, 0, 0, 0))
    layer = make_layer(np.random.default_rng(1), c=16, m=16, **strided)
    config = load_config("base", ["mesh.rows=1", "mesh.cols=4", "hbm.channels=2"])
    program = check([layer], config)
    # Four output rows of three pixels, the first of padding alone, which loads a word of row 0.
    assert program.rooflines[0].reads == {"x": 3 * 11}


def test_roofline_of_known_layers():
    rng = np.random.default_rng(1)
    conv = make_layer(rng, c=256, m=256, h=14, w=14, **SAME)
    assert compile_network([conv], load_config()).roofline["compute"] == 28224
    token = compile_network([make_layer(rng, c=768, m=3072)], load_config())
    # 48 x 192 weight tiles, 48 input words, 8 parameter words a group, 192 output words.
    assert token.roofline["hbm"] == (48 * 192 * 16 + 48 + 8 * 192 + 192) / 8


def test_too_large_for_hbm():
    layer = make_layer(np.random.default_rng(1), c=2048, m=2048)
    config = load_config("small", ["hbm.mib=1"])
    with pytest.raises(UserError, match=r"no room in HBM for weights of layer: .* MiB too many"):
        compile_network([layer], config)


def test_limits_are_named():
    layer = make_layer(np.random.default_rng(1), c=16, m=16, h=70, w=70, k=(65, 1))
    with pytest.raises(UserError, match="kernel 65 exceeds the limit of 63"):
        compile_network([layer], load_config())
    with pytest.raises(UserError, match="no layers"):
        compile_network([], load_config())


def test_inputs_are_checked():
    layer = make_layer(np.random.default_rng(1), c=16, m=16, h=4, w=4)
    program = compile_network([layer], load_config("small"))
    with pytest.raises(UserError, match="missing x; not an input: z"):
        program.image({"z": np.zeros((1, 16, 4, 4), np.int8)})
    with pytest.raises(UserError, match="shape"):
        program.image({"x": np.zeros((1, 16, 4, 5), np.int8)})
    with pytest.raises(UserError, match="words per channel"):
        program.outputs([np.zeros((1, 16), np.uint8)] * 2)


def test_dump_round_trip(tmp_path):
    layer = make_layer(np.random.default_rng(1), c=16, m=16, h=4, w=4)
    program = compile_network([layer], load_config("small"))
    image = program.image({"x": make_input(np.random.default_rng(2), layer)})
    program.write_images([words[:, ::-1] for words in image], tmp_path)  # as a dump is written
    for found, expected in zip(program.read_dump(tmp_path), image, strict=True):
        np.testing.assert_array_equal(found, expected)
    path = tmp_path / "channel_1.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(UserError, match=r"channel_1.bin: \d+ bytes are no whole number of words"):
        program.read_dump(tmp_path)
    path.write_bytes(data[:-16])
    with pytest.raises(UserError, match=r"the dump has \d+ words per channel, \d+ are needed"):
        program.outputs(program.read_dump(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match="no dump of channel 1"):
        program.read_dump(tmp_path)
