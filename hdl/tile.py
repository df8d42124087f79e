# SPDX-License-Identifier: Apache-2.0
"""One tile: three routers, the network interface and a core around its scratchpad."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import Config
from emu.isa import Queue
from hdl.clock_gate import gate
from hdl.compute.engine import ComputeEngine
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.load_engine import LoadEngine
from hdl.mesh.router import plane_router
from hdl.network_interface import NetworkInterface
from hdl.packets import DownFlit, ReqFlit, UpFlit
from hdl.parameter_store import ParameterStore
from hdl.ports import PrefetchControl, share
from hdl.scratchpad import Scratchpad
from hdl.semaphores import Semaphores
from hdl.sequencer.sequencer import STEP_BITS, Sequencer
from hdl.store_engine import StoreEngine
from hdl.vector.engine import VectorEngine

PLANES = {"req": ReqFlit, "up": UpFlit, "down": DownFlit}
"""Mesh planes and what travels on each."""
SIDES = ("north", "south", "west", "east")
LANDING_WORDS = 8
"""Words from memory that wait for their scratchpad bank."""
QUEUES = tuple(queue.name.lower() for queue in Queue)
READERS = ("activation", "weight", "drain", "vector", "store", "gather")
WRITERS = ("net", "drain", "vector")
PRIORITY = (
    "read_activation", "read_weight", "write_net", "write_drain", "read_drain",
    "read_vector", "write_vector", "read_store", "read_gather",
)


def tile_signature() -> wiring.Signature:
    """Ports of a tile: its place, its mesh links, start, done, error and the prefetch registers."""
    links = {
        f"{plane}_{way}_{side}": (In if way == "in" else Out)(stream.Signature(flit))
        for plane, flit in PLANES.items()
        for way in ("in", "out")
        for side in SIDES
    }
    return wiring.Signature(
        {
            "x": In(4), "y": In(4), "index": In(8), "start": In(1),
            "prefetch": In(PrefetchControl),
            "done": Out(1), "error": Out(1), "status": Out(8), "step": Out(STEP_BITS),
            **links,
        }
    )


class Tile(wiring.Component):
    """A tile of ``config``'s chip. Which one it is, ``x``, ``y`` and ``index`` say: ports, so that
    all tiles are one module.

    Members
    -------
    start: Begin fetching commands (level).
    done: All commands are complete and all stores are in HBM; stays up.
    error: Sticky: an impossible address, an unknown opcode or operation, a semaphore overflow.
    status: For a run that does not end: a bit per queue that holds a command, two spare bits, then
        done and error.
    step: Steps of the program that have begun here.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(tile_signature())

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.scratchpad = scratchpad = Scratchpad(
            config.scratchpad.words, config.scratchpad.banks,
            readers=READERS, writers=WRITERS, priority=PRIORITY,
        )
        m.submodules.semaphores = semaphores = Semaphores(waiters=QUEUES)
        m.submodules.network = network = NetworkInterface(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        load, store, vector = LoadEngine(), StoreEngine(config), VectorEngine(config)
        m.submodules.blocks = blocks = ParameterStore(config)
        m.submodules.compute = compute = ComputeEngine(config)
        m.submodules.vector = vector
        for name, engine in (("load", load), ("store", store)):
            gate(m, name, engine, engine.command.valid | engine.busy, platform)

        border = self._border(m)
        self._place(m, border, network, sequencer, load, store, blocks)
        self._routers(m, border, network, platform)
        self._memory(m, scratchpad, network, load, store, compute, vector)
        self._commands(m, sequencer, semaphores, compute, vector, load, store)
        self._blocks(m, border, blocks, sequencer, compute, network)

        connect(m, sequencer.request, network.request_fetch)
        connect(m, load.request, network.request_load)
        connect(m, load.credit, semaphores.credit)
        connect(m, store.push, network.push)
        connect(m, store.store, network.store)
        connect(m, sequencer.remote_signal, network.signal)
        connect(m, network.command_word, sequencer.command_word)
        m.d.comb += [
            semaphores.arrive.valid.eq(network.arrive.valid),
            semaphores.arrive.sem.eq(network.arrive.sem),
            store.ack.valid.eq(network.ack.valid),
            store.ack.words.eq(network.ack.words),
            sequencer.index.eq(border["index"]),
            sequencer.start.eq(border["start"]),
            self.done.eq(sequencer.done),
            self.step.eq(sequencer.step),
        ]
        parts = (scratchpad, semaphores, sequencer, blocks, vector)
        m.d.sync += self.error.eq(self.error | Cat(part.error for part in parts).any())
        m.d.comb += self.status.eq(sequencer.busy | self.done << 6 | self.error << 7)
        running = Signal()
        m.d.comb += running.eq(border["start"] & ~self.done)
        count(m, "cycles_running", running)
        return m

    def _border(self, m):
        """Chip-wide inputs behind a register: only mesh links reach logic in the same cycle."""
        kept = {}
        for name in ("x", "y", "index", "start"):
            port = getattr(self, name)
            kept[name] = Signal(port.shape(), name=f"own_{name}", reset_less=name != "start")
            m.d.sync += kept[name].eq(port)
        for name, member in PrefetchControl.members.items():
            kept[name] = Signal(member.shape, name=f"own_{name}")
            m.d.sync += kept[name].eq(getattr(self.prefetch, name))
        return kept

    def _place(self, m, border, *parts):
        for part in parts:
            m.d.comb += [part.x.eq(border["x"]), part.y.eq(border["y"])]

    def _routers(self, m, border, network, platform):
        for plane in PLANES:
            router = plane_router(plane, self._config)
            gate(m, f"router_{plane}", router, router.busy, platform)
            m.d.comb += [router.x.eq(border["x"]), router.y.eq(border["y"])]
            for side in SIDES:
                connect(m, wiring.flipped(getattr(self, f"{plane}_in_{side}")),
                        getattr(router, f"in_{side}"))
                connect(m, getattr(router, f"out_{side}"),
                        wiring.flipped(getattr(self, f"{plane}_out_{side}")))
            if plane != "down":
                connect(m, getattr(network, plane), router.in_core)
            if plane == "down":
                # A word that waits for its bank must not hold up the tree it came by.
                m.submodules.landing = landing = Fifo(DownFlit, LANDING_WORDS)
                connect(m, router.out_core, landing.i)
                connect(m, landing.o, network.down_in)
            elif plane == "up":
                connect(m, router.out_core, network.up_in)

    def _memory(self, m, scratchpad, network, load, store, compute, vector):
        connect(m, compute.read_activation, scratchpad.read_activation)
        connect(m, compute.read_weight, scratchpad.read_weight)
        connect(m, compute.read_drain, scratchpad.read_drain)
        connect(m, compute.write_drain, scratchpad.write_drain)
        connect(m, vector.read, scratchpad.read_vector)
        connect(m, vector.write, scratchpad.write_vector)
        connect(m, store.read, scratchpad.read_store)
        share(m, scratchpad.read_gather, compute.read_rows, load.read)
        connect(m, network.write, scratchpad.write_net)

    def _commands(self, m, sequencer, semaphores, *engines):
        for queue, engine in zip(QUEUES, engines, strict=True):
            connect(m, getattr(sequencer, f"command_{queue}"), engine.command)
            connect(m, getattr(sequencer, f"wait_{queue}"), getattr(semaphores, f"wait_{queue}"))
            m.d.comb += getattr(sequencer, f"done_{queue}").eq(engine.done)
        connect(m, sequencer.signal, semaphores.signal)

    def _blocks(self, m, border, blocks, sequencer, compute, network):
        connect(m, sequencer.layer_command, blocks.layer_command)
        connect(m, compute.lookup, blocks.lookup)
        connect(m, compute.release, blocks.release)
        connect(m, network.frame, blocks.frame)
        connect(m, network.released, blocks.released)
        connect(m, blocks.release_out, network.release)
        connect(m, blocks.request, network.request_blocks)
        m.d.comb += network.urgent.eq(blocks.urgent)
        m.d.comb += [
            getattr(blocks.prefetch, name).eq(border[name])
            for name in PrefetchControl.members
        ]
