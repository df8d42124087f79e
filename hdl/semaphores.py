# SPDX-License-Identifier: Apache-2.0
"""The counting semaphores of a tile."""

from amaranth.hdl import Array, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.config import SEMAPHORES
from hdl.counter import count
from hdl.ports import Arrival, Credit, WaitOp

VALUE_BITS = 16


class Semaphores(wiring.Component):
    """`SEMAPHORES` counters of 16 bits; arrivals are never refused, waiters take turns.

    A counter is the sum, modulo 2**16, of two memories' entries: one that only arrivals write, one
    that only signals and waits write. So an arrival and one other operation act in each cycle. A
    signal goes before the waits; the waits are looked at one per cycle in turn.

    Latency: an arrival or signal counts from the cycle after it on; a wait whose condition holds
    is taken within ``len(waiters)`` cycles plus one per signal. Throughput: one arrival and one
    signal or wait per cycle. Counter: ``arrivals``.

    Parameters
    ----------
    waiters: Names of the wait ports.

    Members
    -------
    arrive: +1.
    signal: Stream of semaphore numbers, +1 each; always ready.
    credit: Stream of `Credit`, + ``words``; taken when there is no signal, before waits.
    wait_<waiter>: Stream of `WaitOp`: transferred when the value is at least ``count``, which is
        then subtracted. A waiter may also withdraw or change a request that was not taken.
    error: Sticky: a counter passed 2**16 - 1.

    Raises
    ------
    ValueError: If there is no waiter.
    """

    def __init__(self, waiters: tuple[str, ...]):
        if not waiters:
            raise ValueError("Semaphores must have at least one waiter")
        self._waiters = tuple(waiters)
        super().__init__(
            {
                "arrive": In(Arrival),
                "signal": In(stream.Signature(range(SEMAPHORES))),
                "credit": In(stream.Signature(Credit)),
                **{f"wait_{name}": In(stream.Signature(WaitOp)) for name in waiters},
                "error": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        arrived = _Cells(m, "arrived", self.arrive.sem, self.arrive.valid)
        operated = _Cells(m, "operated", Signal(range(SEMAPHORES)), Signal())

        turn = Signal(range(max(2, len(self._waiters))))
        waits = [getattr(self, f"wait_{name}") for name in self._waiters]
        asking, wait = Signal(), Signal(WaitOp)
        m.d.comb += [
            asking.eq(Array(w.valid for w in waits)[turn]),
            wait.eq(Array(w.payload for w in waits)[turn]),
        ]

        value, granted = Signal(VALUE_BITS), Signal()
        signalled, credit = self.signal.valid, self.credit.payload
        credited = self.credit.valid & ~signalled
        m.d.comb += [
            self.signal.ready.eq(1),
            self.credit.ready.eq(~signalled),
            operated.index.eq(Mux(signalled, self.signal.payload,
                                  Mux(credited, credit.sem, wait.sem))),
            value.eq(arrived.look(operated.index) + operated.now),
            granted.eq(asking & ~signalled & ~credited & (value >= wait.count)),
            arrived.then.eq(arrived.now + 1),
            operated.then.eq(operated.now + Mux(
                signalled, 1, Mux(credited, credit.words, -wait.count))),
            operated.enable.eq(signalled | credited | granted),
        ]
        for number, w in enumerate(waits):
            m.d.comb += w.ready.eq(granted & (turn == number))
        with m.If(~signalled & ~credited):
            m.d.sync += turn.eq(Mux(turn == len(waits) - 1, 0, turn + 1))

        self._check(m, arrived, operated, value, granted & (wait.count != 0))
        count(m, "arrivals", self.arrive.valid)
        return m

    def _check(self, m, arrived, operated, value, lowered):
        """Notice a step past the largest value, also by an arrival and a signal at once."""
        top = (1 << VALUE_BITS) - 1
        both, before = Signal(), Signal(VALUE_BITS)
        m.d.comb += [
            both.eq(self.arrive.sem == operated.index),
            before.eq(arrived.now + operated.look(self.arrive.sem)),
        ]
        arrival = self.arrive.valid & (
            ((before == top) & ~(both & lowered)) | ((before == top - 1) & both & self.signal.valid)
        )
        credit = self.credit.valid & self.credit.ready & (value > top - self.credit.payload.words)
        with m.If(arrival | credit | (self.signal.valid & (value == top))):
            m.d.sync += self.error.eq(1)


class _Cells:
    """One value per semaphore, 0 until first written: a memory and a bit per entry that says so.

    In every cycle in which ``enable`` is high entry ``index`` becomes ``then``.
    """

    def __init__(self, m: Module, name: str, index, enable):
        self.index, self.enable = index, enable
        self.then = Signal(VALUE_BITS, name=f"{name}_then")
        self._m = m
        m.submodules[name] = self._memory = Memory(shape=VALUE_BITS, depth=SEMAPHORES, init=[])
        self._used = Signal(SEMAPHORES, name=f"{name}_used")
        write = self._memory.write_port()
        m.d.comb += [write.addr.eq(index), write.data.eq(self.then), write.en.eq(enable)]
        with m.If(enable):
            m.d.sync += self._used.eq(self._used | (Const(1, 1) << index))
        self.now = self.look(index)

    def look(self, index):
        """The entry ``index`` in this cycle."""
        read = self._memory.read_port(domain="comb")
        self._m.d.comb += read.addr.eq(index)
        return Mux(self._used.bit_select(index, 1), read.data, 0)
