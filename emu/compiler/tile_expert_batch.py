# SPDX-License-Identifier: Apache-2.0
"""One tile's commands of a step of experts for many tokens (`emu.compiler.expert_batch`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emu.compiler.expert_step import LIST, PARAMETER_WORDS
from emu.compiler.mapping import Rect, encode_rect, part, single
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
from emu.config import TILE_WORDS
from emu.isa import Opcode, Queue, VectorOp, WeightMode

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter
    from emu.compiler.expert_batch import ExpertBatchStep

BUFFERS = 2


class TileExpertBatch:
    """One tile's commands of one step of experts for many tokens."""

    def __init__(self, emitter: "Emitter", index: int, step: "ExpertBatchStep", tile: Tile):
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


__all__ = ["BUFFERS", "TileExpertBatch"]
