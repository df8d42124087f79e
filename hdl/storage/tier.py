# SPDX-License-Identifier: Apache-2.0
"""The storage tier: device, page cache, and the HBM channel that holds the cached pages."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from emu.config import Config
from hdl.hbm.channel import HbmChannel
from hdl.packets import DownFlit, Kind, ReqFlit, UpFlit
from hdl.ports import PrefetchControl
from hdl.prefetch.policy import DISTANCE_BITS
from hdl.storage.device import StorageDevice
from hdl.storage.packets import (
    CACHE,
    FRAME_BITS,
    TIME_BITS,
    PageRef,
    Region,
    StorageControl,
)
from hdl.storage.page_cache import PageCache


class StorageTier(wiring.Component):
    """A client's pages in HBM, fetched from storage; the client reads and writes HBM itself.

    Client and cache share the channel, the client first. The client holds at most one page: from
    the transfer of ``lookup`` to ``release``. ``now`` counts cycles; while the client
    waits and nothing can happen before a word comes from storage, it leaps there in one cycle: what
    happens, and when, is the same, except that DRAM knows nothing of the time leapt over (its
    refreshes are due by cycles in which the channel may be busy).

    Parameters
    ----------
    config: The machine: ``storage`` and ``hbm``.

    Members
    -------
    control, prefetch, exact, describe, region, lookup, frame, peek, peek_valid, peek_reference,
    flush, unused: As of `PageCache`. ``release``: The client has done with its page.
    flushed: As of `PageCache`; also, nothing is on its way.
    request, write: The client's, with ``hdl.storage.packets.CLIENT`` as x of reply and source.
    down, down_valid: What the channel says, to client or cache; never refused.
    go: Time passes. ``leap``: It may leap. ``now``: The time.
    idle: The channel has nothing to do. ``dump``: Save the device's cells.
    error: Of the channel.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "control": In(StorageControl), "prefetch": In(PrefetchControl), "exact": In(1),
                "describe": In(1), "region": In(Region),
                "lookup": In(stream.Signature(PageRef)), "frame": Out(FRAME_BITS),
                "release": In(1),
                "peek": Out(DISTANCE_BITS), "peek_valid": In(1), "peek_reference": In(PageRef),
                "request": In(stream.Signature(ReqFlit)), "write": In(stream.Signature(UpFlit)),
                "down": Out(DownFlit), "down_valid": Out(1),
                "go": In(1), "leap": In(1), "now": Out(TIME_BITS),
                "flush": In(1), "flushed": Out(1), "idle": Out(1), "dump": In(1), "error": Out(1),
                "unused": Out(FRAME_BITS + 1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        storage = self._config.storage.model_copy(update={"enabled": False})
        alone = self._config.model_copy(update={"storage": storage})
        m.submodules.channel = channel = HbmChannel(alone)
        m.submodules.device = device = StorageDevice(storage)
        m.submodules.cache = cache = PageCache(storage)
        connect(m, cache.storage, device.request)
        connect(m, cache.writes, device.writes)
        connect(m, device.words, cache.words)
        for name in ("control", "prefetch", "lookup"):
            connect(m, flipped(getattr(self, name)), getattr(cache, name))
        connect(m, flipped(self.control), device.control)
        for name in ("exact", "describe", "region", "release", "peek_valid", "peek_reference",
                     "flush"):
            m.d.comb += getattr(cache, name).eq(getattr(self, name))
        for name in ("frame", "peek", "unused"):
            m.d.comb += getattr(self, name).eq(getattr(cache, name))
        self._hold(m, cache)
        reply = self.down.reply
        for name in ("request", "write"):
            self._share(m, getattr(self, name), getattr(cache, name), getattr(channel, name))
        m.d.comb += [
            self.down.eq(channel.down.payload), self.down_valid.eq(channel.down.valid),
            channel.down.ready.eq(1),
            cache.down.eq(self.down), cache.down_valid.eq(self.down_valid),
            cache.acknowledged.eq(Mux(
                self.down_valid & (reply.kind == Kind.ACK) & (reply.rect.x0 == CACHE),
                reply.address, 0)),
            self.flushed.eq(cache.flushed & cache.quiet & ~device.pending),
            device.now.eq(self.now), device.dump.eq(self.dump),
            self.idle.eq(channel.idle), self.error.eq(channel.error),
        ]
        asleep = (
            self.leap & self.lookup.valid & cache.quiet & device.asleep & channel.idle
            & ~channel.down.valid
        )
        with m.If(self.go):
            m.d.sync += self.now.eq(Mux(asleep, device.due, self.now + 1))
        return m

    def _hold(self, m, cache):
        """The one frame that the client reads."""
        held, holding = Signal(FRAME_BITS), Signal()
        m.d.comb += cache.held.eq(holding & (held == cache.victim))
        with m.If(self.lookup.valid & self.lookup.ready):
            m.d.sync += [held.eq(self.frame), holding.eq(1)]
        with m.Elif(self.release):
            m.d.sync += holding.eq(0)

    def _share(self, m, first, second, o):
        """A stream of two: whose flits may change while they wait, which no channel minds."""
        m.d.comb += [
            o.valid.eq(first.valid | second.valid),
            o.payload.eq(Mux(first.valid, first.payload, second.payload)),
            first.ready.eq(o.ready),
            second.ready.eq(o.ready & ~first.valid),
        ]
