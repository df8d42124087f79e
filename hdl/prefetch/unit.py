# SPDX-License-Identifier: Apache-2.0
"""The prefetch unit: walks the stream order from the last lookup and fetches what is absent."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out

from emu.config import BLOCK_TILES, BLOCK_WORDS
from hdl.packets import SPAD_BITS
from hdl.ports import BlockRef, PrefetchControl
from hdl.prefetch.frames import OWED_BITS, Residence
from hdl.prefetch.layers import Descriptor
from hdl.prefetch.policy import DISTANCE_BITS
from hdl.prefetch.reader import BlockRead
from hdl.prefetch.registry import PolicySelect


class State(enum.Enum, shape=3):
    """What the unit does with the block at the fetch pointer."""

    IDLE = 0
    READ = 1
    """Read the layer's descriptor."""
    STEP = 2
    """Ask the table for its frame."""
    CHECK = 3
    """Is it present? May it be fetched?"""
    RING = 4
    """Find it a frame."""


class PrefetchUnit(wiring.Component):
    """Every lookup sets the fetch pointer to its block; from there it passes over the blocks that
    are present, block by block and then into the child, until it meets one that is absent. If the
    policy allows, that block takes the next free frame of the ring. Frames in use, pinned, or with
    prefetched blocks that nobody has looked up yet are passed over; a block that a lookup waits for
    may replace one of the latter after a fruitless turn, unless it is shared (its other users could
    no longer be told). The pointer stops at layers that another tile leads.

    Latency: five cycles from ``enter`` to ``fill`` if the ring's next frame is free; three cycles
    for each block passed over.

    Members
    -------
    x, y, prefetch: This tile, the policy registers.
    frames, base: Frames in the ring and the address of the first.
    clear: Forget the pointer.
    start, start_layer: Begin before the first block of a layer unless something was looked up.
    enter, enter_ref: A lookup sets the pointer. ``waiting``: it waits for an absent block.
    astray: The lookup waits, but not for the pointer's block: it must enter again.
    read, layer, descriptor, layer_pinned, child_described: Reading of layer descriptors.
    fetch_block, fetch_present, fetch_owed, fetch_known: View of the frame table.
    victim, victim_free, victim_spare, victim_wasted: Another one.
    unused: Frames with prefetched blocks that nobody has looked up.
    hold: The frame table cannot begin a residence in this cycle.
    fill, residence, wasted: A residence begins in ``fill``'s cycle, over an unused block if wasted.
    busy: The pointer moves, or will in the next cycle.
    block: To the reader; transferred with ``fill``.
    """

    def __init__(self):
        super().__init__(
            {
                "x": In(4), "y": In(4), "prefetch": In(PrefetchControl),
                "frames": In(7), "base": In(SPAD_BITS), "clear": In(1),
                "start": In(1), "start_layer": In(6),
                "enter": In(1), "enter_ref": In(BlockRef), "waiting": In(1), "astray": Out(1),
                "read": Out(1), "layer": Out(6), "descriptor": In(Descriptor),
                "layer_pinned": In(1), "child_described": In(1),
                "fetch_block": Out(12), "fetch_present": In(1), "fetch_owed": In(1),
                "fetch_known": In(1),
                "victim": Out(6), "victim_free": In(1), "victim_spare": In(1),
                "victim_wasted": In(1), "unused": In(7), "hold": In(1),
                "fill": Out(1), "residence": Out(Residence), "wasted": Out(1),
                "block": Out(stream.Signature(BlockRead)), "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.policy = policy = PolicySelect()
        block, distance = Signal(12), Signal(DISTANCE_BITS)
        crossing, demand, usable = Signal(), Signal(), Signal()
        arrived, leaves = Signal(), Signal()  # what ends CHECK
        turned = Signal(range(65))  # frames passed over in vain
        layer = self.descriptor

        m.d.comb += [
            demand.eq(self.waiting & (distance == 0)),
            self.astray.eq(self.waiting & (distance != 0)),
            self.fetch_block.eq(layer.first_block + block),
            usable.eq(
                self.victim_free | (self.victim_spare & demand & (turned == self.frames))
            ),
        ]
        state = Signal(State)
        with m.Switch(state):
            with m.Case(State.READ):
                m.d.comb += self.read.eq(1)
                m.d.sync += state.eq(State.STEP)
            with m.Case(State.STEP):
                self._step(m, state, block, distance, crossing)
            with m.Case(State.CHECK):
                with m.If(arrived):
                    # Further than the frames reach, all is present: a chain that is a loop.
                    far = distance > self.frames
                    m.d.sync += state.eq(Mux(far, State.IDLE, State.STEP))
                    m.d.sync += [block.eq(block + 1), distance.eq(distance + 1)]
                with m.Elif(leaves):
                    m.d.sync += [state.eq(State.RING), turned.eq(0)]
            with m.Case(State.RING):
                m.d.comb += self.block.valid.eq(usable & ~self.hold)
                with m.If(self.fill):
                    m.d.sync += state.eq(State.STEP)
                    m.d.sync += [block.eq(block + 1), distance.eq(distance + 1)]
                with m.If(self.fill | ~usable):
                    last = self.victim + 1 >= self.frames
                    m.d.sync += self.victim.eq(Mux(last, 0, self.victim + 1))
                with m.If(~usable & (turned != self.frames)):
                    m.d.sync += turned.eq(turned + 1)
        absent = self.fetch_known & ~self.fetch_present & ~self.fetch_owed
        m.d.comb += [
            arrived.eq(self.fetch_present & ~demand),
            leaves.eq(absent & policy.fetch & (demand | (distance <= self.frames))),
            self.busy.eq(Mux(state == State.CHECK, arrived | leaves, state != State.IDLE)),
        ]
        self._enter(m, state, block, distance, crossing)
        for name in ("policy", "threshold", "depth"):
            m.d.comb += getattr(policy, name).eq(getattr(self.prefetch, name))
        m.d.comb += [
            policy.distance.eq(distance),
            policy.waiting.eq(demand),
            policy.crossing.eq(crossing),
            policy.frequency.eq(layer.frequency),
            policy.frames.eq(self.frames),
            policy.unused.eq(self.unused),
        ]
        self._fill(m, block, demand)
        return m

    def _step(self, m, state, block, distance, crossing):
        """One block further. While in this state the table is asked for the block's frame."""
        layer = self.descriptor
        m.d.sync += state.eq(State.CHECK)
        with m.If((layer.leader_x != self.x) | (layer.leader_y != self.y)):
            m.d.sync += state.eq(State.IDLE)
        with m.Elif(block >= layer.blocks):
            m.d.sync += state.eq(State.IDLE)
            with m.If(layer.child_valid & self.child_described & (distance <= self.frames)):
                m.d.sync += [
                    self.layer.eq(layer.child), block.eq(0), crossing.eq(1),
                    state.eq(State.READ),
                ]

    def _enter(self, m, state, block, distance, crossing):
        """Set the pointer, whatever it was doing."""
        entered = Signal()
        with m.If(self.start & ~entered):
            m.d.sync += [
                self.layer.eq(self.start_layer), block.eq(0), distance.eq(1), crossing.eq(0),
                state.eq(State.READ),
            ]
        with m.If(self.enter):
            m.d.sync += [
                self.layer.eq(self.enter_ref.layer), block.eq(self.enter_ref.block),
                distance.eq(0), crossing.eq(0), entered.eq(1), state.eq(State.READ),
            ]
        with m.If(self.clear):
            m.d.sync += [entered.eq(0), self.victim.eq(0), state.eq(State.IDLE)]

    def _fill(self, m, block, demand):
        """The residence that begins and the block to read, both of the pointer's block."""
        layer, new, read = self.descriptor, self.residence, self.block.payload
        tiles = Mux(block + 1 == layer.blocks, layer.last_tiles, BLOCK_TILES - 1)
        m.d.comb += [
            self.fill.eq(self.block.valid & self.block.ready),
            self.wasted.eq(self.victim_wasted),
            new.frame.eq(self.victim),
            new.block.eq(self.fetch_block),
            new.prefetched.eq(~demand),
            new.pinned.eq(self.layer_pinned),
            new.shared.eq(layer.members > 1),
            new.owed.eq((layer.members - 1)[:OWED_BITS]),
            read.address.eq(layer.hbm + block * layer.stride),
            read.scratchpad.eq(self.base + self.victim * BLOCK_WORDS),
            read.rect.eq(layer.rect),
            read.block.eq(self.fetch_block),
            read.tiles.eq(tiles),
            read.tile_words.eq(layer.tile_words),
        ]
