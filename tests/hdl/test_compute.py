# SPDX-License-Identifier: Apache-2.0
"""The compute engine's reference against the compiler's, and the engine's Verilog."""

import re

import numpy as np
import pytest

from emu import compute_model
from emu.config import load_config
from emu.golden_compute import TILE_WORDS, extend, group_sums, tile_weights, window_word
from emu.isa import WeightMode
from hdl.compute.engine import ComputeEngine
from hdl.compute.packed_array import verilog
from hdl.verilog import generate

FIELDS = {
    "base": 40, "plane": 400, "row": 20, "step": 1, "height": 9, "width": 9, "y0": -1, "x0": -2,
    "sy": 2, "sx": 1, "dy": 1, "dx": 2, "kh": 3, "kw": 2, "in_groups": 2, "out_width": 7,
    "first_x": 3, "pixels": 19, "out_groups": 2, "advance": 0, "w_tile": 0,
    "a_signed": 0, "a_zero": 120, "w_signed": 1, "w_zero": -3,
}


@pytest.mark.parametrize("mode", list(WeightMode))
def test_both_references_agree(mode):
    rng = np.random.default_rng(7)
    groups = 1 if mode in compute_model.DEPTHWISE else FIELDS["in_groups"]
    f = FIELDS | {"w_mode": int(mode), "in_groups": groups}
    memory = rng.integers(0, 256, (1 << 16, 16)).astype(np.uint8)
    count = groups * f["kh"] * f["kw"]
    tiles = rng.integers(0, 256, (2 * count, TILE_WORDS[mode], 16)).astype(np.uint8)
    addresses, inside = compute_model.window_addresses(f)
    window = memory[np.where(inside[None], addresses, 0)]
    weights = compute_model.weight_matrices(f, tiles)
    for group in range(2):
        want = group_sums(f, group, memory, lambda g, k: tiles[g * count + k])
        assert (compute_model.sums(f, window, inside, weights[group]) == want).all()


def test_window_wraps_rows_and_leaves_the_input():
    assert window_word(FIELDS, 0, 0, 0, 0, 0) is None  # row -1
    f = FIELDS | {"y0": 0, "x0": 0}
    assert window_word(f, 0, 1, 1, 1, 0) == 40 + 400 + 1 * 20 + (3 + 2)
    assert window_word(f, 0, 0, 0, 0, 4) == 40 + 2 * 20 + 0  # first pixel of the next row


def test_int4_tile_holds_two_cells_a_word():
    words = np.zeros((8, 16), np.uint8)
    words[3, 2] = 0x7F  # cell 6, lanes 4 and 5
    words[3, 8] = 0x80  # cell 7, lanes 0 and 1
    weights = tile_weights({"w_mode": WeightMode.INT4, "w_zero": 0}, words)
    assert weights[4, 6] == -1 and weights[5, 6] == 7
    assert weights[0, 7] == 0 and weights[1, 7] == -8
    assert np.count_nonzero(weights) == 3


def test_extend_covers_the_extremes():
    data = np.array([0, 127, 128, 255], np.uint8)
    assert extend(data, 0, 255).tolist() == [-255, -128, -127, 0]
    assert extend(data, 1, -128).tolist() == [128, 255, 0, 127]


def test_packed_array_multiplies_64_bits_only():
    text = verilog()
    assert len(re.findall(r"x\[\d+\] \* active\[\d+\]", text)) == 6 * 16
    assert "reg [63:0] x [0:15];" in text and "reg [63:0] active [0:95];" in text


@pytest.mark.parametrize("packed", ["true", "false"])
def test_engine_elaborates_with_counters(packed):
    design = generate(ComputeEngine(load_config("base", [f"core.packed_cells={packed}"])), "engine")
    assert ("headrace_packed_array.v" in design.files) == (packed == "true")
    names = {path.split(".")[-1] for path in design.counter_paths()}
    assert {"cycles_busy", "passes", "array_load_words", "stall_activation", "stall_weight",
            "stall_block", "stall_drain", "stall_short"} <= names
