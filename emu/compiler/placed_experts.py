# SPDX-License-Identifier: Apache-2.0
"""Steps of experts that lie on tiles of their own (`mapping.experts=placed`).

Tokens go to the tiles of their experts: every tile makes of all tokens' numbers the list of its own
rows (COLLECT), gathers them, and computes as many as there are: its commands name the most that may
come, the scratchpad's word says how many did. What has no row loads nothing and computes nothing.
Results go by the same list to their places in HBM. Nothing is known before the router has decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.compiler.expert_owners import BLOCK, Owner, Share
from emu.compiler.expert_step import LIST, MOST_WORDS, PARAMETER_WORDS, TABLE_WORDS
from emu.compiler.images import Tensor
from emu.compiler.mapping import Rect, encode_rect, part, single
from emu.compiler.roofline import Roofline
from emu.compiler.stream import (
    IN_FREE,
    OUT_READY,
    PARAMS,
    VECTOR_IN,
    Signal,
    Stream,
    Tile,
    Wait,
)
from emu.compiler.tiling import PIECES
from emu.compiler.vector_step import UnitStep
from emu.config import TILE_WORDS, Config
from emu.errors import UserError
from emu.isa import Opcode, Queue, VectorOp, WeightMode
from emu.network.layers import NUMBERS, ExpertLayer

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter

BUFFERS = PIECES
"""At most; two at least. Each counts its words on a semaphore of its own."""
PARTS = 4
"""Least parts of a share's output groups: the array begins when the first part is there."""
INPUTS, MOST_SHARES = BUFFERS, PIECES
"""First semaphore of shares' inputs, and how many there are: of one tile."""
HEAD_WORDS = 2
"""Of a share's lists: its number or `ABSENT`, its rows."""


@dataclass
class PlacedExpertStep(UnitStep):
    """A planned layer of experts: tile to what it owns.

    base, weights: As in `ExpertStep`. shared: Numbers are loaded once for all tiles.
    chunk: Output groups at a time. buffers: For so many of them.
    """

    layer: ExpertLayer
    sources: tuple[Tensor, ...]
    target: Tensor
    work: dict[Tile, Owner]
    base: int
    weights: dict[Tile, int]
    shared: bool
    chunk: int = 0
    buffers: int = 2

    @property
    def depth(self) -> int:
        return self.sources[0].groups

    @property
    def tokens(self) -> int:
        return self.target.pixels // self.layer.k

    @property
    def is_own(self) -> bool:
        """Every place has an input of its own."""
        return self.sources[0].pixels != self.tokens

    @property
    def table_words(self) -> int:
        return 0 if self.layer.table is None else TABLE_WORDS

    @property
    def unit(self) -> int:
        """Words of weights and parameters of a group of one expert."""
        return self.depth * TILE_WORDS + PARAMETER_WORDS

    def rows(self, share: Share) -> int:
        """Most that may come."""
        return share.most(self.tokens)

    def list_words(self, share: Share) -> int:
        return -(-self.rows(share) // NUMBERS)

    def fixed(self, owner: Owner) -> int:
        """Scratchpad words beside the weights."""
        total = self.tokens + self.table_words
        for share in owner.shares:
            total += HEAD_WORDS + 2 * self.list_words(share)
            total += (self.depth + owner.count) * self.rows(share)
        return total

    def read_words(self) -> int:
        """Of all experts and copies, whether they have tokens or not; every place's row goes to one
        copy, so to each of its tiles."""
        total = self.tokens * (1 if self.shared else len(self.work))
        for owner in self.work.values():
            total += self.table_words
            total += len(owner.shares) * owner.count * self.unit
        groups = {owner.shares: 0 for owner in self.work.values()}
        tiles = len(self.work) // len(groups)
        return total + tiles * self.target.pixels * self.depth

    def describe(self) -> str:
        groups = len({owner.shares for owner in self.work.values()})
        count = len({share for owner in self.work.values() for share in owner.shares})
        more = count - len(self.layer.weights)
        return (f"experts, {self.layer.k} of {len(self.layer.weights)} for {self.tokens} tokens, "
                f"placed{f' with {more} copies' if more else ''} in {groups} groups of "
                f"{len(self.work) // groups} tiles")

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        TilePlacedExperts(emitter, index, self, tile).emit()

    def roofline(self, config: Config) -> Roofline:
        """Compulsory is one expert's weights; work is even at best."""
        layer, groups = self.layer, self.target.groups
        reads = {tensor.name: tensor.words for tensor in self.sources[:1]}
        chosen = groups * self.unit + self.table_words
        passes = self.target.pixels * self.depth * groups
        return Roofline(
            name=layer.name, compute=-(-passes // config.mesh.tiles),
            hbm=(sum(reads.values()) + chosen + self.target.words) / config.hbm.channels,
            inbound=self.tokens + max(owner.count for owner in self.work.values()) * self.unit,
            reads=reads, constant_words=chosen, write_words=self.target.words, macs=layer.macs,
        )


def plan_placed_experts(
    config: Config, layer: ExpertLayer, tensors: dict[str, Tensor], limit: int, base: int,
    weights: dict[Tile, int], work: dict[Tile, Owner],
) -> PlacedExpertStep:
    """As many output groups at a time as fit words 0 .. ``limit`` - 1.

    Raises
    ------
    UserError
        If one group does not fit twice, or a command cannot hold as many rows or shares.
    """
    step = PlacedExpertStep(
        layer=layer, sources=tuple(tensors[s.name] for s in layer.sources), work=work, base=base,
        target=tensors[layer.target.name], weights=weights,
        shared=config.mesh.multicast and len(work) == config.mesh.tiles,
    )
    most = max(step.rows(share) for owner in work.values() for share in owner.shares)
    if most > config.core.accumulator_rows or most * step.depth > MOST_WORDS:
        raise UserError(f"layer {layer.name}: all {step.tokens} tokens may choose one expert, up to"
                        f" {min(config.core.accumulator_rows, MOST_WORDS // step.depth)} are "
                        "supported: run fewer at once")
    held = max(len(owner.shares) for owner in work.values())
    if held > MOST_SHARES:
        raise UserError(f"layer {layer.name}: {held} experts and copies in one tile: up to "
                        f"{MOST_SHARES} are supported")
    if layer.k > NUMBERS:
        raise UserError(f"layer {layer.name}: {layer.k} experts a token: up to {NUMBERS} are "
                        "supported")
    room = min(limit - step.fixed(owner) for owner in work.values()) // step.unit
    parts = -(-max(owner.count for owner in work.values()) // PARTS)
    step.chunk = min(room // step.buffers, MOST_WORDS // step.unit, parts)
    if step.chunk >= 1:
        step.buffers = min(room // step.chunk, BUFFERS)
    else:
        raise UserError(f"layer {layer.name}: the weights of 16 outputs of an expert do not fit "
                        f"the scratchpad of {config.scratchpad.free_words} words twice beside "
                        f"inputs and outputs of {step.tokens} tokens: raise scratchpad.kib")
    return step


@dataclass(frozen=True)
class Area:
    """A share's scratchpad words: its lists, its inputs, its outputs."""

    share: Share
    rows: int
    head: int
    places: int
    sources: int
    x: int
    out: int


@dataclass(frozen=True)
class Unit:
    """Groups ``first`` to ``end`` of a share, counted from the tile's first."""

    share: int
    first: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.first


class TilePlacedExperts:
    """One tile's commands of one step of placed experts."""

    def __init__(self, emitter: "Emitter", index: int, step: PlacedExpertStep, tile: Tile):
        self.emitter, self.index, self.step = emitter, index, step
        self.stream: Stream = emitter.streams[tile]
        self.here, self.weights = single(*tile), step.weights[tile]
        self.owner = step.work[tile]
        self.table = step.tokens
        at = self.table + step.table_words
        self.areas: list[Area] = []
        for share in self.owner.shares:
            rows, words = step.rows(share), step.list_words(share)
            places = at + HEAD_WORDS
            x = places + 2 * words
            out = x + step.depth * rows
            self.areas.append(Area(share, rows, at, places, places + words, x, out))
            at = out + self.owner.count * rows
        self.buffers = at
        count, chunk = self.owner.count, step.chunk
        self.units = [Unit(number, g, min(g + chunk, count))
                      for number in range(len(self.areas)) for g in range(0, count, chunk)]

    def emit(self) -> None:
        step = self.step
        self._load_numbers()
        if step.table_words:
            self._load(self.table, step.base, step.table_words, PARAMS)
        for number, area in enumerate(self.areas):
            self._collect(area, [(VECTOR_IN, step.tokens)] if number == 0 else [])
        for number in range(min(step.buffers, len(self.units))):
            self._load_unit(number)
        for number in range(len(self.units)):
            self._compute(number)
            self._store(number)
            if number + step.buffers < len(self.units):
                self._load_unit(number + step.buffers)

    def _load(
        self, to: int, far: int, run: int, sem: int, waits: Sequence[Wait] = (),
        rect: Rect | None = None, **loops: int
    ) -> None:
        fields = {"count0": 1, "count1": 1, "count2": 1} | loops
        self.stream.add(Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(rect or self.here),
                        sem_valid=1, sem=sem, scratchpad=to, far=far, run=run, **fields)

    def _load_numbers(self) -> None:
        """All are in every tile: each loads a part for all, where it may. After the barrier nothing
        of the step before is in the way."""
        step, tiles = self.step, sorted(self.step.work)
        first, end, rect = 0, step.tokens, self.here
        if step.shared:
            first, end = part(step.tokens, len(tiles), tiles.index(self.here[0:3:2]))
            rect = self.emitter.everyone
        stride = max(1, step.sources[1].pixels // step.tokens)
        if first < end:
            self._load(first, step.sources[1].base + first * stride, 1, VECTOR_IN, rect=rect,
                       count0=end - first, s_stride0=1, f_stride0=stride)

    def _collect(self, area: Area, waits: list[Wait]) -> None:
        """Which of all places are this share's."""
        step, share = self.step, area.share
        self.stream.add(
            Opcode.VECTOR, waits, [(LIST, self.here)], Queue.VECTOR, op=VectorOp.COLLECT, base=0,
            step=1, pixels=step.tokens, k=step.layer.k, channels=share.expert, height=BLOCK,
            kh=share.copies, kw=share.copy, groups=step.list_words(share), out=area.head,
            b_base=area.places, table=area.sources, b_mode=int(step.is_own))

    def _load_inputs(self, number: int, waits: list[Wait]) -> None:
        area, x = self.areas[number], self.step.sources[0]
        self._load(area.x, x.base, 1, INPUTS + number, waits, count0=x.groups,
                   s_stride0=area.rows, f_stride0=x.plane, count2=area.rows, s_stride2=1,
                   f_stride2=1, gather=1, gather_base=area.sources)

    def _load_unit(self, number: int) -> None:
        """A part of a share's parameters and weights, if it has a row; inputs before its first.
        Buffers are free in the order in which they were filled."""
        step, unit = self.step, self.units[number]
        area, group = self.areas[unit.share], step.depth * TILE_WORDS
        waits: list[Wait] = [(IN_FREE, 1)] if number >= step.buffers else []
        if unit.first == 0:
            self._load_inputs(unit.share, [(LIST, 1)])
        first = area.share.expert * step.target.groups + self.owner.first + unit.first
        params = step.base + step.table_words + PARAMETER_WORDS * first
        weights = self.weights + (unit.share * self.owner.count + unit.first) * group
        to = self._buffer(number)
        for far, size in ((params, PARAMETER_WORDS * unit.count), (weights, group * unit.count)):
            self._load(to, far, size, number % step.buffers, waits, gather=1,
                       gather_base=area.head)
            to, waits = to + size, []

    def _buffer(self, number: int) -> int:
        return self.buffers + number % self.step.buffers * self.step.chunk * self.step.unit

    def _compute(self, number: int) -> None:
        step, unit = self.step, self.units[number]
        waits: list[Wait] = [(number % step.buffers, unit.count * step.unit)]
        if number == 0 and step.table_words:
            waits.append((PARAMS, step.table_words))
        if unit.first == 0:
            rows = self.areas[unit.share].rows
            waits.append((INPUTS + unit.share, step.depth * rows))
        signals: list[Signal] = [(OUT_READY, self.here)]
        if number + step.buffers < len(self.units):
            signals.append((IN_FREE, self.here))
        self.stream.add(Opcode.COMPUTE, waits, signals, Queue.COMPUTE, **self._product(number))

    def _product(self, number: int) -> dict[str, int]:
        """A part of a share's groups on all of its rows."""
        step, layer, unit = self.step, self.step.layer, self.units[number]
        area, x, group = self.areas[unit.share], step.sources[0], step.depth * TILE_WORDS
        rows, params = area.rows, self._buffer(number)
        low = -128 if layer.y_signed else 0
        return {
            "base": area.x, "plane": rows, "row": rows, "step": 1, "height": 1, "width": rows,
            "sy": 1, "sx": 1, "dy": 1, "dx": 1, "kh": 1, "kw": 1, "in_groups": step.depth,
            "out_width": rows, "pixels": rows, "rows_valid": 1, "rows": area.head + 1,
            "w_resident": 1, "w_base": params + PARAMETER_WORDS * unit.count,
            "w_group_stride": group, "w_tile_stride": TILE_WORDS, "w_mode": WeightMode.ROW,
            "out_groups": unit.count, "a_signed": int(x.is_signed),
            "a_zero": layer.sources[0].zero, "w_signed": 1, "w_zero": layer.weight_zero,
            "first": 1, "last": 1, "out": area.out + unit.first * rows, "out_group": rows,
            "out_step": 1, "params": params, "out_zero": layer.y_zero, "clip_low": low,
            "clip_high": low + 255, "table_valid": int(layer.table is not None),
            "table": self.table,
        }

    def _store(self, number: int) -> None:
        """Results to the places of the tokens that they are of."""
        unit, target = self.units[number], self.step.target
        area = self.areas[unit.share]
        is_last = number == len(self.units) - 1
        self.stream.add(
            Opcode.STORE, [(OUT_READY, 1)],
            self.emitter.barrier_signal(self.index) if is_last else (), Queue.STORE,
            scratchpad=area.out + unit.first * area.rows, run=1,
            far=target.base + (self.owner.first + unit.first) * target.plane, count0=unit.count,
            s_stride0=area.rows, f_stride0=target.plane, count1=1, count2=area.rows, s_stride2=1,
            f_stride2=1, gather=1, gather_base=area.places,
        )


__all__ = ["PlacedExpertStep", "plan_placed_experts"]
