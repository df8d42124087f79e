# SPDX-License-Identifier: Apache-2.0
"""A small first-in first-out queue on a memory with a combinational read port."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2


class Fifo(wiring.Component):
    """Queue of ``depth`` items; order kept, nothing lost.

    Latency: one cycle from ``i`` to ``o``. Throughput: one item a cycle for ``depth`` >= 2.
    ``ready`` depends on the level alone, never on ``o.ready``: chains of queues have no
    combinational path.

    Parameters
    ----------
    shape: Shape of an item.
    depth: Items held, at least 1.

    Members
    -------
    i, o: Streams of ``shape``.
    level: Items held now.

    Raises
    ------
    ValueError: If ``depth`` is less than 1.
    """

    def __init__(self, shape, depth: int):
        if depth < 1:
            raise ValueError(f"Fifo depth must be at least 1, not {depth!r}")
        self._shape, self._depth = shape, depth
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "level": Out(range(depth + 1)),
            }
        )

    @property
    def depth(self) -> int:
        return self._depth

    def elaborate(self, platform):
        m = Module()
        rows = 1 << ceil_log2(self._depth) if self._depth > 1 else 2
        m.submodules.memory = memory = Memory(shape=self._shape, depth=rows, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        head, tail = Signal(range(rows)), Signal(range(rows))
        push, pop = Signal(), Signal()

        m.d.comb += [
            push.eq(self.i.valid & self.i.ready),
            pop.eq(self.o.valid & self.o.ready),
            self.i.ready.eq(self.level != self._depth),
            self.o.valid.eq(self.level != 0),
            write.addr.eq(tail),
            write.data.eq(self.i.payload),
            write.en.eq(push),
            read.addr.eq(head),
            self.o.payload.eq(read.data),
        ]
        # rows is a power of two, so the pointers wrap by themselves.
        m.d.sync += self.level.eq(self.level + push - pop)
        with m.If(push):
            m.d.sync += tail.eq(tail + 1)
        with m.If(pop):
            m.d.sync += head.eq(head + 1)
        return m
