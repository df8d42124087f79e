# SPDX-License-Identifier: Apache-2.0
"""A mesh router for single-flit packets with multicast rectangles."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from emu.config import Config
from hdl.counter import count
from hdl.mesh.arbiter import make_arbiter
from hdl.mesh.route import ORDERS, SIDES, connections, route_mask
from hdl.packets import DownFlit, ReqFlit, UpFlit


class InputQueue(wiring.Component):
    """Pointers of one input's queue; its flits lie in the router's memory.

    Latency: a flit pushed in cycle t is the head in t + 1 if the queue was empty. ``ready`` and
    ``valid`` depend on the level alone.

    Parameters
    ----------
    depth: Flits held, at least 2 for one flit a cycle.
    routes: Bits of a route.

    Members
    -------
    push, route_in: A flit arrives and takes these outputs.
    pop: The head flit is served. ``head``, ``tail``: slots to read and write.
    route: Outputs of the head flit, 0 if there is none.
    """

    def __init__(self, depth: int, routes: int):
        self._depth, self._routes = depth, routes
        self._slot_bits = max(1, ceil_log2(depth))
        super().__init__(
            {
                "push": In(1), "route_in": In(routes), "ready": Out(1),
                "pop": In(1), "route": Out(routes), "valid": Out(1),
                "head": Out(self._slot_bits), "tail": Out(self._slot_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.routes = memory = Memory(
            shape=self._routes, depth=1 << self._slot_bits, init=[]
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        level = Signal(range(self._depth + 1))
        m.d.comb += [
            self.ready.eq(level != self._depth),
            self.valid.eq(level != 0),
            write.addr.eq(self.tail),
            write.data.eq(self.route_in),
            write.en.eq(self.push),
            read.addr.eq(self.head),
        ]
        with m.If(self.valid):
            m.d.comb += self.route.eq(read.data)
        with m.If(self.push ^ self.pop):
            m.d.sync += level.eq(level + self.push - self.pop)
        with m.If(self.push):
            m.d.sync += self.tail.eq(self.tail + 1)
        with m.If(self.pop):
            m.d.sync += self.head.eq(self.head + 1)
        return m


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
    per output where queues with a crossbar would take one per input and a multiplexer on top.

    Parameters
    ----------
    flit: Layout of a flit; has a member ``dest`` of shape `hdl.packets.Dest`.
    order: ``"x_first"`` or ``"y_first"``.
    cols, rows: Size of the mesh.
    depth: Flits buffered per input.
    core_input, core_output: Whether the tile sends, receives.
    edges, exits: Sides of the mesh on which something sends into it, receives from it; see
        `hdl.mesh.route.connections`. At other boundaries nothing may send or be addressed.
    arbiter: ``"round_robin"`` or ``"age"``.

    Members
    -------
    x, y: This router's coordinates (constant in operation).
    in_north, in_south, in_west, in_east, in_core, out_*: Streams of ``flit``.

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
        self._inputs = SIDES + ("core",) * core_input
        self._outputs = SIDES + ("core",) * core_output
        super().__init__(
            {
                "x": In(4), "y": In(4),
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
        slots = 1 << max(1, ceil_log2(self._depth))
        m.submodules.flits = memory = Memory(
            shape=self._flit, depth=slots * len(self._inputs), init=[]
        )
        feeds = self.connections
        queues = {}
        for number, name in enumerate(self._inputs):
            targets = tuple(output for output in self._outputs if name in feeds[output])
            queues[name] = self._input(m, number, name, targets, memory)
        wants = {}  # (input, output) -> the head flit of input still has to take output
        goes = {}   # (input, output) -> and does so now
        for name, (queue, targets) in queues.items():
            pending, leaving = Signal(len(targets), name=f"pending_{name}"), Signal(len(targets))
            served = Signal(len(targets), name=f"served_{name}")
            m.d.comb += pending.eq(queue.route & ~served)
            for bit, output in enumerate(targets):
                wants[name, output], goes[name, output] = pending[bit], leaving[bit]
            m.d.comb += queue.pop.eq(queue.valid & ~(pending & ~leaving).any())
            with m.If(queue.pop):
                m.d.sync += served.eq(0)
            with m.Elif(leaving.any()):
                m.d.sync += served.eq(served | leaving)
        for output, sources in feeds.items():
            self._output(m, output, sources, queues, wants, goes, memory)
        return m

    def _input(self, m, number, name, targets, memory):
        """Queue of input ``name``; returns it and the outputs that its route bits stand for."""
        port = getattr(self, f"in_{name}")
        m.submodules[f"queue_{name}"] = queue = InputQueue(self._depth, len(targets))
        boundary = {
            "north": self.y == 0, "south": self.y == self._rows - 1,
            "west": self.x == 0, "east": self.x == self._cols - 1, "core": Const(1),
        }[name]
        if name not in self._edges and name != "core":
            boundary = Const(0)
        route = route_mask(
            m, self._order, port.payload.dest, self.x, self.y,
            source=name, outputs=targets, exits=self._exits, boundary=boundary,
        )
        write = memory.write_port()
        m.d.comb += [
            port.ready.eq(queue.ready),
            queue.push.eq(port.valid & port.ready),
            queue.route_in.eq(route),
            write.addr.eq(Cat(queue.tail, Const(number, 3))),
            write.data.eq(port.payload),
            write.en.eq(queue.push),
        ]
        return queue, targets

    def _output(self, m, output, sources, queues, wants, goes, memory):
        """Arbitration of ``output`` among ``sources`` and the read of the chosen flit."""
        port = getattr(self, f"out_{output}")
        m.submodules[f"arbiter_{output}"] = arbiter = make_arbiter(self._arbiter, len(sources))
        read = memory.read_port(domain="comb")
        m.d.comb += [
            arbiter.requests.eq(Cat(wants[name, output] for name in sources)),
            arbiter.taken.eq(port.ready),
            port.valid.eq(arbiter.requests.any()),
            port.payload.eq(read.data),
        ]
        numbers = {name: number for number, name in enumerate(self._inputs)}
        slot = Const(0, len(read.addr))
        for bit, name in enumerate(sources):
            address = Cat(queues[name][0].head, Const(numbers[name], 3))
            slot |= address & arbiter.grant[bit].replicate(len(address))
            m.d.comb += goes[name, output].eq(arbiter.grant[bit] & port.ready)
        m.d.comb += read.addr.eq(slot)
        count(m, f"flits_{output}", port.valid & port.ready)


PLANES = {
    "req": (ReqFlit, "x_first", True, False),
    "up": (UpFlit, "x_first", True, True),
    "down": (DownFlit, "y_first", False, True),
}
"""Plane -> (flit, order, core input, core output)."""


def plane_router(plane: str, config: Config) -> Router:
    """Router of ``plane`` (``"req"``, ``"up"`` or ``"down"``) in ``config``'s machine.

    HBM channels take from `req` and `up` and send into `down` on the north and south sides; with
    ``storage.enabled`` the storage port takes from `req` and `up` and sends into `up` and `down`
    on the west side.
    """
    flit, order, core_input, core_output = PLANES[plane]
    storage = ("west",) if config.storage.enabled else ()
    edges = {"req": (), "up": storage, "down": ("north", "south", *storage)}[plane]
    exits = {"req": ("north", "south", *storage), "up": ("north", "south", *storage), "down": ()}
    mesh = config.mesh
    return Router(
        flit, order, cols=mesh.cols, rows=mesh.rows, depth=mesh.buffer_depth,
        core_input=core_input, core_output=core_output,
        edges=edges, exits=exits[plane], arbiter=mesh.arbiter,
    )
