# SPDX-License-Identifier: Apache-2.0
"""What a drain reads before and beside the accumulators: parameters, tables, residual words."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.compute.drain_command import DrainCommand
from hdl.packets import SPAD_BITS, WORD_BITS
from hdl.ports import ScratchpadRead


class Phase(enum.Enum, shape=3):
    """What the read port is used for."""

    IDLE = 0
    PARAMS = 1
    TABLE = 2
    RESIDUAL_TABLE = 3
    START = 4
    RESIDUAL = 5


class DrainReader(wiring.Component):
    """Loads a command's constants, hands the command on, then reads its residual words in order.

    One word a cycle where the port grants it: 8 words of parameters (4 for int32 output), 16 of the
    byte table and 64 of the residual table unless they are the command before's. Parameters are
    overwritten only while ``in_use`` is low, tables only while ``quiet`` is high.

    Members
    -------
    command: Commands to come. Ready only between two commands.
    start: The command whose constants are loaded.
    read: Scratchpad port.
    in_use: The command before still reads accumulators. Its last operand samples its scale three
        cycles later, before the first new scale (the fifth word) can arrive.
    quiet: No operand is in the pipeline.
    room: Another residual word may be requested.
    requested: A residual word was requested now.
    bias, scale: Parameters of all 16 lanes, held.
    word, row: Data that arrived, and which word of its table it is.
    table, residual_table, residual: What ``word`` is, if anything.
    """

    command: In(stream.Signature(DrainCommand))
    start: Out(stream.Signature(DrainCommand))
    read: Out(ScratchpadRead)
    in_use: In(1)
    quiet: In(1)
    room: In(1)
    requested: Out(1)
    bias: Out(data.ArrayLayout(32, 16))
    scale: Out(data.ArrayLayout(32, 16))
    word: Out(WORD_BITS)
    row: Out(6)
    table: Out(1)
    residual_table: Out(1)
    residual: Out(1)

    def elaborate(self, platform):
        m = Module()
        command, phase = Signal(DrainCommand), Signal(Phase)
        address, left = Signal(SPAD_BITS), Signal(12)  # words left of this phase, minus 1
        request, moved = self.read.request, Signal()
        m.d.comb += [
            self.command.ready.eq(phase == Phase.IDLE),
            self.start.valid.eq(phase == Phase.START),
            self.start.payload.eq(command),
            request.payload.eq(address),
            moved.eq(request.valid & request.ready),
            self.requested.eq(moved & (phase == Phase.RESIDUAL)),
        ]
        with m.Switch(phase):
            with m.Case(Phase.PARAMS):
                m.d.comb += request.valid.eq(~self.in_use)
            with m.Case(Phase.TABLE, Phase.RESIDUAL_TABLE):
                m.d.comb += request.valid.eq(self.quiet)
            with m.Case(Phase.RESIDUAL):
                m.d.comb += request.valid.eq(self.room)
        self._sequence(m, command, phase, address, left, moved)
        self._receive(m, command, phase, left, moved)
        return m

    def _sequence(self, m, command, phase, address, left, moved):
        load_table = command.table_valid & ~command.out_int32 & ~command.same_tables
        load_sums = command.residual_valid & ~command.out_int32 & ~command.same_tables
        with m.If(moved):
            m.d.sync += [
                address.eq(address + Mux(phase == Phase.RESIDUAL, command.out_step, 1)),
                left.eq(left - 1),
            ]

        def go(to, base, words):
            m.d.sync += [phase.eq(to), address.eq(base), left.eq(words - 1)]

        def after_table():
            with m.If(load_sums):
                go(Phase.RESIDUAL_TABLE, command.residual_table, 64)
            with m.Else():
                m.d.sync += phase.eq(Phase.START)

        ended = moved & (left == 0)
        with m.Switch(phase):
            with m.Case(Phase.IDLE):
                m.d.sync += command.eq(self.command.payload)
                with m.If(self.command.valid):
                    new = self.command.payload
                    go(Phase.PARAMS, new.params, Mux(new.out_int32, 4, 8))
            with m.Case(Phase.PARAMS):
                with m.If(ended & load_table):
                    go(Phase.TABLE, command.table, 16)
                with m.Elif(ended):
                    after_table()
            with m.Case(Phase.TABLE), m.If(ended):
                after_table()
            with m.Case(Phase.RESIDUAL_TABLE), m.If(ended):
                m.d.sync += phase.eq(Phase.START)
            with m.Case(Phase.START):
                with m.If(self.start.ready & command.residual_valid & ~command.out_int32):
                    go(Phase.RESIDUAL, command.residual, command.pixels)
                with m.Elif(self.start.ready):
                    m.d.sync += phase.eq(Phase.IDLE)
            with m.Case(Phase.RESIDUAL), m.If(ended):
                m.d.sync += phase.eq(Phase.IDLE)

    def _receive(self, m, command, phase, left, moved):
        """The word of a request transferred in the cycle before, and where it goes."""
        params = Signal()
        m.d.sync += [
            params.eq(moved & (phase == Phase.PARAMS)),
            self.table.eq(moved & (phase == Phase.TABLE)),
            self.residual_table.eq(moved & (phase == Phase.RESIDUAL_TABLE)),
            self.residual.eq(self.requested),
        ]
        with m.If(moved):
            # Phases other than RESIDUAL count down from one less than a power of two.
            m.d.sync += self.row.eq(~left[:6])
        m.d.comb += self.word.eq(self.read.data)
        held = Cat(self.bias, self.scale)
        slot = Mux(command.out_int32, self.row[:2], self.row[:3])
        for index in range(8):
            with m.If(params & (slot == index)):
                m.d.sync += held[128 * index : 128 * index + 128].eq(self.word)
