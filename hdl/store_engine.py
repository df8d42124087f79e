# SPDX-License-Identifier: Apache-2.0
"""STORE commands: scratchpad words to HBM or to other tiles."""

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import Config
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.move_loops import LENGTH_BITS, MoveCommand, MoveLoops, Run, Side
from hdl.packets import ADDRESS_BITS, SPAD_BITS, WORD_BITS, Exit, Kind, UpFlit
from hdl.ports import ScratchpadRead, share

LINE_WORDS = 4
"""Words of a memory controller's assembly line."""
QUEUE_DEPTH = 4
"""Words read and not yet sent: three cover the way from a read to its place, one is slack."""

StoreWord = data.StructLayout({"data": WORD_BITS, "address": ADDRESS_BITS, "mask": 16, "last": 1})
"""A word for global HBM ``address``; ``last``: the next one is not in its assembly line."""

Place = data.StructLayout({"far": ADDRESS_BITS, "last": 1, "end": 1, "nothing": 1, "side": Side})
"""Where a word goes; ``end`` ends its command; ``nothing``: a turn or a command of no words."""


QueuedWord = data.StructLayout({"data": WORD_BITS, "place": Place})


class WordReader(wiring.Component):
    """Reads the words of runs from the scratchpad and queues each with its place.

    Latency: a word three cycles after its run. Throughput: one word a cycle, also over
    runs of one word. It reads only what the queue has room for.

    Members
    -------
    run: Stream of runs.
    read: Scratchpad port.
    o: Stream of words and places.
    busy: A run is not finished, or a word of it is on its way or queued.
    """

    run: In(stream.Signature(Run))
    read: Out(ScratchpadRead)
    o: Out(stream.Signature(QueuedWord))
    busy: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = Fifo(QueuedWord, QUEUE_DEPTH)
        connect(m, queue.o, wiring.flipped(self.o))

        run = self.run.payload
        active, end, side = Signal(), Signal(), Signal(Side)
        near, far, left = Signal(SPAD_BITS), Signal(ADDRESS_BITS), Signal(LENGTH_BITS)
        final, nothing, room, advance = Signal(), Signal(), Signal(), Signal()
        arriving, place, follows = Signal(), Signal(Place), Signal()
        m.d.comb += [
            final.eq(left[1:] == 0),
            nothing.eq(left == 0),
            room.eq((queue.level + arriving) < QUEUE_DEPTH),
            self.read.request.valid.eq(active & room & ~nothing),
            self.read.request.payload.eq(near),
            advance.eq(active & room & (nothing | self.read.request.ready)),
            self.run.ready.eq(~active | (advance & final)),
            # The next run begins in the line in which this one ends.
            follows.eq(self.run.valid & ~run.absent & ~end & (run.far[2:] == far[2:])),
            queue.i.valid.eq(arriving),
            queue.i.payload.data.eq(self.read.data),
            queue.i.payload.place.eq(place),
            self.busy.eq(active | arriving | (queue.level != 0)),
        ]
        m.d.sync += arriving.eq(advance)
        with m.If(advance):
            m.d.sync += [
                place.far.eq(far),
                place.last.eq((far[:2] == LINE_WORDS - 1) | (final & ~follows)),
                place.end.eq(end & final),
                place.nothing.eq(nothing),
                place.side.eq(side),
            ]
        with m.If(self.run.ready):
            m.d.sync += active.eq(self.run.valid)
            with m.If(self.run.valid):
                m.d.sync += [near.eq(run.near), far.eq(run.far),
                             left.eq(Mux(run.absent, 0, run.length))]
                m.d.sync += [end.eq(run.end), side.eq(run.side)]
        with m.Elif(advance):
            m.d.sync += [near.eq(near + 1), far.eq(far + 1), left.eq(left - 1)]
        return m


class StoreEngine(wiring.Component):
    """Sends scratchpad words to HBM (as `StoreWord`) or to the tiles of a rectangle (as `UpFlit`).

    Latency: a word four cycles after its command, without an index list. Throughput: one
    word a cycle; three cycles between commands. A command to tiles is done when its last word has
    been taken, one to HBM when all its words are acknowledged: until then nothing else is sent, but
    up to four words of the next command are read ahead. One that moves nothing is done at once, in
    order. A turn whose number is `ABSENT` moves nothing. Counters: ``words`` sent, ``refused``
    cycles, ``unacknowledged`` cycles of waiting.

    Parameters
    ----------
    config: The machine; only its types are used.

    Members
    -------
    x, y: This tile: the source of its flits.
    command: Stream of STORE commands; the next may be given before the one before is done.
    done: One cycle per command, in order.
    read: Scratchpad port, for words and index lists.
    store: Words for HBM, to the network interface.
    push: Words for tiles, to the network interface.
    ack: ``words`` of this tile's HBM words are complete.
    busy: A command is in the engine.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "x": In(4),
                "y": In(4),
                "command": In(stream.Signature(MoveCommand)),
                "done": Out(1),
                "read": Out(ScratchpadRead),
                "store": Out(stream.Signature(StoreWord)),
                "push": Out(stream.Signature(UpFlit)),
                "ack": In(wiring.Signature({"valid": Out(1), "words": Out(16)})),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.loops = loops = MoveLoops()
        m.submodules.reader = reader = WordReader()
        connect(m, wiring.flipped(self.command), loops.command)
        connect(m, loops.o, reader.run)
        share(m, self.read, loops.read, reader.read)

        word, place = reader.o.payload.data, reader.o.payload.place
        held, open_, sent = Signal(), Signal(), Signal()
        unacknowledged = Signal(32)
        m.d.comb += [
            open_.eq(reader.o.valid & ~held & ~place.nothing),
            self.store.valid.eq(open_ & ~place.side.to_tiles),
            self.push.valid.eq(open_ & place.side.to_tiles),
            reader.o.ready.eq(
                ~held
                & (place.nothing | Mux(place.side.to_tiles, self.push.ready, self.store.ready))
            ),
            sent.eq(reader.o.valid & reader.o.ready),
            self.busy.eq(~self.command.ready | reader.busy | held | self.done),
        ]
        self._fill(m, word, place)

        written = self.store.valid & self.store.ready
        m.d.sync += unacknowledged.eq(
            unacknowledged + written - Mux(self.ack.valid, self.ack.words, 0)
        )
        m.d.sync += self.done.eq(0)
        with m.If(held & (unacknowledged == 0)):
            m.d.sync += [held.eq(0), self.done.eq(1)]
        with m.Elif(sent & place.end):
            # Behind words that were sent the last turn may move nothing.
            awaited = ~place.side.to_tiles & (~place.nothing | (unacknowledged != 0))
            m.d.sync += [held.eq(awaited), self.done.eq(~awaited)]

        count(m, "words", sent & ~place.nothing)
        count(m, "refused", reader.o.valid & ~reader.o.ready & ~held)
        count(m, "unacknowledged", held)
        return m

    def _fill(self, m, word, place):
        store, push = self.store.payload, self.push.payload
        m.d.comb += [
            store.data.eq(word),
            store.address.eq(place.far),
            store.mask.eq(Const(-1, 16)),
            store.last.eq(place.last),
            push.data.eq(word),
            push.kind.eq(Kind.DATA),
            push.address.eq(place.far[:SPAD_BITS]),
            push.has_sem.eq(place.side.has_sem),
            push.sem.eq(place.side.sem),
            push.mask.eq(Const(-1, 16)),
            push.source_x.eq(self.x),
            push.source_y.eq(self.y),
            push.dest.rect.eq(place.side.rect),
            push.dest.exit.eq(Exit.CORE),
        ]
