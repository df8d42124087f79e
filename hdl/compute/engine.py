# SPDX-License-Identifier: Apache-2.0
"""The compute engine: COMPUTE commands from window to requantised words in the scratchpad."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import Config
from emu.isa import WeightMode
from hdl.clock_gate import gate
from hdl.compute.accumulators import Accumulators
from hdl.compute.command import Command, Prepared, Preparer
from hdl.compute.drain import Drain
from hdl.compute.drain_command import DrainCommand
from hdl.compute.packed_array import make_array
from hdl.compute.weights import ShadowFeeder, WeightReader
from hdl.compute.window import Window
from hdl.counter import count
from hdl.fifo import Fifo
from hdl.ports import BlockLookup, BlockRelease, ScratchpadRead, ScratchpadWrite

Token = data.StructLayout(
    {
        "inside": 1, "swap": 1, "overwrite": 1, "half": 1, "row": 12,
        "is_signed": 1, "zero": signed(9), "tapped": 1, "fresh": 1, "emits": 1,
    }
)
"""A pixel on its way from the scratchpad through the array to its accumulators."""
ARRAY_DEPTH = 4
"""Cycles from a pixel's issue until its accumulators are written."""
MIN_PASS = 4
"""Cycles between the starts of two passes, at least: a row is written before it is read again."""
COMMANDS_ENDING = 4
"""Commands whose last pixel was issued and whose end is not reported."""
DRAINS = 16
"""Groups whose drain is not done: two halves and the single rows in the drain's write queue."""


class ComputeEngine(wiring.Component):
    """Executes COMPUTE commands; semantics in `emu.isa.COMPUTE`, bits as in `emu.compute_model`.

    Throughput: a pass of n pixels over a tile of w words takes max(n, w, 4) cycles, and one pass
    follows another without a gap, across groups and across waiting commands. In mode ROW_TAP it
    takes a cycle for each input column of its rows (r outputs with stride s: s (r - 1) + 3, less
    up to two left of the input), and three more before a pass of another shape. Latency:
    about 18 cycles from a command to its first pixel when idle; four from the last pixel of a
    group to its drain. While one half of the accumulators drains, the other fills.

    Parameters
    ----------
    config: The machine.

    Members
    -------
    command: COMPUTE commands. ``done``: pulse per command, in order.
    read_activation, read_weight, read_drain, write_drain, read_rows: Scratchpad ports; any may
        refuse.
    lookup, release: Parameter store.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "command": In(stream.Signature(Command)), "done": Out(1),
                "read_activation": Out(ScratchpadRead), "read_weight": Out(ScratchpadRead),
                "read_drain": Out(ScratchpadRead), "write_drain": Out(ScratchpadWrite),
                "read_rows": Out(ScratchpadRead),
                "lookup": Out(BlockLookup), "release": Out(BlockRelease),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.preparer = preparer = Preparer()
        m.submodules.window = window = Window()
        m.submodules.reader = weights = WeightReader()
        m.submodules.feeder = feeder = ShadowFeeder()
        m.submodules.array = array = make_array(self._config.core.packed_cells)
        m.submodules.accumulators = accumulators = Accumulators(self._config)
        drain = Drain(self._config)
        gate(m, "drain", drain, drain.command.valid | drain.busy, platform)
        m.submodules.drains = drains = Fifo(DrainCommand, 2)
        m.submodules.completions = completions = Fifo(1, COMMANDS_ENDING)
        connect(m, wiring.flipped(self.command), preparer.i)
        connect(m, preparer.read, wiring.flipped(self.read_rows))
        connect(m, weights.o, feeder.i)
        connect(m, weights.read, wiring.flipped(self.read_weight))
        connect(m, weights.lookup, wiring.flipped(self.lookup))
        connect(m, weights.release, wiring.flipped(self.release))
        connect(m, drain.accumulator, accumulators.drain)
        connect(m, drain.read, wiring.flipped(self.read_drain))
        connect(m, drain.write, wiring.flipped(self.write_drain))
        # The weight reader runs a command ahead of the window, whose commands wait here.
        m.submodules.ahead = ahead = Fifo(Prepared, 2)
        connect(m, ahead.o, window.i)
        self._share(m, preparer, ahead, weights)
        has_slot, step = Signal(), Signal()
        half = self._issue(m, step, has_slot, window, weights, feeder, drain)
        self._array(m, step, half, window, weights, feeder, array, accumulators)
        self._drains(m, step, half, window, drains, drain)
        report = self._completions(m, step, has_slot, window, completions, drain)
        self._skips(m, preparer, report)
        return m

    def _skips(self, m, preparer, report):
        """A command without rows is done when those before it are."""
        out = Signal(4)  # commands that were prepared and are not reported
        m.d.sync += out.eq(out + (preparer.o.valid & preparer.o.ready) - report)
        m.d.comb += [preparer.idle.eq(out == 0), self.done.eq(report | preparer.skipped)]
        count(m, "skipped", preparer.skipped)

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

    def _issue(self, m, step, has_slot, window, weights, feeder, drain):
        """Decide whether the pixel shown by the window goes; count why not.

        What lets a pixel go stays until it went, so that a request is never withdrawn.
        """
        pixel, c = window.o.payload, window.current.command
        full_halves, half, young = Signal(2), Signal(), Signal(range(MIN_PASS))
        has_weights, has_half, old = Signal(), Signal(), Signal()
        wanted, allowed, ends = Signal(), Signal(), Signal()
        request = self.read_activation.request
        m.d.comb += [
            wanted.eq(window.o.valid),
            has_weights.eq(~pixel.pass_first | feeder.can_start),
            has_half.eq(~(pixel.pass_first & pixel.group_first & c.first) | (full_halves != 2)),
            old.eq(~pixel.pass_first | (young == 0)),
            allowed.eq(wanted & has_weights & has_half & has_slot & old),
            request.valid.eq(allowed & pixel.inside),
            request.payload.eq(pixel.address),
            step.eq(allowed & (~pixel.inside | request.ready)),
            window.o.ready.eq(step),
            ends.eq(step & pixel.pass_last & pixel.group_last & c.last),
        ]
        m.d.sync += full_halves.eq(full_halves + ends - drain.drained)
        with m.If(ends):
            m.d.sync += half.eq(~half)
        # Passes of one shape meet every row at one interval. In mode ROW_TAP others may not: the
        # next one waits for the last row.
        uneven = (c.w_mode == WeightMode.ROW_TAP) & ((c.kw != 1) | pixel.command_last)
        with m.If(step & (pixel.pass_first | (pixel.pass_last & uneven))):
            m.d.sync += young.eq(MIN_PASS - 1)
        with m.Elif(young != 0):
            m.d.sync += young.eq(young - 1)
        starts = pixel.pass_first & wanted & old
        count(m, "passes", step & pixel.pass_first)
        count(m, "cycles_busy", step)
        count(m, "stall_activation", allowed & ~step)
        count(m, "stall_drain", starts & ~has_half)
        count(m, "stall_block", starts & has_half & ~has_weights & weights.waiting)
        count(m, "stall_weight", starts & has_half & ~has_weights & ~weights.waiting)
        count(m, "stall_short", wanted & ~old)
        return half

    def _array(self, m, step, half, window, weights, feeder, array, accumulators):
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
                tokens[0].tapped.eq(c.w_mode == WeightMode.ROW_TAP),
                tokens[0].fresh.eq(pixel.fresh), tokens[0].emits.eq(pixel.emits),
            ]
        with m.If(valid[0]):
            m.d.sync += tokens[1].eq(tokens[0])
        with m.If(valid[1]):
            m.d.sync += tokens[2].eq(tokens[1])
        m.d.comb += [
            array.enable.eq(valid[0]), array.word.eq(self.read_activation.data),
            array.inside.eq(tokens[0].inside), array.word_signed.eq(tokens[0].is_signed),
            array.tapped.eq(tokens[0].tapped), array.fresh.eq(tokens[0].fresh),
            array.word_zero.eq(tokens[0].zero), array.swap.eq(valid[0] & tokens[0].swap),
            feeder.swap.eq(array.swap), array.load.eq(feeder.load),
            array.weights.eq(weights.o.payload.word), array.index.eq(weights.o.payload.index),
            array.mode.eq(weights.o.payload.mode),
            array.weights_signed.eq(weights.o.payload.is_signed),
            array.weights_zero.eq(weights.o.payload.zero),
            accumulators.fetch.eq(valid[1] & tokens[1].emits),
            accumulators.fetch_row.eq(tokens[1].row),
            accumulators.fetch_half.eq(tokens[1].half),
            accumulators.enable.eq(valid[2] & tokens[2].emits), accumulators.sums.eq(array.sums),
            accumulators.overwrite.eq(tokens[2].overwrite),
        ]

    def _drains(self, m, step, half, window, drains, drain):
        """Order the drain of each finished group when its last row has been accumulated.

        The queue holds orders of full halves only, so it never overflows.
        """
        pixel, c = window.o.payload, window.current.command
        order, due, ripe = drains.i.payload, Signal(ARRAY_DEPTH), Signal(2)
        out, params, residual, later = Signal(16), Signal(16), Signal(16), Signal()
        ends, taken = Signal(), Signal()
        m.d.comb += [
            ends.eq(step & pixel.pass_last & pixel.group_last & c.last),
            drains.i.valid.eq(ends),
            drain.command.valid.eq(drains.o.valid & (ripe != 0)),
            drain.command.payload.eq(drains.o.payload),
            taken.eq(drain.command.valid & drain.command.ready),
            drains.o.ready.eq(taken),
        ]
        m.d.sync += [due.eq((due << 1) | ends), ripe.eq(ripe + due[-1] - taken)]
        own = ("out", "params", "residual", "half", "same_tables")
        same = [name for name, _ in DrainCommand if name not in own]
        m.d.comb += [getattr(order, name).eq(getattr(c, name)) for name in same]
        m.d.comb += [order.out.eq(out), order.params.eq(params), order.residual.eq(residual),
                     order.half.eq(half), order.same_tables.eq(later)]
        new = window.i.payload.command
        with m.If(window.i.valid & window.i.ready):
            m.d.sync += [out.eq(new.out), params.eq(new.params), residual.eq(new.residual),
                         later.eq(0)]
        with m.Elif(step & pixel.pass_last & pixel.group_last):
            m.d.sync += [out.eq(out + c.out_group), params.eq(params + 8),
                         residual.eq(residual + c.residual_group), later.eq(1)]

    def _completions(self, m, step, has_slot, window, completions, drain):
        """Pulse ``done`` in command order, whether a command ends in a drain or not."""
        pixel, c = window.o.payload, window.current.command
        m.submodules.lasts = lasts = Fifo(1, DRAINS)
        ended, drained_last = Signal(ARRAY_DEPTH), Signal(ARRAY_DEPTH)
        finished = Signal(4)  # commands whose last drain is done but not yet reported
        ending = Signal(range(COMMANDS_ENDING + 1))  # commands issued but not yet reported
        group_ends, command_ends, report = Signal(), Signal(), Signal()
        m.d.sync += [
            ended.eq((ended << 1) | command_ends),
            drained_last.eq((drained_last << 1) | c.last),
            ending.eq(ending + command_ends - report),
        ]
        m.d.comb += [
            has_slot.eq(~(pixel.pass_last & pixel.command_last) | (ending != COMMANDS_ENDING)),
            group_ends.eq(step & pixel.pass_last & pixel.group_last),
            command_ends.eq(group_ends & pixel.command_last),
            lasts.i.valid.eq(group_ends & c.last), lasts.i.payload.eq(pixel.command_last),
            lasts.o.ready.eq(drain.done),
            completions.i.valid.eq(ended[-1]), completions.i.payload.eq(drained_last[-1]),
            report.eq(completions.o.valid & (~completions.o.payload | (finished != 0))),
            completions.o.ready.eq(report),
        ]
        m.d.sync += finished.eq(
            finished + (drain.done & lasts.o.payload) - (report & completions.o.payload)
        )
        return report
