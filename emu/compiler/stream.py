# SPDX-License-Identifier: Apache-2.0
"""A tile's command stream under construction, a step's addresses, and the use of semaphores.

Semaphores (per tile): 8*slot + piece counts arriving input words; the rest are named below. Each is
awaited in one queue only: two queues would take arrivals from one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emu.compiler.images import Tensor
from emu.compiler.mapping import Rect, encode_rect
from emu.compiler.schedule import Item, Work
from emu.compiler.tiling import PIECES, Plan, Weights
from emu.errors import UserError
from emu.isa import MOVE, SIGNALS, WAIT_BITS, WAITS, Opcode, Queue, encode
from emu.network.layers import ConvLayer

IN_FREE = 2 * PIECES          # + slot, in the tile that loads the slot
PARAMS, OUT_READY, OUT_FREE, BARRIER, START = 18, 19, 20, 21, 23
RESIDUAL = 24                 # + output slot
EDGE_BARRIER = 32             # + parity of the step, awaited by the compute queue
PINNED = 34                   # words of pinned weights, awaited by the compute queue
FIRST_EDGE, EDGES = 35, 29    # resident edges (`emu.compiler.residency`) share these;
EDGES_BESIDE_EXPERTS = 23     # in a network with experts only those before `FIRST_AHEAD`
FIRST_AHEAD, AHEADS = 58, 4   # words fetched ahead of a step of experts, in the load queue
PLACED, KEPT = 62, 63         # lists of places that are there; words kept: both in the store queue
PIPELINE_SLOTS = 2            # input slots of a pipeline's stages: one is read, one is filled
VECTOR_IN = 28                # + input slot; of experts 1: lists of what is fetched ahead
RESIDUAL_FREE, VECTOR_FREE = 30, 31
TURN_BITS = dict(MOVE)["turn"]

if TYPE_CHECKING:
    from emu.compiler.residency import Edge, Landing

Tile = tuple[int, int]
Wait = tuple[int, int]
Signal = tuple[int, Rect]


@dataclass(frozen=True)
class Flow:
    """How a step goes on counting where an earlier one of the same layer ended: in a pipeline.

    step, steps: Its number among all that repeat the layer. bands: Items of each.
    arrivals: First semaphore of arriving words, ``pieces`` for each input slot.
    in_free: First of the input slots' semaphores in the tiles that fill them: it may be filled.
    releases: Those tiles; None: the one that loads the slot.
    out_free: An output slot has been stored.
    room: `in_free` of the layer that reads what this one makes; None: it goes to HBM.
    readers: Tiles that release a slot of that layer.
    """

    step: int = 0
    steps: int = 1
    bands: int = 1
    arrivals: int = 0
    pieces: int = PIECES
    in_free: int = IN_FREE
    releases: Rect | None = None
    out_free: int = OUT_FREE
    room: int | None = None
    readers: int = 0

    @property
    def first_item(self) -> int:
        """Items of the steps before."""
        return self.step * self.bands


@dataclass
class Step:
    """A planned layer (or range of its output groups) with its addresses in HBM."""

    layer: ConvLayer
    plan: Plan
    source: Tensor | None     # None: on the chip, in the area of `source_edge`
    target: Tensor | None     # None: nobody reads it from HBM
    weights: dict[int, Weights]
    work: dict[tuple[int, int], Work]
    weight_base: dict[int, int]
    block_stride: int
    params: dict[int, int]
    residual: Tensor | None = None
    source_edge: "Edge | None" = None
    residual_edge: "Edge | None" = None
    landings: "list[tuple[Edge, list[Landing]]]" = field(default_factory=list)
    flow: Flow = field(default_factory=Flow)

    def leader_of_weights(self, c: int) -> int:
        return c % self.plan.split.pixel_parts

    def active_channels(self) -> list[int]:
        return sorted(self.weights)

    def leader_of_inputs(self, p: int) -> int:
        active = self.active_channels()
        return active[p % len(active)]


@dataclass
class Stream:
    """Commands of one tile."""

    commands: list[bytes] = field(default_factory=list)

    def add(
        self, opcode: Opcode, waits: Sequence[Wait] = (), signals: Sequence[Signal] = (),
        queue: Queue = Queue.LOAD, **fields: int,
    ) -> None:
        """One command; waits beyond what it holds go into SYNCs of ``queue`` before it."""
        waits = [(sem, part) for sem, count in waits for part in _halves(count)]
        while len(waits) > WAITS:
            taken, waits = waits[:WAITS], waits[WAITS:]
            self.add(Opcode.SYNC, taken, queue=queue)
        if len(signals) > SIGNALS:
            raise ValueError(f"a command sends at most {SIGNALS} signals, not {len(signals)}")
        for i, (sem, count) in enumerate(waits):
            fields |= {f"wait{i}_sem": sem, f"wait{i}_count": count}
        for i, (sem, rect) in enumerate(signals):
            fields |= {f"signal{i}_valid": 1, f"signal{i}_sem": sem}
            fields[f"signal{i}_rect"] = encode_rect(rect)
        if opcode == Opcode.SYNC:
            fields["queue"] = int(queue)
        if opcode == Opcode.LOAD and fields.get("gather"):
            turn = fields["run"] * fields["count0"] * fields["count1"]
            fields["turn"] = turn if turn < 1 << TURN_BITS else 0  # then none may be absent
        self.commands.append(encode(opcode, **fields))


def _halves(count: int) -> list[int]:
    """``count`` in one wait, or in two if it exceeds one's field."""
    if count >= 1 << 16:
        raise UserError(f"a wait for {count} words exceeds a semaphore's 16 bits")
    return [count] if count < 1 << WAIT_BITS else [count // 2, count - count // 2]


def arrival(step: Step, item: Item, piece: int) -> int:
    """Semaphore that counts the words of an item's piece."""
    first = step.source_edge.sem if step.source_edge else step.flow.arrivals
    return first + step.flow.pieces * slot_of(step, item.number) + piece


def slot_of(step: Step, item: int) -> int:
    """The input slot of item number ``item`` of ``step``."""
    return (step.flow.first_item + item) % step.plan.slots
