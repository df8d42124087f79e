# SPDX-License-Identifier: Apache-2.0
"""Weights from the scratchpad into the array's shadow registers, one tile ahead of the array."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import BLOCK_TILES
from emu.isa import WeightMode
from hdl.compute.array import LANES, Row
from hdl.compute.command import Prepared
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.packets import WORD_BITS
from hdl.ports import BlockLookup, BlockRelease, ScratchpadRead

WeightWord = data.StructLayout(
    {"word": WORD_BITS, "mode": 3, "is_signed": 1, "zero": signed(9)}
)
QUEUE_DEPTH = 4
WORDS = {WeightMode.ROW: 16, WeightMode.COLUMN: 16, WeightMode.DIAGONAL: 1, WeightMode.INT4: 8}
"""Scratchpad words of a weight tile."""


class WeightReader(wiring.Component):
    """Reads the weight tiles of commands in order, from blocks or from a resident place.

    A block is looked up when its first tile is next and released when the command's last word of
    it was read (unless ``w_keep``): after tile 15 of the block or the command's last tile.

    Throughput: a word a cycle; a lookup costs one cycle. Latency: two cycles from a command to its
    first request.

    Members
    -------
    i: Prepared commands. ``o``: weight words with how to read them.
    read: Scratchpad port. ``lookup``, ``release``: the parameter store.
    waiting: A lookup is refused now.
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
        current = Signal(Prepared)
        c = current.command
        busy, placed, flying = Signal(), Signal(), Signal()
        group, tile, number = Signal(10), Signal(24), Signal(16)
        word, words = Signal(5), Signal(5)
        address, group_address = Signal(16), Signal(16)
        last_word, last_tile, last_group, step = Signal(), Signal(), Signal(), Signal()
        block_ends, ended = Signal(), Signal()
        m.d.comb += [
            last_word.eq(word + 1 == words),
            last_tile.eq(tile + 1 == current.derived.group_tiles),
            last_group.eq(group + 1 == c.out_groups),
            ended.eq(last_word & last_tile & last_group),
            block_ends.eq(~c.w_resident & ((number[:4] == BLOCK_TILES - 1) | (last_tile & last_group))),
            self.read.request.valid.eq(busy & placed & (queue.level + flying < QUEUE_DEPTH)),
            self.read.request.payload.eq(address + word),
            step.eq(self.read.request.valid & self.read.request.ready),
            self.lookup.request.valid.eq(busy & ~placed),
            self.lookup.request.payload.layer.eq(c.w_layer),
            self.lookup.request.payload.block.eq(number[4:]),
            self.lookup.request.payload.last.eq(~c.w_keep),
            self.waiting.eq(self.lookup.request.valid & ~self.lookup.request.ready),
            self.i.ready.eq(~busy | (step & ended)),
            queue.i.valid.eq(flying),
            queue.i.payload.word.eq(self.read.data),
        ]
        connect(m, queue.o, wiring.flipped(self.o))
        m.d.sync += flying.eq(step)
        with m.If(step):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))
        self._describe(m, queue, step, c)
        with m.If(step & last_word):
            m.d.sync += [number.eq(number + 1), tile.eq(tile + 1),
                         address.eq(address + Mux(c.w_resident, c.w_tile_stride, words))]
            with m.If(block_ends):
                m.d.sync += placed.eq(0)
            with m.If(last_tile):
                m.d.sync += [tile.eq(0), group.eq(group + 1)]
                with m.If(c.w_resident):
                    m.d.sync += [group_address.eq(group_address + c.w_group_stride),
                                 address.eq(group_address + c.w_group_stride)]
                with m.If(last_group):
                    m.d.sync += busy.eq(0)
        with m.If(self.lookup.request.valid & self.lookup.request.ready):
            offset = Signal(8)
            with m.Switch(c.w_mode):
                for mode, size in WORDS.items():
                    with m.Case(mode):
                        m.d.comb += offset.eq(number[:4] * size)
            m.d.sync += [address.eq(self.lookup.address + offset), placed.eq(1)]
        self._accept(m, current, busy, placed, (group, tile, word), number, words,
                     (address, group_address))
        m.d.sync += [
            self.release.valid.eq(step & last_word & block_ends & ~c.w_keep),
            self.release.payload.layer.eq(c.w_layer),
            self.release.payload.block.eq(number[4:]),
        ]
        count(m, "array_load_words", step)
        return m

    @staticmethod
    def _describe(m, queue, step, c):
        """How to read the word that arrives in the next cycle."""
        mode, is_signed, zero = Signal(3), Signal(), Signal(signed(9))
        with m.If(step):
            m.d.sync += [mode.eq(c.w_mode), is_signed.eq(c.w_signed), zero.eq(c.w_zero)]
        m.d.comb += [queue.i.payload.mode.eq(mode), queue.i.payload.is_signed.eq(is_signed),
                     queue.i.payload.zero.eq(zero)]

    def _accept(self, m, current, busy, placed, zeroed, number, words, addresses):
        command = self.i.payload.command
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [current.eq(self.i.payload), busy.eq(1), placed.eq(command.w_resident),
                         number.eq(command.w_tile)]
            m.d.sync += [x.eq(0) for x in zeroed] + [x.eq(command.w_base) for x in addresses]
            with m.Switch(command.w_mode):
                for mode, size in WORDS.items():
                    with m.Case(mode):
                        m.d.sync += words.eq(size)


class RowFeeder(wiring.Component):
    """Turns weight words into the sixteen rows of a tile and feeds the array's shadow registers.

    Throughput: a row a cycle: 16 cycles a tile in modes row, diagonal and int4; 32 in mode column,
    which collects its sixteen words before the first row. Latency: none.

    Members
    -------
    i: Weight words.
    load, row, weights: To the array.
    can_start: The shadow registers hold a whole tile, or will from the next cycle on.
    swap: The array takes the tile in this cycle; the next tile's rows may enter from now on.
    """

    i: In(stream.Signature(WeightWord))
    load: Out(1)
    row: Out(4)
    weights: Out(Row)
    can_start: Out(1)
    swap: In(1)

    def elaborate(self, platform):
        m = Module()
        word, full, space = self.i.payload.word, Signal(), Signal()
        columns = [Signal(WORD_BITS, name=f"column_{n}") for n in range(LANES)]
        collected, draining, mode = Signal(5), Signal(), Signal(3)
        m.d.comb += [
            # The columns' rows come when their words, mode and all, have left the queue.
            draining.eq(collected == LANES),
            mode.eq(Mux(draining, WeightMode.COLUMN, self.i.payload.mode)),
            space.eq(~full | self.swap),
            self.can_start.eq((full & ~self.swap) | (self.load & (self.row == 15))),
        ]
        raw = Signal(WORD_BITS)
        with m.Switch(mode):
            with m.Case(WeightMode.COLUMN):
                m.d.comb += [
                    self.load.eq(draining & space),
                    self.i.ready.eq(~draining),
                    raw.eq(Cat(column[:8] for column in columns)),
                ]
            with m.Case(WeightMode.DIAGONAL):
                m.d.comb += [self.load.eq(self.i.valid & space),
                             self.i.ready.eq(self.load & (self.row == 15)), raw.eq(word)]
            with m.Case(WeightMode.INT4):
                m.d.comb += [self.load.eq(self.i.valid & space),
                             self.i.ready.eq(self.load & self.row[0]), raw.eq(word)]
            with m.Default():
                m.d.comb += [self.load.eq(self.i.valid & space), self.i.ready.eq(space),
                             raw.eq(word)]
        self._extend(m, raw, mode, draining)
        with m.If(self.load):
            m.d.sync += self.row.eq(self.row + 1)
        with m.If(self.load & (self.row == 15)):
            m.d.sync += [full.eq(1), collected.eq(0)]
        with m.Elif(self.swap):
            m.d.sync += full.eq(0)
        with m.If(mode == WeightMode.COLUMN):
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += collected.eq(collected + 1)
                with m.Switch(collected[:4]):
                    for n in range(LANES):
                        with m.Case(n):
                            m.d.sync += columns[n].eq(word)
            with m.Elif(self.load):
                m.d.sync += [column.eq(column >> 8) for column in columns]
        return m

    def _extend(self, m, raw, mode, draining):
        """Bytes or nibbles of a row to signed values less the zero point."""
        held_signed, held_zero = Signal(), Signal(signed(9))
        with m.If(self.i.valid & ~draining):
            m.d.sync += [held_signed.eq(self.i.payload.is_signed), held_zero.eq(self.i.payload.zero)]
        is_signed = Mux(draining, held_signed, self.i.payload.is_signed)
        zero = Mux(draining, held_zero, self.i.payload.zero)
        half = Signal(64)
        m.d.comb += half.eq(Mux(self.row[0], raw[64:], raw[:64]))
        for lane in range(LANES):
            byte = raw[8 * lane : 8 * lane + 8]
            value = Signal(signed(10), name=f"value_{lane}")
            m.d.comb += value.eq(Cat(byte, byte[7] & is_signed).as_signed() - zero)
            with m.If(mode == WeightMode.INT4):
                m.d.comb += value.eq(half[4 * lane : 4 * lane + 4].as_signed() - zero)
            with m.If((mode == WeightMode.DIAGONAL) & (self.row != lane)):
                m.d.comb += value.eq(0)
            m.d.comb += self.weights[lane].eq(value)
