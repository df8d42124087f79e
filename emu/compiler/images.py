# SPDX-License-Identifier: Apache-2.0
"""HBM contents: where tensors, weights, parameters and commands lie, and how words map to channels.

The global image is an array of words ``uint8[words, 16]``; `to_channels` splits it as
`emu.config.channel_of` does, `from_channels` is its inverse.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.compiler.geometry import ROW_TAPS, Geometry
from emu.compiler.space_to_depth import from_blocks, to_blocks
from emu.config import SEGMENT_WORDS, WORD_BYTES, Config
from emu.errors import UserError
from emu.network.layers import ConvLayer

Bytes = NDArray[np.uint8]
LANES = 16


def _channel_of_segments(config: Config, rows: int) -> NDArray[np.int64]:
    """``[row, j]`` = channel of segment ``row * channels + j``."""
    channels = config.hbm.channels
    bits = channels.bit_length() - 1
    fold = np.zeros(rows, np.int64)
    rest = np.arange(rows, dtype=np.int64)
    while bits and rest.any():
        fold ^= rest
        rest >>= bits
    return (np.arange(channels)[None, :] ^ fold[:, None]) & (channels - 1)


def to_channels(config: Config, words: Bytes) -> list[Bytes]:
    """Per channel its local words ``uint8[local, 16]``, all of one length."""
    line = config.hbm.channels * SEGMENT_WORDS
    rows = -(-len(words) // line)
    full = np.zeros((rows * line, WORD_BYTES), np.uint8)
    full[: len(words)] = words
    segments = full.reshape(rows, config.hbm.channels, SEGMENT_WORDS * WORD_BYTES)
    where = np.argsort(_channel_of_segments(config, rows), axis=1)
    return [
        segments[np.arange(rows), where[:, channel]].reshape(-1, WORD_BYTES)
        for channel in range(config.hbm.channels)
    ]


def from_channels(config: Config, channels: list[Bytes]) -> Bytes:
    """The global words of channel images (a dump may be longer than what was loaded)."""
    rows = min(len(image) for image in channels) // SEGMENT_WORDS
    stacked = np.stack(
        [np.asarray(image)[: rows * SEGMENT_WORDS].reshape(rows, -1) for image in channels], axis=1
    )
    where = _channel_of_segments(config, rows)
    return stacked[np.arange(rows)[:, None], where].reshape(-1, WORD_BYTES)


@dataclass(frozen=True)
class Tensor:
    """An activation in HBM as ``C16``: word (c, image, y, x) at
    ``base + ((c // 16 * images + image) * height + y) * width + x``.

    block: Pixels that lie in one (`emu.compiler.space_to_depth`); ``shape`` counts blocks then, and
        ``size`` is the image's height and width.
    pitch: Words from group to group if the tensor is part of a larger one.
    """

    name: str
    shape: tuple[int, int, int, int]
    base: int
    is_signed: bool
    zero: int
    block: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (0, 0)
    pitch: int = 0

    @property
    def groups(self) -> int:
        return -(-self.shape[1] // LANES)

    @property
    def pixels(self) -> int:
        """Words of one group: all images."""
        return self.shape[0] * self.shape[2] * self.shape[3]

    @property
    def plane(self) -> int:
        """Words from group to group."""
        return self.pitch or self.pixels

    @property
    def words(self) -> int:
        return self.groups * self.pixels

    @property
    def addresses(self) -> NDArray[np.int64]:
        """Global HBM word of each of the words of `pack`."""
        groups, pixels = np.arange(self.groups)[:, None], np.arange(self.pixels)[None]
        return (self.base + groups * self.plane + pixels).reshape(-1)

    def pack(self, values: NDArray) -> Bytes:
        """Words of ``values`` (NCHW, in the tensor's own domain); padded channels hold the zero."""
        values = np.asarray(values)
        if self.block != (1, 1) and values.shape[2:] == self.size:
            values = to_blocks(values, self.block, self.zero)
        if values.shape != self.shape:
            raise UserError(
                f"tensor {self.name}: shape {values.shape} given, {self.shape} expected"
            )
        low, high = (-128, 127) if self.is_signed else (0, 255)
        if values.size and (values.min() < low or values.max() > high):
            raise UserError(f"tensor {self.name}: values outside {low} .. {high}")
        n, c, h, w = self.shape
        full = np.full((n, self.groups * LANES, h, w), self.zero & 0xFF, np.uint8)
        full[:, :c] = values.astype(np.int64) & 0xFF
        full = full.reshape(n, self.groups, LANES, h, w).transpose(1, 0, 3, 4, 2)
        return np.ascontiguousarray(full).reshape(-1, WORD_BYTES)

    def unpack(self, words: Bytes) -> NDArray:
        """Inverse of `pack`: int8 or uint8, NCHW."""
        n, c, h, w = self.shape
        full = words.reshape(self.groups, n, h, w, LANES).transpose(1, 0, 4, 2, 3)
        values = np.ascontiguousarray(full.reshape(n, self.groups * LANES, h, w)[:, :c])
        if self.block != (1, 1):
            values = from_blocks(values, self.block, self.size)
        return values.view(np.int8) if self.is_signed else values


@dataclass(frozen=True)
class Area:
    """``words`` allocated from global word ``base`` on.

    parts: Equal parts, one behind the other in every pseudo-channel, of which a pass uses ``used``.
    scattered: A table of which single rows are used.
    """

    base: int
    words: int
    parts: int = 1
    used: int = 1
    scattered: bool = False


@dataclass
class Memory:
    """A bump allocator over global HBM words that also collects initial contents.

    areas: What was allocated, in order. ``uses``: Of every layer, in order of execution, the areas
        that it reads, by number: what was allocated before `begin_layer` is of none.
    """

    config: Config
    used: int = 0
    pieces: list[tuple[NDArray[np.int64] | int, Bytes]] = field(default_factory=list)
    shared: dict[Any, Any] = field(default_factory=dict)
    """Where data of several layers lie, see `once`."""
    areas: list[Area] = field(default_factory=list)
    uses: list[list[int]] = field(default_factory=list)

    def begin_layer(self) -> None:
        """What is allocated from here on, the next layer reads."""
        self.uses.append([])

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returns; layers with the same key share what it allocates."""
        if key not in self.shared:
            first = len(self.areas)
            made = make()
            self.shared[key] = made, range(first, len(self.areas))
        else:
            made, areas = self.shared[key]
            self.uses[-1] += areas
        return made

    def allocate(self, words: int, what: str, align: int = SEGMENT_WORDS, *, parts: int = 1,
                 used: int = 1, scattered: bool = False) -> int:
        """First word of a new area, see `Area`.

        Raises
        ------
        UserError
            If HBM is full.
        """
        base = -(-self.used // align) * align
        self.used = base + words
        if self.used > self.config.hbm_words:
            need, have = self.used * WORD_BYTES, self.config.hbm_words * WORD_BYTES
            raise UserError(
                f"no room in HBM for {what}: {need / 2**20:.1f} MiB needed, {have / 2**20:.1f} MiB "
                f"there, {(need - have) / 2**20:.1f} MiB too many: raise hbm.mib or hbm.channels"
            )
        if self.uses:
            self.uses[-1].append(len(self.areas))
        self.areas.append(Area(base, words, parts, used, scattered))
        return base

    def put(self, address: NDArray[np.int64] | int, words: Bytes) -> None:
        """Initial contents: consecutive from an address, or one address per 16 bytes."""
        self.pieces.append((address, words))

    def build(self) -> Bytes:
        """The global image, `used` words."""
        image = np.zeros((self.used, WORD_BYTES), np.uint8)
        for address, words in self.pieces:
            if isinstance(address, int):
                image[address : address + len(words)] = words
            else:
                image[address] = words
        return image


def weight_tiles(layer: ConvLayer, shape: Geometry, groups: range) -> list[Bytes]:
    """Per output group its weight tiles in consumption order, ``uint8[tiles, tile_words * 16]``."""
    weights = np.asarray(layer.weights).astype(np.int64)
    outputs, _, kh, kw = weights.shape
    pad = int(layer.weight_zero)
    if shape.diagonal:
        full = np.full((shape.out_groups * LANES, kh * kw), pad, np.int64)
        full[:outputs] = weights.reshape(outputs, kh * kw)
        if shape.tapped:
            wide = np.full((len(full), kh, shape.columns * ROW_TAPS), pad, np.int64)
            wide[:, :, :kw] = full.reshape(-1, kh, kw)
            tiles = wide.reshape(-1, LANES, shape.taps, ROW_TAPS).transpose(0, 2, 3, 1) & 0xFF
            return [tiles[g].astype(np.uint8).reshape(shape.taps, -1) for g in groups]
        tiles = full.reshape(-1, LANES, kh * kw).transpose(0, 2, 1) & 0xFF
        return [tiles[g].astype(np.uint8) for g in groups]
    found = []
    for g in groups:
        first, count = shape.needs[g]
        full = np.full((LANES, count * LANES, kh * kw), pad, np.int64)
        _fill(full, weights, g, first, layer.groups)
        tiles = full.reshape(LANES, count, LANES, kh * kw).transpose(1, 3, 0, 2) & 0xFF
        found.append(tiles.astype(np.uint8).reshape(count * kh * kw, LANES * LANES))
    if shape.packed:  # lane 2 i in the low half of a cell's byte i
        return [(tiles[:, 0::2] & 15 | (tiles[:, 1::2] & 15) << 4).astype(np.uint8)
                for tiles in found]
    return found


def _fill(full, weights, g: int, first: int, groups: int) -> None:
    outputs, per_group = weights.shape[:2]
    flat = weights.reshape(outputs, per_group, -1)
    if groups == 1:
        rows = flat[g * LANES : (g + 1) * LANES]
        full[: len(rows), :per_group] = rows
        return
    for j, output in enumerate(range(g * LANES, min((g + 1) * LANES, outputs))):
        start = output // (outputs // groups) * per_group - first * LANES
        full[j, start : start + per_group] = flat[output]


def parameter_words(layer: ConvLayer, shape: Geometry, groups: range) -> Bytes:
    """Eight words per output group: int32 bias[16] then float32 scale[16] (padding: 0 and 1)."""
    outputs = shape.out_groups * LANES
    bias, scale = np.zeros(outputs, np.int32), np.ones(outputs, np.float32)
    count = layer.weights.shape[0]
    bias[:count] = np.asarray(layer.bias, np.int64).astype(np.int32)
    scale[:count] = np.asarray(layer.scale, np.float32)
    both = np.stack([bias.view(np.uint8).reshape(-1, 64), scale.view(np.uint8).reshape(-1, 64)], 1)
    return both[groups.start : groups.stop].reshape(-1, WORD_BYTES)
