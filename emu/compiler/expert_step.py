# SPDX-License-Identifier: Apache-2.0
"""Steps of experts: products whose weights the chip chooses itself, by a list of numbers.

Every tile has some of the output groups of all chosen experts. It loads the list, then gathers the
experts' parameters and, chunk by chunk of its groups, their weights, straight into the scratchpad
(one command: its outermost loop goes by the list), where the array takes them as resident ones.
So only chosen experts leave HBM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emu.compiler.images import LANES, Bytes, Memory, Tensor
from emu.compiler.mapping import encode_rect, part, single
from emu.compiler.placement import near_channels
from emu.compiler.roofline import Roofline
from emu.compiler.stream import (
    IN_FREE,
    OUT_READY,
    PARAMS,
    RESIDUAL_FREE,
    Signal,
    Stream,
    Tile,
    Wait,
)
from emu.compiler.tiling import PIECES
from emu.compiler.vector_step import UnitStep
from emu.config import SEGMENT_WORDS, WORD_BYTES, Config, direct_address, interleaved
from emu.errors import UserError
from emu.isa import Opcode, Queue, WeightMode
from emu.network.layers import ExpertLayer

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter

LIST = RESIDUAL_FREE
"""Counts the list's word, in the load queue."""
SLOTS, PARAMETER_WORDS, TABLE_WORDS, TILE_WORDS = 2, 8, 16, 16
Slice = tuple[int, int, int]
"""An expert and its first and end output group."""
MOST_WORDS = 0x7FFF
"""Of one load: its arrivals are one wait."""


def expert_words(layer: ExpertLayer) -> Bytes:
    """Table, then the parameters of all experts by output group."""
    experts, outputs, _ = layer.weights.shape
    groups = -(-outputs // LANES)
    bias = np.zeros((experts, groups * LANES), np.int32)
    scale = np.ones((experts, groups * LANES), np.float32)
    bias[:, :outputs], scale[:, :outputs] = layer.bias, layer.scale
    both = np.stack([bias.reshape(experts, groups, LANES).view(np.uint8),
                     scale.reshape(experts, groups, LANES).view(np.uint8)], 2)
    table = [] if layer.table is None else [np.asarray(layer.table, np.uint8)]
    return np.concatenate([each.reshape(-1, WORD_BYTES) for each in [*table, both]])


def _weight_tiles(layer: ExpertLayer) -> NDArray[np.uint8]:
    """Words [expert, output group, input group * 16, byte]."""
    experts, outputs, inputs = layer.weights.shape
    groups, depth = -(-outputs // LANES), -(-inputs // LANES)
    full = np.full((experts, groups * LANES, depth * LANES), layer.weight_zero, np.int8)
    full[:, :outputs, :inputs] = layer.weights
    tiles = full.reshape(experts, groups, LANES, depth, LANES).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(tiles).view(np.uint8).reshape(experts, groups, -1, WORD_BYTES)


def place_experts(
    memory: Memory, layer: ExpertLayer, slices: Mapping[Tile, Sequence[Slice]] | None = None
) -> dict[Tile, int]:
    """Lay out every tile's weights of its ``slices`` (of its part of all experts, as `deal` says),
    one behind the other: tile to first word.

    They lie in the channel nearest to the tile, striped, as weights that one tile alone reads do.
    """
    config, tiles = memory.config, _weight_tiles(layer)
    work = slices or {tile: [(expert, *groups) for expert in range(len(tiles))]
                      for tile, groups in deal(config, tiles.shape[1]).items()}
    size = tiles.shape[2] * max(
        sum(end - first for _, first, end in each) for each in work.values())
    where = dict(enumerate(work))
    near = near_channels(config, where, dict.fromkeys(where, 1))
    what = f"weights of {layer.name}"
    if near is None:
        area = memory.allocate(size * len(work), what)  # tile by tile: experts are not apart
        bases = {tile: area + number * size for number, tile in where.items()}
    else:
        members = {c: [k for k in where if near[k] == c] for c in range(config.hbm.channels)}
        fullest = max(len(each) for each in members.values())
        striped = 1 < fullest <= 1 << config.stripe_bits
        sets = 1 << config.stripe_bits if striped else fullest
        line = config.hbm.channels * SEGMENT_WORDS * (sets if striped else 1)
        first = memory.allocate(
            -(-size * sets * config.hbm.channels // line) * line, what, line,
            # Slices of experts are not apart: every tile's lie behind one another.
            parts=1 if slices else len(tiles),
            used=1 if slices else min(len(tiles), layer.target.shape[3])
        ) // config.hbm.channels
        bases = {
            where[k]: direct_address(config, channel, first // sets, rank) if striped
            else direct_address(config, channel, first + rank * size)
            for channel, each in members.items() for rank, k in enumerate(each)
        }
    for tile, each in work.items():
        words = np.concatenate([tiles[expert, first:end].reshape(-1, WORD_BYTES)
                                for expert, first, end in each])
        memory.put(interleaved(config, bases[tile] + np.arange(len(words))), words)
    return bases


def deal(config: Config, groups: int) -> dict[Tile, tuple[int, int]]:
    """Output groups of every tile that has some."""
    tiles = [(x, y) for y in range(config.mesh.rows) for x in range(config.mesh.cols)]
    ranges = [part(groups, len(tiles), k) for k in range(len(tiles))]
    return {tile: r for tile, r in zip(tiles, ranges, strict=True) if r[0] < r[1]}


@dataclass
class ExpertStep(UnitStep):
    """A planned layer of experts: tile to its output groups.

    base: HBM word of `expert_words`. weights: What `place_experts` returns.
    chunk: Most output groups whose weights are there at a time.
    """

    layer: ExpertLayer
    sources: tuple[Tensor, ...]
    target: Tensor
    work: dict[Tile, tuple[int, int]]
    base: int
    weights: dict[Tile, int]
    chunk: int

    @property
    def depth(self) -> int:
        return self.sources[0].groups

    @property
    def table_words(self) -> int:
        return 0 if self.layer.table is None else TABLE_WORDS

    def chunks(self, groups: tuple[int, int]) -> list[tuple[int, int]]:
        first, end = groups
        return [(g, min(g + self.chunk, end)) for g in range(first, end, self.chunk)]

    def words(self, groups: tuple[int, int]) -> int:
        """That a tile with ``groups`` loads."""
        count = groups[1] - groups[0]
        each = PARAMETER_WORDS + self.depth * TILE_WORDS
        return 1 + self.table_words + self.sources[0].words + self.layer.k * count * each

    def describe(self) -> str:
        return f"experts, {self.layer.k} of {len(self.layer.weights)} on {len(self.work)} tiles"

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        TileExpertStep(emitter, index, self, tile).emit()

    def roofline(self, config: Config) -> Roofline:
        layer = self.layer
        most = max(end - first for first, end in self.work.values())
        chosen = layer.k * self.target.groups * (PARAMETER_WORDS + self.depth * TILE_WORDS)
        reads = {tensor.name: tensor.words for tensor in self.sources}
        total = sum(reads.values()) + chosen + self.table_words + self.target.words
        return Roofline(
            name=layer.name, compute=layer.k * most * self.depth * TILE_WORDS,
            hbm=total / config.hbm.channels,
            inbound=max(self.words(groups) for groups in self.work.values()), reads=reads,
            constant_words=chosen // layer.k + self.table_words,  # one may be chosen twice
            write_words=self.target.words, macs=layer.macs,
        )

    def read_words(self) -> int:
        return sum(self.words(groups) for groups in self.work.values())


def plan_experts(
    config: Config, layer: ExpertLayer, tensors: dict[str, Tensor], limit: int, base: int,
    weights: dict[Tile, int],
) -> ExpertStep:
    """Output groups dealt to the tiles, with chunks as large as fit words 0 .. ``limit`` - 1.

    Raises
    ------
    UserError
        If not even one group of every chosen expert fits twice.
    """
    sources = tuple(tensors[s.name] for s in layer.sources)
    target = tensors[layer.target.name]
    work = deal(config, target.groups)
    most = max(end - first for first, end in work.values())
    fixed = 1 + TABLE_WORDS + sources[0].words + layer.k * most * (PARAMETER_WORDS + 1)
    size = layer.k * sources[0].groups * TILE_WORDS
    chunk = min((limit - fixed) // (SLOTS * size), MOST_WORDS // size, -(-most // SLOTS))
    if chunk < 1:
        raise UserError(f"layer {layer.name}: the weights of 16 outputs of {layer.k} experts do not"
                        f" fit the scratchpad of {config.scratchpad.free_words} words twice: raise "
                        "scratchpad.kib")
    return ExpertStep(layer=layer, sources=sources, target=target, work=work, base=base,
                      weights=weights, chunk=chunk)


class TileExpertStep:
    """One tile's commands of one step of experts."""

    def __init__(self, emitter: "Emitter", index: int, step: ExpertStep, tile: Tile):
        self.emitter, self.index, self.step = emitter, index, step
        self.stream: Stream = emitter.streams[tile]
        self.here, self.weights = single(*tile), step.weights[tile]
        self.first, self.end = step.work[tile]
        self.chunks = step.chunks(step.work[tile])
        k, count = step.layer.k, self.end - self.first
        self.table = 1
        self.params = self.table + step.table_words
        self.x = self.params + PARAMETER_WORDS * k * count
        self.out = self.x + step.sources[0].words
        self.slots = self.out + k * count

    def emit(self) -> None:
        step, layer = self.step, self.step.layer
        x, numbers = step.sources[:2]
        params = step.base + step.table_words
        count = self.end - self.first
        self._load(0, numbers.base, 1, LIST)
        if step.table_words:
            self._load(self.table, step.base, step.table_words, PARAMS)
        self._load(self.x, x.base, x.pixels, 0, count0=x.groups, s_stride0=x.pixels,
                   f_stride0=x.plane)
        self._gather(self.params, params + PARAMETER_WORDS * self.first, PARAMETER_WORDS * count,
                     PARAMETER_WORDS * step.target.groups, PARAMS, [(LIST, 1)])
        for number in range(min(SLOTS, len(self.chunks))):
            self._load_weights(number)
        for number in range(len(self.chunks)):
            self._compute(number)
            if number + SLOTS < len(self.chunks):
                self._load_weights(number + SLOTS)
        self.stream.add(
            Opcode.STORE, [(OUT_READY, 1)], self.emitter.barrier_signal(self.index), Queue.STORE,
            scratchpad=self.out, far=step.target.base + self.first * step.target.plane, run=1,
            count0=count, count1=layer.k, count2=1, s_stride0=1, f_stride0=step.target.plane,
            s_stride1=count, f_stride1=1,
        )

    def _load(self, to: int, far: int, run: int, sem: int, **loops: int) -> None:
        fields = {"count0": 1, "count1": 1, "count2": 1} | loops
        self.stream.add(Opcode.LOAD, (), (), Queue.LOAD, rect=encode_rect(self.here), sem_valid=1,
                        sem=sem, scratchpad=to, far=far, run=run, **fields)

    def _gather(
        self, to: int, far: int, run: int, stride: int, sem: int, waits: list[Wait]
    ) -> None:
        """``run`` words of every chosen expert, one behind the other."""
        self.stream.add(
            Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(self.here), sem_valid=1, sem=sem,
            scratchpad=to, far=far, run=run, count0=1, count1=1, count2=self.step.layer.k,
            s_stride2=run, f_stride2=stride, gather=1, gather_base=0,
        )

    def _slot(self, number: int) -> int:
        size = self.step.layer.k * self.step.chunk * self.step.depth * TILE_WORDS
        return self.slots + number % SLOTS * size

    def _run(self, number: int) -> int:
        """Words of one expert's chunk."""
        first, end = self.chunks[number]
        return (end - first) * self.step.depth * TILE_WORDS

    def _load_weights(self, number: int) -> None:
        group = self.step.depth * TILE_WORDS
        waits = [(IN_FREE + number % SLOTS, 1)] if number >= SLOTS else []
        self._gather(self._slot(number),
                     self.weights + (self.chunks[number][0] - self.first) * group,
                     self._run(number), (self.end - self.first) * group,
                     PIECES * (number % SLOTS) + 1, waits)

    def _compute(self, number: int) -> None:
        step, layer = self.step, self.step.layer
        k, last = layer.k, number == len(self.chunks) - 1
        for i in range(k):
            waits: list[Wait] = []
            if i == 0:
                waits.append((PIECES * (number % SLOTS) + 1, k * self._run(number)))
            if i == 0 and number == 0:
                params = PARAMETER_WORDS * k * (self.end - self.first) + step.table_words
                waits += [(0, step.sources[0].words), (PARAMS, params)]
            signals: list[Signal] = []
            if i == k - 1 and number + SLOTS < len(self.chunks):
                signals.append((IN_FREE + number % SLOTS, self.here))
            if i == k - 1 and last:
                signals.append((OUT_READY, self.here))
            self.stream.add(Opcode.COMPUTE, waits, signals, queue=Queue.COMPUTE,
                            **self._product(number, i))

    def _product(self, number: int, i: int) -> dict[str, int]:
        """Expert ``i`` of the list on the groups of chunk ``number``."""
        step, layer = self.step, self.step.layer
        x, count = step.sources[0], self.end - self.first
        first = self.chunks[number][0] - self.first
        low = -128 if layer.y_signed else 0
        return {
            "base": self.x + (i if x.pixels > 1 else 0), "plane": x.pixels, "row": 1, "step": 1,
            "height": 1, "width": 1, "sy": 1, "sx": 1, "dy": 1, "dx": 1, "kh": 1, "kw": 1,
            "in_groups": step.depth, "out_width": 1, "pixels": 1, "w_resident": 1,
            "w_base": self._slot(number) + i * self._run(number),
            "w_group_stride": step.depth * TILE_WORDS, "w_tile_stride": TILE_WORDS,
            "w_mode": WeightMode.ROW, "out_groups": self.chunks[number][1] - self.chunks[number][0],
            "a_signed": int(x.is_signed), "a_zero": layer.sources[0].zero, "w_signed": 1,
            "w_zero": layer.weight_zero, "first": 1, "last": 1, "out": self.out + i * count + first,
            "out_group": 1, "out_step": 1,
            "params": self.params + PARAMETER_WORDS * (i * count + first),
            "out_zero": layer.y_zero, "clip_low": low, "clip_high": low + 255,
            "table_valid": int(layer.table is not None), "table": self.table,
        }


__all__ = ["ExpertStep", "expert_words", "plan_experts"]
