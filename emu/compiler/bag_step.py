# SPDX-License-Identifier: Apache-2.0
"""Steps of embedding bags: rows of tables, gathered by number and summed, all bags at once.

Samples of bags are dealt to the tiles. A bag of at least ``hbm.sum_rows`` lookups is summed where
it lies: its table is in one channel, or in slices of columns in several so that no channel has more
to read than the others; the tile gets high and low parts of the sums and requantises them in the
array, two diagonal taps. Any other bag's rows come to the tile, whose vector engine sums them.
Both kinds go by waves: while one is computed the next is loaded.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from emu.compiler.images import LANES, Bytes, Memory, Tensor
from emu.compiler.mapping import encode_rect, single
from emu.compiler.roofline import Roofline
from emu.compiler.stream import (
    IN_FREE,
    OUT_FREE,
    OUT_READY,
    PARAMS,
    RESIDUAL_FREE,
    VECTOR_FREE,
    VECTOR_IN,
    Signal,
    Stream,
    Tile,
    Wait,
)
from emu.compiler.tiling import PIECES
from emu.compiler.vector_step import MAX_TAPS, UnitStep
from emu.config import SEGMENT_WORDS, WORD_BYTES, Config, direct_address, interleaved
from emu.errors import UserError
from emu.isa import Opcode, Queue, VectorOp, WeightMode
from emu.network.layers import NUMBERS, BagsLayer
from emu.row_sums import LOW_BITS, MOST_ROWS

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter

LIST = RESIDUAL_FREE
"""Counts the words of all lists, in the load queue."""
VECTOR_STORE = 63
"""Waves that the vector engine has summed, in the store queue. The last of the semaphores that
resident edges share: a program with bags has few."""
WEIGHT_WORDS, PARAMETER_WORDS = 2, 8
LEAST_SLICE = 8
"""Words of a slice: narrower ones save copies, but every slice opens a DRAM row of its own."""
UNEVEN = 1.5
"""Of a channel's share, from which on a table is cut into slices."""
WAVES = 4
"""Of each kind that a tile should have, so that loads and sums overlap."""
MOST_PIXELS = 256


@dataclass(frozen=True)
class Table:
    """Where a bag's rows lie: ``slices`` columns of ``words`` words each; the first one's row 0 is
    at ``bases``, of every copy, the next slice ``stride`` further on."""

    bases: tuple[int, ...]
    words: int
    slices: int = 1
    stride: int = 0


@dataclass(frozen=True)
class Unit:
    """Samples ``first`` to ``end`` of a bag, from a copy of its table."""

    bag: int
    first: int
    end: int
    copy: int = 0

    @property
    def count(self) -> int:
        return self.end - self.first


def row_words(layer: BagsLayer) -> int:
    """Words of a row: of two 4-bit channels a byte the low nibbles are 16 channels, then the high
    ones."""
    return -(-layer.width * layer.bits // (8 * LANES))


def summed(config: Config, layer: BagsLayer, bag: int) -> bool:
    """Whether the channels sum the bag's rows."""
    least = config.hbm.sum_rows
    return bool(least) and (least <= layer.lookups[bag] <= MOST_ROWS)


def _rows(layer: BagsLayer, bag: int) -> Bytes:
    """uint8[rows, words * 16]."""
    table: Bytes = layer.tables[bag].view(np.uint8)
    if layer.bits == 8:
        return table
    pairs = table.reshape(len(table), -1, 2, LANES) & 15
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).astype(np.uint8).reshape(len(table), -1)


def constants(layer: BagsLayer) -> Bytes:
    """Two diagonal weight words, then the parameters of every scale."""
    weights = np.repeat(np.array([[1 << LOW_BITS], [1]], np.uint8), LANES, axis=1)
    parameters = [
        np.concatenate([np.zeros(LANES, np.int32).view(np.uint8),
                        np.full(LANES, scale, np.float32).view(np.uint8)]).reshape(-1, WORD_BYTES)
        for scale in scales(layer)
    ]
    return np.concatenate([weights, *parameters])


def scales(layer: BagsLayer) -> list[np.float32]:
    return sorted(set(layer.scales))


def place_tables(memory: Memory, layer: BagsLayer) -> list[Table]:
    """Lay out all tables.

    Raises
    ------
    UserError
        If the rows cannot be summed as they should be, or HBM is full.
    """
    config, words = memory.config, row_words(layer)
    near = [k for k in range(len(layer.tables)) if summed(config, layer, k)]
    if layer.width * layer.bits % 128 or layer.width > 128 or words & (words - 1):
        raise UserError(f"layer {layer.name}: rows of {layer.width} channels of {layer.bits} bits: "
                        "128 bits times a power of two are supported, up to 128 channels")
    if layer.bits == 4 and len(near) < len(layer.tables):
        raise UserError(f"layer {layer.name}: rows of 4 bits need channels that sum every bag: "
                        "set hbm.sum_rows=1")
    if near and not config.has_direct:
        raise UserError(f"layer {layer.name}: hbm.sum_rows needs at most 1 GiB of HBM")
    found = _place_near(memory, layer, near) if near else {}
    for k in range(len(layer.tables)):
        if k not in found:
            rows = _rows(layer, k).reshape(-1, WORD_BYTES)
            base = memory.allocate(len(rows), f"table {k} of {layer.name}", scattered=True)
            memory.put(base, rows)
            found[k] = Table((base,), words)
    return [found[k] for k in range(len(layer.tables))]


def _place_near(memory: Memory, layer: BagsLayer, near: list[int]) -> dict[int, Table]:
    """Tables in channels of their own, the most read first, each in the channels with the least to
    read so far: cut into slices, and, where those would be too narrow, copied."""
    config, words = memory.config, row_words(layer)
    channels = config.hbm.channels
    share = sum(layer.lookups[k] for k in near) * words / channels
    load, used = [0.0] * channels, [0] * channels
    chosen: list[tuple[int, int, int, int]] = []
    for k in sorted(near, key=lambda k: -layer.lookups[k]):
        slices, lookups = 1, layer.lookups[k]
        while (lookups * words / slices > UNEVEN * share and words // slices > LEAST_SLICE
               and 2 * slices <= channels):
            slices *= 2
        size = words // slices
        copies = min(max(1, round(lookups * size / share)), channels // slices, layer.batch)
        for _ in range(copies):
            first = min(range(channels - slices + 1),
                        key=lambda c: (max(load[c : c + slices]), max(used[c : c + slices])))
            place = max(used[first : first + slices])
            chosen.append((k, slices, first, place))
            for channel in range(first, first + slices):
                load[channel] += lookups * size / copies
                rows = len(layer.tables[k]) * size
                used[channel] = place + -(-rows // SEGMENT_WORDS) * SEGMENT_WORDS
    line = channels * SEGMENT_WORDS
    area = memory.allocate(max(used) * channels, f"tables of {layer.name}", line,
                           scattered=True) // channels
    found: dict[int, Table] = {}
    for k, slices, first, place in chosen:
        whole, size = _rows(layer, k), words // slices
        for j in range(slices):
            base = direct_address(config, first + j, area + place)
            part = whole[:, 16 * j * size : 16 * (j + 1) * size].reshape(-1, WORD_BYTES)
            memory.put(interleaved(config, base + np.arange(len(part))), part)
        before = found[k].bases if k in found else ()
        found[k] = Table((*before, direct_address(config, first, area + place)), size, slices,
                         config.hbm.words if slices > 1 else 0)
    return found


@dataclass
class BagStep(UnitStep):
    """A planned layer of bags: tile to its units, those summed in HBM and the others, in waves."""

    layer: BagsLayer
    source: Tensor
    target: Tensor
    tables: list[Table]
    base: int                 # HBM word of `constants`
    work: dict[Tile, dict[bool, list[list[Unit]]]]

    @property
    def groups(self) -> int:
        """Of a bag's sum."""
        return self.layer.width // LANES

    def lists(self, tile: Tile) -> dict[Unit, int]:
        """Scratchpad word of every unit's numbers."""
        found, at = {}, 0
        for waves in self.work[tile].values():
            for unit in (each for wave in waves for each in wave):
                found[unit] = at
                at += self.list_words(unit)
        return found

    def list_words(self, unit: Unit) -> int:
        return -(-unit.count * self.layer.lookups[unit.bag] // NUMBERS)

    def in_words(self, unit: Unit, near: bool) -> int:
        """That arrive in a tile."""
        if near:
            return 2 * unit.count * self.groups
        return unit.count * self.layer.lookups[unit.bag] * row_words(self.layer)

    def scales(self, tile: Tile) -> list[np.float32]:
        """Of the sums that a tile requantises in the array."""
        waves = self.work[tile][True]
        return sorted({self.layer.scales[unit.bag] for wave in waves for unit in wave})

    def describe(self) -> str:
        near = len({u.bag for kinds in self.work.values() for wave in kinds[True] for u in wave})
        return (f"bags, {len(self.tables)} on {len(self.work)} tiles, {near} of them summed in HBM")

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        TileBagStep(emitter, index, self, tile).emit()

    def _units(self) -> Iterable[tuple[Tile, bool, Unit]]:
        for tile, kinds in self.work.items():
            for near, waves in kinds.items():
                for unit in (each for wave in waves for each in wave):
                    yield tile, near, unit

    def _constant_words(self, tile: Tile) -> int:
        found = self.scales(tile)
        return WEIGHT_WORDS + PARAMETER_WORDS * len(found) if found else 0

    def roofline(self, config: Config) -> Roofline:
        layer = self.layer
        inbound = {tile: self._constant_words(tile) for tile in self.work}
        compute = dict.fromkeys(self.work, 0)
        rows = 0
        for tile, near, unit in self._units():
            inbound[tile] += self.in_words(unit, near) + self.list_words(unit)
            compute[tile] += max(2 * unit.count * self.groups, 32) if near else (
                self.in_words(unit, near))
            rows += unit.count * layer.lookups[unit.bag] * row_words(layer)
        total = self.source.words + rows + self.target.words
        return Roofline(
            name=layer.name, compute=max(compute.values()), hbm=total / config.hbm.channels,
            inbound=max(inbound.values()), reads={self.source.name: self.source.words},
            constant_words=sum(row_words(layer) for _ in layer.tables),  # all may name one row
            write_words=self.target.words, macs=0,
        )

    def read_words(self) -> int:
        rows = sum(unit.count * self.layer.lookups[unit.bag] for _, _, unit in self._units())
        lists = sum(self.list_words(unit) for _, _, unit in self._units())
        return (rows * row_words(self.layer) + lists
                + sum(self._constant_words(tile) for tile in self.work))


def plan_bags(
    config: Config, layer: BagsLayer, tensors: dict[str, Tensor], limit: int, base: int,
    tables: list[Table],
) -> BagStep:
    """Samples dealt to the tiles by the rows that they read, the longest first.

    Raises
    ------
    UserError
        If the least that a tile can do at once does not fit scratchpad words 0 .. ``limit`` - 1.
    """
    every = [(x, y) for y in range(config.mesh.rows) for x in range(config.mesh.cols)]
    load = dict.fromkeys(every, 0)
    dealt: dict[Tile, list[Unit]] = {tile: [] for tile in every}
    share = layer.batch * sum(layer.lookups) / len(every)
    units = [unit for k, table in enumerate(tables)
             for unit in _cut(layer, k, share / WAVES, len(table.bases))]
    for unit in sorted(units, key=lambda u: -u.count * layer.lookups[u.bag]):
        tile = min(every, key=load.__getitem__)
        dealt[tile].append(unit)
        load[tile] += unit.count * layer.lookups[unit.bag]
    step = BagStep(layer=layer, source=tensors[layer.source.name], base=base, tables=tables,
                   target=tensors[layer.target.name], work={})
    fixed = max(sum(step.list_words(unit) for unit in each) for each in dealt.values())
    fixed += WEIGHT_WORDS + PARAMETER_WORDS * len(scales(layer))
    for tile, found in dealt.items():
        if not found:
            continue
        kinds = {near: [u for u in found if summed(config, layer, u.bag) == near]
                 for near in (True, False)}
        both = all(kinds.values())
        step.work[tile] = {
            near: _waves(step, _merged(layer, each), near, (limit - fixed) // (4 if both else 2))
            for near, each in kinds.items()
        }
    return step


def _cut(layer: BagsLayer, bag: int, rows: float, copies: int) -> list[Unit]:
    """A bag's samples in pieces of about ``rows`` rows, each with whole words of numbers."""
    grain, lookups = layer.grain(bag), layer.lookups[bag]
    size = max(1, int(rows / (grain * lookups))) * grain
    return [Unit(bag, first, min(first + size, layer.batch), first // size % copies)
            for first in range(0, layer.batch, size)]


def _merged(layer: BagsLayer, units: list[Unit]) -> list[Unit]:
    """Units side by side as one, by bag."""
    found: list[Unit] = []
    for unit in sorted(units, key=lambda u: (u.bag, u.copy, u.first)):
        last = found[-1] if found else None
        groups = layer.width // LANES
        if last and (last.bag, last.copy, last.end) == (unit.bag, unit.copy, unit.first) and (
                (unit.end - last.first) * groups <= MOST_PIXELS):
            found[-1] = replace(last, end=unit.end)
        else:
            found.append(unit)
    return found


def _waves(step: BagStep, units: list[Unit], near: bool, room: int) -> list[list[Unit]]:
    """Units in order, a part of what the tile has and at most ``room`` words a wave."""
    def size(unit: Unit) -> int:
        return step.in_words(unit, near) + unit.count * step.groups

    total = sum(size(unit) for unit in units)
    waves: list[list[Unit]] = []
    filled = 0
    for unit in units:
        if size(unit) > room:
            raise UserError(f"layer {step.layer.name}: {unit.count} samples of bag {unit.bag} need "
                            f"{size(unit)} words of scratchpad, {max(room, 0)} are there: raise "
                            "scratchpad.kib")
        if not waves or filled + size(unit) > min(room, max(total / WAVES, 1)):
            waves.append([])
            filled = 0
        waves[-1].append(unit)
        filled += size(unit)
    return waves


@dataclass(frozen=True)
class Lane:
    """Of one kind of units: its semaphores (by queue) and queue; ``arrive`` has one per parity."""

    near: bool
    arrive: tuple[int, int]
    free: int
    stored: int
    ready: int
    queue: Queue


LANE = {
    True: Lane(True, (0, PIECES), IN_FREE, OUT_FREE, OUT_READY, Queue.COMPUTE),
    False: Lane(False, (VECTOR_IN, VECTOR_IN + 1), IN_FREE + 1, VECTOR_FREE, VECTOR_STORE,
                Queue.VECTOR),
}


class TileBagStep:
    """One tile's commands of one step of bags."""

    def __init__(self, emitter: "Emitter", index: int, step: BagStep, tile: Tile):
        self.emitter, self.index, self.step = emitter, index, step
        self.stream: Stream = emitter.streams[tile]
        self.here, self.kinds = single(*tile), step.work[tile]
        self.lists, self.scales = step.lists(tile), step.scales(tile)
        self.list_words = sum(map(step.list_words, self.lists))
        self.weights = self.list_words
        self.params = self.weights + WEIGHT_WORDS
        at = self.params + PARAMETER_WORDS * len(self.scales) if self.scales else self.weights
        self.areas: dict[tuple[bool, int], tuple[int, int]] = {}
        for near, waves in self.kinds.items():
            for parity in range(2):
                mine = waves[parity::2]
                into = max((sum(step.in_words(u, near) for u in wave) for wave in mine), default=0)
                out = max((sum(u.count * step.groups for u in wave) for wave in mine), default=0)
                self.areas[near, parity] = at, at + into
                at += into + out

    def emit(self) -> None:
        order = [(near, number) for number in range(max(map(len, self.kinds.values())))
                 for near, waves in self.kinds.items() if number < len(waves)]
        for unit, at in self.lists.items():
            first = self.step.layer.first(unit.bag)
            first += unit.first * self.step.layer.lookups[unit.bag] // NUMBERS
            self._load(at, self.step.source.base + first, self.step.list_words(unit), LIST, ())
        if self.scales:
            self._load(self.weights, self.step.base, WEIGHT_WORDS, PARAMS, ())
            for rank, scale in enumerate(self.scales):
                place = WEIGHT_WORDS + PARAMETER_WORDS * scales(self.step.layer).index(scale)
                self._load(self.params + PARAMETER_WORDS * rank, self.step.base + place,
                           PARAMETER_WORDS, PARAMS, ())
        for turn, (near, number) in enumerate(order):
            waits: list[Wait] = [(LIST, self.list_words)] if turn == 0 else []
            self._gather(LANE[near], number, waits)
            if turn:
                self._finish(*order[turn - 1], is_last=False)
        self._finish(*order[-1], is_last=True)

    def _load(self, to: int, far: int, run: int, sem: int, waits) -> None:
        self.stream.add(
            Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(self.here), sem_valid=1, sem=sem,
            scratchpad=to, far=far, run=run, count0=1, count1=1, count2=1,
        )

    def _wave(self, near: bool, number: int) -> list[tuple[Unit, int, int]]:
        """(unit, its rows' or sums' first word, its output's)."""
        into, out = self.areas[near, number % 2]
        found = []
        for unit in self.kinds[near][number]:
            found.append((unit, into, out))
            into += self.step.in_words(unit, near)
            out += unit.count * self.step.groups
        return found

    def _gather(self, lane: Lane, number: int, waits: list[Wait]) -> None:
        if number >= 2:
            waits = [*waits, (lane.free, 1)]
        for unit, into, _ in self._wave(lane.near, number):
            table, lookups = self.step.tables[unit.bag], self.step.layer.lookups[unit.bag]
            words = 2 * self.step.groups if lane.near else table.words
            more = {}
            if lane.near:
                more = {"sum": lookups, "sum_int4": int(self.step.layer.bits == 4)}
            self.stream.add(
                Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(self.here), sem_valid=1,
                sem=lane.arrive[number % 2], scratchpad=into, far=table.bases[unit.copy],
                run=table.words, count0=table.slices, count1=1, count2=unit.count * lookups,
                s_stride0=words // table.slices if table.slices > 1 else 0,
                f_stride0=table.stride, s_stride2=words, f_stride2=table.words, gather=1,
                gather_base=self.lists[unit], **more,
            )
            waits = []

    def _finish(self, near: bool, number: int, is_last: bool) -> None:
        """Sum or requantise a wave, and store it."""
        lane, wave, step = LANE[near], self._wave(near, number), self.step
        words = sum(step.in_words(unit, near) for unit, _, _ in wave)
        waits: list[Wait] = [(lane.arrive[number % 2], words)]
        if near and number == 0:
            waits.append((PARAMS, WEIGHT_WORDS + PARAMETER_WORDS * len(self.scales)))
        if number >= 2:
            waits.append((lane.stored, 1))
        count = len(self.kinds[near])
        for position, (unit, into, out) in enumerate(wave):
            signals: list[Signal] = []
            if position == len(wave) - 1:
                signals.append((lane.ready, self.here))
                if number + 2 < count:
                    signals.append((lane.free, self.here))
            opcode, fields = self._requantise(unit, into, out) if near else (
                self._sum(unit, into, out))
            self.stream.add(opcode, waits, signals, lane.queue, **fields)
            waits = []
        for position, (unit, _, out) in enumerate(wave):
            signals = []
            if position == len(wave) - 1:
                if number + 2 < count:
                    signals.append((lane.stored, self.here))
                signals += self.emitter.barrier_signal(self.index) if is_last else []
            plane, groups = step.target.plane, step.groups
            pixels = {"s_stride0": groups, "s_stride1": 1} if near else {
                "s_stride0": 1, "s_stride1": unit.count}
            self.stream.add(
                Opcode.STORE, [(lane.ready, 1)] if position == 0 else [], signals, Queue.STORE,
                scratchpad=out, far=step.target.base + unit.bag * groups * plane + unit.first,
                run=1, count0=unit.count, count1=groups, count2=1, f_stride0=1, f_stride1=plane,
                **pixels,
            )

    def _requantise(self, unit: Unit, into: int, out: int) -> tuple[Opcode, dict[str, int]]:
        """High and low parts as two taps of one channel each; a lane group is a pixel."""
        pixels = unit.count * self.step.groups
        rank = self.scales.index(self.step.layer.scales[unit.bag])
        return Opcode.COMPUTE, {
            "base": into, "plane": 0, "row": 1, "step": 1, "height": 1, "width": 2 * pixels,
            "sy": 1, "sx": 2, "dy": 1, "dx": 1, "kh": 1, "kw": 2, "in_groups": 1,
            "out_width": pixels, "pixels": pixels, "w_resident": 1, "w_base": self.weights,
            "w_group_stride": 0, "w_tile_stride": 1, "w_mode": WeightMode.DIAGONAL,
            "out_groups": 1, "a_signed": 1, "w_signed": 0, "first": 1, "last": 1, "out": out,
            "out_group": 1, "out_step": 1, "params": self.params + PARAMETER_WORDS * rank,
            "out_zero": self.step.layer.target.zero, "clip_low": -128, "clip_high": 127,
        }

    def _sum(self, unit: Unit, into: int, out: int) -> tuple[Opcode, dict[str, int]]:
        """A sample's rows as a window of as few rows of pixels as its fields allow."""
        layer, groups = self.step.layer, self.step.groups
        lookups = layer.lookups[unit.bag]
        columns = next(k for k in range(MAX_TAPS, 0, -1) if lookups % k == 0)
        rows = lookups // columns
        if rows > MAX_TAPS:
            raise UserError(f"layer {layer.name}: {lookups} lookups: supported are {MAX_TAPS} or "
                            "products of two such numbers")
        return Opcode.VECTOR, {
            "op": VectorOp.SUM_POOL, "base": into, "plane": 1, "step": groups,
            "row": columns * groups, "height": rows * unit.count, "width": columns, "sy": rows,
            "sx": columns, "kh": rows, "kw": columns, "out_width": 1, "groups": groups,
            "pixels": unit.count, "out": out, "out_group": unit.count, "out_step": 1,
            "a_signed": 1, "a_zero": 0, "out_zero": layer.target.zero, "clip_low": -128,
            "clip_high": 127, "scale0": int(np.float32(layer.scales[unit.bag]).view(np.uint32)),
        }


__all__ = ["BagStep", "constants", "place_tables", "plan_bags"]
