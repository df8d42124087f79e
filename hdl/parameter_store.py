# SPDX-License-Identifier: Apache-2.0
"""The parameter store: which blocks of weights are resident, and the prefetch unit beside it."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import BLOCK_TILES, BLOCK_WORDS, Config
from emu.isa import Opcode
from hdl.clock_gate import gate
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.packets import COMMANDS, SPAD_BITS, HbmRequest, Header
from hdl.ports import (
    BlockLookup,
    BlockRef,
    BlockRelease,
    FrameArrival,
    FrameRelease,
    PrefetchControl,
)
from hdl.prefetch.arrivals import ArrivalCounter
from hdl.prefetch.frames import FRAMES, FrameTable
from hdl.prefetch.layers import LayerTable
from hdl.prefetch.reader import BlockReader
from hdl.prefetch.unit import PrefetchUnit
from hdl.sequencer.dispatch import LayerCommand

RELEASES = 8
"""Releases of the compute engine that wait; each takes two cycles."""

ReleaseOp = data.StructLayout({"frame": 6, "x": 4, "y": 4})
"""This tile has released ``frame``, for leader (x, y)."""


class BlockTable(wiring.Component):
    """Blocks of up to 64 frames by (layer, block): lookups, releases, fetches.

    A lookup of a resident block is ready two cycles after it is presented, at most one in three
    cycles. A block looked up and not yet released stays. Without followers a released block can be
    looked up again until its frame is refilled; a shared one that is not pinned is gone with its
    release, and its frame is refilled when all members have released it. The tile that leads a
    layer fetches its blocks (see `PrefetchUnit`); the others learn of them by their arrival.

    What programs must keep: FRAMES comes before any word of a shared block arrives. Prefetched
    blocks of shared layers are all used, so children of shared layers must be certain. PIN and
    UNPIN of a shared layer come in all members, PIN before the layer's first block, UNPIN when no
    member uses it any more.

    Counters: ``lookups`` = ``hits`` (complete) + ``late`` (on their way) + ``misses`` (absent; in a
    leader these are the demand fetches); ``stall_cycles`` in which a lookup waits for its block;
    ``fetched_blocks``, ``fetched_words``, of them ``prefetched_blocks``, ``prefetched_words``; of
    those ``useful``, ``useful_words`` (complete at first lookup), ``used_prefetched``,
    ``used_prefetched_words`` (looked up at all), ``useless`` (replaced or forgotten before use).

    Members
    -------
    x, y: This tile.
    layer_command: LAYER, FRAMES, PIN and UNPIN. FRAMES waits for blocks on their way.
    lookup, release: Of the compute engine.
    begin, completed: The first word, the last word of ``block`` is written to ``frame`` now.
    base, filling: First word of frame 0; frames with words on their way.
    released: Releases of followers.
    release_out: This tile's releases, as a follower.
    request: Reads of blocks.
    prefetch: Policy registers.
    error: Sticky: a lookup in a layer without descriptor, a release of what is not in use, or an
        impossible number of frames.
    busy: Something is asked of it or it changes by itself.
    urgent: A lookup waited for its block in the cycle before, or there was at most one prefetched
        block, here or on its way, that was not yet used.
    """

    def __init__(self):
        super().__init__(
            {
                "x": In(4), "y": In(4),
                "layer_command": In(stream.Signature(LayerCommand)),
                "lookup": In(BlockLookup), "release": In(BlockRelease),
                "begin": In(1), "completed": In(1), "frame": In(6), "block": In(12),
                "base": Out(SPAD_BITS), "filling": Out(FRAMES), "busy": Out(1), "urgent": Out(1),
                "released": In(FrameRelease),
                "release_out": Out(stream.Signature(ReleaseOp)),
                "request": Out(stream.Signature(HbmRequest)),
                "prefetch": In(PrefetchControl),
                "error": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.frames = frames = FrameTable()
        m.submodules.layers = layers = LayerTable()
        m.submodules.unit = unit = PrefetchUnit()
        m.submodules.reader = reader = BlockReader()
        m.submodules.releases = releases = Fifo(BlockRef, RELEASES)
        m.submodules.messages = messages = Fifo(ReleaseOp, FRAMES)
        base, number = self.base, Signal(7)

        connect(m, unit.block, reader.i)
        connect(m, reader.request, wiring.flipped(self.request))
        connect(m, messages.o, wiring.flipped(self.release_out))
        connect(m, wiring.flipped(self.prefetch), unit.prefetch)
        for part in (unit, reader):
            m.d.comb += [part.x.eq(self.x), part.y.eq(self.y)]
        m.d.comb += [
            self.filling.eq(frames.filling),
            unit.base.eq(base), unit.frames.eq(number),
            frames.completed.eq(self.completed), frames.completed_frame.eq(self.frame),
            frames.paid.eq(self.released.valid), frames.paid_frame.eq(self.released.frame),
            unit.hold.eq(self.begin | frames.touch | self.released.valid),
            layers.read.eq(unit.read), layers.layer.eq(unit.layer),
            unit.descriptor.eq(layers.o),
            unit.layer_pinned.eq(layers.layer_pinned),
            unit.child_described.eq(layers.child_described),
            frames.fetch_block.eq(unit.fetch_block),
            unit.fetch_present.eq(frames.fetch_present), unit.fetch_owed.eq(frames.fetch_owed),
            unit.fetch_known.eq(frames.fetch_known),
            frames.victim.eq(unit.victim), unit.victim_free.eq(frames.victim_free),
            unit.victim_spare.eq(frames.victim_spare), unit.victim_wasted.eq(frames.victim_wasted),
            frames.begin.eq(self.begin | unit.fill),
            frames.residence.eq(unit.residence),
        ]
        with m.If(self.begin):  # a follower's: its leader keeps the account
            m.d.comb += [
                frames.residence.as_value().eq(0),
                frames.residence.frame.eq(self.frame),
                frames.residence.block.eq(self.block),
                frames.residence.shared.eq(1),
            ]
        errors = [
            self._commands(m, frames, layers, unit, reader, releases, messages, base, number),
            self._lookups(m, frames, layers, unit, base),
            self._releases(m, frames, layers, releases, messages),
        ]
        with m.If(sum(errors[1:], errors[0]) != 0):
            m.d.sync += self.error.eq(1)
        self._fetch_counters(m, frames, unit)
        m.d.comb += self.busy.eq(
            self.layer_command.valid | self.lookup.request.valid | self.release.valid
            | self.begin | self.completed | self.released.valid | self.request.valid
            | releases.o.valid | messages.o.valid | frames.busy | unit.busy
        )
        return m

    def _commands(self, m, frames, layers, unit, reader, releases, messages, base, number):
        """Layer commands, each once the one before is complete."""
        command, ready = self.layer_command, Signal()
        layout = COMMANDS[Opcode.FRAMES]
        place = data.View(layout, command.payload.as_value()[: layout.size])
        placed, error, quiet = Signal(), Signal(), Signal()
        owner, frame = layers.release.owner, Signal(range(FRAMES + 1))
        m.d.comb += [
            command.ready.eq(ready),
            layers.descriptor.as_value().eq(command.payload.as_value()[Header.size :]),
            layers.pin_layer.eq(command.payload.layer),
            unit.start_layer.eq(command.payload.layer),
            quiet.eq((frames.filling == 0) & ~self.request.valid & (releases.level == 0)
                     & (messages.level == 0)),
        ]
        with m.FSM(name="command"):
            with (
                m.State("TAKE"), m.If(command.valid & frames.ready),
                m.Switch(command.payload.opcode),
            ):
                with m.Case(Opcode.LAYER):
                    m.d.comb += [
                        ready.eq(1), layers.write.eq(1), unit.start.eq(command.payload.start)
                    ]
                with m.Case(Opcode.PIN):
                    m.d.comb += [ready.eq(1), layers.pin.eq(1)]
                with m.Case(Opcode.UNPIN), m.If(quiet):
                    m.d.comb += layers.unpin.eq(1)
                    m.d.sync += frame.eq(0)
                    m.next = "UNPIN"
                with m.Case(Opcode.FRAMES):
                    m.d.comb += unit.clear.eq(1)  # nothing new sets out
                    with m.If(quiet):
                        m.d.comb += [
                            ready.eq(1), frames.clear.eq(placed),
                            error.eq((place.count == 0) | (place.count > FRAMES)),
                        ]
                        m.d.sync += [
                            placed.eq(1), base.eq(place.base), number.eq(place.count)
                        ]
            with m.State("UNPIN"):
                m.d.comb += [
                    frames.drop_direct.eq(1), frames.drop_index.eq(frame),
                    layers.release.layer.eq(command.payload.layer),
                ]
                # The view is of the frame before.
                mine = Signal()
                m.d.comb += [
                    mine.eq(frames.drop_match & (frame != 0)
                            & ((frames.drop_holds - owner.first_block)[:12] < owner.blocks)),
                    frames.unpin.eq(mine),
                    frames.drop_invalid.eq(owner.shared),
                    messages.i.valid.eq(mine & owner.shared & self._follows(owner)),
                ]
                m.d.sync += frame.eq(frame + 1)
                with m.If(frame == FRAMES):
                    m.d.comb += ready.eq(1)
                    m.next = "TAKE"
        return error

    def _follows(self, owner):
        return (owner.leader_x != self.x) | (owner.leader_y != self.y)

    def _lookups(self, m, frames, layers, unit, base):
        """Answer lookups; the first look at the table also moves the fetch pointer."""
        request, port = self.lookup.request, layers.lookup
        first, ready, check = Signal(), Signal(), Signal()
        present, complete, miss = Signal(), Signal(), Signal()
        m.d.comb += [
            request.ready.eq(ready),
            port.layer.eq(request.payload.layer),
            frames.lookup_block.eq(port.owner.first_block + request.payload.block),
            present.eq(frames.lookup_match & (~frames.lookup_closed | port.pinned)),
            complete.eq(present & frames.lookup_complete),
            frames.touch.eq(check & complete & ~frames.drop),
            frames.touch_open.eq(~request.payload.last),
            unit.waiting.eq(check & ~present),
            unit.enter.eq(check & (first | unit.astray)),
            unit.enter_ref.eq(request.payload),
            miss.eq(check & first & ~present),
        ]
        m.d.sync += ready.eq(frames.touch)
        with m.If(frames.touch):
            m.d.sync += self.lookup.address.eq(base + frames.lookup_frame * BLOCK_WORDS)
        with m.FSM(name="lookup"):
            with m.State("IDLE"), m.If(request.valid & ~ready & frames.ready):
                m.d.sync += first.eq(1)
                m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += check.eq(1)
                m.d.sync += first.eq(0)
                with m.If(frames.touch):
                    m.next = "IDLE"
        fresh = Signal()
        m.d.comb += fresh.eq(complete & frames.lookup_fresh & frames.lookup_prefetched)
        hit = check & first & complete
        count(m, "lookups", check & first)
        count(m, "hits", hit)
        count(m, "misses", miss)
        count(m, "late", check & first & present & ~complete)
        m.d.sync += self.urgent.eq((check & ~complete) | (unit.unused <= 1))
        count(m, "stall_cycles", check & ~complete)
        used, words, owner = Signal(), Signal(9), port.owner
        last = request.payload.block + 1 == owner.blocks
        m.d.comb += [
            used.eq(frames.touch & fresh),
            words.eq((Mux(last, owner.last_tiles, BLOCK_TILES - 1) + 1) * owner.tile_words),
        ]
        count(m, "useful", hit & fresh)
        count(m, "useful_words", Mux(hit & fresh, words, 0))
        count(m, "used_prefetched", used)
        count(m, "used_prefetched_words", Mux(used, words, 0))
        self._used = used
        return check & ~port.described

    def _releases(self, m, frames, layers, releases, messages):
        """Carry out releases one after another; a follower tells its leader."""
        owner, ref, view = layers.release.owner, releases.o, Signal()
        known, error = Signal(), Signal()
        m.d.comb += [
            releases.i.valid.eq(self.release.valid),
            releases.i.payload.eq(self.release.payload),
            frames.drop_block.eq(owner.first_block + ref.payload.block),
            known.eq(frames.drop_match & frames.drop_used),
            messages.i.payload.frame.eq(frames.drop_frame),
            messages.i.payload.x.eq(owner.leader_x),
            messages.i.payload.y.eq(owner.leader_y),
        ]
        m.d.sync += view.eq(ref.valid & ~view)
        with m.If(ref.valid):
            m.d.comb += layers.release.layer.eq(ref.payload.layer)
        gone = owner.shared & ~layers.release.pinned
        with m.If(view):
            m.d.comb += [
                ref.ready.eq(1),
                frames.drop.eq(known),
                frames.drop_invalid.eq(gone),
                messages.i.valid.eq(known & gone & self._follows(owner)),
                error.eq(~known),
            ]
        return error | (self.release.valid & ~releases.i.ready)

    def _fetch_counters(self, m, frames, unit):
        new, tiles, unused = unit.residence, unit.block.payload.tiles, Signal(7)
        ahead, wasted = Signal(), Signal()
        m.d.comb += [
            ahead.eq(unit.fill & new.prefetched),
            wasted.eq(unit.fill & unit.wasted),
            unit.unused.eq(unused),
        ]
        m.d.sync += unused.eq(Mux(frames.clear, 0, unused + ahead - wasted - self._used))
        count(m, "fetched_blocks", unit.fill)
        count(m, "prefetched_blocks", ahead)
        count(m, "useless", wasted | frames.wasted)
        words = (tiles + 1) * unit.block.payload.tile_words
        count(m, "fetched_words", Mux(unit.fill, words, 0))
        count(m, "prefetched_words", Mux(ahead, words, 0))


class ParameterStore(wiring.Component):
    """A `BlockTable`, awake when something is asked of it, and the counter of arriving words.

    Members
    -------
    frame: FRAME words as they are written. All others are those of `BlockTable`.
    """

    def __init__(self, config: Config):
        self._config = config
        table = BlockTable()
        table._MustUse__silence = True  # made for its signature only
        inner = ("begin", "completed", "frame", "block", "base", "filling", "busy")
        members = {n: k for n, k in table.signature.members.items() if n not in inner}
        super().__init__({**members, "frame": In(FrameArrival)})

    def elaborate(self, platform):
        m = Module()
        table = BlockTable()
        gate(m, "table", table, table.busy, platform)
        m.submodules.arrivals = arrivals = ArrivalCounter()
        connect(m, wiring.flipped(self.frame), arrivals.arrival)
        for name in self.signature.members:
            if name in ("x", "y"):
                m.d.comb += getattr(table, name).eq(getattr(self, name))
            elif name in ("error", "urgent"):
                m.d.comb += getattr(self, name).eq(getattr(table, name))
            elif name != "frame":
                connect(m, wiring.flipped(getattr(self, name)), getattr(table, name))
        m.d.comb += [
            arrivals.base.eq(table.base), arrivals.filling.eq(table.filling),
            table.begin.eq(arrivals.begin), table.completed.eq(arrivals.completed),
            table.frame.eq(arrivals.frame), table.block.eq(self.frame.block),
        ]
        return m
