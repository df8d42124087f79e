# SPDX-License-Identifier: Apache-2.0
"""The compute engine: COMPUTE commands from window to requantised words in the scratchpad."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import Config
from hdl.compute.accumulators import Accumulators
from hdl.compute.array import make_array
from hdl.compute.command import Command, Prepared, Preparer
from hdl.compute.drain import Drain
from hdl.compute.drain_command import DrainCommand
from hdl.compute.weights import RowFeeder, WeightReader
from hdl.compute.window import Window
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.ports import BlockLookup, BlockRelease, ScratchpadRead, ScratchpadWrite

Token = data.StructLayout(
    {
        "inside": 1, "swap": 1, "overwrite": 1, "half": 1, "row": 12,
        "is_signed": 1, "zero": signed(9),
    }
)
"""A pixel on its way from the scratchpad through the array to its accumulators."""
ARRAY_DEPTH = 4
"""Cycles from a pixel's issue until its accumulators are written."""


class ComputeEngine(wiring.Component):
    """Executes COMPUTE commands; semantics in `emu.isa.COMPUTE`, bits as in `emu.compute_model`.

    Throughput: a pass of n pixels takes max(n, 16) cycles (32 at least with weights in mode column),
    and one pass follows another without a gap, across groups and across waiting commands. Latency:
    about 18 cycles from a command to its first pixel when idle; four from the last pixel of a
    group to its drain. While one half of the accumulators drains, the other fills.

    Parameters
    ----------
    config: The machine.

    Members
    -------
    command: COMPUTE commands. ``done``: pulse per command, in order.
    read_activation, read_weight, read_drain, write_drain: Scratchpad ports; any may refuse.
    lookup, release: Parameter store.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "command": In(stream.Signature(Command)), "done": Out(1),
                "read_activation": Out(ScratchpadRead), "read_weight": Out(ScratchpadRead),
                "read_drain": Out(ScratchpadRead), "write_drain": Out(ScratchpadWrite),
                "lookup": Out(BlockLookup), "release": Out(BlockRelease),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.preparer = preparer = Preparer()
        m.submodules.window = window = Window()
        m.submodules.reader = weights = WeightReader()
        m.submodules.feeder = feeder = RowFeeder()
        m.submodules.array = array = make_array(self._config.core.packed_cells)
        m.submodules.accumulators = accumulators = Accumulators(self._config)
        m.submodules.drain = drain = Drain(self._config)
        m.submodules.drains = drains = Fifo(DrainCommand, 2)
        m.submodules.completions = completions = Fifo(1, 4)
        connect(m, wiring.flipped(self.command), preparer.i)
        connect(m, weights.o, feeder.i)
        connect(m, weights.read, wiring.flipped(self.read_weight))
        connect(m, weights.lookup, wiring.flipped(self.lookup))
        connect(m, weights.release, wiring.flipped(self.release))
        connect(m, drains.o, drain.command)
        connect(m, drain.accumulator, accumulators.drain)
        connect(m, drain.read, wiring.flipped(self.read_drain))
        connect(m, drain.write, wiring.flipped(self.write_drain))
        # The weight reader runs a command ahead of the window, whose commands wait here.
        m.submodules.ahead = ahead = Fifo(Prepared, 2)
        connect(m, ahead.o, window.i)
        self._share(m, preparer, ahead, weights)
        step, half = self._issue(m, window, weights, feeder, completions, drain)
        self._array(m, step, half, window, feeder, array, accumulators)
        self._drains(m, step, half, window, drains)
        self._completions(m, step, window, completions, drain)
        return m

    def _share(self, m, preparer, ahead, weights):
        """Give each prepared command to the window generator and to the weight reader, once."""
        taken = {"window": Signal(name="window_took"), "weights": Signal(name="weights_took")}
        finished = []
        for name, part in (("window", ahead), ("weights", weights)):
            m.d.comb += [part.i.valid.eq(preparer.o.valid & ~taken[name]),
                         part.i.payload.eq(preparer.o.payload)]
            finished.append(taken[name] | (part.i.valid & part.i.ready))
            with m.If(preparer.o.valid & preparer.o.ready):
                m.d.sync += taken[name].eq(0)
            with m.Elif(part.i.valid & part.i.ready):
                m.d.sync += taken[name].eq(1)
        m.d.comb += preparer.o.ready.eq(finished[0] & finished[1])

    def _issue(self, m, window, weights, feeder, completions, drain):
        """Decide whether the pixel shown by the window goes; count why not."""
        pixel, c = window.o.payload, window.current.command
        full_halves, half = Signal(2), Signal()
        has_weights, has_half, has_slot = Signal(), Signal(), Signal()
        wanted, allowed, step, ends = Signal(), Signal(), Signal(), Signal()
        request = self.read_activation.request
        m.d.comb += [
            wanted.eq(window.o.valid),
            has_weights.eq(~pixel.pass_first | feeder.can_start),
            has_half.eq(~(pixel.pass_first & pixel.group_first & c.first) | (full_halves != 2)),
            has_slot.eq(~(pixel.pass_last & pixel.command_last) | completions.i.ready),
            allowed.eq(wanted & has_weights & has_half & has_slot),
            request.valid.eq(allowed & pixel.inside),
            request.payload.eq(pixel.address),
            step.eq(allowed & (~pixel.inside | request.ready)),
            window.o.ready.eq(has_weights & has_half & has_slot & (~pixel.inside | request.ready)),
            ends.eq(step & pixel.pass_last & pixel.group_last & c.last),
        ]
        m.d.sync += full_halves.eq(full_halves + ends - drain.drained)
        with m.If(ends):
            m.d.sync += half.eq(~half)
        starts = pixel.pass_first & wanted
        count(m, "passes", step & pixel.pass_first)
        count(m, "cycles_busy", step)
        count(m, "stall_activation", allowed & ~step)
        count(m, "stall_drain", starts & ~has_half)
        count(m, "stall_block", starts & has_half & ~has_weights & weights.waiting)
        count(m, "stall_weight", starts & has_half & ~has_weights & ~weights.waiting)
        return step, half

    def _array(self, m, step, half, window, feeder, array, accumulators):
        """Carry tokens beside the data: read, multiply, accumulate."""
        pixel, c = window.o.payload, window.current.command
        tokens = [Signal(Token, name=f"token_{n}") for n in range(3)]
        valid = [Signal(name=f"token_{n}_valid") for n in range(3)]
        m.d.sync += [valid[0].eq(step), valid[1].eq(valid[0]), valid[2].eq(valid[1])]
        with m.If(step):
            m.d.sync += [
                tokens[0].inside.eq(pixel.inside), tokens[0].row.eq(pixel.row),
                tokens[0].swap.eq(pixel.pass_first), tokens[0].half.eq(half),
                tokens[0].overwrite.eq(pixel.group_first & c.first),
                tokens[0].is_signed.eq(c.a_signed), tokens[0].zero.eq(c.a_zero),
            ]
        with m.If(valid[0]):
            m.d.sync += tokens[1].eq(tokens[0])
        with m.If(valid[1]):
            m.d.sync += tokens[2].eq(tokens[1])
        m.d.comb += [
            array.enable.eq(valid[0]), array.word.eq(self.read_activation.data),
            array.inside.eq(tokens[0].inside), array.is_signed.eq(tokens[0].is_signed),
            array.zero.eq(tokens[0].zero), array.swap.eq(valid[0] & tokens[0].swap),
            feeder.swap.eq(array.swap), array.load.eq(feeder.load), array.row.eq(feeder.row),
            array.weights.eq(feeder.weights),
            accumulators.fetch.eq(valid[1]), accumulators.fetch_row.eq(tokens[1].row),
            accumulators.fetch_half.eq(tokens[1].half),
            accumulators.enable.eq(valid[2]), accumulators.sums.eq(array.sums),
            accumulators.overwrite.eq(tokens[2].overwrite),
        ]

    def _drains(self, m, step, half, window, drains):
        """Order the drain of each finished group when its last row has been accumulated.

        Groups end at least sixteen cycles apart and the drain's queue has room whenever a half is
        free, so one held order is enough.
        """
        pixel, c = window.o.payload, window.current.command
        order, due = Signal(DrainCommand), Signal(ARRAY_DEPTH)
        out, params, residual, later = Signal(16), Signal(16), Signal(16), Signal()
        ends = step & pixel.pass_last & pixel.group_last & c.last
        m.d.sync += due.eq((due << 1) | ends)
        m.d.comb += [drains.i.valid.eq(due[-1]), drains.i.payload.eq(order)]
        own = ("out", "params", "residual", "half", "same_tables")
        same = [name for name, _ in DrainCommand if name not in own]
        with m.If(ends):
            m.d.sync += [getattr(order, name).eq(getattr(c, name)) for name in same]
            m.d.sync += [order.out.eq(out), order.params.eq(params), order.residual.eq(residual),
                         order.half.eq(half), order.same_tables.eq(later)]
        new = window.i.payload.command
        with m.If(window.i.valid & window.i.ready):
            m.d.sync += [out.eq(new.out), params.eq(new.params), residual.eq(new.residual),
                         later.eq(0)]
        with m.Elif(step & pixel.pass_last & pixel.group_last):
            m.d.sync += [out.eq(out + c.out_group), params.eq(params + 8),
                         residual.eq(residual + c.residual_group), later.eq(1)]

    def _completions(self, m, step, window, completions, drain):
        """Pulse ``done`` in command order, whether a command ends in a drain or not."""
        pixel, c = window.o.payload, window.current.command
        m.submodules.lasts = lasts = Fifo(1, 4)
        ended, drained_last = Signal(ARRAY_DEPTH), Signal(ARRAY_DEPTH)
        finished = Signal(4)  # commands whose last drain is done but not yet reported
        group_ends = step & pixel.pass_last & pixel.group_last
        report = Signal()
        m.d.sync += [
            ended.eq((ended << 1) | (group_ends & pixel.command_last)),
            drained_last.eq((drained_last << 1) | c.last),
        ]
        m.d.comb += [
            lasts.i.valid.eq(group_ends & c.last), lasts.i.payload.eq(pixel.command_last),
            lasts.o.ready.eq(drain.done),
            completions.i.valid.eq(ended[-1]), completions.i.payload.eq(drained_last[-1]),
            report.eq(completions.o.valid & (~completions.o.payload | (finished != 0))),
            completions.o.ready.eq(report),
            self.done.eq(report),
        ]
        m.d.sync += finished.eq(
            finished + (drain.done & lasts.o.payload) - (report & completions.o.payload)
        )
