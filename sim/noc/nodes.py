# SPDX-License-Identifier: Apache-2.0
"""A mesh with a traffic generator and a checker at every node, all of it hardware.

What a flit carries in `data`: see `Stamp`. A generator draws its random numbers from a 64-bit
xorshift register (Marsaglia, "Xorshift RNGs", 2003).
"""

from functools import partial, reduce
from operator import add

from amaranth.hdl import Array, Cat, ClockSignal, Const, Instance, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from emu.config import Config
from hdl.fifo import Fifo
from hdl.macro import Macro, plain_signature
from hdl.mesh.plane import Mesh
from hdl.packets import Rect, UpFlit
from sim.noc.traffic import Pattern

SOURCE_QUEUE = 4096
"""Packets that wait at a node; more are not created but counted as ``lost``."""
CHANCE = 1 << 16
"""Scale of probabilities."""

Stamp = data.StructLayout({"time": 32, "sequence": 28, "source": 8, "measured": 1})
_Packet = data.StructLayout({"time": 32, "measured": 1, "rect": Rect})

READER = "headrace_packet_reader"
_READER_TEXT = """\
// SPDX-License-Identifier: Apache-2.0
// The next packet of +packets=FOLDER/node_NUMBER.bin: 64 bits each, cycle, flits, destination.
module headrace_packet_reader(
  input clk,
  input [7:0] number,
  input next,
  output reg valid,
  output [31:0] cycle,
  output [15:0] flits,
  output [15:0] destination
);
  reg [8*512-1:0] folder, name;
  reg [63:0] record;
  reg opened;
  integer file, got;
  assign cycle = record[63:32];
  assign flits = record[31:16];
  assign destination = record[15:0];
  initial begin
    opened = 0;
    valid = 0;
    record = 0;
    file = 0;
  end
  always @(posedge clk) begin
    if (!opened) begin
      opened <= 1;
      if ($value$plusargs("packets=%s", folder)) begin
        $sformat(name, "%0s/node_%0d.bin", folder, number);
        file = $fopen(name, "rb");
      end
    end
    if (file != 0 && (!opened || next)) begin
      got = $fread(record, file);
      valid <= got == 8;
    end
  end
endmodule
"""

Control = wiring.Signature(
    {
        "now": Out(32), "clear": Out(1), "enable": Out(1), "measure": Out(1),
        "pattern": Out(Pattern), "hot_x": Out(4), "hot_y": Out(4), "seed": Out(32),
        "rate": Out(17), "multicast": Out(17),
    }
)
"""Of all nodes. ``clear``: zero the counts and take the seed. ``enable``: create packets, each node
one a cycle with chance ``rate``; ``multicast``: the chance that one goes to a random rectangle.
``measure``: packets created now are measured."""


class Generator(wiring.Component):
    """Creates packets and queues them until the mesh takes them.

    Latency: a packet created in cycle t is offered in t if none waits before it.

    Members
    -------
    x, y, number: This node.
    o: To the mesh.
    injected, checksum: Receivers of all flits that the mesh took, and their sequence numbers added
        up once for each receiver.
    measured: Receivers of measured packets, counted as these are created.
    accepted: Flits that the mesh took while ``measure`` was high.
    lost: Packets not created for lack of room.
    waiting: Packets are queued, or a trace goes on.
    """

    def __init__(self, config: Config):
        self._mesh = config.mesh
        super().__init__(
            {
                "x": In(4), "y": In(4), "number": In(8), "control": In(Control),
                "o": Out(stream.Signature(UpFlit)),
                "injected": Out(32), "checksum": Out(48), "measured": Out(32),
                "accepted": Out(32), "lost": Out(32), "waiting": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        control = self.control
        random, more = self._random(m)
        m.submodules.queue = queue = Fifo(_Packet, SOURCE_QUEUE)
        wanted, rect, time = Signal(), Signal(Rect), Signal(32)
        traced = self._trace(m, platform)
        is_trace = control.pattern == Pattern.TRACE
        alone = (control.pattern == Pattern.BROADCAST) | (control.pattern == Pattern.SCATTER)
        here = (self.x == control.hot_x) & (self.y == control.hot_y)
        drawn = Signal()
        m.d.comb += [
            drawn.eq((random[:16] < control.rate) & (~alone | here)),
            wanted.eq(control.enable & Mux(is_trace, traced["due"], drawn)),
            time.eq(Mux(is_trace, traced["cycle"], control.now)),
        ]
        self._destination(m, rect, random, more, traced["destination"], wanted & queue.i.ready)

        packet = data.View(_Packet, Signal(_Packet.size))
        created, sent, bypass = Signal(), Signal(), Signal()
        m.d.comb += [
            traced["taken"].eq(created & is_trace),
            created.eq(wanted & queue.i.ready),
            bypass.eq(created & ~queue.o.valid),
            self.o.valid.eq(queue.o.valid | created),
            sent.eq(self.o.valid & self.o.ready),
            queue.i.valid.eq(created & ~(bypass & self.o.ready)),
            queue.i.payload.time.eq(time),
            queue.i.payload.measured.eq(control.measure | is_trace),
            queue.i.payload.rect.eq(rect),
            queue.o.ready.eq(self.o.ready),
            packet.eq(Mux(queue.o.valid, queue.o.payload.as_value(), queue.i.payload.as_value())),
            self.waiting.eq(queue.o.valid | (is_trace & traced["more"])),
        ]
        sequence = Signal(28, init=1)
        stamp, flit = data.View(Stamp, Signal(Stamp.size)), self.o.payload
        m.d.comb += [
            stamp.time.eq(packet.time), stamp.measured.eq(packet.measured),
            stamp.sequence.eq(sequence), stamp.source.eq(self.number),
            flit.data.eq(stamp.as_value()), flit.dest.rect.eq(packet.rect),
            flit.source_x.eq(self.x), flit.source_y.eq(self.y),
        ]
        receivers, new_receivers = Signal(9), Signal(9)
        m.d.comb += [receivers.eq(_members(m, packet.rect, "sent")),
                     new_receivers.eq(_members(m, rect, "new"))]
        with m.If(sent):
            m.d.sync += sequence.eq(sequence + 1)
        with m.If(control.clear):
            m.d.sync += [register.eq(0) for register in (
                self.injected, self.checksum, self.measured, self.accepted, self.lost)]
        with m.Else():
            with m.If(sent):
                m.d.sync += [
                    self.injected.eq(self.injected + receivers),
                    self.checksum.eq(self.checksum + receivers * sequence),
                    self.accepted.eq(self.accepted + (control.measure | is_trace)),
                ]
            with m.If(created & (control.measure | is_trace)):
                m.d.sync += self.measured.eq(self.measured + new_receivers)
            m.d.sync += self.lost.eq(self.lost + (wanted & ~queue.i.ready))
        return m

    def _random(self, m):
        state = Signal(64, init=0x9E3779B97F4A7C15)
        a, b, c = Signal(64), Signal(64), Signal(64)
        m.d.comb += [
            a.eq(state ^ (state << 13)), b.eq(a ^ (a >> 7)), c.eq(b ^ (b << 17)),
        ]
        m.d.sync += state.eq(c)
        with m.If(self.control.clear):  # never 0: the constant below sees to it
            m.d.sync += state.eq(Cat(self.control.seed, self.number, Const(0xA5C3F1, 24)))
        return state, c

    def _destination(self, m, rect, random, more, traced, created):
        control, cols, rows = self.control, self._mesh.cols, self._mesh.rows
        # Fractions of the random word, scaled to the size.
        xs = [Signal(4, name=f"random_x{k}") for k in range(2)]
        ys = [Signal(4, name=f"random_y{k}") for k in range(2)]
        for k in range(2):
            m.d.comb += [
                xs[k].eq((random[16 + 22 * k : 27 + 22 * k] * cols) >> 11),
                ys[k].eq((random[27 + 22 * k : 38 + 22 * k] * rows) >> 11),
            ]
        to_x, to_y, turn = Signal(4), Signal(4), Signal(8)
        m.d.comb += [to_x.eq(xs[0]), to_y.eq(ys[0])]
        with m.If(created & (control.pattern == Pattern.SCATTER)):
            m.d.sync += turn.eq(Mux(turn == cols * rows - 1, 0, turn + 1))
        with m.Switch(control.pattern):
            with m.Case(Pattern.TRANSPOSE):
                m.d.comb += [to_x.eq(self.y), to_y.eq(self.x)]
            with m.Case(Pattern.NEIGHBOR):
                m.d.comb += [to_x.eq(Mux(self.x == cols - 1, 0, self.x + 1)),
                             to_y.eq(Mux(self.y == rows - 1, 0, self.y + 1))]
            with m.Case(Pattern.EXCHANGE):
                m.d.comb += [to_x.eq(self.x ^ 1), to_y.eq(self.y)]
            with m.Case(Pattern.HOTSPOT):
                m.d.comb += [to_x.eq(control.hot_x), to_y.eq(control.hot_y)]
            with m.Case(Pattern.SCATTER):
                m.d.comb += self._at(turn, to_x, to_y)
            with m.Case(Pattern.TRACE):
                m.d.comb += self._at(traced[:8], to_x, to_y)
        m.d.comb += [rect.x0.eq(to_x), rect.x1.eq(to_x), rect.y0.eq(to_y), rect.y1.eq(to_y)]
        with m.If(control.pattern == Pattern.BROADCAST):
            m.d.comb += [rect.x0.eq(0), rect.x1.eq(cols - 1), rect.y0.eq(0), rect.y1.eq(rows - 1)]
        with m.Elif((control.pattern != Pattern.TRACE) & (more[48:64] < control.multicast)):
            for axis, (a, b) in (("x", xs), ("y", ys)):
                m.d.comb += [
                    rect[f"{axis}0"].eq(Mux(a < b, a, b)), rect[f"{axis}1"].eq(Mux(a < b, b, a)),
                ]
            m.d.comb += [rect.xs.eq(more[40:42] & more[42:44]),
                         rect.ys.eq(more[44:46] & more[46:48])]

    def _at(self, number, to_x, to_y):
        """Coordinates of node ``number``."""
        cols, count = self._mesh.cols, self._mesh.tiles
        return [
            to_x.eq(Array(Const(n % cols, 4) for n in range(count))[number]),
            to_y.eq(Array(Const(n // cols, 4) for n in range(count))[number]),
        ]

    def _trace(self, m, platform):
        """The packets of this node's file: one flit after another, none before its cycle."""
        valid, cycle, flits, destination = Signal(), Signal(32), Signal(16), Signal(16)
        taken, done, last = Signal(), Signal(16), Signal()
        m.d.comb += last.eq(taken & (done == flits - 1))
        with m.If(taken):
            m.d.sync += done.eq(Mux(last, 0, done + 1))
        platform.add_source(READER, _READER_TEXT)
        m.submodules.reader = Instance(
            READER, i_clk=ClockSignal(), i_number=self.number, i_next=last, o_valid=valid,
            o_cycle=cycle, o_flits=flits, o_destination=destination,
        )
        due = Signal()
        m.d.comb += due.eq(valid & (self.control.now >= cycle))
        return {"due": due, "cycle": cycle, "destination": destination, "taken": taken,
                "more": valid}


def _members(m, rect, name):
    """How many nodes a rectangle has."""
    count = []
    for axis in "xy":
        steps = Signal(4, name=f"{name}_steps_{axis}")
        m.d.comb += steps.eq((rect[f"{axis}1"] - rect[f"{axis}0"]) >> rect[f"{axis}s"])
        count.append(steps + 1)
    return count[0] * count[1]


class Receiver(wiring.Component):
    """Takes a flit in every cycle and checks it.

    A flit counts as ``reordered`` if its sequence number is not above that of the last one from the
    same source, so a duplicate does too; as ``stray`` if this node is not in its rectangle. With
    neither, as many flits as were injected and an equal checksum each receiver has got each flit
    that was sent to it once.

    Members
    -------
    delivered, checksum: Flits and their sequence numbers, added up.
    measured, latency, slowest: Measured flits, cycles from creation to delivery: sum, most.
    reordered, stray: See above.
    """

    def __init__(self, config: Config):
        self._nodes = config.mesh.tiles
        super().__init__(
            {
                "x": In(4), "y": In(4), "control": In(Control), "i": In(stream.Signature(UpFlit)),
                "delivered": Out(32), "checksum": Out(48), "measured": Out(32),
                "latency": Out(40), "slowest": Out(32), "reordered": Out(32), "stray": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        stamp = data.View(Stamp, self.i.payload.data[: Stamp.size])
        rect = self.i.payload.dest.rect
        m.submodules.last = last = Memory(shape=28, depth=max(2, self._nodes), init=[])
        write, read = last.write_port(), last.read_port(domain="comb")
        inside, latency = Signal(), Signal(32)
        seen = Signal(self._nodes)  # the memory's contents count from the first flit on
        checks = []
        for axis, here in (("x", self.x), ("y", self.y)):
            low, high, stride = rect[f"{axis}0"], rect[f"{axis}1"], rect[f"{axis}s"]
            skipped = (here - low) & ((Const(1, 4) << stride) - 1)
            checks += [low <= here, here <= high, skipped[:4] == 0]
        m.d.comb += [
            self.i.ready.eq(1),
            read.addr.eq(stamp.source), write.addr.eq(stamp.source),
            write.data.eq(stamp.sequence), write.en.eq(self.i.valid),
            inside.eq(Cat(checks).all()),
            latency.eq(self.control.now - stamp.time),
        ]
        counts = (self.delivered, self.checksum, self.measured, self.latency, self.slowest,
                  self.reordered, self.stray)
        with m.If(self.control.clear):
            m.d.sync += [register.eq(0) for register in counts]
        with m.If(self.i.valid):
            m.d.sync += seen.eq(seen | (Const(1, 1) << stamp.source))
        with m.If(self.i.valid & ~self.control.clear):
            m.d.sync += [
                self.delivered.eq(self.delivered + 1),
                self.checksum.eq(self.checksum + stamp.sequence),
                self.reordered.eq(self.reordered + (
                    seen.bit_select(stamp.source, 1) & (stamp.sequence <= read.data))),
                self.stray.eq(self.stray + ~inside),
            ]
            with m.If(stamp.measured):
                m.d.sync += [
                    self.measured.eq(self.measured + 1),
                    self.latency.eq(self.latency + latency),
                    self.slowest.eq(Mux(latency > self.slowest, latency, self.slowest)),
                ]
        return m


SUMS = ("injected", "sent_checksum", "created", "lost", "delivered", "got_checksum", "measured",
        "latency", "reordered", "stray")
"""Totals of `Nodes`: those of the generators, then those of the receivers."""


class Nodes(wiring.Component):
    """The X-first plane of ``config``'s mesh between generators and receivers.

    Members
    -------
    control: Of all generators, but ``now``, which runs since ``clear``.
    now: Cycles since ``clear``.
    accepted: Flits that each node sent while ``measure`` was high, 32 bits a node.
    slowest: The largest measured latency of each node, 32 bits a node.
    SUMS: Totals over all nodes; ``created`` counts receivers of measured packets.
    settled: All measured flits have arrived; not while ``measure``.
    empty: All flits have arrived and no node waits; not while ``enable``.
    over: The same while packets of traces are created, after the first of them.
    """

    def __init__(self, config: Config):
        self._config = config
        nodes = config.mesh.tiles
        super().__init__(
            {
                **{name: In(member.shape) for name, member in Control.members.items()
                   if name != "now"},
                "now": Out(32), "accepted": Out(32 * nodes), "slowest": Out(32 * nodes),
                **{name: Out(56) for name in SUMS},
                "settled": Out(1), "empty": Out(1), "over": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, mesh = self._config, self._config.mesh
        m.submodules.mesh = network = Mesh("up", config)
        generators, receivers = [], []
        m.d.sync += self.now.eq(Mux(self.clear, 0, self.now + 1))
        for y in range(mesh.rows):
            for x in range(mesh.cols):
                pair = [
                    Macro(name, partial(kind, config), plain_signature(partial(kind, config)),
                          f"{name}_{x}_{y}")
                    for name, kind in (("generator", Generator), ("receiver", Receiver))
                ]
                generator, receiver = pair
                m.submodules[f"generator_{x}_{y}"] = generator
                m.submodules[f"receiver_{x}_{y}"] = receiver
                generators.append(generator)
                receivers.append(receiver)
                m.d.comb += generator.number.eq(y * mesh.cols + x)
                for part in pair:
                    m.d.comb += [part.x.eq(x), part.y.eq(y)]
                    m.d.comb += [getattr(part.control, name).eq(getattr(self, name))
                                 for name in Control.members]
                core_in = getattr(network, f"core_in_{x}_{y}")
                core_out = getattr(network, f"core_out_{x}_{y}")
                m.d.comb += [
                    core_in.valid.eq(generator.o.valid), generator.o.ready.eq(core_in.ready),
                    core_in.payload.eq(generator.o.payload),
                    receiver.i.valid.eq(core_out.valid), core_out.ready.eq(receiver.i.ready),
                    receiver.i.payload.eq(core_out.payload.as_value()),
                ]
        self._totals(m, generators, receivers)
        return m

    def _totals(self, m, generators, receivers):
        names = dict(zip(SUMS, (
            "injected", "checksum", "measured", "lost", "delivered", "checksum", "measured",
            "latency", "reordered", "stray"), strict=True))
        for number, (total, name) in enumerate(names.items()):
            parts = generators if number < 4 else receivers
            m.d.comb += getattr(self, total).eq(reduce(add, (getattr(p, name) for p in parts)))
        waiting = Cat(generator.waiting for generator in generators).any()
        m.d.comb += [
            self.accepted.eq(Cat(generator.accepted for generator in generators)),
            self.slowest.eq(Cat(receiver.slowest for receiver in receivers)),
            self.settled.eq(~self.measure & (self.created == self.measured)),
            self.over.eq(~waiting & (self.injected == self.delivered) & (self.injected != 0)),
            self.empty.eq(~self.enable & ~waiting & (self.injected == self.delivered)),
        ]


class MeshBench(wiring.Component):
    """`Nodes` as a module below the top: evaluated as a whole, not stepped macro by macro, because
    a generator's offer depends on its inputs in the same cycle."""

    def __init__(self, config: Config):
        self._nodes = Nodes(config)
        super().__init__(self._nodes.signature)

    def elaborate(self, platform):
        m = Module()
        m.submodules.nodes = self._nodes
        connect(m, flipped(self), self._nodes)
        return m
