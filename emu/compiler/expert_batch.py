# SPDX-License-Identifier: Apache-2.0
"""Steps of experts for many tokens: which weights leave HBM, and how often.

Every tile has some of the output groups of all experts, as in `expert_step`. What it goes through
is a list (`prefetch.experts`): ``distinct``: the experts that occur, each once, found on the chip
(DISTINCT); what is left of the list's length is absent and costs nothing. ``all``: all experts. In
both an expert sees all tokens, and a store by list (PLACES) keeps the results of its own.
``cached``: as distinct, but in slots that keep their experts from step to step (RETAIN).
``per_token``: each token's own list; every weight comes as often as it is used.
``sorted``: tokens are permuted (SORT): blocks of rows of one expert each, as many as may be needed.
An expert sees its own tokens alone; its weights come once for each of its blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from emu.compiler.expert_step import LIST, MOST_WORDS, PARAMETER_WORDS, TABLE_WORDS, deal
from emu.compiler.images import LANES, Bytes, Tensor
from emu.compiler.mapping import Rect, encode_rect, part, single
from emu.compiler.roofline import Roofline
from emu.compiler.stream import (
    IN_FREE,
    KEPT,
    OUT_FREE,
    OUT_READY,
    PARAMS,
    PLACED,
    VECTOR_IN,
    Signal,
    Stream,
    Tile,
    Wait,
)
from emu.compiler.tiling import PIECES
from emu.compiler.vector_step import UnitStep
from emu.config import TILE_WORDS, WORD_BYTES, Config
from emu.errors import UserError
from emu.isa import ABSENT, Opcode, Queue, VectorOp, WeightMode
from emu.network.layers import NUMBERS, ExpertLayer, Layer

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter
    from emu.compiler.expert_ahead import Ahead

BUFFERS = 2
MOST_EXPERTS, MOST_PIXELS = 16, 256


@dataclass(frozen=True)
class Cache:
    """Slots of a layer's experts in every tile: words that say what they hold, the one to begin
    with, ``spare`` ones for lists of what is fetched ahead, then the slots of ``size`` words each.

    base: First scratchpad word. begins: This step is the first that uses it: ``empty`` is the HBM
    word of what it begins with.
    """

    base: int
    slots: int
    size: int
    spare: int = 0
    empty: int = 0
    begins: bool = False

    @property
    def head(self) -> int:
        """Words that the cache begins with."""
        return self.slots + 1

    @property
    def first_slot(self) -> int:
        return self.base + self.head + self.spare

    @property
    def words(self) -> int:
        return self.head + self.spare + self.slots * self.size

    def contents(self) -> Bytes:
        """Of the head: nothing is held."""
        found = np.zeros((self.head, NUMBERS), np.uint32)
        found[:-1, 0] = ABSENT
        return found.view(np.uint8)


def plan_caches(config: Config, layers: list[Layer]) -> tuple[Config, dict[int, Cache]]:
    """The machine without the top of its scratchpads, and there caches by the id of weights.

    Raises
    ------
    UserError
        If the caches leave nothing.
    """
    found: dict[int, Cache] = {}
    if config.prefetch.experts != "cached":
        return config, found
    at = config.scratchpad.free_words
    for layer in layers:
        if isinstance(layer, ExpertLayer) and is_batch(layer) and id(layer.weights) not in found:
            _, outputs, inputs = layer.weights.shape
            work = deal(config, -(-outputs // LANES))
            most = max(end - first for first, end in work.values())
            size = most * (-(-inputs // LANES) * TILE_WORDS + PARAMETER_WORDS)
            cache = Cache(0, slots := config.prefetch.expert_slots, size)
            if config.prefetch.experts_ahead != "none":
                cache = replace(cache, spare=layer.target.shape[3] // layer.k + slots)
            at -= cache.words
            found[id(layer.weights)] = replace(cache, base=at)
    kib = at * WORD_BYTES // 1024
    if kib < 1:
        raise UserError(f"{config.prefetch.expert_slots} experts of a layer do not fit the "
                        "scratchpads: lower prefetch.expert_slots")
    scratchpad = config.scratchpad.model_copy(update={"kib": kib})
    return config.model_copy(update={"scratchpad": scratchpad}), found


def is_batch(layer: ExpertLayer) -> bool:
    """Whether the numbers are all that a top-k unit found, not one token's alone."""
    return layer.sources[1].shape[3] > 1


@dataclass
class ExpertBatchStep(UnitStep):
    """A planned layer of experts: tile to its output groups.

    mode: `prefetch.experts`. base, weights: As in `ExpertStep`. shared: Inputs are loaded once for
        all tiles. chunk: Output groups at a time.
    """

    layer: ExpertLayer
    sources: tuple[Tensor, ...]
    target: Tensor
    work: dict[Tile, tuple[int, int]]
    base: int
    weights: dict[Tile, int]
    mode: str
    shared: bool
    cache: "Cache | None" = None
    chunk: int = 0
    block: int = 0
    """Rows of a block, if tokens are sorted."""
    ahead: "tuple[Ahead, ...]" = ()
    """What is fetched for it during earlier steps; the last is awaited."""

    @property
    def depth(self) -> int:
        return self.sources[0].groups

    @property
    def tokens(self) -> int:
        return self.target.pixels // self.layer.k

    @property
    def words(self) -> int:
        """Of the list that is gone through, each with ``each`` experts."""
        if self.mode == "per_token":
            return self.tokens
        experts = len(self.layer.weights)
        if self.cache is not None:
            return self.cache.slots
        if self.block:  # at worst each expert's last block has one row
            choices = self.target.pixels
            return (choices + min(experts, choices) * (self.block - 1)) // self.block
        return experts if self.mode == "all" else min(experts, self.target.pixels)

    @property
    def each(self) -> int:
        return self.layer.k if self.mode == "per_token" else 1

    @property
    def places(self) -> int:
        """Words of a list of places."""
        return 0 if self.mode == "per_token" else -(-self.unit_rows // NUMBERS)

    @property
    def unit_rows(self) -> int:
        """Rows that an entry of the list computes."""
        return self.block or self.sources[0].pixels

    @property
    def rows(self) -> int:
        """Of the inputs in a scratchpad."""
        return self.words * self.block or self.sources[0].pixels

    @property
    def table_words(self) -> int:
        return 0 if self.layer.table is None else TABLE_WORDS

    @property
    def unit(self) -> int:
        """Words of weights and parameters of a group of one expert."""
        return self.depth * TILE_WORDS + PARAMETER_WORDS

    def fixed(self, count: int) -> int:
        """Scratchpad words beside the weights of a tile with ``count`` groups."""
        kept = count * (self.target.pixels + 1)
        each = 1 + self.places * (2 if self.block else 1)
        lists = self.tokens + (self.words * each if self.places else 0)
        out = BUFFERS * count * self.unit_rows if self.places else 0
        return lists + self.table_words + self.depth * self.rows + out + kept

    def read_words(self) -> int:
        """At most: of the experts that occur."""
        total = self.depth * self.rows * (1 if self.shared else len(self.work))
        for first, end in self.work.values():
            total += self.tokens + self.table_words
            if self.cache is not None and self.cache.begins:
                total += self.cache.head
            total += self.words * self.each * (end - first) * self.unit
        return total + sum(each.read_words() for each in self.ahead)

    def describe(self) -> str:
        blocks = f" in {self.words} blocks of {self.block}" if self.block else ""
        return (f"experts, {self.layer.k} of {len(self.layer.weights)} for {self.tokens} tokens, "
                f"{self.mode}{blocks}, on {len(self.work)} tiles")

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        TileExpertBatch(emitter, index, self, tile).emit()

    def roofline(self, config: Config) -> Roofline:
        """Compulsory is one expert's weights: all tokens may choose the same; none where a cache
        may hold all that occur from an earlier step."""
        most = max(end - first for first, end in self.work.values())
        least = self.layer.k if self.places and self.mode != "all" else self.words * self.each
        held = self.cache is not None and not self.cache.begins
        loaded = 0 if held else least
        chosen = loaded * self.target.groups * self.unit
        reads = {tensor.name: tensor.words for tensor in self.sources[:1]}
        total = sum(reads.values()) + chosen + self.table_words + self.target.words
        return Roofline(
            name=self.layer.name, compute=least * most * self.depth * TILE_WORDS,
            hbm=total / config.hbm.channels,
            inbound=self.tokens + self.sources[0].words + loaded * most * self.unit, reads=reads,
            constant_words=self.table_words + (0 if held else self.target.groups * self.unit),
            write_words=self.target.words, macs=self.layer.macs,
        )


def plan_expert_batch(
    config: Config, layer: ExpertLayer, tensors: dict[str, Tensor], limit: int, base: int,
    weights: dict[Tile, int], cache: Cache | None = None,
) -> ExpertBatchStep:
    """Output groups dealt to the tiles, as many at a time as fit words 0 .. ``limit`` - 1.

    Raises
    ------
    UserError
        If one group does not fit twice, or there are more tokens or experts than lists can hold.
    """
    sources = tuple(tensors[s.name] for s in layer.sources)
    target = tensors[layer.target.name]
    work = deal(config, target.groups)
    step = ExpertBatchStep(
        layer=layer, sources=sources, target=target, base=base, weights=weights, work=work,
        mode=config.prefetch.experts, cache=cache,
        shared=config.mesh.multicast and len(work) == config.mesh.tiles,
    )
    if sources[0].pixels > MOST_PIXELS or len(layer.weights) > MOST_EXPERTS:
        raise UserError(f"layer {layer.name}: {sources[0].pixels} inputs of {len(layer.weights)} "
                        f"experts: up to {MOST_PIXELS} of up to {MOST_EXPERTS} are supported")
    own = sources[0].pixels != step.tokens
    if layer.k == 3 and own and step.places and step.mode != "sorted":
        raise UserError(f"layer {layer.name}: inputs of their own for 3 experts a token: 1, 2 or 4")
    most = max(end - first for first, end in step.work.values())
    if cache is not None:
        needed = min(len(layer.weights), target.pixels)
        if cache.slots < needed or step.fixed(most) > limit:
            raise UserError(f"layer {layer.name}: {needed} experts may occur at once, beside a "
                            f"cache of {cache.slots}: set prefetch.expert_slots")
        step.chunk = most
        return step
    if step.mode == "sorted":
        step.block = _block(step, limit - BUFFERS * step.unit, most)
    room = (limit - step.fixed(most)) // (BUFFERS * step.each * step.unit)
    step.chunk = min(room, MOST_WORDS // (step.each * step.unit), most)
    if step.chunk < 1:
        raise UserError(f"layer {layer.name}: the weights of 16 outputs of an expert do not fit "
                        f"the scratchpad of {config.scratchpad.free_words} words twice beside "
                        f"inputs and outputs of {step.tokens} tokens: raise scratchpad.kib")
    return step


def _block(step: ExpertBatchStep, room: int, most: int) -> int:
    """Rows of a block: an expert's mean, or fewer if that does not fit; a pass takes 16 at least.
    """
    mean = step.target.pixels / len(step.layer.weights)
    for step.block in range(max(LANES, -(-int(mean) // LANES) * LANES), LANES, -LANES):
        if step.fixed(most) <= room and step.depth * step.rows <= MOST_WORDS - TABLE_WORDS:
            return step.block
    return LANES


class TileExpertBatch:
    """One tile's commands of one step of experts for many tokens."""

    def __init__(self, emitter: "Emitter", index: int, step: ExpertBatchStep, tile: Tile):
        self.emitter, self.index, self.step = emitter, index, step
        self.stream: Stream = emitter.streams[tile]
        self.here, self.weights = single(*tile), step.weights[tile]
        self.first, self.end = step.work[tile]
        self.count = self.end - self.first
        self.pixels, self.row = step.unit_rows, step.target.pixels + 1
        self.numbers = 0
        self.list_known = False
        """To what is behind in the load queue."""
        self.slots = step.tokens
        self.lists = self.slots + (step.words if step.places else 0)
        self.inputs = self.lists + step.words * step.places
        self.table = self.inputs + (step.words * step.places if step.block else 0)
        self.x = self.table + step.table_words
        self.out = self.x + step.depth * step.rows
        self.kept = self.out + (BUFFERS * self.count * self.pixels if step.places else 0)
        self.buffers = self.kept + self.count * self.row
        cache = step.cache
        if cache is not None:
            self.buffers = cache.first_slot
        self.units = [(word, g, min(g + step.chunk, self.count))
                      for word in range(step.words) for g in range(0, self.count, step.chunk)]

    def emit(self) -> None:
        step = self.step
        numbers = step.sources[1]
        stride = max(1, numbers.pixels // step.tokens)
        sem = VECTOR_IN if step.places else LIST
        self.load(self.numbers, numbers.base, 1, sem, count0=step.tokens, s_stride0=1,
                   f_stride0=stride)
        if step.table_words:
            self.load(self.table, step.base, step.table_words, PARAMS)
        if step.block:
            self._sort()
        self._load_inputs()
        if step.places and not step.block:
            self._route()
        for number in range(min(BUFFERS, len(self.units))):
            self._load_unit(number)
        for number, (word, _, end) in enumerate(self.units):
            self._compute(number)
            if end == self.count and step.places:
                self._keep(word)
            if number + BUFFERS < len(self.units):
                self._load_unit(number + BUFFERS)
        total = step.words * self.pixels * self.count
        self.stream.add(
            Opcode.STORE, [(KEPT, total) if step.places else (OUT_READY, 1)],
            self.emitter.barrier_signal(self.index), Queue.STORE, scratchpad=self.kept,
            far=step.target.base + self.first * step.target.plane, run=step.target.pixels,
            count0=self.count, count1=1, count2=1, s_stride0=self.row,
            f_stride0=step.target.plane,
        )

    def load(
        self, to: int, far: int, run: int, sem: int, rect: Rect | None = None,
        waits: Sequence[Wait] = (), **loops: int
    ) -> None:
        fields = {"count0": 1, "count1": 1, "count2": 1} | loops
        self.stream.add(Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(rect or self.here),
                        sem_valid=1, sem=sem, scratchpad=to, far=far, run=run, **fields)

    def _load_inputs(self) -> None:
        """All of them are in every tile: each loads a part for all, where it may. After the barrier
        nothing of the step before is in the way."""
        x, tiles = self.step.sources[0], sorted(self.step.work)
        first, end, rect = 0, x.groups, self.here
        if self.step.shared:
            first, end = part(x.groups, len(tiles), tiles.index(self.here[0:3:2]))
            rect = self.emitter.everyone
        if first == end:
            return
        if self.step.block:
            rows, waits = self.step.rows, [(LIST, 1)]
            self.list_known = True
            self.load(self.x + first * rows, x.base + first * x.plane, 1, PARAMS, rect, waits,
                       count0=end - first, s_stride0=rows, f_stride0=x.plane, count2=rows,
                       s_stride2=1, f_stride2=1, gather=1, gather_base=self.inputs)
        else:
            self.load(self.x + first * x.pixels, x.base + first * x.plane, x.pixels, PARAMS, rect,
                       count0=end - first, s_stride0=x.pixels, f_stride0=x.plane)

    def _sort(self) -> None:
        """Blocks of rows: each one's expert, where each row's result goes, whose input it takes."""
        step = self.step
        self.stream.add(
            Opcode.VECTOR, [(VECTOR_IN, step.tokens)], [(LIST, self.here), (PLACED, self.here)],
            Queue.VECTOR, op=VectorOp.SORT, base=self.numbers, step=1, pixels=step.tokens,
            k=step.layer.k, groups=step.words, height=step.block, out=self.slots,
            b_base=self.lists, table=self.inputs,
            b_mode=int(step.sources[0].pixels != step.tokens))

    def _route(self) -> None:
        """The experts to be gone through, then where in the tokens' lists each is."""
        step = self.step
        cache, held = step.cache, self.slots
        common = {"base": self.numbers, "step": 1, "pixels": step.tokens, "k": step.layer.k}
        words, more = step.tokens, {"op": VectorOp.DISTINCT, "causal": int(step.mode == "all")}
        if cache is not None:
            held = cache.base
            more = {"op": VectorOp.RETAIN, "b_base": held, "table": held + cache.slots}
            if cache.begins:
                self.load(held, cache.empty, cache.head, VECTOR_IN)
                words += cache.head
        self.stream.add(
            Opcode.VECTOR, [(VECTOR_IN, words)], [(LIST, self.here)], Queue.VECTOR,
            groups=step.words, channels=len(step.layer.weights), out=self.slots, **common, **more)
        own = int(self.pixels != step.tokens)
        for word in range(step.words):
            self.stream.add(
                Opcode.VECTOR, (), [(PLACED, self.here)], Queue.VECTOR, op=VectorOp.PLACES,
                b_base=held + word, b_mode=own, out=self.lists + word * step.places, **common)

    def _buffer(self, number: int) -> int:
        if self.step.cache is not None:
            return self.buffers + number * self.step.cache.size
        return self.buffers + number % BUFFERS * self.step.each * self.step.chunk * self.step.unit

    def _load_unit(self, number: int) -> None:
        step, (word, _, _) = self.step, self.units[number]
        waits: list[Wait] = [(IN_FREE + number % BUFFERS, 1)] if number >= BUFFERS else []
        if number == 0 and not self.list_known:
            waits.append((LIST, 1 if step.places else step.tokens))
        if number == 0 and step.ahead:
            waits.append((step.ahead[-1].sem, self.all_words))
        where = (self.slots if step.places else self.numbers) + word
        self.load_expert(number, where, PIECES * (number % BUFFERS), waits)

    @property
    def all_words(self) -> int:
        """Of all units."""
        return self.step.words * self.step.each * self.count * self.step.unit

    def load_expert(self, number: int, where: int, sem: int, waits: list[Wait]) -> None:
        """Parameters, then weights of a unit: of the expert that scratchpad word ``where`` names.
        """
        step, (_, first, end) = self.step, self.units[number]
        count, group = end - first, step.depth * TILE_WORDS
        experts = step.base + step.table_words + PARAMETER_WORDS * (self.first + first)
        to = self._buffer(number)
        for far, size, stride in (
            (experts, PARAMETER_WORDS * count, PARAMETER_WORDS * step.target.groups),
            (self.weights + first * group, count * group, self.count * group),
        ):
            self.stream.add(
                Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(self.here), sem_valid=1,
                sem=sem, scratchpad=to, far=far, run=size, count0=1, count1=1, count2=step.each,
                s_stride2=size, f_stride2=stride, gather=1, gather_base=where,
            )
            to, waits = to + step.each * size, []

    def _compute(self, number: int) -> None:
        step, (word, first, end) = self.step, self.units[number]
        begins, count = first == 0, end - first
        waits: list[Wait] = [(PIECES * (number % BUFFERS), step.each * count * step.unit)]
        if number == 0:
            waits.append((PARAMS, step.table_words + step.depth * step.rows))
        if begins and step.places and word >= BUFFERS:
            waits.append((OUT_FREE, 1))
        for i in range(step.each):
            signals: list[Signal] = []
            if i == step.each - 1:
                if number + BUFFERS < len(self.units):
                    signals.append((IN_FREE + number % BUFFERS, self.here))
                if (step.places and end == self.count) or number == len(self.units) - 1:
                    signals.append((OUT_READY, self.here))
            self.stream.add(Opcode.COMPUTE, waits, signals, Queue.COMPUTE,
                            **self._product(number, i))
            waits = []

    def _product(self, number: int, i: int) -> dict[str, int]:
        """One expert of a unit: on all inputs, or on the token's own."""
        step, layer, (word, first, end) = self.step, self.step.layer, self.units[number]
        x, count, group = step.sources[0], end - first, step.depth * TILE_WORDS
        low = -128 if layer.y_signed else 0
        if step.places:
            at, pixels = word * step.block, self.pixels
            out, stride = self.out + word % BUFFERS * self.count * pixels, pixels
        else:
            at, pixels = word if x.pixels == step.tokens else word * layer.k + i, 1
            out, stride = self.kept + word * layer.k + i, self.row
        params = self._buffer(number)
        weights = params + step.each * PARAMETER_WORDS * count
        return {
            "base": self.x + at, "plane": step.rows, "row": step.rows, "step": 1, "height": 1,
            "width": pixels, "sy": 1, "sx": 1, "dy": 1, "dx": 1, "kh": 1, "kw": 1,
            "in_groups": step.depth, "out_width": pixels, "pixels": pixels, "w_resident": 1,
            "w_base": weights + i * count * group, "w_group_stride": group,
            "w_tile_stride": TILE_WORDS, "w_mode": WeightMode.ROW, "out_groups": count,
            "a_signed": int(x.is_signed), "a_zero": layer.sources[0].zero, "w_signed": 1,
            "w_zero": layer.weight_zero, "first": 1, "last": 1, "out": out + first * stride,
            "out_group": stride, "out_step": 1, "params": params + i * PARAMETER_WORDS * count,
            "out_zero": layer.y_zero, "clip_low": low, "clip_high": low + 255,
            "table_valid": int(layer.table is not None), "table": self.table,
        }

    def _keep(self, word: int) -> None:
        """Results of an expert to the places of those who chose it; the others behind them."""
        step = self.step
        signals: list[Signal] = []
        waits: list[Wait] = [(OUT_READY, 1)]
        if not (step.block and word):  # blocks' lists are all made at once
            waits.append((PLACED, 1))
        if word + BUFFERS < step.words:
            signals.append((OUT_FREE, self.here))
        self.stream.add(
            Opcode.STORE, waits, signals, Queue.STORE,
            scratchpad=self.out + word % BUFFERS * self.count * self.pixels, far=self.kept, run=1,
            count0=self.count, count1=1, count2=self.pixels, s_stride0=self.pixels, s_stride2=1,
            f_stride0=self.row, f_stride2=1, rect=encode_rect(self.here), to_tiles=1, sem_valid=1,
            sem=KEPT, gather=1, gather_base=self.lists + word * step.places,
        )


__all__ = ["Cache", "ExpertBatchStep", "TileExpertBatch", "is_batch", "plan_caches",
           "plan_expert_batch"]
