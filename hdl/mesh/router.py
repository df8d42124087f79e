# SPDX-License-Identifier: Apache-2.0
"""A mesh router for single-flit packets with multicast rectangles."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from emu.config import Config
from hdl.counter import count
from hdl.mesh.arbiter import WEIGHT_BITS, WeightedArbiter, make_arbiter
from hdl.mesh.queues import QueuePointers
from hdl.mesh.route import ORDERS, SIDES, compare, compared, connections, route
from hdl.packets import DownFlit, ReqFlit, UpFlit

SMALL = 16
"""Routers up to which weighted arbiters are patient: far nodes of larger meshes need their shares
at any contention, and the whole saturates later."""


class Router(wiring.Component):
    """Router of one plane: input queues, dimension-order routing, fair arbitration per output.

    A flit's destination is a rectangle with strides and an exit. In X-first order it covers the
    columns of the rectangle along its source's row, forks north and south in each member column
    and is delivered in each member row; in Y-first order the axes change places. A fork is
    asynchronous: the head flit of an input takes each of its outputs as it becomes free and leaves
    the queue when all are served. A flit with an exit goes to one router and leaves there by that
    side. A rectangle that contains no router on a copy's way ends the copy.

    Deadlock: the channels of a plane are ordered, inputs at the mesh's edge and from the core <
    first dimension < second dimension < outputs to the core and out of the mesh. Within a
    dimension a flit keeps its direction, so channels are ordered by position. A queued flit, each
    branch of a fork included, waits only for channels later in this order (`connections` has no
    other turns; a second-dimension input turns into the first only at the boundary, where it is an
    edge input, and into a first-dimension exit only where that leads out of the mesh), and the
    branches of a fork wait for each other only in that the queue holds the flit until the last has
    gone. The last class always drains: endpoints take what arrives without waiting for the mesh.
    So the flit that holds the greatest channel can move. `tests/hdl/test_mesh.py` checks the graph.

    Latency: one cycle per hop without contention, injection to delivery included: ``hops + 1``
    cycles from `in_core` to `out_core`. Throughput: a flit per cycle and output. ``valid`` of an
    output depends on registers only, ``ready`` of an input on its queue's level only.

    The flits of all inputs lie in one memory, which each output reads by an index: one wide read
    per output where queues with a crossbar would take one per input and a multiplexer on top. With
    each lie the comparisons of its destination with this router, made as it arrives.

    Parameters
    ----------
    flit: Layout of a flit; has a member ``dest`` of shape `hdl.packets.Dest`.
    order: ``"x_first"`` or ``"y_first"``.
    cols, rows: Size of the mesh.
    depth: Flits buffered per input.
    core_input, core_output: Whether the tile sends, receives.
    edges, exits: Sides of the mesh on which something sends into it, receives from it; see
        `hdl.mesh.route.connections`. At other boundaries nothing may send or be addressed.
    arbiter: ``"round_robin"``, ``"age"`` or ``"weighted"`` by the cores behind each input.

    Members
    -------
    x, y: This router's coordinates (constant in operation).
    in_north, in_south, in_west, in_east, in_core, out_*: Streams of ``flit``.
    busy: A flit is here or arrives.

    Raises
    ------
    TypeError: If ``flit`` is not a layout with ``dest``.
    ValueError: If ``order`` or ``depth`` is impossible.
    """

    def __init__(
        self, flit: data.StructLayout, order: str, *, cols: int, rows: int, depth: int = 4,
        core_input: bool = True, core_output: bool = True,
        edges: tuple[str, ...] = (), exits: tuple[str, ...] = (), arbiter: str = "round_robin",
    ):
        if not isinstance(flit, data.StructLayout) or "dest" not in flit.members:
            raise TypeError(f"flit must be a StructLayout with a member dest, not {flit!r}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth!r}")
        self._flit, self._order, self._cols, self._rows = flit, order, cols, rows
        self._depth, self._edges, self._exits, self._arbiter = depth, edges, exits, arbiter
        # In this order the inputs of an output are next to each other.
        first, second = ORDERS[order]
        ring = (second[0], first[0], "core", first[1], second[1])
        self._inputs = tuple(name for name in ring if core_input or name != "core")
        self._outputs = SIDES + ("core",) * core_output
        super().__init__(
            {
                "x": In(4), "y": In(4), "busy": Out(1),
                **{f"in_{name}": In(stream.Signature(flit)) for name in self._inputs},
                **{f"out_{name}": Out(stream.Signature(flit)) for name in self._outputs},
            }
        )

    @property
    def order(self) -> str:
        return self._order

    @property
    def edges(self) -> tuple[str, ...]:
        return self._edges

    @property
    def exits(self) -> tuple[str, ...]:
        return self._exits

    @property
    def connections(self) -> dict[str, tuple[str, ...]]:
        """Output -> inputs that may feed it."""
        return connections(self._order, self._inputs, self._outputs, self._edges, self._exits)

    def elaborate(self, platform):
        m = Module()
        inputs, outputs = len(self._inputs), len(self._outputs)
        m.submodules.queues = queues = QueuePointers(inputs, self._depth)
        bits = compared(self._exits)
        m.submodules.flits = flits = Memory(
            shape=self._flit, depth=queues.slots * inputs, init=[]
        )

        # Everything about the heads of all inputs is done on vectors with a bit per input, and
        # what is known of a flit is found as it is stored: this makes routers cheap to simulate.
        heads = Signal(inputs * len(bits))
        columns = [self._input(m, i, queues, flits) for i in range(inputs)]
        m.d.comb += heads.eq(reduce(or_, columns))
        vectors = [heads[k * inputs : (k + 1) * inputs] for k in range(len(bits))]
        rows = self._route(m, dict(zip(bits, vectors, strict=True)))
        served = Signal(inputs * outputs)  # outputs (rows) that the head of an input has taken
        wants, leaves = [], []
        for o, name in enumerate(self._outputs):
            row = Signal(inputs, name=f"wants_{name}")
            m.d.comb += row.eq(rows[name] & ~served[o * inputs : (o + 1) * inputs])
            wants.append(row)
            leaves.append(self._output(m, name, row, queues, flits))
        remaining = reduce(or_, (want & ~leave for want, leave in zip(wants, leaves, strict=True)))
        valids = Cat(getattr(self, f"in_{name}").valid for name in self._inputs)
        m.d.comb += [
            self.busy.eq(Cat(valids, queues.valid).any()),
            queues.push.eq(valids & queues.ready),
            queues.pop.eq(queues.valid & ~remaining),
        ]
        with m.If(queues.valid.any()):
            m.d.sync += served.eq((served | Cat(leaves)) & ~queues.pop.replicate(outputs))
        return m

    def _input(self, m, number, queues, flits):
        """Write side of an input; returns the bits of its head flit, spread to its columns."""
        name, inputs = self._inputs[number], len(self._inputs)
        port = getattr(self, f"in_{name}")
        bits = list(compare(port.payload.dest, self.x, self.y, self._exits).values())
        spread = Cat(Cat(bit, Const(0, inputs - 1)) for bit in bits)  # the zeros need no gates
        m.submodules[f"bits_{name}"] = memory = Memory(
            shape=inputs * (len(bits) - 1) + 1, depth=queues.slots, init=[]
        )
        write, write_bits = flits.write_port(), memory.write_port()
        read = memory.read_port(domain="comb")
        m.d.comb += [
            port.ready.eq(queues.ready[number]),
            write.en.eq(queues.push[number]),
            write.addr.eq(Cat(queues.tail(number), Const(number, ceil_log2(inputs)))),
            write.data.eq(port.payload),
            write_bits.en.eq(queues.push[number]),
            write_bits.addr.eq(queues.tail(number)),
            write_bits.data.eq(spread),
            read.addr.eq(queues.head(number)),
        ]
        return Mux(queues.valid[number], read.data, 0) << number

    def _route(self, m, bits):
        boundary = {
            "north": self.y == 0, "south": self.y == self._rows - 1,
            "west": self.x == 0, "east": self.x == self._cols - 1,
        }
        return route(
            m, self._order, bits, inputs=self._inputs, feeds=self.connections,
            boundary={side: boundary[side] for side in self._edges},
        )

    def _sources_behind(self, m, name, output):
        """How many cores send through input ``name``, at least 1."""
        weight = Signal(WEIGHT_BITS, name=f"weight_{name}_{output}")
        before = {"west": self.x, "east": self._cols - 1 - self.x,
                  "north": self.y, "south": self._rows - 1 - self.y, "core": Const(1)}[name]
        first, second = ORDERS[self._order]
        line = self._cols if first == ("west", "east") else self._rows
        if name in second:
            before = before * line
        m.d.comb += weight.eq(Mux(before == 0, 1, before))
        return weight

    def _output(self, m, name, wants, queues, flits):
        """Arbitration of an output and read of the chosen flit; returns the inputs served now."""
        port, sources = getattr(self, f"out_{name}"), self.connections[name]
        m.submodules[f"arbiter_{name}"] = arbiter = make_arbiter(self._arbiter, len(sources))
        read = flits.read_port(domain="comb")
        grants = dict(zip(sources, arbiter.grant, strict=True))
        grant = Signal(len(self._inputs), name=f"grant_{name}")
        if isinstance(arbiter, WeightedArbiter):
            if self._cols * self._rows > SMALL:
                arbiter.patience = 0
            m.d.comb += arbiter.weights.eq(
                Cat(self._sources_behind(m, source, name) for source in sources))
        numbers = [
            sum(1 << i for i in range(len(self._inputs)) if i >> k & 1)
            for k in range(ceil_log2(len(self._inputs)))
        ]
        m.d.comb += [
            arbiter.requests.eq(Cat(wants[self._inputs.index(source)] for source in sources)),
            arbiter.taken.eq(port.ready),
            grant.eq(Cat(grants.get(source, Const(0)) for source in self._inputs)),
            port.valid.eq(wants.any()),
            read.addr.eq(Cat((grant & plane).any() for plane in [*queues.heads, *numbers])),
            port.payload.eq(read.data),
        ]
        count(m, f"flits_{name}", port.valid & port.ready)
        return Mux(port.ready, grant, 0)


PLANES = {
    "req": (ReqFlit, "x_first", True, False),
    "up": (UpFlit, "x_first", True, True),
    "down": (DownFlit, "y_first", False, True),
}
"""Plane -> (flit, order, core input, core output)."""


def plane_router(plane: str, config: Config) -> Router:
    """Router of ``plane`` (``"req"``, ``"up"`` or ``"down"``) in ``config``'s machine.

    HBM channels take from `req` and `up` and send into `down` on the north and south sides.
    """
    flit, order, core_input, core_output = PLANES[plane]
    edges = ("north", "south") if plane == "down" else ()
    exits = () if plane == "down" else ("north", "south")
    mesh = config.mesh
    return Router(
        flit, order, cols=mesh.cols, rows=mesh.rows, depth=mesh.buffer_depth,
        core_input=core_input, core_output=core_output,
        edges=edges, exits=exits,
        # Weights are for traffic between cores; what `req` and `down` carry the channels limit.
        arbiter=mesh.arbiter if plane == "up" or mesh.arbiter != "weighted" else "round_robin",
    )
