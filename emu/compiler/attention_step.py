# SPDX-License-Identifier: Apache-2.0
"""Steps of attention: keys and values are the weights of two products, scores stay in the tile.

The work is cut into *units* of one head and some of its queries, which are dealt to the tiles. A
unit loads its queries Q and the head's keys K and values V as they lie in HBM: token by token, 16
channels a word. A weight tile of scores is 16 words of K, one for each key (row mode); one of the
output is 16 words of V, one for each lane (column mode). So nothing is ever transposed. Between the
two the vector unit makes probabilities of the scores where they lie.

Keys are padded to 16 by whatever lies behind them: softmax ignores their scores and makes their
probabilities 0.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emu.compiler.images import LANES, Tensor
from emu.compiler.mapping import encode_rect, part, single
from emu.compiler.roofline import Roofline
from emu.compiler.stream import (
    IN_FREE,
    OUT_FREE,
    OUT_READY,
    PARAMS,
    VECTOR_IN,
    Signal,
    Stream,
    Tile,
    Wait,
)
from emu.compiler.tiling import PIECES
from emu.compiler.vector_step import ROW_CYCLES, UnitStep
from emu.config import WORD_BYTES, Config
from emu.errors import UserError
from emu.isa import Opcode, Queue, VectorOp, WeightMode
from emu.network.layers import AttentionLayer, Operand
from emu.softmax import softmax_factor, softmax_table

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter

MAX_GROUPS = 1023
"""Output groups of one COMPUTE: its field."""
TABLE_WORDS = 64
QUERIES_AND_KEYS, VALUES, PROBABILITIES = range(3)
"""What a unit awaits in the compute queue: semaphore PIECES * slot + this."""


@dataclass(frozen=True)
class Unit:
    """One head and the queries (first, end)."""

    head: int
    queries: tuple[int, int]

    @property
    def count(self) -> int:
        return self.queries[1] - self.queries[0]


@dataclass
class AttentionStep(UnitStep):
    """A planned attention layer.

    constants: First HBM word of the softmax's table, then 8 words for each 16 keys and each 16
        channels of a head, with the scales.
    slots: Units in the scratchpad at a time. queries: of the largest unit.
    """

    layer: AttentionLayer
    sources: tuple[Tensor, ...]
    target: Tensor
    work: dict[Tile, list[Unit]]
    constants: int
    slots: int
    queries: int

    @property
    def keys(self) -> int:
        return self.layer.sources[1].shape[3]

    @property
    def key_groups(self) -> int:
        return -(-self.keys // LANES)

    @property
    def depth_groups(self) -> int:
        """Words of a token in one head."""
        return self.layer.sources[0].shape[1] // self.layer.heads // LANES

    @property
    def param_words(self) -> int:
        return 8 * (self.key_groups + self.depth_groups)

    @property
    def slot_words(self) -> int:
        return slot_words(self.key_groups, self.depth_groups, self.queries)

    def unit_words(self, unit: Unit) -> int:
        """Words that a unit loads."""
        return self.depth_groups * (unit.count + 2 * LANES * self.key_groups)

    def describe(self) -> str:
        units = sum(len(units) for units in self.work.values())
        return f"attention, {units} unit{'s' if units > 1 else ''} on {len(self.work)} tiles"

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        TileAttentionStep(emitter, index, self, tile).emit()

    def roofline(self, config: Config) -> Roofline:
        """Compute: the array's passes or the softmax's words, whichever take longer."""
        passes = 2 * self.key_groups * self.depth_groups
        constants = TABLE_WORDS + self.param_words
        compute = inbound = 0
        for units in self.work.values():
            array = sum(passes * max(unit.count, LANES) for unit in units)
            rows = sum(ROW_CYCLES * self.key_groups * unit.count for unit in units)
            compute = max(compute, array, rows)
            inbound = max(inbound, constants + sum(self.unit_words(unit) for unit in units))
        reads = {tensor.name: tensor.words for tensor in self.sources}
        total = sum(reads.values()) + constants + self.target.words
        return Roofline(
            name=self.layer.name, compute=compute, hbm=total / config.hbm.channels,
            inbound=inbound, reads=reads, constant_words=constants,
            write_words=self.target.words, macs=self.layer.macs,
        )

    def read_words(self) -> int:
        return sum(
            TABLE_WORDS + self.param_words + sum(self.unit_words(unit) for unit in units)
            for units in self.work.values()
        )


def slot_words(key_groups: int, depth_groups: int, queries: int) -> int:
    """Queries, keys, values, scores and output of one unit."""
    return 2 * depth_groups * (queries + LANES * key_groups) + key_groups * queries


def attention_constants(layer: AttentionLayer) -> NDArray[np.uint8]:
    """The words at `AttentionStep.constants`."""
    keys = layer.sources[1].shape[3]
    depth = layer.sources[0].shape[1] // layer.heads
    table = softmax_table(keys, layer.scores_scale).view(np.uint8).reshape(-1, WORD_BYTES)
    scales = [_scale_words(layer.score_scale, -(-keys // LANES)),
              _scale_words(layer.value_scale, depth // LANES)]
    return np.concatenate([table, *scales])


def _scale_words(scale: np.float32, groups: int) -> NDArray[np.uint8]:
    words = np.zeros((groups, 2, LANES), np.uint32)
    words[:, 1] = np.float32(scale).view(np.uint32)
    return words.view(np.uint8).reshape(-1, WORD_BYTES)


def plan_attention(
    config: Config, layer: AttentionLayer, tensors: dict[str, Tensor], limit: int, constants: int
) -> AttentionStep:
    """The cut of ``layer`` with the fewest array cycles whose units fit words 0 .. ``limit`` - 1.

    Raises
    ------
    UserError
        If a head's channels are no whole words, or no cut fits.
    """
    channels, queries = layer.sources[0].shape[1], layer.sources[0].shape[3]
    keys = layer.sources[1].shape[3]
    if channels % (LANES * layer.heads):
        raise UserError(f"layer {layer.name}: heads of {channels // layer.heads} channels: a "
                        f"multiple of {LANES} is supported")
    key_groups, depth_groups = -(-keys // LANES), channels // layer.heads // LANES
    fixed = TABLE_WORDS + 8 * (key_groups + depth_groups)
    tiles, best = config.mesh.tiles, None
    for parts in range(1, queries + 1):
        most = -(-queries // parts)
        if most > config.core.accumulator_rows:
            continue
        turns = -(-layer.heads * parts // tiles)
        size = slot_words(key_groups, depth_groups, most)
        slots = min(2, turns, (limit - fixed) // size)
        if slots < 1:
            continue
        moved = depth_groups * (2 * most + 2 * LANES * key_groups)
        busy = max(2 * key_groups * depth_groups * max(most, LANES), ROW_CYCLES * key_groups * most)
        cost = turns * (max(busy, moved) if slots > 1 else busy + moved) + 300
        if best is None or cost < best[0]:
            best = cost, parts, slots, most
        if turns > 8 and best:
            break
    if best is None or key_groups > MAX_GROUPS:
        raise UserError(
            f"layer {layer.name}: the {keys} keys and values of one head do not fit the scratchpad "
            f"of {config.scratchpad.free_words} words: raise scratchpad.kib"
        )
    _, parts, slots, most = best
    units = [Unit(head, part(queries, parts, k)) for head in range(layer.heads)
             for k in range(parts)]
    every = [(x, y) for y in range(config.mesh.rows) for x in range(config.mesh.cols)]
    return AttentionStep(
        layer=layer, sources=tuple(tensors[s.name] for s in layer.sources),
        target=tensors[layer.target.name], constants=constants, slots=slots, queries=most,
        work={tile: units[k::tiles] for k, tile in enumerate(every) if units[k::tiles]},
    )


class TileAttentionStep:
    """One tile's commands of one attention step.

    The scores of the next unit are computed before the output of this one, while the vector unit
    makes this one's probabilities.
    """

    def __init__(self, emitter: "Emitter", index: int, step: AttentionStep, tile: Tile):
        self.emitter, self.index, self.step, self.tile = emitter, index, step, tile
        self.stream: Stream = emitter.streams[tile]
        self.here = single(*tile)
        self.units = step.work[tile]

    def emit(self) -> None:
        step = self.step
        self._load(0, step.constants, TABLE_WORDS, 1, 0, 0, VECTOR_IN, [])
        self._load(TABLE_WORDS, step.constants + TABLE_WORDS, step.param_words, 1, 0, 0, PARAMS, [])
        for number in range(min(step.slots, len(self.units))):
            self._load_unit(number)
        ahead, scored = step.slots - 1, 0
        for number in range(len(self.units)):
            while scored <= min(number + ahead, len(self.units) - 1):
                self._scores(scored)
                self._softmax(scored)
                scored += 1
            self._output(number)
            self._store(number)
            if number + step.slots < len(self.units):
                self._load_unit(number + step.slots)

    # Where a unit's data lie

    def _place(self, number: int) -> dict[str, int]:
        step, unit = self.step, self.units[number]
        at = TABLE_WORDS + step.param_words + number % step.slots * step.slot_words
        depth, keys = step.depth_groups, LANES * step.key_groups
        places = {}
        for name, words in (("q", depth * unit.count), ("k", depth * keys), ("v", depth * keys),
                            ("scores", step.key_groups * unit.count),
                            ("out", depth * unit.count)):
            places[name] = at
            at += words
        return places

    def _sem(self, number: int, what: int) -> int:
        return PIECES * (number % self.step.slots) + what

    # Loads

    def _load(self, to, far, run, count, near_stride, far_stride, sem, waits) -> None:
        self.stream.add(
            Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(self.here), sem_valid=1,
            sem=sem, scratchpad=to, far=far, run=run, count0=count, count1=1, count2=1,
            s_stride0=near_stride if count > 1 else 0, f_stride0=far_stride if count > 1 else 0,
        )

    def _load_unit(self, number: int) -> None:
        step, unit, place = self.step, self.units[number], self._place(number)
        waits = [(IN_FREE + number % step.slots, 1)] if number >= step.slots else []
        keys, depth = LANES * step.key_groups, step.depth_groups
        q, k, v = step.sources
        for tensor, name, first, count, what in (
            (q, "q", unit.queries[0], unit.count, QUERIES_AND_KEYS),
            (k, "k", 0, keys, QUERIES_AND_KEYS), (v, "v", 0, keys, VALUES),
        ):
            far = tensor.base + unit.head * depth * tensor.plane + first
            self._load(place[name], far, count, depth, count, tensor.plane,
                       self._sem(number, what), waits)
            waits = []

    # Work

    def _scores(self, number: int) -> None:
        step, unit, place = self.step, self.units[number], self._place(number)
        q, k, _ = step.layer.sources
        words = step.depth_groups * (unit.count + LANES * step.key_groups)
        waits = [(self._sem(number, QUERIES_AND_KEYS), words)]
        if number == 0:
            waits.append((PARAMS, step.param_words))
        self._product(
            unit, waits, [(VECTOR_IN + number % step.slots, self.here)], q, k, step.layer.scores,
            base=place["q"], in_groups=step.depth_groups, out_groups=step.key_groups,
            w_base=place["k"], w_group_stride=LANES, w_tile_stride=LANES * step.key_groups,
            w_mode=WeightMode.ROW, out=place["scores"], params=TABLE_WORDS,
        )

    def _output(self, number: int) -> None:
        step, unit, place = self.step, self.units[number], self._place(number)
        keys = LANES * step.key_groups
        waits = [(self._sem(number, VALUES), step.depth_groups * keys),
                 (self._sem(number, PROBABILITIES), 1)]
        if number >= step.slots:
            waits.append((OUT_FREE, 1))
        signals: list[Signal] = [(OUT_READY, self.here)]
        if number + step.slots < len(self.units):
            signals.append((IN_FREE + number % step.slots, self.here))
        self._product(
            unit, waits, signals, step.layer.probabilities, step.layer.sources[2],
            step.layer.target, base=place["scores"], in_groups=step.key_groups,
            out_groups=step.depth_groups, w_base=place["v"], w_group_stride=keys,
            w_tile_stride=LANES, w_mode=WeightMode.COLUMN, out=place["out"],
            params=TABLE_WORDS + 8 * step.key_groups,
        )

    def _product(
        self, unit: Unit, waits: list[Wait], signals: list[Signal], a: Operand, w: Operand,
        y: Operand, **fields: int,
    ) -> None:
        low = -128 if y.is_signed else 0
        self.stream.add(
            Opcode.COMPUTE, waits, signals, queue=Queue.COMPUTE, plane=unit.count, row=unit.count,
            step=1, height=1, width=unit.count, sy=1, sx=1, dy=1, dx=1, kh=1, kw=1,
            out_width=unit.count, pixels=unit.count, w_resident=1, a_signed=int(a.is_signed),
            a_zero=a.zero, w_signed=int(w.is_signed), w_zero=w.zero, first=1, last=1,
            out_group=unit.count, out_step=1, out_zero=y.zero, clip_low=low, clip_high=low + 255,
            **fields,
        )

    def _softmax(self, number: int) -> None:
        step, unit, place = self.step, self.units[number], self._place(number)
        scores, y = step.layer.scores, step.layer.probabilities
        low = -128 if y.is_signed else 0
        waits = [(VECTOR_IN + number % step.slots, 1 + (TABLE_WORDS if number == 0 else 0))]
        self.stream.add(
            Opcode.VECTOR, waits, [(self._sem(number, PROBABILITIES), self.here)], Queue.VECTOR,
            op=VectorOp.SOFTMAX, base=place["scores"], plane=unit.count, step=1, height=1,
            width=unit.count, out_width=unit.count, sy=1, sx=1, kh=1, kw=1,
            groups=step.key_groups, pixels=unit.count, out=place["scores"], out_group=unit.count,
            out_step=1, table=0, a_signed=int(scores.is_signed), out_zero=y.zero, clip_low=low,
            clip_high=low + 255, channels=step.keys,
            scale0=softmax_factor(step.layer.probability_scale),
        )

    def _store(self, number: int) -> None:
        step, unit, target = self.step, self.units[number], self.step.target
        signals: list[Signal] = []
        if number + step.slots < len(self.units):
            signals.append((OUT_FREE, self.here))
        if number == len(self.units) - 1:
            signals += self.emitter.barrier_signal(self.index)
        depth = step.depth_groups
        self.stream.add(
            Opcode.STORE, [(OUT_READY, 1)], signals, Queue.STORE,
            scratchpad=self._place(number)["out"], run=unit.count, count0=depth, count1=1,
            count2=1, s_stride0=unit.count if depth > 1 else 0,
            f_stride0=target.plane if depth > 1 else 0,
            far=target.base + unit.head * depth * target.plane + unit.queries[0],
        )


__all__ = ["AttentionStep", "attention_constants", "plan_attention"]
