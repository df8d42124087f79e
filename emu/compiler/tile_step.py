# SPDX-License-Identifier: Apache-2.0
"""One tile's commands of one step: loads ahead of the COMPUTEs that need them, stores behind."""

from typing import TYPE_CHECKING

import numpy as np

from emu.compiler.geometry import RESIDUAL_WORDS, ROW_TAPS
from emu.compiler.mapping import encode_rect, part, single
from emu.compiler.out_moves import deliveries, move_out
from emu.compiler.schedule import Item, Op
from emu.compiler.stream import (
    OUT_READY,
    PARAMS,
    PIPELINE_SLOTS,
    RESIDUAL,
    RESIDUAL_FREE,
    Signal,
    Step,
    Tile,
    Wait,
    arrival,
    slot_of,
)
from emu.config import BLOCK_TILES
from emu.isa import Opcode, Queue, WeightMode

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter, Use

LOOKAHEAD = 3
"""Loads emitted before the op that needs them, beyond those it needs."""


class TileStep:
    """One tile's commands of one step."""

    def __init__(self, emitter: "Emitter", index: int, step: Step, tile: Tile, p: int, c: int):
        self.emitter, self.index, self.step, self.plan = emitter, index, step, step.plan
        self.stream, self.tile, self.p, self.c = emitter.streams[tile], tile, p, c
        self.work = step.work[p, c]
        self.pinned = emitter.pins.bases.get(index)
        shared = self.plan.share_inputs
        self.input_rect = self.plan.split.activation_rect(p) if shared else single(*tile)
        self.input_leader = self.plan.split.tile(p, step.leader_of_inputs(p)) if shared else tile
        self.input_members = len(step.weights) if shared else 1
        ops = self.work.ops
        self.first_op = {op.item: k for k, op in reversed(list(enumerate(ops)))}
        self.last_op = {op.item: k for k, op in enumerate(ops)}
        self.loads = self._load_order()
        self.loaded = self.residuals = 0
        self.waited_params = emitter.pins.parameters
        self.waited: set[tuple[int, int]] = set()
        self.draining = [op for op in ops if op.last]
        flow = step.flow
        self.drains = flow.step * len(self.draining)
        self.total_drains = flow.steps * len(self.draining)
        self.first_item, self.total_items = flow.first_item, flow.steps * len(self.work.items)
        self.entered = -1

    def emit(self) -> None:
        first_use = self._first_use()
        for number, op in enumerate(self.work.ops):
            self._emit(number, op, first_use.get((op.generation, op.segment.descriptor), -1))

    def load_first(self) -> None:
        """What the first op needs, ahead of all else that the tile loads."""
        self._load_some(0, self.work.ops[0], 0)

    def emit_item(self, item: int) -> None:
        """The ops of one item; the weights are pinned."""
        for number, op in enumerate(self.work.ops):
            if op.item == item:
                self._emit(number, op, -1)

    def _emit(self, number: int, op: Op, use: int) -> None:
        start: list[Wait] = []
        if number == 0:
            self._load_some(number, op, 0)
            if self.index == 0:
                self.emitter.begin(self.tile)
        if self.pinned is None:
            self.emitter.ensure_use(self.tile, use)
        if number == 0:
            if not self.waited_params:
                self._load_params()
            start = self.emitter.take_start(self.tile, self.index)
        self._load_some(number, op, LOOKAHEAD)
        if self.step.residual and op.last:
            self._load_residuals(self.drains + (1 if number == 0 else self.plan.out_slots))
        if self.pinned is None:
            self._compute(number, op, self.emitter.uses[self.tile][use], start)
        else:
            start += self.emitter.await_pinned(self.tile, self.index, op)
            self._compute(number, op, None, start)
        if op.last:
            self._store(op)

    def _first_use(self) -> dict[tuple[int, int], int]:
        return {
            (use.generation, use.descriptor): k
            for k, use in enumerate(self.emitter.uses[self.tile])
            if use.step == self.index
        }

    # Loads

    def _load_order(self) -> list[tuple[int, int, int]]:
        """(first op before which it may be emitted, item, piece)."""
        order: list[tuple[int, int, int]] = []
        if self.step.source_edge:
            return order
        for item in self.work.items:
            gate = 0
            if item.number:
                before = self.first_op if self.plan.slots == 2 else self.last_op
                gate = before[item.number - 1] + 1
            order += [
                (gate, item.number, k) for k in range(len(item.pieces)) if self._leads(k)
            ]
        return order

    def _leads(self, piece: int) -> bool:
        """Whether this tile loads ``piece``: one tile loads all if slots are refilled, because
        releases go to it; if not, every piece has its own, so that they are requested at once."""
        if self.plan.share_inputs and len(self.work.items) <= self.plan.slots:
            active = self.step.active_channels()
            return self.c == active[self.p % len(active)]
        return self.tile == self.input_leader

    def _load_some(self, number: int, op: Op, ahead: int) -> None:
        """Emit loads up to those that ``op`` needs and ``ahead`` more, as far as gates allow."""
        needed = max(
            (k for k, (_, item, piece) in enumerate(self.loads)
             if item < op.item or (item == op.item and piece in op.needs)), default=-1,
        )
        while self.loaded < len(self.loads) and self.loaded <= needed + ahead:
            gate, item, piece = self.loads[self.loaded]
            if gate > number:
                break
            self._load(self.work.items[item], piece)
            self.loaded += 1

    def _load(self, item: Item, index: int) -> None:
        plan, piece = self.plan, item.pieces[index]
        slot = slot_of(self.step, item.number)
        waits: list[Wait] = []
        if self.first_item + item.number >= plan.slots and index == 0:
            waits = [(self.step.flow.in_free + slot, self.input_members)]
        low, high = piece.inputs
        for stretch in piece.stretches:
            move = self._move(*stretch, high - low)
            move["scratchpad"] += (
                plan.inputs + slot * plan.slot_words + (low - item.inputs[0]) * plan.plane
            )
            assert self.step.source is not None
            move["far"] += self.step.source.base + low * self.step.source.plane
            self.stream.add(
                Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(self.input_rect),
                sem_valid=1, sem=arrival(self.step, item, index), **move,
            )
            waits = []

    def _move(self, region, offset: int, first: int, end: int, groups: int) -> dict[str, int]:
        assert self.step.source is not None
        shape, far_plane = self.plan.shape, self.step.source.plane
        far = region.image * shape.image_words + region.y0 * shape.row_words + region.x0
        if region.rows == 1:
            run, rows = end - first, 1
            move = {"scratchpad": offset + first, "far": far + first}
        else:
            run, rows = region.cols, end - first
            move = {
                "scratchpad": offset + first * region.cols, "far": far + first * shape.row_words
            }
            if region.cols == shape.row_words:
                run, rows = run * rows, 1
        plane = self.plan.plane
        if rows == 1 and run == plane == far_plane:
            run, groups = run * groups, 1
        move |= {
            "run": run, "count0": rows, "count1": groups, "count2": 1,
            "s_stride0": region.cols if rows > 1 else 0,
            "f_stride0": shape.row_words if rows > 1 else 0,
            "s_stride1": plane if groups > 1 else 0,
            "f_stride1": far_plane if groups > 1 else 0,
        }
        return move

    def _load_params(self) -> None:
        """Biases and scales, multicast by the leader of the weight-sharing rectangle."""
        plan, step = self.plan, self.step
        rect = single(*self.tile)
        if self.emitter.config.mesh.multicast and plan.split.pixel_parts > 1:
            if step.leader_of_weights(self.c) != self.p:
                return
            rect = plan.split.weight_rect(self.c)
        self.stream.add(
            Opcode.LOAD, scratchpad=plan.params, far=step.params[self.c], run=self._param_words(),
            count0=1, count1=1, count2=1, rect=encode_rect(rect), sem_valid=1, sem=PARAMS,
        )

    def _tables(self) -> int:
        """First word of the tables, behind the parameters of the tile's output groups."""
        first, last = self.plan.channel_range(self.c)
        return self.plan.params + 8 * (last - first)

    def _param_words(self) -> int:
        return self._tables() - self.plan.params + self.plan.shape.table_words

    def _load_residuals(self, end: int) -> None:
        """Load what is added to the drains before number ``end`` into their output slots."""
        plan, tensor = self.plan, self.step.residual
        assert tensor is not None
        while self.residuals < min(end, self.total_drains):
            number, op = self.residuals, self.draining[self.residuals]
            waits = [(RESIDUAL_FREE, 1)] if number >= plan.out_slots else []
            self.stream.add(
                Opcode.LOAD, waits, (), Queue.LOAD, rect=encode_rect(single(*self.tile)),
                sem_valid=1, sem=RESIDUAL + number % plan.out_slots,
                scratchpad=self._out_slot(number), **move_out(tensor, op),
            )
            self.residuals += 1

    # Compute and store

    def _waits(self, op: Op, start: list[Wait]) -> list[Wait]:
        waits = list(start)
        item = self.work.items[op.item]
        for k in op.needs:
            if (op.item, k) not in self.waited:
                self.waited.add((op.item, k))
                waits.append((arrival(self.step, item, k), item.pieces[k].words))
        if op.last:
            if not self.waited_params:
                self.waited_params = True
                waits.append((PARAMS, self._param_words()))
            edge = self.step.residual_edge
            if edge and self.drains == 0:
                waits.append((edge.sem, sum(each.drained_words for each in self.draining)))
            if self.step.residual:
                waits.append((RESIDUAL + self.drains % self.plan.out_slots, op.drained_words))
            elif self.drains >= self.plan.out_slots:
                waits.append((self.step.flow.out_free, 1))
        return waits

    def _compute(self, number: int, op: Op, use: "Use | None", start: list[Wait]) -> None:
        signals: list[Signal] = []
        if op.last:
            signals.append((OUT_READY, single(*self.tile)))
        refilled = self.first_item + op.item + self.plan.slots < self.total_items
        if refilled and self.last_op[op.item] == number:
            flow = self.step.flow
            signals.append((flow.in_free + slot_of(self.step, op.item),
                            flow.releases or single(*self.input_leader)))
        self.stream.add(
            Opcode.COMPUTE, self._waits(op, start), signals, queue=Queue.COMPUTE,
            **self._window(op), **self._weight_fields(op, use), **self._drain_fields(op),
        )

    def _window(self, op: Op) -> dict[str, int]:
        plan, shape, region = self.plan, self.plan.shape, op.region
        item = self.work.items[op.item]
        inside = op.pixels[0] - region.image * shape.out_height * shape.out_width
        count = op.pixels[1] - op.pixels[0]
        row, column = divmod(inside, shape.out_width)
        y0 = shape.origin[0] + row * shape.stride[0] - region.y0
        x0, out_width, first_x = shape.origin[1] - region.x0, shape.out_width, column
        if column + count <= shape.out_width:
            x0, out_width, first_x = x0 + column * shape.stride[1], count, 0
        low, high = op.segment.inputs
        groups, needs = op.segment.groups, shape.needs
        step = needs[groups[0] + 1][0] - needs[groups[0]][0] if groups[1] - groups[0] > 1 else 0
        slot = plan.inputs + slot_of(self.step, op.item) * plan.slot_words
        return {
            "base": slot + (low - item.inputs[0]) * plan.plane + op.offset,
            "plane": plan.plane, "row": region.cols, "step": 1,
            "height": region.rows, "width": region.cols, "y0": y0, "x0": x0,
            "sy": shape.stride[0], "sx": shape.stride[1],
            "dy": shape.dilation[0], "dx": ROW_TAPS if shape.tapped else shape.dilation[1],
            "kh": shape.kernel[0], "kw": shape.columns, "in_groups": high - low,
            "out_width": out_width, "first_x": first_x, "pixels": count,
            "out_groups": groups[1] - groups[0], "advance": step * plan.plane,
        }

    def _place_of_weights(self, op: Op, use: "Use | None") -> dict[str, int]:
        """In blocks of descriptor ``use``, or pinned."""
        if use is not None:
            return {"w_layer": use.number, "w_tile": op.segment.first_tile, "w_keep": int(op.keep)}
        assert self.pinned is not None
        shape, segment = self.plan.shape, op.segment
        block, _ = self.step.weights[self.c].descriptors[segment.descriptor]
        first = block * BLOCK_TILES + segment.first_tile
        groups = segment.groups[1] - segment.groups[0]
        return {
            "w_resident": 1, "w_base": self.pinned + first * shape.tile_words,
            "w_tile_stride": shape.tile_words,
            "w_group_stride": segment.tiles // groups * shape.tile_words,
        }

    def _weight_fields(self, op: Op, use: "Use | None") -> dict[str, int]:
        layer = self.step.layer
        shape = self.plan.shape
        mode = WeightMode.INT4 if shape.packed else WeightMode.ROW
        if shape.diagonal:
            mode = WeightMode.ROW_TAP if shape.tapped else WeightMode.DIAGONAL
        return {
            **self._place_of_weights(op, use), "w_mode": int(mode),
            "a_signed": int(layer.x_signed), "a_zero": int(layer.x_zero),
            "w_signed": int(layer.weight_signed), "w_zero": int(layer.weight_zero),
            "first": int(op.first), "last": int(op.last),
        }

    def _out_slot(self, number: int) -> int:
        return self.plan.outputs + number % self.plan.out_slots * self.plan.out_slot_words

    def _drain_fields(self, op: Op) -> dict[str, int]:
        layer, first = self.step.layer, self.plan.channel_range(self.c)[0]
        fields = {
            "out": self._out_slot(self.drains), "out_group": op.pixels[1] - op.pixels[0],
            "out_step": 1,
            "params": self.plan.params + 8 * (op.segment.groups[0] - first),
            "out_zero": int(layer.y_zero), "clip_low": int(layer.clip_low),
            "clip_high": int(layer.clip_high),
        }
        tables, residual = self._tables(), layer.residual
        if residual:
            first_addend = residual.source if residual.source_first else None
            is_signed = first_addend.is_signed if first_addend else bool(layer.y_signed)
            place = fields["out"], fields["out_group"]
            edge = self.step.residual_edge
            if edge:
                start = part(self.plan.shape.pixels, self.plan.split.pixel_parts, self.p)[0]
                row = op.segment.groups[0] - first
                place = edge.base + row * edge.plane + op.pixels[0] - start, edge.plane
            fields |= {
                "residual_valid": 1, "residual": place[0],
                "residual_group": place[1], "residual_table": tables,
                "residual_scale": int(np.float32(residual.scale).view(np.uint32)),
                "residual_low": residual.clip_low, "residual_high": residual.clip_high,
                "residual_signed": int(is_signed),
                "residual_indexes": int(not residual.source_first),
            }
            tables += RESIDUAL_WORDS
        if layer.table is not None:
            fields |= {"table_valid": 1, "table": tables}
        return fields

    def _store(self, op: Op) -> None:
        signals: list[Signal] = []
        if self.drains + self.plan.out_slots < self.total_drains:
            freed = RESIDUAL_FREE if self.step.residual else self.step.flow.out_free
            signals.append((freed, single(*self.tile)))
        if self.drains == self.total_drains - 1:
            signals += self.emitter.barrier_signal(self.index)
        slot = self._out_slot(self.drains)
        moves = [move for edge, landings in self.step.landings
                 for move in deliveries(op, slot, edge, landings)]
        if self.step.target:
            moves.append({"scratchpad": slot, **move_out(self.step.target, op)})
        waits = [(OUT_READY, 1), *self._room(op)]
        if not moves:  # pixels that no reader needs, by its stride
            self.stream.add(Opcode.SYNC, waits, signals, queue=Queue.STORE)
        for number, move in enumerate(moves):
            self.stream.add(
                Opcode.STORE, waits if number == 0 else [],
                signals if number == len(moves) - 1 else [], queue=Queue.STORE, **move,
            )
        self.drains += 1

    def _room(self, op: Op) -> list[Wait]:
        """The wait of an item's first store into a pipeline's next stage: its slot is free."""
        flow, number = self.step.flow, self.first_item + op.item
        if flow.room is None or number < PIPELINE_SLOTS or number == self.entered:
            return []
        self.entered = number
        return [(flow.room + number % PIPELINE_SLOTS, flow.readers)]
