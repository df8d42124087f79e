# SPDX-License-Identifier: Apache-2.0
"""Command streams of all tiles for a list of planned steps.

Semaphores (per tile): 8*slot + piece counts arriving input words; the rest are named below. Streams
are in an order in which every command depends only on earlier ones of its own tile and on other
tiles' commands that come earlier in (step, item, op) order, so the program cannot stop; the
interpreter's token game checks that again.
"""

from dataclasses import dataclass, field

from emu.compiler.images import Tensor
from emu.compiler.mapping import Rect, encode_rect, rect_tiles, single
from emu.compiler.schedule import Item, Op, Piece, Work
from emu.compiler.tiling import PIECES, Plan, Weights
from emu.config import BLOCK_TILES, BLOCKS, LAYERS, Config
from emu.errors import UserError
from emu.isa import SIGNALS, WAITS, Opcode, Queue, WeightMode, encode

IN_FREE = 2 * PIECES          # + slot, in the tile that loads the slot
PARAMS, OUT_READY, OUT_FREE, BARRIER, START = 18, 19, 20, 21, 23
DESCRIPTOR_GROUP = 20
"""Descriptors written at once. Three groups fit `LAYERS`: one in use, one before, one after."""
LOOKAHEAD = 3
"""Loads emitted before the op that needs them, beyond those it needs."""
ALWAYS = 255
"""Frequency of a descriptor that follows with certainty inside one layer."""

Tile = tuple[int, int]
Wait = tuple[int, int]
Signal = tuple[int, Rect]


@dataclass
class Step:
    """A planned layer (or range of its output groups) with its addresses in HBM."""

    layer: object
    plan: Plan
    source: Tensor
    target: Tensor
    weights: dict[int, Weights]
    work: dict[tuple[int, int], Work]
    weight_base: dict[int, int]
    block_stride: int
    params: dict[int, int]

    def leader_of_weights(self, c: int) -> int:
        return c % self.plan.split.pixel_parts

    def active_channels(self) -> list[int]:
        return sorted(self.weights)

    def leader_of_inputs(self, p: int) -> int:
        active = self.active_channels()
        return active[p % len(active)]


@dataclass(frozen=True)
class Use:
    """One fetch of a descriptor's blocks by a tile, in the tile's order."""

    step: int
    generation: int
    descriptor: int
    number: int               # LAYER index
    first_block: int


@dataclass
class Stream:
    """Commands of one tile."""

    commands: list[bytes] = field(default_factory=list)

    def add(self, opcode: Opcode, waits=(), signals=(), queue: Queue | None = None, **fields) -> None:
        """One command; waits beyond what it holds go into SYNCs before it."""
        waits = list(waits)
        while len(waits) > WAITS:
            taken, waits = waits[:WAITS], waits[WAITS:]
            self.add(Opcode.SYNC, taken, queue=queue)
        if len(signals) > SIGNALS:
            raise ValueError(f"a command sends at most {SIGNALS} signals, not {len(signals)}")
        for i, (sem, count) in enumerate(waits):
            if count >= 1 << 16:
                raise UserError(f"a wait for {count} words exceeds a semaphore's 16 bits")
            fields |= {f"wait{i}_sem": sem, f"wait{i}_count": count}
        for i, (sem, rect) in enumerate(signals):
            fields |= {f"signal{i}_valid": 1, f"signal{i}_sem": sem, f"signal{i}_rect": encode_rect(rect)}
        if opcode == Opcode.SYNC:
            fields["queue"] = int(queue)
        self.commands.append(encode(opcode, **fields))


class Emitter:
    """Emits every tile's stream of a program."""

    def __init__(self, config: Config, steps: list[Step]):
        self.config, self.steps = config, steps
        self.streams: dict[Tile, Stream] = {
            (x, y): Stream() for y in range(config.mesh.rows) for x in range(config.mesh.cols)
        }
        self.everyone: Rect = (0, config.mesh.cols - 1, 0, config.mesh.rows - 1, 0, 0)
        self.roles = [self._roles(step) for step in steps]
        self.members = [self._members(step) for step in steps]
        self.busy = {tile for roles in self.roles for tile in roles}
        self.busy |= {tile for members in self.members for tile in members}
        if len(steps) > 1:  # barriers signal every tile, so every tile awaits them
            self.busy = set(self.streams)
        self.uses = self._number_uses()
        self.followed = self._find_followers()
        self.started: set[Tile] = set()
        self.emitted_uses = dict.fromkeys(self.streams, 0)

    @staticmethod
    def _roles(step: Step) -> dict[Tile, tuple[int, int]]:
        """Tiles that compute, and their parts."""
        return {step.plan.split.tile(p, c): (p, c) for p, c in step.work}

    @staticmethod
    def _members(step: Step) -> dict[Tile, int]:
        """Tiles that only receive the multicast of pixel part p."""
        plan = step.plan
        if not plan.share_inputs:
            return {}
        idle = set(range(plan.split.channel_parts)) - set(step.active_channels())
        return {plan.split.tile(p, c): p for p in range(plan.split.pixel_parts) for c in idle}

    # Descriptors

    def _number_uses(self) -> dict[Tile, list[Use]]:
        """Descriptors and local block numbers: both run on and wrap; blocks are numbered alike in
        all tiles of a step, because those that share frames must agree."""
        uses: dict[Tile, list[Use]] = {tile: [] for tile in self.streams}
        seen = {tile: [-(1 << 30)] * BLOCKS for tile in self.streams}
        fetched = dict.fromkeys(self.streams, 0)
        start = 0
        for index, step in enumerate(self.steps):
            furthest = start
            for tile, (p, c) in self.roles[index].items():
                block = start
                for generation in range(step.work[p, c].generations):
                    for d, (_, tiles) in enumerate(step.weights[c].descriptors):
                        blocks = -(-tiles // BLOCK_TILES)
                        block = self._wrap(step, block, blocks)
                        first = block % BLOCKS
                        number = len(uses[tile]) % LAYERS
                        uses[tile].append(Use(index, generation, d, number, first))
                        self._check_reuse(step, seen[tile], fetched[tile], first, blocks)
                        fetched[tile] += blocks
                        block += blocks
                furthest = max(furthest, block)
            start = furthest
        return uses

    @staticmethod
    def _wrap(step: Step, block: int, blocks: int) -> int:
        """First of ``blocks`` consecutive numbers from running number ``block`` on."""
        if blocks > BLOCKS - 1:
            raise UserError(
                f"layer {step.plan.shape.name}: {blocks} parameter blocks in one tile, "
                f"{blocks - BLOCKS + 1} more than its block numbers"
            )
        inside = block % BLOCKS
        return block if inside + blocks <= BLOCKS else block - inside + BLOCKS

    @staticmethod
    def _check_reuse(step: Step, seen: list[int], fetched: int, first: int, blocks: int) -> None:
        """A block number may return only when its old frame has surely been refilled."""
        for b in range(first, first + blocks):
            if fetched - seen[b] <= step.plan.frames:
                raise UserError(
                    f"layer {step.plan.shape.name}: the program needs more than {BLOCKS} "
                    "parameter block numbers in a row; run fewer layers at once"
                )
            seen[b] = fetched + b - first

    def ensure_use(self, tile: Tile, wanted: int) -> None:
        """Write the group of descriptors that holds use ``wanted``: last first, so that a child is
        always valid before its parent can be followed."""
        uses, done = self.uses[tile], self.emitted_uses[tile]
        if wanted < done:
            return
        group = uses[done : done + DESCRIPTOR_GROUP]
        self.emitted_uses[tile] = done + len(group)
        for k in range(len(group) - 1, -1, -1):
            child = group[k + 1] if k + 1 < len(group) else None
            self._descriptor(tile, group[k], child, starts=done == 0 and k == 0)

    def share_rect(self, tile: Tile, index: int) -> tuple[Rect, int, Tile]:
        """(rectangle, members, leader) of the tile's frames in ``step``."""
        step, (_, c) = self.steps[index], self.roles[index][tile]
        if not step.plan.share_weights:
            return single(*tile), 1, tile
        rect = step.plan.split.weight_rect(c)
        return rect, len(rect_tiles(rect)), step.plan.split.tile(step.leader_of_weights(c), c)

    def _descriptor(self, tile: Tile, use: Use, child: Use | None, starts: bool) -> None:
        step = self.steps[use.step]
        _, c = self.roles[use.step][tile]
        block, tiles = step.weights[c].descriptors[use.descriptor]
        rect, members, leader = self.share_rect(tile, use.step)
        linked = child is not None
        if linked and child.step != use.step:
            linked = self.share_rect(tile, child.step) == (rect, members, leader)
        self.streams[tile].add(
            Opcode.LAYER, layer=use.number, first_block=use.first_block,
            blocks=-(-tiles // BLOCK_TILES), last_tiles=(tiles - 1) % BLOCK_TILES,
            tile_words=step.plan.shape.tile_words,
            hbm=step.weight_base[c] + block * step.block_stride, stride=step.block_stride,
            child_valid=int(linked), child=child.number if linked else 0,
            frequency=ALWAYS if linked and child.step == use.step else int(linked),
            rect=encode_rect(rect), members=members, leader_x=leader[0], leader_y=leader[1],
            start=int(starts and (members == 1 or tile in self.started)),
        )

    # Streams

    def emit(self) -> dict[Tile, list[bytes]]:
        """Commands of every tile; idle tiles only END."""
        for tile in self.busy - set(self.roles[0]):
            self.begin(tile)
        for index, step in enumerate(self.steps):
            if index:
                self._barrier(index)
            for tile in sorted(self.busy):
                if tile in self.roles[index]:
                    p, c = self.roles[index][tile]
                    TileStep(self, index, step, tile, p, c).emit()
                elif tile in self.members[index]:
                    self._receive_only(index, step, tile, self.members[index][tile])
        for stream in self.streams.values():
            stream.add(Opcode.END)
        return {tile: stream.commands for tile, stream in self.streams.items()}

    def _find_followers(self) -> dict[Tile, set[Tile]]:
        """Leader of shared frames -> its followers, over all steps."""
        followed: dict[Tile, set[Tile]] = {}
        for index, step in enumerate(self.steps):
            for tile in self.roles[index] if step.plan.share_weights else ():
                leader = self.share_rect(tile, index)[2]
                if leader != tile:
                    followed.setdefault(leader, set()).add(tile)
        return followed

    def begin(self, tile: Tile) -> None:
        """Place the frames, and tell the leaders of shared ones.

        Frame words that arrive before their receiver's FRAMES would be forgotten. So a leader
        fetches only when its followers have signalled: one that follows nobody waits before its own
        FRAMES (which is not dispatched before the compute queue is idle), any other before its
        first shared COMPUTE.
        """
        stream, plan = self.streams[tile], self.steps[0].plan
        leaders = sorted(leader for leader, tiles in self.followed.items() if tile in tiles)
        if tile in self.followed and not leaders:
            wait = [(START, len(self.followed[tile]))]
            stream.add(Opcode.SYNC, wait, queue=Queue.COMPUTE)
            self.started.add(tile)
        stream.add(Opcode.FRAMES, base=plan.frames_base, count=plan.frames)
        signals = [(START, single(*leader)) for leader in leaders]
        for k in range(0, len(signals), SIGNALS):
            stream.add(Opcode.SYNC, signals=signals[k : k + SIGNALS], queue=Queue.LOAD)

    def take_start(self, tile: Tile, index: int) -> list[Wait]:
        """The wait of a leader before its first COMPUTE with shared frames."""
        shared = self.steps[index].plan.share_weights
        if not shared or self.share_rect(tile, index)[2] != tile or tile in self.started:
            return []
        self.started.add(tile)
        count = len(self.followed.get(tile, ()))
        return [(START, count)] if count else []

    def is_last(self, index: int) -> bool:
        return index == len(self.steps) - 1

    def barrier_signal(self, index: int) -> list[Signal]:
        return [] if self.is_last(index) else [(BARRIER + index % 2, self.everyone)]

    def _barrier(self, index: int) -> None:
        count = len(self.roles[index - 1]) + len(self.members[index - 1])
        for tile in sorted(self.busy):
            wait = (BARRIER + (index - 1) % 2, count)
            self.streams[tile].add(Opcode.SYNC, [wait], queue=Queue.LOAD)

    def _receive_only(self, index: int, step: Step, tile: Tile, p: int) -> None:
        """Consume the arrivals of a multicast whose rectangle holds this idle tile."""
        work = step.work[p, step.leader_of_inputs(p)]
        waits = [
            (arrival(step.plan, item, k), piece.words)
            for item in work.items for k, piece in enumerate(item.pieces)
        ]
        stream = self.streams[tile]
        for k in range(0, len(waits), WAITS):
            stream.add(Opcode.SYNC, waits[k : k + WAITS], queue=Queue.COMPUTE)
        if not self.is_last(index):
            stream.add(Opcode.SYNC, (), self.barrier_signal(index), queue=Queue.COMPUTE)


def arrival(plan: Plan, item: Item, piece: int) -> int:
    """Semaphore that counts the words of an item's piece."""
    return PIECES * (item.number % plan.slots) + piece


class TileStep:
    """One tile's commands of one step."""

    def __init__(self, emitter: Emitter, index: int, step: Step, tile: Tile, p: int, c: int):
        self.emitter, self.index, self.step, self.plan = emitter, index, step, step.plan
        self.stream, self.tile, self.p, self.c = emitter.streams[tile], tile, p, c
        self.work = step.work[p, c]
        shared = self.plan.share_inputs
        self.input_rect = self.plan.split.activation_rect(p) if shared else single(*tile)
        leader = self.plan.split.tile(p, step.leader_of_inputs(p)) if shared else tile
        self.input_leader, self.leads_inputs = leader, leader == tile
        self.input_members = len(step.weights) if shared else 1
        ops = self.work.ops
        self.first_op = {op.item: k for k, op in reversed(list(enumerate(ops)))}
        self.last_op = {op.item: k for k, op in enumerate(ops)}
        self.loads = self._load_order() if self.leads_inputs else []
        self.loaded = self.waited_params = 0
        self.waited: set[tuple[int, int]] = set()
        self.drains = 0
        self.total_drains = sum(op.last for op in ops)

    def emit(self) -> None:
        first_use = self._first_use()
        start: list[Wait] = []
        for number, op in enumerate(self.work.ops):
            use = first_use[op.generation, op.segment.descriptor]
            if number == 0:
                self._load_some(number, op, 0)
                if self.index == 0:
                    self.emitter.begin(self.tile)
            self.emitter.ensure_use(self.tile, use)
            if number == 0:
                self._load_params()
                start = self.emitter.take_start(self.tile, self.index)
            self._load_some(number, op, LOOKAHEAD)
            self._compute(number, op, self.emitter.uses[self.tile][use], start)
            start = []
            if op.last:
                self._store(op)
        self._load_some(len(self.work.ops), None, 0)

    def _first_use(self) -> dict[tuple[int, int], int]:
        return {
            (use.generation, use.descriptor): k
            for k, use in enumerate(self.emitter.uses[self.tile])
            if use.step == self.index
        }

    # Loads

    def _load_order(self) -> list[tuple[int, int, int]]:
        """(first op before which it may be emitted, item, piece)."""
        order = []
        for item in self.work.items:
            gate = 0
            if item.number:
                before = self.first_op if self.plan.slots == 2 else self.last_op
                gate = before[item.number - 1] + 1
            order += [(gate, item.number, k) for k in range(len(item.pieces))]
        return order

    def _load_some(self, number: int, op: Op | None, ahead: int) -> None:
        """Emit loads up to those that ``op`` needs and ``ahead`` more, as far as gates allow."""
        if op is None:
            return
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
        slot = item.number % plan.slots
        waits = []
        if item.number >= plan.slots and index == 0:
            waits = [(IN_FREE + slot, self.input_members)]
        low, high = piece.inputs
        for stretch in piece.stretches:
            move = self._move(*stretch, high - low)
            move["scratchpad"] += (
                plan.inputs + slot * plan.slot_words + (low - item.inputs[0]) * plan.plane
            )
            move["far"] += self.step.source.base + low * plan.shape.in_plane
            self.stream.add(
                Opcode.LOAD, waits, queue=Queue.LOAD, rect=encode_rect(self.input_rect),
                sem_valid=1, sem=arrival(plan, item, index), **move,
            )
            waits = []

    def _move(self, region, offset: int, first: int, end: int, groups: int) -> dict[str, int]:
        shape = self.plan.shape
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
        if rows == 1 and run == plane == shape.in_plane:
            run, groups = run * groups, 1
        move |= {
            "run": run, "count0": rows, "count1": groups, "count2": 1,
            "s_stride0": region.cols if rows > 1 else 0,
            "f_stride0": shape.row_words if rows > 1 else 0,
            "s_stride1": plane if groups > 1 else 0,
            "f_stride1": shape.in_plane if groups > 1 else 0,
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

    def _param_words(self) -> int:
        first, last = self.plan.channel_range(self.c)
        return 8 * (last - first)

    # Compute and store

    def _waits(self, op: Op, start: list[Wait]) -> list[Wait]:
        waits = list(start)
        item = self.work.items[op.item]
        for k in op.needs:
            if (op.item, k) not in self.waited:
                self.waited.add((op.item, k))
                waits.append((arrival(self.plan, item, k), item.pieces[k].words))
        if op.last:
            if not self.waited_params:
                self.waited_params = 1
                waits.append((PARAMS, self._param_words()))
            if self.drains >= self.plan.out_slots:
                waits.append((OUT_FREE, 1))
        return waits

    def _compute(self, number: int, op: Op, use, start: list[Wait]) -> None:
        signals: list[Signal] = []
        if op.last:
            signals.append((OUT_READY, single(*self.tile)))
        refilled = op.item + self.plan.slots < len(self.work.items)
        if refilled and self.last_op[op.item] == number:
            slot = op.item % self.plan.slots
            signals.append((IN_FREE + slot, single(*self.input_leader)))
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
        slot = plan.inputs + op.item % plan.slots * plan.slot_words
        return {
            "base": slot + (low - item.inputs[0]) * plan.plane + op.offset,
            "plane": plan.plane, "row": region.cols, "step": 1,
            "height": region.rows, "width": region.cols, "y0": y0, "x0": x0,
            "sy": shape.stride[0], "sx": shape.stride[1],
            "dy": shape.dilation[0], "dx": shape.dilation[1],
            "kh": shape.kernel[0], "kw": shape.kernel[1], "in_groups": high - low,
            "out_width": out_width, "first_x": first_x, "pixels": count,
            "out_groups": groups[1] - groups[0], "advance": step * plan.plane,
        }

    def _weight_fields(self, op: Op, use) -> dict[str, int]:
        layer = self.step.layer
        diagonal = self.plan.shape.diagonal
        return {
            "w_layer": use.number, "w_tile": op.segment.first_tile, "w_keep": int(op.keep),
            "w_mode": int(WeightMode.DIAGONAL if diagonal else WeightMode.ROW),
            "a_signed": int(layer.x_signed), "a_zero": int(layer.x_zero),
            "w_signed": int(layer.weight_signed), "w_zero": int(layer.weight_zero),
            "first": int(op.first), "last": int(op.last),
        }

    def _out_slot(self) -> int:
        return self.plan.outputs + self.drains % self.plan.out_slots * self.plan.out_slot_words

    def _drain_fields(self, op: Op) -> dict[str, int]:
        layer, first = self.step.layer, self.plan.channel_range(self.c)[0]
        return {
            "out": self._out_slot(), "out_group": op.pixels[1] - op.pixels[0], "out_step": 1,
            "params": self.plan.params + 8 * (op.segment.groups[0] - first),
            "out_zero": int(layer.y_zero), "clip_low": int(layer.clip_low),
            "clip_high": int(layer.clip_high),
        }

    def _store(self, op: Op) -> None:
        target, (first, last) = self.step.target, op.segment.groups
        run, groups = op.pixels[1] - op.pixels[0], last - first
        move = {"s_stride0": run, "f_stride0": target.plane} if groups > 1 else {}
        far = target.base + first * target.plane + op.pixels[0]
        if run == target.plane:
            run, groups, move = run * groups, 1, {}
        signals: list[Signal] = []
        if self.drains + self.plan.out_slots < self.total_drains:
            signals.append((OUT_FREE, single(*self.tile)))
        if self.drains == self.total_drains - 1:
            signals += self.emitter.barrier_signal(self.index)
        self.stream.add(
            Opcode.STORE, [(OUT_READY, 1)], signals, queue=Queue.STORE,
            scratchpad=self._out_slot(), far=far, run=run, count0=groups, count1=1, count2=1, **move,
        )
        self.drains += 1


__all__ = ["Emitter", "Piece", "Step"]
