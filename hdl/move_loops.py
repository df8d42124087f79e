# SPDX-License-Identifier: Apache-2.0
"""The address generator of loads and stores: a command's nested loops as a stream of runs."""

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu import isa
from emu.isa import Opcode
from hdl.packets import ADDRESS_BITS, COMMANDS, SPAD_BITS, Rect
from hdl.ports import ScratchpadRead

LENGTH_BITS = 20
INDEX_BITS = 32
"""Bits of an entry of an index list; a word holds four."""

MoveCommand = COMMANDS[Opcode.LOAD]
"""LOAD and STORE have the same fields."""

Side = data.StructLayout({"rect": Rect, "to_tiles": 1, "has_sem": 1, "sem": isa.SEM_BITS})
"""What a command says about all its words."""

Run = data.StructLayout(
    {
        "near": SPAD_BITS,  # this tile's (LOAD: every receiver's) scratchpad
        "far": ADDRESS_BITS,
        "length": LENGTH_BITS,  # 0: the command moves nothing
        "end": 1,  # the command's last run
        "absent": 1,  # its list entry was ABSENT: not to be moved, `length` words for a turn
        "sum": 1, "close": 1, "int4": 1,  # a row of a sum, its last one, of nibbles
        "side": Side,
    }
)


Product = data.StructLayout({"offset": ADDRESS_BITS, "absent": 1})


class IndexList(wiring.Component):
    """Reads a list of numbers from the scratchpad and multiplies each by a stride.

    Latency: one cycle to read, one to receive and one per significant bit of the number (a serial
    multiplier: a number is needed only once per iteration of the outermost loop); the next product
    is worked out while one is offered. Products are modulo 2**`ADDRESS_BITS`.

    Members
    -------
    start: Begin with the parameters of this cycle; only when the list before is all out.
    base: Scratchpad word of the list, 32-bit numbers, little endian, four a word.
    length: Numbers, at least 1.
    stride: Multiplier of each.
    read: Scratchpad port.
    o: Stream of products, in order, and whether the number was `ABSENT`.
    """

    start: In(1)
    base: In(SPAD_BITS)
    length: In(16)
    stride: In(ADDRESS_BITS)
    read: Out(ScratchpadRead)
    o: Out(stream.Signature(Product))

    def elaborate(self, platform):
        m = Module()
        place, lane, left = Signal(SPAD_BITS), Signal(2), Signal(16)
        number, stride, absent = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS), Signal()
        multiple, total = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        lanes = Array(self.read.data.word_select(i, INDEX_BITS) for i in range(4))
        m.d.comb += self.read.request.payload.eq(place)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [place.eq(self.base), left.eq(self.length), lane.eq(0)]
                m.d.sync += stride.eq(self.stride)
                m.next = "READ"
            with m.State("READ"):
                m.d.comb += self.read.request.valid.eq(1)
                with m.If(self.read.request.ready):
                    m.next = "RECEIVE"
            with m.State("RECEIVE"):
                m.d.sync += [number.eq(lanes[lane]), multiple.eq(stride), total.eq(0)]
                m.d.sync += absent.eq(lanes[lane].all())
                m.d.sync += [lane.eq(lane + 1), left.eq(left - 1)]
                with m.If(lane == 3):
                    m.d.sync += place.eq(place + 1)
                m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                with m.If((number != 0) & ~absent):
                    with m.If(number[0]):
                        m.d.sync += total.eq(total + multiple)
                    m.d.sync += [number.eq(number >> 1), multiple.eq(multiple << 1)]
                with m.Elif(~self.o.valid | self.o.ready):
                    m.d.sync += [self.o.payload.offset.eq(total), self.o.valid.eq(1),
                                 self.o.payload.absent.eq(absent)]
                    with m.If(left == 0):
                        m.next = "IDLE"
                    with m.Else():
                        m.next = "READ"
        return m


class MoveLoops(wiring.Component):
    """The runs of a LOAD or STORE, in order.

    For i2 < count2, i1 < count1, i0 < count0 there is a run of ``run`` words at scratchpad +
    sum(ik * s_stridek), far + sum(ik * f_stridek), modulo the address sizes; with ``gather``
    list[i2] * f_stride2 stands for i2 * f_stride2. If a count or ``run`` is 0 there is one run of
    length 0 instead. Each step adds one stride to the start of the loop that it advances. With
    ``sum`` the scratchpad's outermost stride is added every so many turns only.

    Latency: one cycle from a command to its first run; with a gather list, two more than
    `IndexList`. Throughput: one run a cycle without a list; a new command after the last run. A
    turn whose number is `ABSENT` is one run.

    Parameters
    ----------
    sums: False: ``sum`` is ignored.

    Members
    -------
    command: Stream of `MoveCommand`.
    o: Stream of `Run`.
    read: Scratchpad port for index lists.
    """

    def __init__(self, *, sums: bool = False):
        self._sums = sums
        super().__init__(
            {
                "command": In(stream.Signature(MoveCommand)), "o": Out(stream.Signature(Run)),
                "read": Out(ScratchpadRead),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.index_list = indices = IndexList()
        connect(m, indices.read, wiring.flipped(self.read))

        command, run = self.command.payload, self.o.payload
        busy, gather, accept, step = Signal(), Signal(), Signal(), Signal()
        counts = [Signal(16, name=f"count{k}") for k in range(2)]
        left = [Signal(16, name=f"left{k}") for k in range(3)]
        last = [Signal(name=f"last{k}") for k in range(3)]
        near = _Walk(m, "near", run.near, SPAD_BITS)
        far = _Walk(m, "far", run.far, ADDRESS_BITS)
        carry0, carry1, nothing, turn = Signal(), Signal(), Signal(), Signal(16)
        length = Signal(LENGTH_BITS)
        m.d.comb += [
            self.command.ready.eq(~busy),
            accept.eq(self.command.valid & ~busy),
            step.eq(self.o.valid & self.o.ready),
            *(last[k].eq(left[k] == 0) for k in range(3)),
            carry0.eq(last[0] | run.absent),
            carry1.eq((last[0] & last[1]) | run.absent),
            run.end.eq(carry1 & last[2]),
            run.length.eq(Mux(run.absent, turn, length)),
            nothing.eq(
                ~command.run.any()
                | ~command.count0.any()
                | ~command.count1.any()
                | ~command.count2.any()
            ),
            indices.start.eq(accept & command.gather & ~nothing),
            indices.base.eq(command.gather_base),
            indices.length.eq(command.count2),
            indices.stride.eq(command.f_stride2[:ADDRESS_BITS]),
            indices.o.ready.eq(busy & ~self.o.valid),
        ]

        hold = self._count_rows(m, accept, step & carry1) if self._sums else 0
        with m.If(accept):
            near.load(command.scratchpad, [command[f"s_stride{k}"] for k in range(3)])
            far.load(command.far, [command[f"f_stride{k}"] for k in range(3)])
            m.d.sync += [
                busy.eq(1),
                gather.eq(command.gather & ~nothing),
                self.o.valid.eq(~command.gather | nothing),
                length.eq(Mux(nothing, 0, command.run)),
                turn.eq(command.turn),
                run.absent.eq(0),
                run.side.rect.eq(command.rect),
                run.side.to_tiles.eq(command.to_tiles),
                run.side.has_sem.eq(command.sem_valid),
                run.side.sem.eq(command.sem),
                *(counts[k].eq(command[f"count{k}"] - 1) for k in range(2)),
                *(left[k].eq(Mux(nothing, 0, command[f"count{k}"] - 1)) for k in range(3)),
            ]
        with m.Elif(step):
            m.d.sync += [busy.eq(~run.end), self.o.valid.eq(~run.end & ~(carry1 & gather))]
            m.d.sync += left[0].eq(Mux(carry0, counts[0], left[0] - 1))
            with m.If(carry0):
                m.d.sync += left[1].eq(Mux(carry1, counts[1], left[1] - 1))
            with m.If(carry1):
                m.d.sync += left[2].eq(left[2] - 1)
            near.step(carry0, carry1, hold)
            with m.If(~(carry1 & gather)):
                far.step(carry0, carry1)
        with m.Elif(indices.o.valid & busy & ~self.o.valid):
            far.restart(indices.o.payload.offset)
            m.d.sync += run.absent.eq(indices.o.payload.absent)
            m.d.sync += self.o.valid.eq(1)
        return m

    def _count_rows(self, m, accept, turn):
        """Rows of the sum at hand; whether its address stays for another."""
        command, run = self.command.payload, self.o.payload
        rows, left = Signal(8), Signal(8)
        m.d.comb += [run.sum.eq(rows != 0), run.close.eq(left == 0)]
        with m.If(accept):
            m.d.sync += [rows.eq(command.sum), left.eq(command.sum - 1)]
            m.d.sync += run.int4.eq(command.sum_int4)
        with m.Elif(turn):
            m.d.sync += left.eq(Mux(run.close, rows, left) - 1)
        return run.sum & ~run.close


class _Walk:
    """One address through three loops: where it is, and where the two outer loops' turns began."""

    def __init__(self, m: Module, name: str, here, bits: int):
        self._m, self._here, self._bits = m, here, bits
        self._starts = [Signal(bits, name=f"{name}_start{k}") for k in (1, 2)]
        self._strides = [Signal(bits, name=f"{name}_stride{k}") for k in range(3)]

    def load(self, address, strides):
        self._m.d.sync += [self._here.eq(address), *(s.eq(address) for s in self._starts)]
        self._m.d.sync += [
            kept.eq(stride[: self._bits])
            for kept, stride in zip(self._strides, strides, strict=True)
        ]

    def step(self, carry0, carry1, hold=0):
        """Advance the innermost loop, or the middle one on ``carry0``, or the outermost one, which
        begins again where it began if ``hold``."""
        m, (start1, start2), strides = self._m, self._starts, self._strides
        base = Mux(carry1, start2, Mux(carry0, start1, self._here))
        outer = Mux(hold, 0, strides[2])
        stride = Mux(carry1, outer, Mux(carry0, strides[1], strides[0]))
        after = (base + stride)[: self._bits]
        m.d.sync += self._here.eq(after)
        with m.If(carry0):
            m.d.sync += start1.eq(after)
        with m.If(carry1):
            m.d.sync += start2.eq(after)

    def restart(self, offset):
        """Begin a turn of the outermost loop at ``offset`` from its start."""
        after = (self._starts[1] + offset)[: self._bits]
        self._m.d.sync += [self._here.eq(after), self._starts[0].eq(after)]
