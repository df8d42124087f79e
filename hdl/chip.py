# SPDX-License-Identifier: Apache-2.0
"""The whole machine: tiles, mesh links, HBM pseudo-channels on the north and south edges."""

from amaranth.hdl import Cat, Const, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import Config
from hdl.hbm.channel import HbmChannel
from hdl.hbm.packets import LINE_BITS
from hdl.macro import Macro, plain, plain_signature
from hdl.ports import PrefetchControl
from hdl.sequencer.sequencer import STEP_BITS
from hdl.storage.pager import PagerControl
from hdl.tile import PLANES, Tile, tile_signature

TOP = "headrace"
"""Name of the top module."""
STEPS = {"north": (0, -1, "south"), "south": (0, 1, "north"), "west": (-1, 0, "east"),
         "east": (1, 0, "west")}
"""Side -> (dx, dy, the neighbour's side)."""


class Chip(wiring.Component):
    """The machine of ``config``.

    Members
    -------
    start: Let every tile fetch its commands (level; raise it after reset).
    done: Every tile is done and every channel has written what it acknowledged.
    error: Some tile or channel met an impossible condition.
    done_tiles, error_tiles: One bit per tile, index y*cols + x.
    error_channels: One bit per pseudo-channel.
    prefetch: Policy registers of all prefetch units.
    dump: A rising edge writes the DRAM arrays to files (simulation).
    step: Steps of the program that have begun in tile (0, 0): when layers begin.
    edge_first: First line of every channel that the scratchpad at the edge keeps, only with
        ``hbm.edge_kib``.
    status: Eight bits per tile, see `hdl.tile.Tile`.
    pager: `hdl.storage.pager.PagerControl` of all channels, only with ``storage.enabled``.
    """

    def __init__(self, config: Config):
        self._config = config
        tiles = config.mesh.tiles
        members = {
            "start": In(1), "dump": In(1), "prefetch": In(PrefetchControl),
            "done": Out(1), "error": Out(1), "status": Out(8 * tiles),
            "done_tiles": Out(tiles), "error_tiles": Out(tiles),
            "error_channels": Out(config.hbm.channels), "step": Out(STEP_BITS),
        }
        if config.hbm.edge_kib:
            members["edge_first"] = In(LINE_BITS)
        if config.storage.enabled:
            members["pager"] = In(PagerControl)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        tiles = self._tiles(m)
        self._links(tiles)
        channels = self._channels(m, tiles)
        m.d.comb += [
            self.done_tiles.eq(Cat(tile.done for tile in tiles.values())),
            self.error_tiles.eq(Cat(tile.error for tile in tiles.values())),
            self.error_channels.eq(Cat(channel.error for channel in channels)),
            self.step.eq(tiles[0, 0].step),
            self.status.eq(Cat(tile.status for tile in tiles.values())),
            # Acknowledged stores may still wait in a channel's write queue.
            self.done.eq(self.done_tiles.all() & Cat(c.idle for c in channels).all()),
            self.error.eq(self.error_tiles.any() | self.error_channels.any()),
        ]
        return m

    def _tiles(self, m):
        config, tiles, signature = self._config, {}, plain(tile_signature())
        for y in range(config.mesh.rows):
            for x in range(config.mesh.cols):
                label = f"tile_{x}_{y}"
                tile = Macro("tile", lambda: Tile(config), signature, label)
                m.submodules[label] = tiles[x, y] = tile
                m.d.comb += [
                    tile.x.eq(Const(x, 4)),
                    tile.y.eq(Const(y, 4)),
                    tile.index.eq(Const(y * config.mesh.cols + x, 8)),
                    tile.start.eq(self.start),
                ]
                connect(m, wiring.flipped(self.prefetch), tile.prefetch)
        return tiles

    def _links(self, tiles):
        for (x, y), tile in tiles.items():
            for side, (dx, dy, facing) in STEPS.items():
                neighbour = tiles.get((x + dx, y + dy))
                if neighbour is not None:
                    for plane in PLANES:
                        neighbour.join(f"{plane}_in_{facing}", tile, f"{plane}_out_{side}")

    def _channels(self, m, tiles):
        config, channels = self._config, []
        signature = plain_signature(lambda: HbmChannel(config))
        for number, (x, y, edge) in enumerate(config.channel_ports):
            label = f"hbm_{number}"
            channel = Macro("hbm_channel", lambda: HbmChannel(config), signature, label)
            m.submodules[label] = channel
            side, tile = "north" if edge == "N" else "south", tiles[x, y]
            channel.join("request", tile, f"req_out_{side}")
            channel.join("write", tile, f"up_out_{side}")
            tile.join(f"down_in_{side}", channel, "down")
            m.d.comb += [channel.channel.eq(number), channel.dump.eq(self.dump)]
            if config.hbm.edge_kib:
                m.d.comb += channel.edge_first.eq(self.edge_first)
            if config.storage.enabled:
                connect(m, wiring.flipped(self.pager), channel.pager)
            channels.append(channel)
        return channels
