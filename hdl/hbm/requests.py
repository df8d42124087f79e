# SPDX-License-Identifier: Apache-2.0
"""Requests of the mesh to line reads, and words back to flits."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.config import Config
from hdl.hbm.packets import LINE_BITS, TAG_BITS, LineRead, ReadWord
from hdl.hbm.pool import Pool
from hdl.hbm.sums import RowSums
from hdl.packets import WORD_BITS, DownFlit, Exit, Kind, Reply, ReqFlit
from hdl.storage.packets import FRAME_BITS

TAGS = 1 << TAG_BITS
Ack = data.StructLayout({"x": 4, "y": 4, "words": 8})
"""``words`` written words of tile (x, y) are queued."""
Pinned = data.StructLayout({"paged": 1, "frame": FRAME_BITS})
"""Beside a request: whether it reads a frame of pages, and which."""


class Requests(wiring.Component):
    """Splits read requests into lines and turns words read into flits that find their own way.

    A request of one to sixteen words in a 16-word segment makes one to four line reads, one per
    cycle from the cycle after it was taken. Its reply header is kept under a tag until its last
    word has left. At most 64 requests are in work. A word or acknowledgement leaves one cycle
    after it came; one flit per cycle.

    Parameters
    ----------
    config: The machine; with ``hbm.sum_rows`` rows that belong to a sum go to `RowSums`, and the
        sums leave as soon as there is no acknowledgement, before words. With ``storage.enabled``
        the frames of pages that requests read are given back.

    Members
    -------
    request: `ReqFlit`. ``lines``: `LineRead`. ``words``: `ReadWord`, in any order.
    acks: Acknowledgements; they go before words. ``down``: `DownFlit`.
    pinned: Of the request, only with ``storage.enabled``. ``release``, ``released``: The last word
        of a request that reads a frame of pages has been read, in this frame; likewise.
    idle: No request is in work and no flit waits.
    """

    def __init__(self, config: Config):
        self._config, self._paged = config, config.storage.enabled
        members = {
            "request": In(stream.Signature(ReqFlit)), "lines": Out(stream.Signature(LineRead)),
            "words": In(stream.Signature(ReadWord)), "acks": In(stream.Signature(Ack)),
            "down": Out(stream.Signature(DownFlit)), "idle": Out(1),
        }
        if self._paged:
            members |= {"pinned": In(Pinned), "release": Out(1), "released": Out(FRAME_BITS)}
        super().__init__(members)

    def elaborate(self, platform):
        m, sums = Module(), None
        if self._config.hbm.sum_rows:
            m.submodules.sums = sums = RowSums(self._config)
        m.submodules.tags = tags = Pool(TAGS)
        m.submodules.headers = headers = Memory(
            shape=data.StructLayout({"reply": Reply, "first": 4} | ({"slot": 9} if sums else {})
                                    | ({"pinned": Pinned} if self._paged else {})),
            depth=TAGS, init=[])
        m.submodules.missing = missing = Memory(shape=5, depth=TAGS, init=[])
        self._split(m, tags, headers, missing, sums)
        self._answer(m, tags, headers, missing, sums)
        m.d.comb += self.idle.eq((tags.free == TAGS) & ~self.request.valid & ~self.down.valid
                                 & ~self.acks.valid & (sums.idle if sums else 1))
        return m

    def _split(self, m, tags, headers, missing, sums):
        request, lines = self.request, self.lines
        flit = request.payload
        busy, tag = Signal(), Signal(TAG_BITS)
        line, word, left = Signal(LINE_BITS), Signal(2), Signal(5)
        header, words = headers.write_port(), missing.write_port()
        taken, fits = Signal(), Signal(5)
        room = 1
        if sums:
            is_sum = flit.reply.kind == Kind.SUM
            room = ~is_sum | sums.room
            m.d.comb += [
                sums.reply.eq(flit.reply), sums.words.eq(flit.last + 1),
                sums.open.eq(taken & is_sum), header.data.slot.eq(sums.slot),
            ]
        if self._paged:
            m.d.comb += header.data.pinned.eq(self.pinned)
        m.d.comb += [
            request.ready.eq(~busy & tags.available & room),
            taken.eq(request.valid & request.ready),
            tags.take.eq(taken),
            header.addr.eq(tags.slot), header.en.eq(taken),
            header.data.reply.eq(flit.reply), header.data.first.eq(flit.address[:4]),
            words.addr.eq(tags.slot), words.data.eq(flit.last + 1), words.en.eq(taken),
            lines.valid.eq(busy),
            lines.payload.line.eq(line), lines.payload.tag.eq(tag),
            # Words ``word`` to the end of the line or of the request.
            fits.eq(word + left),
            lines.payload.words.eq(
                (0xF << word) & Mux(fits >= 4, 0xF, (1 << fits[:2]) - 1)),
        ]
        with m.If(taken):
            m.d.sync += [
                busy.eq(1), tag.eq(tags.slot),
                Cat(word, line).eq(flit.address), left.eq(flit.last + 1),
            ]
        with m.Elif(lines.valid & lines.ready):
            m.d.sync += [
                busy.eq(fits > 4), left.eq(fits - 4), word.eq(0), line.eq(line + 1),
            ]

    def _answer(self, m, tags, headers, missing, sums):
        words, acks, down = self.words, self.acks, self.down
        read, pending = headers.read_port(domain="comb"), missing.read_port(domain="comb")
        less, free, taken = missing.write_port(), Signal(), Signal()
        header, word = read.data, words.payload
        leave, is_sum, sum_leaves = Signal(), Signal(), Signal()
        if sums:
            m.d.comb += [
                is_sum.eq(header.reply.kind == Kind.SUM),
                sums.add.eq(taken & is_sum), sums.add_slot.eq(header.slot),
                sums.index.eq(word.index - header.first), sums.data.eq(word.data),
                sums.int4.eq(header.reply.block[1]),
                sum_leaves.eq(sums.o.valid & ~acks.valid), sums.o.ready.eq(free & ~acks.valid),
            ]
        m.d.comb += [
            read.addr.eq(word.tag), pending.addr.eq(word.tag),
            free.eq(~down.valid | down.ready),
            acks.ready.eq(free),
            words.ready.eq(is_sum | free & ~acks.valid & ~sum_leaves),
            leave.eq(taken & ~is_sum),
            taken.eq(words.valid & words.ready),
            less.addr.eq(word.tag), less.data.eq(pending.data - 1), less.en.eq(taken),
            tags.give.eq(taken & (pending.data == 1)), tags.given.eq(word.tag),
        ]
        if self._paged:
            m.d.comb += [self.release.eq(tags.give & header.pinned.paged),
                         self.released.eq(header.pinned.frame)]
        # Registers by part: wide multiplexers cost simulation time, the data has none.
        data_word, reply = Signal(WORD_BITS, reset_less=True), Signal(Reply, reset_less=True)
        m.d.comb += [
            down.payload.data.eq(data_word), down.payload.reply.eq(reply),
            down.payload.dest.rect.eq(reply.rect), down.payload.dest.exit.eq(Exit.CORE),
        ]
        with m.If(free):
            m.d.sync += down.valid.eq(acks.valid | leave | sum_leaves)
        with m.If(leave):
            m.d.sync += data_word.eq(word.data)
        ack, answer = Signal(Reply), Signal(Reply)
        x, y = acks.payload.x, acks.payload.y
        m.d.comb += [
            ack.rect.x0.eq(x), ack.rect.x1.eq(x), ack.rect.y0.eq(y), ack.rect.y1.eq(y),
            ack.kind.eq(Kind.ACK), ack.address.eq(acks.payload.words),
            answer.eq(header.reply),
            answer.address.eq(header.reply.address + word.index - header.first),
        ]
        with m.If(acks.valid & free):
            m.d.sync += reply.eq(ack)
        with m.Elif(leave):
            m.d.sync += reply.eq(answer)
        if sums:
            with m.If(sum_leaves & free):
                m.d.sync += [data_word.eq(sums.o.payload.data), reply.eq(sums.o.payload.reply)]
