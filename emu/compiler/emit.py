# SPDX-License-Identifier: Apache-2.0
"""Command streams of all tiles for a list of planned steps.

Streams are in an order in which every command depends only on earlier ones of its own tile and on
other tiles' commands that come earlier in (step, item, op) order, so the program cannot stop; the
interpreter's token game checks that again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emu.compiler.expert_ahead import Part
from emu.compiler.mapping import Rect, encode_rect, rect_tiles, single
from emu.compiler.pinning import Pins
from emu.compiler.schedule import Op
from emu.compiler.stream import (
    BARRIER,
    EDGE_BARRIER,
    PINNED,
    START,
    Signal,
    Step,
    Stream,
    Tile,
    Wait,
    arrival,
)
from emu.compiler.tile_step import TileStep
from emu.compiler.vector_step import UnitStep
from emu.config import BLOCK_TILES, BLOCKS, LAYERS, Config
from emu.errors import UserError
from emu.isa import SIGNALS, WAITS, Opcode, Queue

DESCRIPTOR_GROUP = 20
"""Descriptors written at once. Three groups fit `LAYERS`: one in use, one before, one after."""
ALWAYS = 255
"""Frequency of a descriptor that continues a layer."""


@dataclass(frozen=True)
class Use:
    """One fetch of a descriptor's blocks by a tile, in the tile's order."""

    step: int
    generation: int
    descriptor: int
    number: int               # LAYER index
    first_block: int


class Emitter:
    """Emits every tile's stream of a program."""

    def __init__(
        self, config: Config, steps: Sequence[Step | UnitStep], pins: Pins | None = None,
        ahead: Mapping[int, Sequence[Part]] | None = None,
    ):
        self.config, self.steps, self.pins = config, steps, pins or Pins()
        self.ahead = ahead or {}
        self.pinned_here: set[Tile] = set()       # tiles that have waited for their pinned weights
        self.convs = {k: step for k, step in enumerate(steps) if isinstance(step, Step)}
        self.has_edges = any(step.landings for step in self.convs.values())
        self.order = {index: rank for rank, index in enumerate(self.convs)}
        self.streams: dict[Tile, Stream] = {
            (x, y): Stream() for y in range(config.mesh.rows) for x in range(config.mesh.cols)
        }
        self.everyone: Rect = (0, config.mesh.cols - 1, 0, config.mesh.rows - 1, 0, 0)
        self.roles = [self._roles(k) for k in range(len(steps))]
        self.members = [self._members(k) for k in range(len(steps))]
        self.busy = set()
        for step, roles in zip(steps, self.roles, strict=True):
            self.busy |= set(step.work) if isinstance(step, UnitStep) else set(roles)
        self.busy |= {tile for members in self.members for tile in members}
        if len(steps) > 1:  # barriers signal every tile, so every tile awaits them
            self.busy = set(self.streams)
        self.uses = self._number_uses()
        self.followed = self._find_followers()
        self.started: set[Tile] = set()
        self.emitted_uses = dict.fromkeys(self.streams, 0)

    def _roles(self, index: int) -> dict[Tile, tuple[int, int]]:
        """Tiles that compute in a step of weights, and their parts."""
        step = self.convs.get(index)
        return {step.plan.split.tile(p, c): (p, c) for p, c in step.work} if step else {}

    def _members(self, index: int) -> dict[Tile, int]:
        """Tiles that only receive the multicast of pixel part p."""
        step = self.convs.get(index)
        if step is None or not step.plan.share_inputs:
            return {}
        plan = step.plan
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
        for index, step in self.convs.items():
            if index in self.pins.bases:
                continue
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
        step, (_, c) = self.convs[index], self.roles[index][tile]
        if not step.plan.share_weights:
            return single(*tile), 1, tile
        rect = step.plan.split.weight_rect(c)
        return rect, len(rect_tiles(rect)), step.plan.split.tile(step.leader_of_weights(c), c)

    def _descriptor(self, tile: Tile, use: Use, child: Use | None, starts: bool) -> None:
        step = self.convs[use.step]
        _, c = self.roles[use.step][tile]
        block, tiles = step.weights[c].descriptors[use.descriptor]
        rect, members, leader = self.share_rect(tile, use.step)
        if child and child.step != use.step:
            # A tile that is idle between two steps, or at first, may fetch early for itself, but
            # not into tiles that use their frames for a step in between.
            near = members == 1 or self.order[child.step] == self.order[use.step] + 1
            follows = self.share_rect(tile, child.step) == (rect, members, leader)
            child = child if near and follows else None
        self.streams[tile].add(
            Opcode.LAYER, layer=use.number, first_block=use.first_block,
            blocks=-(-tiles // BLOCK_TILES), last_tiles=(tiles - 1) % BLOCK_TILES,
            tile_words=step.plan.shape.tile_words,
            hbm=step.weight_base[c] + block * step.block_stride, stride=step.block_stride,
            child_valid=int(child is not None), child=child.number if child else 0,
            frequency=1 if use.generation == 0 and use.descriptor == 0 else ALWAYS,
            rect=encode_rect(rect), members=members, leader_x=leader[0], leader_y=leader[1],
            start=int(starts and (members == 1 or (use.step == 0 and tile in self.started))),
        )

    # Streams

    def emit(self) -> dict[Tile, list[bytes]]:
        """Commands of every tile; idle tiles only END."""
        for tile in sorted(self.busy - set(self.roles[0])):
            self.begin(tile)
        self.load_pinned()
        self.emit_steps()
        for stream in self.streams.values():
            stream.add(Opcode.END)
        return {tile: stream.commands for tile, stream in self.streams.items()}

    def emit_steps(self) -> None:
        """The commands of all steps, one behind another."""
        for index, step in enumerate(self.steps):
            if index:
                self._barrier(index)
            if isinstance(step, UnitStep):
                for tile in sorted(step.work):
                    step.emit(self, index, tile)
            else:
                self._emit_step(index, step)
            for part in self.ahead.get(index, ()):
                part.emit(self, index)

    def _emit_step(self, index: int, step: Step) -> None:
        for tile in sorted(self.busy):
            if tile in self.roles[index]:
                p, c = self.roles[index][tile]
                TileStep(self, index, step, tile, p, c).emit()
            elif tile in self.members[index]:
                self._receive_only(index, step, tile, self.members[index][tile])

    def load_pinned(self) -> None:
        """The loads of all pinned weights."""
        pairs = [(tile, load) for tile, loads in sorted(self.pins.loads.items()) for load in loads]
        for tile, load in pairs:
            self.streams[tile].add(
                Opcode.LOAD, scratchpad=load.near, far=load.far, run=load.run, count0=load.count,
                count1=1, count2=1, s_stride0=load.run if load.count > 1 else 0,
                f_stride0=load.stride if load.count > 1 else 0, rect=encode_rect(single(*tile)),
                sem_valid=1, sem=load.sem,
            )

    def await_pinned(self, tile: Tile, index: int, op: Op) -> list[Wait]:
        """What an op with pinned weights awaits of their load: a tile's first one all of it."""
        if tile in self.pinned_here:
            return []
        self.pinned_here.add(tile)
        return [(PINNED, self.pins.words(tile))]

    def _find_followers(self) -> dict[Tile, set[Tile]]:
        """Leader of shared frames -> its followers, over all steps."""
        followed: dict[Tile, set[Tile]] = {}
        for index, step in self.convs.items():
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
        if not self.convs:
            return
        stream, plan = self.streams[tile], self.convs[min(self.convs)].plan
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
        shared = self.convs[index].plan.share_weights
        if not shared or self.share_rect(tile, index)[2] != tile or tile in self.started:
            return []
        self.started.add(tile)
        count = len(self.followed.get(tile, ()))
        return [(START, count)] if count else []

    def is_last(self, index: int) -> bool:
        return index == len(self.steps) - 1

    def barrier_signal(self, index: int) -> list[Signal]:
        """What a tile sends when its part of a step is over: to load and to compute queues."""
        if self.is_last(index):
            return []
        barriers = (BARRIER, EDGE_BARRIER) if self.has_edges else (BARRIER,)
        return [(barrier + index % 2, self.everyone) for barrier in barriers]

    def _barrier(self, index: int) -> None:
        before = self.steps[index - 1]
        count = len(self.roles[index - 1]) + len(self.members[index - 1])
        count = len(before.work) if isinstance(before, UnitStep) else count
        for tile in sorted(self.busy):
            wait = (BARRIER + (index - 1) % 2, count)
            self.streams[tile].add(Opcode.SYNC, [wait], queue=Queue.LOAD, mark=1)
            if self.has_edges:
                edge_wait = (EDGE_BARRIER + (index - 1) % 2, count)
                self.streams[tile].add(Opcode.SYNC, [edge_wait], queue=Queue.COMPUTE)

    def _receive_only(self, index: int, step: Step, tile: Tile, p: int) -> None:
        """Consume the arrivals of a multicast whose rectangle holds this idle tile."""
        work = step.work[p, step.leader_of_inputs(p)]
        waits = [
            (arrival(step, item, k), piece.words)
            for item in work.items for k, piece in enumerate(item.pieces)
        ]
        stream = self.streams[tile]
        for k in range(0, len(waits), WAITS):
            stream.add(Opcode.SYNC, waits[k : k + WAITS], queue=Queue.COMPUTE)
        if not self.is_last(index):
            stream.add(Opcode.SYNC, (), self.barrier_signal(index), queue=Queue.COMPUTE)
