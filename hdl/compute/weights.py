# SPDX-License-Identifier: Apache-2.0
"""Weights from the scratchpad into the array's shadow registers, one tile ahead of the array."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import BLOCK_TILES
from emu.isa import WeightMode
from hdl.compute.block_finder import BlockFinder
from hdl.compute.command import Prepared
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.packets import WORD_BITS
from hdl.ports import BlockLookup, BlockRelease, ScratchpadRead

WeightWord = data.StructLayout(
    {"word": WORD_BITS, "index": 4, "last": 1, "mode": 3, "is_signed": 1, "zero": signed(9)}
)
QUEUE_DEPTH = 4
WORDS = {WeightMode.ROW: 16, WeightMode.COLUMN: 16, WeightMode.DIAGONAL: 1,
         WeightMode.INT4: 8, WeightMode.ROW_TAP: 3}
"""Scratchpad words of a weight tile."""


def by_mode(m, mode, function):
    """``function(words of a tile)`` for the tile size of ``mode``; 9 bits."""
    result = Signal(9)
    with m.Switch(mode):
        for number, size in WORDS.items():
            with m.Case(number):
                m.d.comb += result.eq(function(size))
    return result


class WeightReader(wiring.Component):
    """Reads the weight tiles of commands in order, from blocks or from a resident place.

    Throughput: a word a cycle, across tiles, output groups, blocks and commands that wait, provided
    that a lookup is answered before the tile ahead of it is read. Latency: two cycles from a
    command to its first request, four if it needs a lookup. At most four words wait for the array.

    Members
    -------
    i: Prepared commands. ``o``: weight words with how to read them.
    read: Scratchpad port. ``lookup``, ``release``: the parameter store (`BlockFinder`).
    waiting: The next word waits for its block.
    """

    i: In(stream.Signature(Prepared))
    o: Out(stream.Signature(WeightWord))
    read: Out(ScratchpadRead)
    lookup: Out(BlockLookup)
    release: Out(BlockRelease)
    waiting: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = Fifo(WeightWord, QUEUE_DEPTH)
        m.submodules.finder = finder = BlockFinder()
        connect(m, finder.lookup, wiring.flipped(self.lookup))
        connect(m, finder.release, wiring.flipped(self.release))
        connect(m, queue.o, wiring.flipped(self.o))
        current = Signal(Prepared)
        c = current.command
        busy, placed, flying = Signal(), Signal(), Signal()
        group, tile, number = Signal(10), Signal(24), Signal(16)
        word, words = Signal(4), Signal(4)  # `words`: of a tile, minus 1
        address = Signal(16)
        last_word, last_tile, last_group, step = Signal(), Signal(), Signal(), Signal()
        slot_ends, block_ends, ended, accept = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            last_word.eq(word == words),
            last_tile.eq(tile + 1 == current.derived.group_tiles),
            last_group.eq(group + 1 == c.out_groups),
            ended.eq(last_tile & last_group),
            slot_ends.eq(~c.w_resident & (number[:4] == BLOCK_TILES - 1)),
            block_ends.eq(slot_ends | (~c.w_resident & ended)),
            self.read.request.valid.eq(busy & placed & (queue.level + flying < QUEUE_DEPTH)),
            self.read.request.payload.eq(address + word),
            step.eq(self.read.request.valid & self.read.request.ready),
            self.i.ready.eq(~busy | (step & last_word & ended)),
            accept.eq(self.i.valid & self.i.ready),
            self.waiting.eq(busy & ~placed),
        ]
        with m.If(step):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))
        with m.If(step & last_word):
            m.d.sync += [number.eq(number + 1), tile.eq(Mux(last_tile, 0, tile + 1))]
            with m.If(last_tile):
                m.d.sync += group.eq(group + 1)
            with m.If(ended):
                m.d.sync += busy.eq(0)
        with m.If(accept):
            m.d.sync += [current.eq(self.i.payload), busy.eq(1),
                         number.eq(self.i.payload.command.w_tile), group.eq(0), tile.eq(0),
                         words.eq(by_mode(m, self.i.payload.command.w_mode, lambda n: n - 1))]
        self._find(m, finder, c, busy, placed, number, ended, slot_ends)
        m.d.comb += finder.done.eq(step & last_word & block_ends & ~c.w_keep)
        self._addresses(m, finder, c, step & last_word, accept, (busy, placed),
                        (number, slot_ends, last_tile), address)
        self._queue(m, queue, step, c, word, last_word, flying)
        count(m, "array_load_words", step)
        return m

    def _find(self, m, finder, c, busy, placed, number, ended, slot_ends):
        """The block wanted now, or else the one that the tile after this one will want."""
        new = self.i.payload.command
        m.d.comb += [
            finder.current.layer.eq(c.w_layer), finder.current.block.eq(number[4:]),
            finder.current.last.eq(~c.w_keep),
        ]
        with m.If(busy & ~placed):
            m.d.comb += [finder.wanted.eq(1), finder.target.eq(finder.current)]
        with m.Elif(busy & ended):
            m.d.comb += [
                finder.target.layer.eq(new.w_layer), finder.target.block.eq(new.w_tile[4:]),
                finder.target.last.eq(~new.w_keep),
                finder.wanted.eq(self.i.valid & ~new.w_resident & ~(
                    ~c.w_resident & (finder.target.layer == c.w_layer)
                    & (finder.target.block == number[4:])
                )),
            ]
        with m.Else():
            m.d.comb += [
                finder.target.eq(finder.current), finder.target.block.eq(number[4:] + 1),
                finder.wanted.eq(busy & slot_ends),
            ]

    def _addresses(self, m, finder, c, tile_ends, accept, placing, where, address):
        busy, placed = placing
        number, slot_ends, last_tile = where
        new = self.i.payload.command
        group_address, offset = Signal(16), Signal(8)
        current_offset = by_mode(m, c.w_mode, lambda n: number[:4] * n)
        new_offset = by_mode(m, new.w_mode, lambda n: new.w_tile[:4] * n)
        m.d.comb += offset.eq(Mux(accept, new_offset, current_offset))
        found = Signal(16)
        m.d.comb += found.eq(finder.address + offset)
        with m.If(accept):
            m.d.comb += finder.take.eq(~new.w_resident)
            m.d.sync += [
                placed.eq(new.w_resident | finder.found), group_address.eq(new.w_base),
                address.eq(Mux(new.w_resident, new.w_base, found)),
            ]
        with m.Elif(tile_ends):
            with m.If(slot_ends):
                # Tile 0 of the next block.
                m.d.comb += finder.take.eq(1)
                m.d.sync += [placed.eq(finder.found), address.eq(finder.address)]
            with m.Elif(~c.w_resident):
                m.d.sync += address.eq(address + by_mode(m, c.w_mode, lambda n: n))
            with m.Elif(last_tile):
                m.d.sync += [group_address.eq(group_address + c.w_group_stride),
                             address.eq(group_address + c.w_group_stride)]
            with m.Else():
                m.d.sync += address.eq(address + c.w_tile_stride)
        with m.Elif(busy & ~placed):
            m.d.comb += finder.take.eq(1)
            m.d.sync += [placed.eq(finder.found), address.eq(found)]

    def _queue(self, m, queue, step, c, word, last_word, flying):
        """The word that arrives in the next cycle, and how to read it."""
        m.d.sync += flying.eq(step)
        m.d.comb += [queue.i.valid.eq(flying), queue.i.payload.word.eq(self.read.data)]
        for name, value in (("index", word), ("last", last_word), ("mode", c.w_mode),
                            ("is_signed", c.w_signed), ("zero", c.w_zero)):
            field = queue.i.payload[name]
            held = Signal.like(field, name=f"flying_{name}")
            with m.If(step):
                m.d.sync += held.eq(value)
            m.d.comb += field.eq(held)


class ShadowFeeder(wiring.Component):
    """Feeds weight words to the array's shadow registers as soon as they are free.

    Throughput: a word a cycle, so a tile in 16, 8, 3 or 1 cycles by its mode. Latency: none.

    Members
    -------
    i: Weight words.
    load: The word on ``i`` enters the shadow registers now.
    can_start: They hold a whole tile, or will from the next cycle on.
    swap: The array takes the tile in this cycle; the next tile's words may enter from now on.
    """

    i: In(stream.Signature(WeightWord))
    load: Out(1)
    can_start: Out(1)
    swap: In(1)

    def elaborate(self, platform):
        m = Module()
        full, fills = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~full | self.swap),
            self.load.eq(self.i.valid & self.i.ready),
            fills.eq(self.load & self.i.payload.last),
            self.can_start.eq((full & ~self.swap) | fills),
        ]
        m.d.sync += full.eq(self.can_start)
        return m
