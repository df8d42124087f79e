# SPDX-License-Identifier: Apache-2.0
"""Steps of the vector engine: pools, element-wise layers, rows; from HBM through a tile to HBM.

The output is cut into *units* (output groups by output pixels, whole rows for pooling) that are
dealt to the tiles. Two input and two output slots, so that loads, work and stores overlap.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emu.compiler.images import Tensor
from emu.compiler.mapping import encode_rect, part, single
from emu.compiler.roofline import Roofline
from emu.compiler.stream import (
    IN_FREE,
    OUT_READY,
    VECTOR_FREE,
    VECTOR_IN,
    Signal,
    Stream,
    Tile,
)
from emu.config import WORD_BYTES, Config
from emu.errors import UserError
from emu.isa import Opcode, Queue, VectorOp
from emu.network.layers import (
    AddLayer,
    MultiplyLayer,
    NormLayer,
    PoolLayer,
    SoftmaxLayer,
    TableLayer,
    TopKLayer,
)
from emu.normalise import NormParameters, norm_parameters, parameter_words
from emu.softmax import softmax_factor, softmax_table

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter

RowLayer = NormLayer | SoftmaxLayer | TopKLayer
VectorLayer = PoolLayer | AddLayer | MultiplyLayer | TableLayer | RowLayer
LANES = 16
SLOTS = 2
ROW_CYCLES = 4
"""Least cycles a word of softmax or normalisation: three passes over it and a write."""
MAX_TAPS = 63
"""Of a window in one direction: its field."""
MAX_PIXELS = 16383
"""Of one command: its width field."""


class UnitStep:
    """A step whose work is dealt to the tiles in units, each of which goes its own way from HBM to
    HBM; every tile in ``work`` ends its part with `Emitter.barrier_signal`.

    layer, work: The layer; tile to its units.
    """

    layer: Any
    work: Mapping[Tile, Any]

    def describe(self) -> str:
        raise NotImplementedError

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        """Add one tile's commands of step number ``index``."""
        raise NotImplementedError

    def roofline(self, config: Config) -> Roofline:
        raise NotImplementedError

    def read_words(self) -> int:
        """Words that the step's loads read from HBM."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unit:
    """Output groups ``groups`` and pixels ``pixels`` (of a plane); they need pixels ``inputs``."""

    groups: tuple[int, int]
    pixels: tuple[int, int]
    inputs: tuple[int, int]
    top: int = 0              # pooling: input row of the window's first tap, from the first loaded
    rows: int = 1             # pooling: input rows loaded

    @property
    def count(self) -> int:
        return self.groups[1] - self.groups[0]

    @property
    def in_words(self) -> int:
        """Of one source."""
        return self.count * (self.inputs[1] - self.inputs[0])

    @property
    def out_words(self) -> int:
        return self.count * (self.pixels[1] - self.pixels[0])


@dataclass
class VectorStep(UnitStep):
    """A planned vector layer: units by tile and the scratchpad's areas."""

    layer: VectorLayer
    sources: tuple[Tensor, ...]
    target: Tensor
    work: dict[Tile, list[Unit]]
    constants: int            # HBM word of the table
    constant_words: int
    slot_words: int           # of one input slot: all sources
    out_slot_words: int

    @property
    def inputs(self) -> int:
        return self.constant_words

    @property
    def outputs(self) -> int:
        return self.inputs + SLOTS * self.slot_words

    def describe(self) -> str:
        units = sum(len(units) for units in self.work.values())
        return f"vector, {units} unit{'s' if units > 1 else ''} on {len(self.work)} tiles"

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        TileVectorStep(emitter, index, self, tile).emit()

    def roofline(self, config: Config) -> Roofline:
        """Compute: a word in as many cycles as reads, mostly two or more."""
        layer, sources = self.layer, len(self.sources)
        taps = layer.kernel[0] * layer.kernel[1] if isinstance(layer, PoolLayer) else sources
        least = 1 if isinstance(layer, TableLayer) else 2
        if isinstance(layer, RowLayer):
            least = ROW_CYCLES
        compute = max(sum(u.out_words for u in units) for units in self.work.values())
        inbound = max(
            sum(sources * u.in_words for u in units) + self.constant_words
            for units in self.work.values()
        )
        reads = {tensor.name: tensor.words for tensor in self.sources}
        total = sum(reads.values()) + self.constant_words + self.target.words
        return Roofline(
            name=layer.name, compute=compute * max(taps, least), hbm=total / config.hbm.channels,
            inbound=inbound, reads=reads, constant_words=self.constant_words,
            write_words=self.target.words, macs=0,
        )

    def read_words(self) -> int:
        """Rows that two units need are counted twice."""
        return sum(
            self.constant_words + sum(len(self.sources) * u.in_words for u in units)
            for units in self.work.values()
        )


def norm_of(layer: NormLayer) -> NormParameters:
    """The integers that a normalisation computes with."""
    return norm_parameters(
        layer.gamma, layer.beta, in_scale=layer.x_scale, out_scale=layer.y_scale,
        epsilon=layer.epsilon,
    )


def constants_of(layer: VectorLayer) -> NDArray[np.uint8]:
    """The words of a layer's table, none if it has none."""
    if isinstance(layer, AddLayer):
        raw = np.asarray(layer.table, np.float32).view(np.uint8)
    elif isinstance(layer, TableLayer):
        raw = np.asarray(layer.table, np.uint8)
    elif isinstance(layer, SoftmaxLayer):
        raw = softmax_table(layer.source.shape[1], layer.x_scale).view(np.uint8)
    elif isinstance(layer, NormLayer):
        raw = parameter_words(norm_of(layer))
    else:
        raw = np.zeros(0, np.uint8)
    return raw.reshape(-1, WORD_BYTES)


def _counts(limit: int) -> Iterator[int]:
    """Numbers of parts worth trying: all small ones, then ever fewer."""
    value = 1
    while value < limit:
        yield value
        value += max(1, value // 16)
    yield limit


def _units(layer: VectorLayer, group_parts: int, pixel_parts: int) -> list[Unit]:
    n, channels, height, width = layer.target.shape
    groups = -(-channels // LANES)
    cuts = [part(groups, group_parts, k) for k in range(group_parts)]
    if isinstance(layer, TopKLayer):
        _check_top(layer)
        ranges = [part(width // 2, pixel_parts, k) for k in range(pixel_parts)]
        return [Unit((0, 1), (2 * a, 2 * b), (a, b)) for a, b in ranges]
    if not isinstance(layer, PoolLayer):
        ranges = [part(n * height * width, pixel_parts, k) for k in range(pixel_parts)]
        return [Unit(g, p, p) for p in ranges for g in cuts]
    in_height, in_width = layer.source.shape[2:]
    found = []
    for image in range(n):
        for first, last in (part(height, pixel_parts, k) for k in range(pixel_parts)):
            top = first * layer.strides[0] - layer.pads[0]
            bottom = (last - 1) * layer.strides[0] - layer.pads[0] + layer.kernel[0]
            low, high = max(top, 0), min(bottom, in_height)
            base = image * in_height
            found += [
                Unit(
                    g, ((image * height + first) * width, (image * height + last) * width),
                    ((base + low) * in_width, (base + high) * in_width), top - low, high - low,
                )
                for g in cuts
            ]
    return found


def _check_top(layer: TopKLayer) -> None:
    channels = layer.source.shape[1]
    if channels > LANES or not 1 <= layer.k <= min(4, channels):
        raise UserError(f"layer {layer.name}: the {layer.k} largest of {channels} channels: up to 4"
                        f" of up to {LANES} are supported")


def plan_vector(
    config: Config, layer: VectorLayer, tensors: dict[str, Tensor], limit: int, constants: int
) -> VectorStep:
    """The quickest cut of ``layer`` whose slots fit scratchpad words 0 .. ``limit`` - 1.

    Raises
    ------
    UserError
        If not even the smallest unit fits.
    """
    n, channels, height, width = layer.target.shape
    groups = -(-channels // LANES)
    pixels = height if isinstance(layer, PoolLayer) else n * height * width
    pixels = pixels // 2 if isinstance(layer, TopKLayer) else pixels
    words, sources = len(constants_of(layer)), len(layer.sources)
    tiles, best = config.mesh.tiles, None
    for group_parts in (1,) if isinstance(layer, RowLayer) else _counts(groups):
        for pixel_parts in _counts(pixels):
            units = _units(layer, group_parts, pixel_parts)
            into, out = max(u.in_words for u in units), max(u.out_words for u in units)
            most = max(max(u.inputs[1] - u.inputs[0], u.pixels[1] - u.pixels[0]) for u in units)
            if words + SLOTS * (sources * into + out) > limit or most > MAX_PIXELS:
                continue
            turns = -(-len(units) // tiles)
            cost = turns * (sources * into + out + 200)
            if best is None or cost < best[0]:
                best = cost, units, into, out
            if turns > 4:
                break
    if best is None:
        raise UserError(f"layer {layer.name}: a row of its windows does not fit the scratchpad: "
                        "raise scratchpad.kib")
    _, units, into, out = best
    every = [(x, y) for y in range(config.mesh.rows) for x in range(config.mesh.cols)]
    work = {tile: units[k::tiles] for k, tile in enumerate(every) if units[k::tiles]}
    return VectorStep(
        layer=layer, sources=tuple(tensors[s.name] for s in layer.sources),
        target=tensors[layer.target.name], work=work, constants=constants,
        constant_words=words, slot_words=sources * into, out_slot_words=out,
    )


class TileVectorStep:
    """One tile's commands of one vector step."""

    def __init__(self, emitter: "Emitter", index: int, step: VectorStep, tile: Tile):
        self.emitter, self.index, self.step, self.tile = emitter, index, step, tile
        self.stream: Stream = emitter.streams[tile]
        self.units = step.work[tile]

    def emit(self) -> None:
        step = self.step
        if step.constant_words:
            self._load(0, step.constants, step.constant_words, 1, 0, 0, VECTOR_IN, [])
        for number in range(min(SLOTS, len(self.units))):
            self._load_unit(number)
        for number, unit in enumerate(self.units):
            self._work(number, unit)
            self._store(number, unit)
            if number + SLOTS < len(self.units):
                self._load_unit(number + SLOTS)

    def _load(self, to, far, run, count, near_stride, far_stride, sem, waits) -> None:
        self.stream.add(
            Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(single(*self.tile)), sem_valid=1,
            sem=sem, scratchpad=to, far=far, run=run, count0=count, count1=1, count2=1,
            s_stride0=near_stride if count > 1 else 0, f_stride0=far_stride if count > 1 else 0,
        )

    def _slot(self, number: int) -> int:
        return self.step.inputs + number % SLOTS * self.step.slot_words

    def _out(self, number: int) -> int:
        return self.step.outputs + number % SLOTS * self.step.out_slot_words

    def _load_unit(self, number: int) -> None:
        unit, to = self.units[number], self._slot(number)
        waits = [(IN_FREE + number % SLOTS, 1)] if number >= SLOTS else []
        run = unit.inputs[1] - unit.inputs[0]
        for source in self.step.sources:
            far = source.base + unit.groups[0] * source.plane + unit.inputs[0]
            merged = run == source.plane
            self._load(
                to, far, run * unit.count if merged else run, 1 if merged else unit.count, run,
                source.plane, VECTOR_IN + number % SLOTS, waits,
            )
            to, waits = to + unit.in_words, []

    def _work(self, number: int, unit: Unit) -> None:
        step = self.step
        words = len(step.sources) * unit.in_words + (step.constant_words if number == 0 else 0)
        waits = [(VECTOR_IN + number % SLOTS, words)]
        if number >= SLOTS:
            waits.append((VECTOR_FREE, 1))
        here = single(*self.tile)
        signals: list[Signal] = [(OUT_READY, here)]
        if number + SLOTS < len(self.units):
            signals.append((IN_FREE + number % SLOTS, here))
        pixels, plane = unit.pixels[1] - unit.pixels[0], unit.inputs[1] - unit.inputs[0]
        slot = self._slot(number)
        fields = {
            "base": slot, "plane": plane, "step": 1, "groups": unit.count, "pixels": pixels,
            "out": self._out(number), "out_group": pixels, "out_step": 1,
            "b_base": slot + unit.in_words, "b_plane": plane, "b_step": 1, "table": 0,
        } | self._window(unit, pixels) | self._operation()
        if isinstance(step.layer, TopKLayer):
            fields |= {"pixels": plane, "out_step": 2, "b_mode": 1, "b_base": fields["out"] + 1,
                       "b_step": 2}
        self.stream.add(Opcode.VECTOR, waits, signals, Queue.VECTOR, **fields)

    def _window(self, unit: Unit, pixels: int) -> dict[str, int]:
        layer = self.step.layer
        if not isinstance(layer, PoolLayer):
            return {"height": 1, "width": pixels, "out_width": pixels, "sy": 1, "sx": 1, "kh": 1,
                    "kw": 1}
        if layer.kernel[1] > MAX_TAPS:
            return self._folded(layer)
        return {
            "row": layer.source.shape[3], "height": unit.rows, "width": layer.source.shape[3],
            "y0": unit.top, "x0": -layer.pads[1], "sy": layer.strides[0], "sx": layer.strides[1],
            "kh": layer.kernel[0], "kw": layer.kernel[1], "out_width": layer.target.shape[3],
        }

    @staticmethod
    def _folded(layer: PoolLayer) -> dict[str, int]:
        """Windows over parts of a row that exceed their field, as ones over several rows."""
        length, (_, _, height, width) = layer.kernel[1], layer.source.shape
        columns = next((k for k in range(MAX_TAPS, 0, -1) if length % k == 0), 1)
        rows = length // columns
        plain = layer.kernel == layer.strides or layer.target.shape[3] == 1
        if rows > MAX_TAPS or height > 1 or width % length or not plain or any(layer.pads):
            raise UserError(f"layer {layer.name}: a window over {length} pixels in a row: supported"
                            f" are {MAX_TAPS}; side by side, products of two such numbers")
        return {"row": columns, "height": width // columns, "width": columns, "y0": 0, "x0": 0,
                "sy": rows, "sx": columns, "kh": rows, "kw": columns, "out_width": 1}

    def _operation(self) -> dict[str, int]:
        layer, target = self.step.layer, self.step.layer.target
        first = layer.sources[0]
        fields = {"a_signed": int(first.is_signed), "out_zero": target.zero}
        if not isinstance(layer, TableLayer | RowLayer):
            fields |= {"clip_low": layer.clip_low, "clip_high": layer.clip_high}
        if isinstance(layer, TableLayer):
            return fields | {"op": VectorOp.TABLE}
        if isinstance(layer, RowLayer):
            return fields | self._row_operation(layer)
        if isinstance(layer, PoolLayer) and layer.kind == "max":
            return fields | {"op": VectorOp.MAX_POOL}
        scale = int(np.float32(layer.scale).view(np.uint32))
        if isinstance(layer, PoolLayer):
            return fields | {"op": VectorOp.SUM_POOL, "a_zero": first.zero, "scale0": scale}
        if isinstance(layer, AddLayer):
            return fields | {"op": VectorOp.ADD, "scale0": scale}
        second = layer.sources[1]
        return fields | {
            "op": VectorOp.MULTIPLY, "a_zero": first.zero, "b_signed": int(second.is_signed),
            "b_zero": second.zero, "scale0": scale,
        }

    @staticmethod
    def _row_operation(layer: RowLayer) -> dict[str, int]:
        low = -128 if layer.target.is_signed else 0
        fields = {"channels": layer.source.shape[1], "clip_low": low, "clip_high": low + 255}
        if isinstance(layer, SoftmaxLayer):
            return fields | {"op": VectorOp.SOFTMAX, "scale0": softmax_factor(layer.y_scale)}
        if isinstance(layer, TopKLayer):
            return fields | {"op": VectorOp.TOP_K, "k": layer.k}
        epsilon = norm_of(layer).epsilon
        return fields | {
            "op": VectorOp.LAYER_NORM, "a_zero": layer.source.zero,
            "scale0": epsilon & 0xFFFFFFFF, "scale1": epsilon >> 32,
        }

    def _store(self, number: int, unit: Unit) -> None:
        target, pixels = self.step.target, unit.pixels[1] - unit.pixels[0]
        signals: list[Signal] = []
        if number + SLOTS < len(self.units):
            signals.append((VECTOR_FREE, single(*self.tile)))
        if number == len(self.units) - 1:
            signals += self.emitter.barrier_signal(self.index)
        merged = pixels == target.plane
        self.stream.add(
            Opcode.STORE, [(OUT_READY, 1)], signals, Queue.STORE, scratchpad=self._out(number),
            far=target.base + unit.groups[0] * target.plane + unit.pixels[0],
            run=pixels * unit.count if merged else pixels, count0=1 if merged else unit.count,
            count1=1, count2=1, s_stride0=0 if merged or unit.count == 1 else pixels,
            f_stride0=0 if merged or unit.count == 1 else target.plane,
        )


__all__ = ["RowLayer", "TileVectorStep", "UnitStep", "VectorLayer", "VectorStep", "plan_vector"]
