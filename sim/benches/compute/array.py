# SPDX-License-Identifier: Apache-2.0
"""Both arrays against numpy, and so against each other: all modes, extremes, tiles back to back."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu.golden_compute import TILE_WORDS, extend, tile_weights
from emu.isa import WeightMode
from hdl.compute.array import PlainArray
from hdl.compute.packed_array import PackedArray

VARIANTS = {"packed": PackedArray, "plain": PlainArray}


def random_words(rng, count: int, kind: int) -> np.ndarray:
    """Bytes [word, 16]: any, or only the extremes."""
    if kind == 0:
        return rng.integers(0, 256, (count, 16)).astype(np.uint8)
    return rng.choice([[0, 255], [127, 128], [128, 128]][kind - 1], (count, 16)).astype(np.uint8)


def random_tile(rng) -> dict:
    """A weight tile and the activations that meet it, with their expected sums."""
    mode = WeightMode(rng.choice([0, 0, 1, 2, 3, 4, 4]))
    signs = rng.integers(0, 2, 2)
    zeros = [int(rng.choice([-128, 127, 0]) if s else rng.choice([0, 255, 128])) for s in signs]
    f = {"w_mode": int(mode), "w_signed": int(signs[0]), "w_zero": zeros[0]}
    if mode == WeightMode.INT4:
        f["w_zero"] = int(rng.integers(-8, 8))
    words = random_words(rng, TILE_WORDS[mode], int(rng.integers(0, 4)))
    pixels = int(rng.integers(1, 24))
    activations = random_words(rng, pixels, int(rng.integers(0, 4)))
    inside = rng.random(pixels) < 0.8
    values = extend(activations, int(signs[1]), zeros[1]) * inside[:, None]
    fresh = rng.random(pixels) < 0.2
    fresh[0] = True
    sums = (row_sums(values, fresh, extend(words, f["w_signed"], f["w_zero"]))
            if mode == WeightMode.ROW_TAP else values @ tile_weights(f, words))
    return f | {
        "words": words, "activations": activations, "inside": inside, "fresh": fresh,
        "a_signed": int(signs[1]), "a_zero": zeros[1], "sums": sums,
    }


def row_sums(values, fresh, taps) -> np.ndarray:
    """Every word and the two before it in its row, by the three taps of its channel."""
    starts = np.maximum.accumulate(np.where(fresh, np.arange(len(fresh)), 0))
    sums = np.zeros_like(values)
    for tap, back in enumerate((2, 1, 0)):
        index = np.arange(len(values)) - back
        sums += np.where((index >= starts)[:, None], values[np.maximum(index, 0)], 0) * taps[tap]
    return sums


def extreme_tiles(rng) -> list[dict]:
    """Sums of +-16 x 255 x 255 in every mix of neighbouring cells."""
    tiles = []
    for a_zero in (0, 255):
        for w_zero in (0, 255):
            f = {"w_mode": 0, "w_signed": 0, "w_zero": w_zero, "a_signed": 0, "a_zero": a_zero}
            words = np.repeat(rng.choice([0, 255], (16, 1)), 16, axis=1).astype(np.uint8)
            activations = np.repeat([[255 - a_zero]], 16, axis=1).astype(np.uint8)
            sums = extend(activations, 0, a_zero) @ tile_weights(f, words)
            tiles.append(f | {"words": words, "activations": activations,
                              "inside": np.array([True]), "fresh": np.array([True]),
                              "sums": sums})
    return tiles


def number(row: np.ndarray) -> int:
    return int.from_bytes(row.tobytes(), "little")


class Loader:
    """Loads tiles, each as soon as the shadow registers are free, with random gaps."""

    def __init__(self, dut, rng, tiles):
        self.dut, self.rng, self.tiles = dut, rng, tiles
        self.loaded, self.word = 0, 0

    def next(self, swapped: int):
        """Drive this cycle's load; the shadow is free for tile ``swapped``."""
        dut = self.dut
        go = self.loaded < len(self.tiles) and self.loaded <= swapped and self.rng.random() < 0.9
        dut.load.value = int(go)
        dut.weights.value = number(random_words(self.rng, 1, 0)[0])
        if go:
            tile = self.tiles[self.loaded]
            dut.weights.value = number(tile["words"][self.word])
            dut.index.value, dut.mode.value = self.word, tile["w_mode"]
            dut.weights_signed.value = tile["w_signed"]
            dut.weights_zero.value = tile["w_zero"]
            self.word += 1
            if self.word == len(tile["words"]):
                self.loaded, self.word = self.loaded + 1, 0


@cocotb.test
async def against_numpy(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    tiles = [random_tile(rng) for _ in range(100)] + extreme_tiles(rng) * 5
    loader = Loader(dut, rng, tiles)
    Clock(dut.clk, 1, unit="ns").start()
    for name in ("load", "swap", "enable"):
        getattr(dut, name).value = 0
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    received, tile, pixel = [], 0, 0
    for _ in range(120 * 60):
        ready = tile < len(tiles) and (pixel > 0 or loader.loaded > tile)
        go = ready and rng.random() < 0.9
        dut.enable.value = int(go)
        dut.swap.value = int(go and pixel == 0)
        loader.next(tile + 1 if go or pixel else tile)
        dut.word.value = number(random_words(rng, 1, 0)[0])
        if go:
            current = tiles[tile]
            dut.word.value = number(current["activations"][pixel])
            dut.inside.value = int(current["inside"][pixel])
            dut.tapped.value = int(current["w_mode"] == WeightMode.ROW_TAP)
            dut.fresh.value = int(current["fresh"][pixel])
            dut.word_signed.value, dut.word_zero.value = current["a_signed"], current["a_zero"]
            pixel += 1
            if pixel == len(current["activations"]):
                tile, pixel = tile + 1, 0
        await ReadOnly()
        if int(dut.valid.value):
            data = int(dut.sums.value).to_bytes(64, "little")
            received.append(np.frombuffer(data, np.int32))
        await RisingEdge(dut.clk)
    want = np.concatenate([each["sums"] for each in tiles])
    assert np.abs(want).max() == 16 * 255 * 255  # the extremes were met
    assert len(received) == len(want) > 0
    assert (np.array(received) == want).all()
