# SPDX-License-Identifier: Apache-2.0
"""What surrounds the parameter stores of the tiles that share frames: memory, network, compute."""

from dataclasses import dataclass, field

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from emu import isa
from emu.config import BLOCK_WORDS, Config
from emu.isa import Opcode
from hdl.packets import HbmRequest, Kind
from hdl.parameter_store import ParameterStore, ReleaseOp
from hdl.ports import (
    BlockLookup,
    BlockRef,
    BlockRelease,
    FrameArrival,
    FrameRelease,
    PrefetchControl,
)
from hdl.sequencer.dispatch import LayerCommand
from sim.streams import bits_of, pack, unpack

Y = 3
MASK = (1 << LayerCommand.size) - 1


class Group(wiring.Component):
    """``members`` parameter stores side by side, tiles (0, 3), (1, 3), ..., under one policy."""

    def __init__(self, members: int):
        self._members = members
        ports = {"prefetch": In(PrefetchControl)}
        for t in range(members):
            ports |= {
                f"layer_command_{t}": In(stream.Signature(LayerCommand)),
                f"lookup_{t}": In(BlockLookup), f"release_{t}": In(BlockRelease),
                f"frame_{t}": In(FrameArrival), f"released_{t}": In(FrameRelease),
                f"release_out_{t}": Out(stream.Signature(ReleaseOp)),
                f"request_{t}": Out(stream.Signature(HbmRequest)),
                f"error_{t}": Out(1),
            }
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        for t in range(self._members):
            m.submodules[f"store_{t}"] = store = ParameterStore(Config())
            for name in ("layer_command", "lookup", "release", "frame", "released"):
                connect(m, flipped(getattr(self, f"{name}_{t}")), getattr(store, name))
            for name in ("release_out", "request"):
                connect(m, getattr(store, name), flipped(getattr(self, f"{name}_{t}")))
            connect(m, flipped(self.prefetch), store.prefetch)
            m.d.comb += [
                store.x.eq(t), store.y.eq(Y), getattr(self, f"error_{t}").eq(store.error)
            ]
        return m


@dataclass
class Tile:
    """Compute engine, network buffer and scratchpad of one member."""

    number: int
    commands: list[int] = field(default_factory=list)
    lookups: list[tuple[int, int, int]] = field(default_factory=list)  # layer, block, last
    used: list[tuple[int, int]] = field(default_factory=list)
    held: dict[tuple[int, int], int] = field(default_factory=dict)     # block -> frame address
    releases: list[list] = field(default_factory=list)                 # [countdown, layer, block]
    words: list[dict] = field(default_factory=list)                    # on their way here
    messages: list[list] = field(default_factory=list)                 # [countdown, frame]
    memory: dict[int, int] = field(default_factory=dict)


class World:
    """Steps all members cycle by cycle and checks every word that compute would read.

    ``layers[l]`` holds the LAYER fields; ``hold`` is how many blocks a tile keeps at most.
    """

    def __init__(self, dut, layers, *, members, frames, hold, base=100, policy=0, depth=4,
                 threshold=0, rng, slow=0.3):
        self.dut, self.layers, self.frames, self.hold, self.base = dut, layers, frames, hold, base
        self.rng, self.slow, self.cycle = rng, slow, 0
        self.tiles = [Tile(t) for t in range(members)]
        self.fetched: list[tuple[int, int]] = []    # (layer, block) of each fetch, in order
        self.frame_of: list[dict[tuple[int, int], int]] = [{} for _ in self.tiles]
        self.on_fetch = lambda layer, block: None
        dut.prefetch__policy.value, dut.prefetch__depth.value = policy, depth
        dut.prefetch__threshold.value = threshold
        self._presented = [False] * members
        for t in range(members):
            for name in ("layer_command", "lookup"):
                self._port(name, t, "request__valid" if name == "lookup" else "valid").value = 0
            for name in ("release", "frame", "released"):
                self._port(name, t, "valid").value = 0
            for name in ("release_out", "request"):
                self._port(name, t, "ready").value = 0

    def _port(self, name, t, part):
        return getattr(self.dut, f"{name}_{t}__{part}")

    def counter(self, t: int, name: str) -> int:
        table = getattr(self.dut, f"store_{t}").table
        return int(getattr(table, f"count_{name}").value)

    async def reset(self):
        Clock(self.dut.clk, 1, unit="ns").start()
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 3)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 70)

    def command(self, opcode: Opcode, tiles=None, **fields) -> None:
        for tile in self.tiles if tiles is None else [self.tiles[t] for t in tiles]:
            bits = int.from_bytes(isa.encode(opcode, **fields), "little")
            tile.commands.append(bits & MASK)

    def describe(self, start=None) -> None:
        """FRAMES and all layers, children before parents."""
        self.command(Opcode.FRAMES, base=self.base, count=self.frames)
        for number in sorted(self.layers, reverse=True):
            self.command(Opcode.LAYER, layer=number, start=int(number == start),
                         **self.layers[number])

    def length(self, layer, block) -> int:
        fields = self.layers[layer]
        last = block == fields["blocks"] - 1
        return ((fields["last_tiles"] if last else 15) + 1) * fields["tile_words"]

    def _verify(self, tile, layer, block, address):
        """The frame holds the block, whole."""
        start = self.layers[layer]["hbm"] + block * self.layers[layer]["stride"]
        for i in range(self.length(layer, block)):
            assert tile.memory.get(address + i) == start + i, (tile.number, layer, block, i)

    def _local(self, number):
        """(layer, block) of local block number ``number``."""
        for layer, fields in self.layers.items():
            if 0 <= number - fields["first_block"] < fields["blocks"]:
                return layer, number - fields["first_block"]
        raise AssertionError(f"no such block: {number}")

    def _request(self, tile, item):
        reply = item["reply"]
        assert int(reply["kind"]) == bits_of(Kind.FRAME)
        assert item["address"] % 16 + item["last"] < 16
        layer, block = self._local(reply["block"])
        fields = self.layers[layer]
        assert fields["leader_x"] == tile.number == reply["source_x"] and reply["source_y"] == Y
        assert isa.pack_fields(isa.RECT, reply["rect"]) == fields["rect"]
        words = (reply["tiles"] + 1) * reply["tile_words"]
        assert words == self.length(layer, block)
        offset = (reply["address"] - self.base) % BLOCK_WORDS
        assert item["address"] == fields["hbm"] + block * fields["stride"] + offset
        if offset == 0:
            self.on_fetch(layer, block)
            self.fetched.append((layer, block))
        for x in range(reply["rect"]["x0"], reply["rect"]["x1"] + 1):
            for i in range(item["last"] + 1):
                self.tiles[x].words.append(
                    {"address": reply["address"] + i, "block": reply["block"],
                     "tiles": reply["tiles"], "tile_words": reply["tile_words"],
                     "data": item["address"] + i}
                )

    def _drive(self, tile):
        """Inputs of this cycle; returns the word that arrives, the release and the message."""
        t, rng = tile.number, self.rng
        word = None
        if tile.words and rng.random() > self.slow:
            word = tile.words.pop(int(rng.integers(min(len(tile.words), 40))))
            for name in ("address", "block", "tiles", "tile_words"):
                self._port("frame", t, name).value = word[name]
        self._port("frame", t, "valid").value = int(word is not None)

        self._port("layer_command", t, "valid").value = int(bool(tile.commands))
        if tile.commands:
            self._port("layer_command", t, "payload").value = tile.commands[0]
        if not self._presented[t] and tile.lookups and not tile.commands and self.go:
            layer, block, _ = tile.lookups[0]
            room = len(tile.held) < self.hold or (layer, block) in tile.held
            waiting = any(r[1:] == [layer, block] for r in tile.releases)
            if room and not (waiting and not self.overlap) and rng.random() > self.slow:
                self._presented[t] = True
                self._port("lookup", t, "request__payload").value = pack(
                    BlockRef, dict(zip(("layer", "block", "last"), tile.lookups[0], strict=True))
                )
        self._port("lookup", t, "request__valid").value = int(self._presented[t])

        for release in tile.releases:
            release[0] -= 1
        release = None
        if tile.releases and tile.releases[0][0] <= 0:
            _, layer, block = release = tile.releases.pop(0)
            self._port("release", t, "payload").value = pack(
                BlockRef, {"layer": layer, "block": block}
            )
        self._port("release", t, "valid").value = int(release is not None)

        message = tile.messages.pop(0)[1] if tile.messages and tile.messages[0][0] <= 0 else None
        for waiting in tile.messages:
            waiting[0] -= 1
        if message is not None:
            self._port("released", t, "frame").value = message
        self._port("released", t, "valid").value = int(message is not None)
        ready = [int(rng.random() > self.slow) for _ in range(2)]
        self._port("release_out", t, "ready").value = ready[0]
        self._port("request", t, "ready").value = ready[1]
        return word, release, ready

    def _after(self, tile, word, release, ready):
        """What happened in this cycle."""
        t, port = tile.number, self._port
        if release:  # the block must have stayed until now
            _, layer, block = release
            self._verify(tile, layer, block, self.frame_of[t][layer, block])
            if not any(r[1:] == release[1:] for r in tile.releases):
                del tile.held[layer, block]
        if word:
            for (layer, block), address in tile.held.items():
                assert not address <= word["address"] < address + self.length(layer, block)
            tile.memory[word["address"]] = word["data"]
        if ready[0] and int(port("release_out", t, "valid").value):
            op = unpack(ReleaseOp, int(port("release_out", t, "payload").value))
            assert op["y"] == Y and op["x"] != t
            self.tiles[op["x"]].messages.append([int(self.rng.integers(0, 40)), op["frame"]])
        if ready[1] and int(port("request", t, "valid").value):
            self._request(tile, unpack(HbmRequest, int(port("request", t, "payload").value)))
        if tile.commands and int(port("layer_command", t, "ready").value):
            tile.commands.pop(0)
        if self._presented[t] and int(port("lookup", t, "request__ready").value):
            self._presented[t] = False
            layer, block, last = tile.lookups.pop(0)
            address = int(port("lookup", t, "address").value)
            assert (address - self.base) % BLOCK_WORDS == 0
            assert 0 <= (address - self.base) // BLOCK_WORDS < self.frames
            assert address not in [a for b, a in tile.held.items() if b != (layer, block)]
            tile.held[layer, block] = self.frame_of[t][layer, block] = address
            tile.used.append((layer, block))
            self._verify(tile, layer, block, address)
            if last:
                tile.releases.append([int(self.rng.integers(1, 80)), layer, block])
        assert int(getattr(self.dut, f"error_{t}").value) == 0

    async def step(self):
        driven = [self._drive(tile) for tile in self.tiles]
        await ReadOnly()
        for tile, (word, release, ready) in zip(self.tiles, driven, strict=True):
            self._after(tile, word, release, ready)
        await RisingEdge(self.dut.clk)
        self.cycle += 1

    go = False
    overlap = False

    async def run(self, limit=200_000):
        """All commands, then all lookups and releases, then quiet."""
        self.go = False
        while any(tile.commands for tile in self.tiles):
            await self.step()
            assert self.cycle < limit, "commands hang"
        self.go = True
        while any(tile.lookups or tile.releases for tile in self.tiles):
            await self.step()
            assert self.cycle < limit, [
                (t.number, t.lookups[:2], t.held, t.releases) for t in self.tiles
            ]
        quiet = 0
        while quiet < 60:
            busy = any(tile.words or tile.messages for tile in self.tiles)
            quiet = 0 if busy else quiet + 1
            await self.step()

    def check(self):
        """Counters agree with what was seen."""
        total = 0
        for tile in self.tiles:
            t = tile.number
            lookups = self.counter(t, "lookups")
            assert lookups == len(tile.used) > 0
            assert lookups == sum(self.counter(t, n) for n in ("hits", "late", "misses"))
            fetched = self.counter(t, "fetched_blocks")
            ahead, used = (self.counter(t, n) for n in ("prefetched_blocks", "used_prefetched"))
            assert ahead <= fetched and self.counter(t, "useful") <= used <= ahead
            assert self.counter(t, "useless") <= ahead - used
            sizes = [self.counter(t, f"{name}_words") for name in (
                "useful", "used_prefetched", "prefetched", "fetched")]
            assert sizes == sorted(sizes)
            assert used != ahead or sizes[1] == sizes[2]  # each first use is of its own length
            assert ahead != fetched or sizes[2] == sizes[3]
            total += fetched
        assert total == len(self.fetched)
        words = sum(self.length(*block) for block in self.fetched)
        assert words == sum(self.counter(tile.number, "fetched_words") for tile in self.tiles)


def make_layers(rng, shapes, *, members=1, chain=True, frequency=1):
    """LAYER fields of layers with ``shapes`` (blocks each), one after another in memory."""
    layers, block, address = {}, 0, int(rng.integers(0, 5000))
    rect = isa.pack_fields(isa.RECT, {"x0": 0, "x1": members - 1, "y0": Y, "y1": Y})
    for number, blocks in enumerate(shapes):
        tile_words = int(rng.choice([1, 8, 16], p=[0.4, 0.3, 0.3]))
        stride = 16 * tile_words + int(rng.integers(0, 40))
        layers[number] = {
            "first_block": block, "blocks": blocks, "last_tiles": int(rng.integers(16)),
            "tile_words": tile_words, "hbm": address, "stride": stride,
            "child_valid": int(chain and number + 1 < len(shapes)), "child": number + 1,
            "frequency": frequency, "rect": rect, "members": members,
            "leader_x": members - 1, "leader_y": Y,
        }
        block += blocks
        address += blocks * stride + int(rng.integers(0, 100))
    return layers


def passes(rng, layers, hold, keep=True):
    """Lookups of every layer in order: batches that are kept over some passes, then released."""
    lookups = []
    for number, fields in layers.items():
        block = 0
        while block < fields["blocks"]:
            size = min(int(rng.integers(1, hold + 1)), fields["blocks"] - block)
            repeats = int(rng.integers(1, 4)) if keep else 1
            for repeat in range(repeats):
                lookups += [(number, b, int(repeat == repeats - 1))
                            for b in range(block, block + size)]
            block += size
    return lookups


def seed():
    return np.random.default_rng(cocotb.RANDOM_SEED)
