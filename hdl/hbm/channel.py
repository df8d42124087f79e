# SPDX-License-Identifier: Apache-2.0
"""An HBM pseudo-channel behind an edge port of the mesh."""

from amaranth.hdl import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from emu.config import Config
from emu.hbm_timing import TIMINGS
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.hbm import array
from hdl.hbm.checker import Checker, Rule
from hdl.hbm.controller import HbmController
from hdl.hbm.edge import EdgeScratchpad
from hdl.hbm.packets import LINE_BITS, ColumnBus, RowBus
from hdl.hbm.requests import Requests
from hdl.hbm.write_assembler import WriteAssembler, ack_layout
from hdl.macro import MacroLibrary
from hdl.packets import DownFlit, ReqFlit, UpFlit
from hdl.storage.pager import Pager, PagerControl


class HbmChannel(wiring.Component):
    """Answers reads with self-addressed words, assembles writes into lines and acknowledges them.

    Reads leave in any order. A write is acknowledged (``Kind.ACK`` with the number of writes) when
    its line is in the write queue; every read that is requested later sees it. One flit per cycle
    each way. A read of an idle channel with its row open takes cl + 8 cycles from ``request`` to
    ``down``. With ``storage.enabled`` a `Pager` stands before the reads: a cycle more, and
    constants lie in pages of a storage device. What the mesh writes goes before its fills.

    Parameters
    ----------
    config: The machine.
    debug: Adds ``row`` and ``column``: the DRAM command bus.

    Members
    -------
    channel: Number of the pseudo-channel: names its image and dump files.
    edge_first: First line that its `EdgeScratchpad` keeps, only with ``hbm.edge_kib``.
    pager: `PagerControl`, only with ``storage.enabled``.
    request: Reads. ``write``: ``Kind.WRITE`` flits. ``down``: Words and acknowledgements.
    dump: A rising edge writes the array to its file; only when ``idle``.
    idle: Nothing was queued, assembled or on its way in the cycle before.
    error: Sticky: an illegal DRAM command was given (``rule`` says which), or what is read only
        was written.

    Raises
    ------
    TypeError: When elaborated for anything but Verilog: the DRAM array is Verilog.

    Counters
    --------
    read_words, write_words: Words to and from the mesh. ``fill_words``: Words from storage.
    """

    def __init__(self, config: Config, *, debug: bool = False):
        self._config, self._debug = config, debug
        members = {
            "channel": In(8),
            "request": In(stream.Signature(ReqFlit)),
            "write": In(stream.Signature(UpFlit)),
            "down": Out(stream.Signature(DownFlit)),
            "dump": In(1), "idle": Out(1), "error": Out(1), "rule": Out(Rule),
        }
        if config.hbm.edge_kib:
            members["edge_first"] = In(LINE_BITS)
        if config.storage.enabled:
            members["pager"] = In(PagerControl)
        if debug:
            members |= {"row": Out(RowBus), "column": Out(ColumnBus)}
        super().__init__(members)

    def elaborate(self, platform):
        if not isinstance(platform, MacroLibrary):
            raise TypeError("HbmChannel holds a Verilog DRAM array: use hdl.verilog.generate")
        m = Module()
        hbm, fills = self._config.hbm, self._config.storage.enabled
        m.submodules.requests = requests = Requests(self._config)
        m.submodules.assembler = assembler = WriteAssembler(hbm.ecc, fills)
        m.submodules.acks = acks = Fifo(ack_layout(fills), 4)
        m.submodules.controller = controller = HbmController(hbm)
        m.submodules.checker = checker = Checker(
            TIMINGS[hbm.timing], hbm.refresh)
        phy = controller.phy
        platform.add_source(array.NAME, array.verilog(hbm))
        m.submodules.array = array.instance(phy, self.channel, self.dump)

        edge, pager = None, None
        if fills:
            m.submodules.pager = pager = Pager(self._config.storage)
            self._page(m, pager, requests, assembler, acks)
        else:
            connect(m, flipped(self.request), requests.request)
            connect(m, flipped(self.write), assembler.i)
            connect(m, acks.o, requests.acks)
        if hbm.edge_kib:
            m.submodules.edge_scratchpad = edge = EdgeScratchpad(self._config)
            connect(m, requests.lines, edge.lines)
            connect(m, edge.read, controller.read)
            connect(m, controller.words, edge.words)
            connect(m, edge.o, requests.words)
            m.d.comb += edge.first.eq(self.edge_first)
        else:
            connect(m, requests.lines, controller.read)
            connect(m, controller.words, requests.words)
        connect(m, requests.down, flipped(self.down))
        flushed = assembler.o
        m.d.comb += [
            # Acknowledge a line in the cycle in which it is queued.
            controller.write.valid.eq(flushed.valid & acks.i.ready),
            controller.write.payload.eq(flushed.payload.write),
            flushed.ready.eq(controller.write.ready & acks.i.ready),
            acks.i.valid.eq(flushed.valid & flushed.ready),
            acks.i.payload.eq(flushed.payload.ack),
            assembler.fetch.eq(controller.fetch),
            assembler.beat.eq(controller.beat),
            controller.write_data.eq(assembler.data),
            controller.write_mask.eq(assembler.mask),
            controller.starved.eq(assembler.starved),
            checker.row.eq(phy.row),
            checker.column.eq(phy.column),
            self.error.eq(checker.error | (edge.error if edge else 0)
                          | (pager.error if pager else 0)),
            self.rule.eq(checker.rule),
        ]
        if edge:
            m.d.comb += [edge.written.eq(flushed.valid & flushed.ready),
                         edge.line.eq(flushed.payload.write.line)]
        m.d.sync += self.idle.eq(requests.idle & assembler.idle & controller.idle
                                 & (pager.idle if pager else 1))
        if self._debug:
            m.d.comb += [self.row.eq(phy.row), self.column.eq(phy.column)]
        count(m, "read_words", requests.words.valid & requests.words.ready)
        count(m, "write_words", self.write.valid & self.write.ready)
        return m

    def _page(self, m, pager, requests, assembler, acks):
        """The pager before the reads, and beside the mesh's writes."""
        write, fill, ack = self.write, pager.write, acks.o
        connect(m, flipped(self.pager), pager.control)
        connect(m, flipped(self.request), pager.request)
        connect(m, pager.o, requests.request)
        m.d.comb += [
            pager.number.eq(self.channel),
            requests.pinned.paged.eq(pager.paged), requests.pinned.frame.eq(pager.frame),
            pager.release.eq(requests.release), pager.released.eq(requests.released),
            pager.store.eq(write.valid), pager.store_line.eq(write.payload.address[2:]),
            assembler.i.valid.eq(write.valid | fill.valid),
            write.ready.eq(assembler.i.ready), fill.ready.eq(assembler.i.ready & ~write.valid),
            # Each source of its own, since a fill may share the number of a tile.
            assembler.i.payload.fill.eq(~write.valid),
            requests.acks.valid.eq(ack.valid & ~ack.payload.fill),
            ack.ready.eq(requests.acks.ready | ack.payload.fill),
            pager.acknowledged.eq(
                Mux(ack.valid & ack.payload.fill, ack.payload.words, 0)),
        ]
        for name in UpFlit.members:
            m.d.comb += assembler.i.payload[name].eq(
                Mux(write.valid, write.payload[name], fill.payload[name]))
        for name in ("x", "y", "words"):
            m.d.comb += requests.acks.payload[name].eq(ack.payload[name])
        count(m, "fill_words", fill.valid & fill.ready)
