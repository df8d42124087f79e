# SPDX-License-Identifier: Apache-2.0
"""Mapping, chunks, tensor layout and channel images on their own."""

import numpy as np
import pytest

from emu.compiler import compile_network
from emu.compiler.geometry import geometry_of
from emu.compiler.images import Tensor, from_channels, to_channels
from emu.compiler.mapping import Split, candidates, choose, encode_rect, rect_tiles
from emu.compiler.tiling import chunks
from emu.config import channel_of, load_config
from emu.interpreter import tiles_of
from emu.isa import Opcode, decode
from tests.emu.compiler_layers import make_layer


@pytest.mark.parametrize("rows, cols", [(1, 1), (4, 4), (3, 5), (2, 8), (7, 6), (16, 16)])
def test_sharing_groups_are_rectangles(rows, cols):
    settings = [f"mesh.rows={rows}", f"mesh.cols={cols}", "hbm.channels=2"]
    splits = candidates(load_config("base", settings), 10_000, 64)
    assert splits
    for split in splits:
        _check_split(split, rows, cols)


def _check_split(split: Split, rows: int, cols: int):
    places = {
        (p, c): split.tile(p, c)
        for p in range(split.pixel_parts) for c in range(split.channel_parts)
    }
    assert len(set(places.values())) == len(places)
    assert all(x < cols and y < rows for x, y in places.values())
    for p in range(split.pixel_parts):
        expected = {places[p, c] for c in range(split.channel_parts)}
        assert set(rect_tiles(split.activation_rect(p))) == expected
        assert set(tiles_of(encode_rect(split.activation_rect(p)))) == expected
    for c in range(split.channel_parts):
        expected = {places[p, c] for p in range(split.pixel_parts)}
        assert set(rect_tiles(split.weight_rect(c))) == expected


@pytest.mark.parametrize(
    "shape, expected",
    [
        (dict(c=64, m=256, h=56, w=56), (16, 1)),
        (dict(c=64, m=64, h=56, w=56, k=(3, 3), pads=(1, 1, 1, 1)), (8, 2)),
        (dict(c=128, m=128, h=28, w=28, k=(3, 3), pads=(1, 1, 1, 1)), (4, 4)),
        (dict(c=256, m=256, h=14, w=14, k=(3, 3), pads=(1, 1, 1, 1)), (1, 16)),
        (dict(c=768, m=3072), (1, 16)),
    ],
)
def test_chosen_splits(shape, expected):
    geometry = geometry_of(make_layer(np.random.default_rng(0), **shape))
    best = choose(load_config(), geometry, range(geometry.out_groups))[0]
    assert (best.pixel_parts, best.channel_parts) == expected


@pytest.mark.parametrize("pixels", [1, 15, 16, 17, 100, 392, 784, 5000])
@pytest.mark.parametrize("limit", [16, 256])
@pytest.mark.parametrize("early", [False, True])
def test_chunks_cover_all_pixels_once(pixels, limit, early):
    cut = chunks(pixels, limit, early)
    assert [a for a, _ in cut] == [0] + [b for _, b in cut[:-1]]
    assert cut[-1][1] == pixels
    assert all(0 < b - a <= limit for a, b in cut)


def test_tail_is_a_chunk_of_its_own():
    assert chunks(196, 256, True, True) == [(0, 164), (164, 196)]


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_channel_images_agree_with_the_address_map(channels):
    config = load_config("base", [f"hbm.channels={channels}"])
    rng = np.random.default_rng(channels)
    words = rng.integers(0, 256, (16 * 37 + 5, 16)).astype(np.uint8)
    image = to_channels(config, words)
    for address in range(len(words)):
        channel, local = channel_of(config, address)
        np.testing.assert_array_equal(image[channel][local], words[address])
    np.testing.assert_array_equal(from_channels(config, image)[: len(words)], words)


def test_tensor_layout():
    tensor = Tensor("t", (2, 20, 3, 4), 0, True, -5)
    values = np.random.default_rng(0).integers(-128, 128, tensor.shape).astype(np.int8)
    words = tensor.pack(values)
    assert len(words) == tensor.words == 2 * 2 * 3 * 4
    group, image, y, x = 1, 1, 2, 3
    word = words[((group * 2 + image) * 3 + y) * 4 + x].view(np.int8)
    np.testing.assert_array_equal(word[:4], values[1, 16:20, 2, 3])
    assert (word[4:] == -5).all()
    np.testing.assert_array_equal(tensor.unpack(words), values)


def test_pointwise_layers_are_one_row():
    shape = geometry_of(make_layer(np.random.default_rng(0), c=32, m=32, h=5, w=6, n=3))
    assert (shape.images, shape.height, shape.width, shape.pixels) == (1, 1, 90, 90)


def test_grouped_needs_only_its_input_groups():
    layer = make_layer(np.random.default_rng(0), c=128, m=64, h=4, w=4, groups=2)
    assert geometry_of(layer).needs == ((0, 4), (0, 4), (4, 4), (4, 4))


def _early_fetches(layers):
    """Numbers of members of the frames that tiles fill before any lookup, by tile."""
    program = compile_network(layers, load_config("small"))
    commands = {
        tile: [decode(command) for command in stream] for tile, stream in program.streams.items()
    }
    return program.plans, {
        tile: fields["members"] for tile, found in commands.items()
        for opcode, fields in found if opcode == Opcode.LAYER and fields["start"]
    }


def test_only_a_first_layer_is_fetched_early_into_other_tiles():
    """A leader that has nothing to do in the first layer would write over its followers' frames."""
    rng = np.random.default_rng(1)
    private = make_layer(rng, c=1, m=1, h=4, w=7, k=(3, 1), pads=(1, 1, 0, 1), target="t")
    shared = make_layer(
        rng, c=1, m=8, h=3, w=9, k=(3, 3), pads=(1, 0, 0, 0), x_zero=private.y_zero, source="t",
    )
    plans, early = _early_fetches([private, shared])
    assert plans[0].startswith("1x4 ") and plans[1].startswith("4x1 ")
    assert early and set(early.values()) == {1}
    plans, early = _early_fetches([shared])
    assert set(early.values()) == {4}


def test_shared_blocks_are_prefetched_only_from_one_step_to_the_next():
    """Not over a step in which a leader is idle while its followers share frames otherwise."""
    rng = np.random.default_rng(2)
    first = make_layer(
        rng, c=17, m=64, h=15, w=14, k=(5, 1), pads=(1, 1, 0, 0), source="t0", target="t1")
    second = make_layer(
        rng, c=64, m=96, h=12, w=15, k=(5, 5), pads=(0, 1, 0, 0), x_zero=first.y_zero,
        source="t1", target="t2")
    third = make_layer(
        rng, c=96, m=64, h=8, w=12, k=(5, 3), pads=(1, 1, 0, 0), x_zero=second.y_zero,
        source="t2", target="t3")
    program = compile_network(
        [first, second, third], load_config("base", ["scratchpad.resident=false"])
    )
    assert [plan.split()[0] for plan in program.plans] == ["4x4", "2x8", "4x4"]
    for stream in program.streams.values():
        found = [fields for opcode, fields in map(decode, stream) if opcode == Opcode.LAYER]
        assert all(fields["members"] > 1 for fields in found)
        assert not any(fields["child_valid"] for fields in found)
