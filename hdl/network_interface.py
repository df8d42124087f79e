# SPDX-License-Identifier: Apache-2.0
"""A tile's network interface: requests and words out, arriving words into the tile."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from emu.config import DIRECT_BIT, SEGMENT_WORDS, STRIPED_BIT, Config
from hdl.counter import count
from hdl.mesh.arbiter import RoundRobinArbiter
from hdl.packets import (
    ADDRESS_BITS,
    SPAD_BITS,
    WORD_BITS,
    Dest,
    DownFlit,
    Exit,
    HbmRequest,
    Kind,
    ReqFlit,
    UpFlit,
)
from hdl.ports import Arrival, FrameArrival, FrameRelease, ScratchpadWrite, SignalOp

StoreWord = data.StructLayout({"data": WORD_BITS, "address": ADDRESS_BITS, "mask": 16, "last": 1})
"""A word for global HBM ``address``: bytes in ``mask``; ``last`` flushes the assembly line."""
ReleaseOp = data.StructLayout({"frame": 6, "x": 4, "y": 4})
"""Tell the leader at (x, y) that this tile has released ``frame``."""
CommandWord = data.StructLayout({"address": SPAD_BITS, "data": WORD_BITS})
"""Command word for buffer slot ``address``."""
Acknowledge = wiring.Signature({"valid": Out(1), "words": Out(16)})
"""``words`` of this tile's stores are complete in HBM; never refused."""

REQUESTERS = ("fetch", "load", "blocks")
SENDERS = ("push", "store", "signal", "release")


class ChannelMap(wiring.Component):
    """HBM word address to channel word and edge port: `channel_of` of `emu.config` in hardware.

    Interleaved addresses fold the segment number into the channel; addresses with bit `DIRECT_BIT`
    name channel and word themselves, with `STRIPED_BIT` a word of one stripe of the channel.
    Latency: combinational.

    Members
    -------
    address: Global word address.
    local: Word within the pseudo-channel. ``dest``: The channel's edge port.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__({"address": In(ADDRESS_BITS), "local": Out(25), "dest": Out(Dest)})

    def elaborate(self, platform):
        m = Module()
        bits = self._config.hbm.channels.bit_length() - 1
        offset, segment = self.address[: SEGMENT_WORDS.bit_length() - 1], self.address[4:]
        channel = Signal(max(bits, 1))
        for low in range(0, len(segment), max(bits, 1)):
            channel = channel ^ segment[low : low + bits]
        rect = self.dest.rect
        words, stripes = exact_log2(self._config.hbm.words), self._config.stripe_bits
        direct, chosen, own = Signal(), Signal(max(bits, 1)), self.address[:words]
        if self._config.has_direct:
            m.d.comb += direct.eq(self.address[DIRECT_BIT])
        striped = Cat(offset, own[words - stripes :], own[4 : words - stripes])
        named = Mux(self.address[STRIPED_BIT], striped, own)
        m.d.comb += [
            self.local.eq(Mux(direct, named, Cat(offset, segment[bits:]))),
            chosen.eq(Mux(direct, self.address[words : words + bits], channel)),
        ]
        with m.Switch(chosen):
            for number, (x, y, edge) in enumerate(self._config.channel_ports):
                with m.Case(number):
                    m.d.comb += [
                        rect.x0.eq(x), rect.x1.eq(x), rect.y0.eq(y), rect.y1.eq(y),
                        self.dest.exit.eq(Exit.NORTH if edge == "N" else Exit.SOUTH),
                    ]
        return m


class RequestPort(wiring.Component):
    """Three streams of reads onto `req`, in turn, with a limit on the words in flight.

    With ``prefetch.paced`` a request of n words is the last for n cycles: a tile takes in one word
    a cycle, and words that come faster only block others on their way.

    Latency: combinational. Throughput: a word a cycle if paced, else a request a cycle.

    Parameters
    ----------
    config: The machine; ``prefetch.outstanding`` is the limit.

    Members
    -------
    request_fetch, request_load, request_blocks: Reads by global address.
    urgent: The compute engine waits for a block; if not, blocks have a smaller limit.
    req: The same by channel and edge port.
    arrived: A word that this tile has requested is here; ``arrived_block``: one of a block.
    in_flight: Words requested that have not arrived. ``stalled``: A request waits for them.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                **{f"request_{name}": In(stream.Signature(HbmRequest)) for name in REQUESTERS},
                "req": Out(stream.Signature(ReqFlit)),
                "urgent": In(1), "arrived": In(1), "arrived_block": In(1),
                "in_flight": Out(range(config.prefetch.outstanding + 1)), "stalled": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.arbiter = arbiter = RoundRobinArbiter(len(REQUESTERS))
        m.submodules.channel_map = channel_map = ChannelMap(self._config)
        ports = [getattr(self, f"request_{name}") for name in REQUESTERS]
        chosen, room, transfer = Signal(HbmRequest), Signal(), Signal()
        words, waiting = Signal(range(SEGMENT_WORDS + 1)), Signal()
        pace, coming = Signal(range(SEGMENT_WORDS)), Signal(6)
        blocks, offered, quiet = self.request_blocks, Signal(), Signal()
        of_blocks = Signal.like(self.in_flight)
        with m.If((transfer & blocks.ready) | self.arrived_block):
            m.d.sync += of_blocks.eq(
                of_blocks + Mux(transfer & blocks.ready, words, 0) - self.arrived_block
            )
        m.d.sync += offered.eq(
            self.req.valid & ~self.req.ready & arbiter.grant[REQUESTERS.index("blocks")]
        )
        m.d.comb += [
            # What was offered stays, also when the block is no longer waited for.
            quiet.eq(of_blocks + blocks.payload.last < Mux(self.urgent,
                     self._config.prefetch.urgent, self._config.prefetch.background)),
            arbiter.requests.eq(Cat(
                port.valid & (offered | quiet) if port is blocks else port.valid
                for port in ports
            )),
            arbiter.taken.eq(transfer),
            waiting.eq(arbiter.requests.any()),
            room.eq((self.in_flight + coming <= self._config.prefetch.outstanding) & (pace == 0)),
            transfer.eq(self.req.valid & self.req.ready),
            self.req.valid.eq(waiting & room),
        ]
        for number, port in enumerate(ports):
            with m.If(arbiter.grant[number]):
                m.d.comb += [chosen.eq(port.payload), port.ready.eq(room & self.req.ready)]
        with m.If(waiting):
            m.d.comb += channel_map.address.eq(chosen.address)
        flit = self.req.payload
        m.d.comb += [
            words.eq(chosen.last + 1),
            coming.eq(words),
            flit.address.eq(channel_map.local),
            flit.last.eq(chosen.last),
            flit.reply.eq(chosen.reply),
            flit.dest.eq(channel_map.dest),
        ]
        is_sum, (close, int4) = chosen.reply.kind == Kind.SUM, chosen.reply.block[:2]
        with m.If(is_sum):  # only sums come back: two words, or four, for each
            m.d.comb += coming.eq(Mux(close, Mux(int4, words << 2, words << 1), 0))
        with m.If(transfer | self.arrived):
            m.d.sync += self.in_flight.eq(
                self.in_flight + Mux(transfer, coming, 0) - self.arrived
            )
        if self._config.prefetch.paced:
            with m.If(transfer):
                m.d.sync += pace.eq(Mux(is_sum, 0, chosen.last))
            with m.Elif(pace != 0):
                m.d.sync += pace.eq(pace - 1)
        m.d.comb += self.stalled.eq(waiting & ~room)
        return m


class SendPort(wiring.Component):
    """Four streams onto `up`, in turn; nothing that is accepted later leaves earlier.

    There is no buffer: a word is accepted when the router takes it. So a signal offered after the
    data it announces was accepted is behind that data in every queue on the way.

    Latency: combinational. Throughput: a flit a cycle.

    Members
    -------
    x, y: This tile.
    push: Flits to other tiles, complete. ``store``: Words to HBM.
    signal, release: Increments and frame releases for other tiles.
    """

    def __init__(self, config: Config):
        self._config = config
        shapes = dict(zip(SENDERS, (UpFlit, StoreWord, SignalOp, ReleaseOp), strict=True))
        super().__init__(
            {
                "x": In(4), "y": In(4),
                **{name: In(stream.Signature(shape)) for name, shape in shapes.items()},
                "up": Out(stream.Signature(UpFlit)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.arbiter = arbiter = RoundRobinArbiter(len(SENDERS))
        m.submodules.channel_map = channel_map = ChannelMap(self._config)
        ports = [getattr(self, name) for name in SENDERS]
        flit = self.up.payload
        m.d.comb += [
            arbiter.requests.eq(Cat(port.valid for port in ports)),
            arbiter.taken.eq(self.up.ready),
            self.up.valid.eq(arbiter.requests.any()),
            *(port.ready.eq(arbiter.grant[n] & self.up.ready) for n, port in enumerate(ports)),
        ]
        grant = dict(zip(SENDERS, arbiter.grant, strict=True))
        own = [flit.source_x.eq(self.x), flit.source_y.eq(self.y)]
        with m.If(grant["push"]):
            m.d.comb += flit.eq(self.push.payload)
        with m.Elif(grant["store"]):
            word = self.store.payload
            m.d.comb += [
                channel_map.address.eq(word.address),
                flit.data.eq(word.data), flit.mask.eq(word.mask), flit.last.eq(word.last),
                flit.kind.eq(Kind.WRITE), flit.address.eq(channel_map.local),
                flit.dest.eq(channel_map.dest), *own,
            ]
        with m.Elif(grant["signal"]):
            signal = self.signal.payload
            m.d.comb += [
                flit.kind.eq(Kind.SIGNAL), flit.has_sem.eq(1), flit.sem.eq(signal.sem),
                flit.dest.rect.eq(signal.rect), flit.dest.exit.eq(Exit.CORE), *own,
            ]
        with m.Elif(grant["release"]):
            release, rect = self.release.payload, flit.dest.rect
            m.d.comb += [
                flit.kind.eq(Kind.RELEASE), flit.address.eq(release.frame),
                rect.x0.eq(release.x), rect.x1.eq(release.x),
                rect.y0.eq(release.y), rect.y1.eq(release.y), *own,
            ]
        return m


class ReceivePort(wiring.Component):
    """`down` and `up` merged into one word a cycle, each handed to the part it is for.

    The two take turns. A data or frame word waits for its scratchpad bank; meanwhile words of
    other kinds on the other plane pass it, so only words behind it on its own plane wait too.

    Latency: combinational; arrivals are raised in the cycle of the scratchpad write's transfer,
    after which the word is in the bank. Throughput: a word a cycle.

    Members
    -------
    x, y: This tile.
    down_in, up_in: What the routers deliver.
    write, arrive, frame, command_word, ack, released: See `NetworkInterface`.
    arrived: A word of HBM that this tile requested was taken; ``arrived_block``: one of a block.
    pending: A word waits.
    """

    def __init__(self):
        super().__init__(
            {
                "x": In(4), "y": In(4),
                "down_in": In(stream.Signature(DownFlit)),
                "up_in": In(stream.Signature(UpFlit)),
                "write": Out(ScratchpadWrite),
                "arrive": Out(Arrival), "frame": Out(FrameArrival),
                "command_word": Out(stream.Signature(CommandWord)),
                "ack": Out(Acknowledge), "released": Out(FrameRelease),
                "arrived": Out(1), "arrived_block": Out(1), "pending": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.arbiter = arbiter = RoundRobinArbiter(2)
        down, up, reply = self.down_in.payload, self.up_in.payload, self.down_in.payload.reply
        take_down, take_up = Signal(), Signal()
        stores_down, stores_up, blocked = Signal(), Signal(), Signal()
        turn_down, turn_up = arbiter.grant
        m.d.comb += [
            arbiter.requests.eq(Cat(self.down_in.valid, self.up_in.valid)),
            arbiter.taken.eq(~blocked),
            stores_down.eq((reply.kind == Kind.DATA) | (reply.kind == Kind.FRAME)),
            stores_up.eq(up.kind == Kind.DATA),
            # Whose turn it is does not depend on the scratchpad, so the write stays as offered.
            self.write.request.valid.eq((turn_down & stores_down) | (turn_up & stores_up)),
            blocked.eq(self.write.request.valid & ~self.write.request.ready),
            take_down.eq(Mux(blocked, turn_up & self.down_in.valid & ~stores_down, turn_down)),
            take_up.eq(Mux(blocked, turn_down & self.up_in.valid & ~stores_up, turn_up)),
            self.down_in.ready.eq(take_down),
            self.up_in.ready.eq(take_up),
            self.pending.eq(self.down_in.valid | self.up_in.valid),
        ]
        word = self.write.request.payload
        with m.If(turn_down):
            m.d.comb += [word.data.eq(down.data), word.address.eq(reply.address)]
        with m.Elif(turn_up):
            m.d.comb += [word.data.eq(up.data), word.address.eq(up.address)]
        with m.If(take_down):
            self._take_down(m, down)
        with m.If(take_up):
            m.d.comb += [
                self.arrive.valid.eq((stores_up & up.has_sem) | (up.kind == Kind.SIGNAL)),
                self.arrive.sem.eq(up.sem),
                self.released.valid.eq(up.kind == Kind.RELEASE),
            ]
        m.d.comb += self.released.frame.eq(up.address)
        return m

    def _take_down(self, m, down):
        """Effects of a word from memory."""
        reply = down.reply
        mine = (reply.source_x == self.x) & (reply.source_y == self.y)
        stores = (reply.kind == Kind.DATA) | (reply.kind == Kind.FRAME)
        m.d.comb += [
            self.arrived.eq(mine & (reply.kind != Kind.ACK)),
            self.arrived_block.eq(mine & (reply.kind == Kind.FRAME)),
            self.arrive.valid.eq(stores & reply.has_sem),
            self.arrive.sem.eq(reply.sem),
            self.frame.valid.eq(reply.kind == Kind.FRAME),
            self.frame.address.eq(reply.address),
            self.frame.block.eq(reply.block),
            self.frame.tiles.eq(reply.tiles),
            self.frame.tile_words.eq(reply.tile_words),
            self.ack.valid.eq(reply.kind == Kind.ACK),
            self.ack.words.eq(reply.address),
        ]
        with m.If(reply.kind == Kind.COMMAND):
            m.d.comb += [
                self.command_word.valid.eq(1),
                self.command_word.payload.address.eq(reply.address),
                self.command_word.payload.data.eq(down.data),
            ]


class NetworkInterface(wiring.Component):
    """What a tile and the mesh have to say to each other.

    Latency: combinational in both directions; the routers hold the queues. Throughput: a request,
    a word out and a word in per cycle. Streams out of a tile go in turn; ``valid`` never depends
    on ``ready``. What arrives is taken without waiting for anything but the scratchpad.

    Counters: ``requests``, ``request_words``, ``stall_outstanding`` (cycles in which a request
    waited for words in flight); of arrivals ``words_down``, ``words_up`` and by kind
    ``command_words``, ``frame_words``, ``semaphore_words`` (SIGNAL) and ``data_words``.

    Parameters
    ----------
    config: The machine.

    Members
    -------
    x, y: This tile.
    request_fetch, request_load, request_blocks: Reads of up to 16 words of one segment. The
        requester is a member of each reply's rectangle; at most ``prefetch.outstanding`` words of
        this tile are in flight.
    push: Complete flits of the store engine. ``store``: words for HBM by global address.
    signal, release: Increments of remote semaphores; frames released, to their leader.
    urgent: The compute engine waits for a block.
    req, up: To the routers. ``down_in``, ``up_in``: From the routers.
    write: Words of kind DATA and FRAME. ``arrive``: an increment, in the cycle of the write's
        transfer or for a SIGNAL. ``frame``: a FRAME word, in the cycle of its write's transfer.
    command_word: Command words; the receiver must always be ready.
    ack, released: Stores complete; a follower's release.
    idle: No word is in flight or waits at the tile's entrance.
    """

    def __init__(self, config: Config):
        self._config = config
        parts = (RequestPort(config), SendPort(config), ReceivePort())
        inner = {"arrived", "arrived_block", "in_flight", "stalled", "pending"}
        members = {"idle": Out(1)}
        for part in parts:
            part._MustUse__silence = True  # made for its signature only
            members |= {n: k for n, k in part.signature.members.items() if n not in inner}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.request_port = requests = RequestPort(self._config)
        m.submodules.outbound = outbound = SendPort(self._config)
        m.submodules.inbound = inbound = ReceivePort()
        for part in (requests, outbound, inbound):
            for name, member in part.signature.members.items():
                if name in ("x", "y", "urgent"):
                    m.d.comb += getattr(part, name).eq(getattr(self, name))
                elif name in self.signature.members and member.is_port:
                    raise TypeError(f"{name} must be an interface")
                elif name in self.signature.members:
                    connect(m, flipped(getattr(self, name)), getattr(part, name))
        m.d.comb += [
            requests.arrived.eq(inbound.arrived),
            requests.arrived_block.eq(inbound.arrived_block),
            self.idle.eq((requests.in_flight == 0) & ~inbound.pending),
        ]
        self._count(m, requests.stalled)
        return m

    def _count(self, m, stalled):
        taken = {}
        for name in ("req", "down_in", "up_in"):
            port, taken[name] = getattr(self, name), Signal(name=f"taken_{name}")
            m.d.comb += taken[name].eq(port.valid & port.ready)
        down, up = self.down_in.payload.reply.kind, self.up_in.payload.kind
        count(m, "requests", taken["req"])
        count(m, "request_words", Mux(taken["req"], self.req.payload.last + 1, 0))
        count(m, "stall_outstanding", stalled)
        count(m, "words_down", taken["down_in"])
        count(m, "words_up", taken["up_in"])
        count(m, "command_words", self.command_word.valid)
        count(m, "frame_words", self.frame.valid)
        count(m, "ack_words", taken["down_in"] & (down == Kind.ACK))
        count(m, "release_words", taken["up_in"] & (up == Kind.RELEASE))
        count(m, "semaphore_words", taken["up_in"] & (up == Kind.SIGNAL))
        count(m, "data_words", (taken["down_in"] & (down == Kind.DATA))
              | (taken["up_in"] & (up == Kind.DATA)))
