# SPDX-License-Identifier: Apache-2.0
"""When a drain reads which accumulator row: credits instead of stalls."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.compute.drain_command import DrainCommand
from hdl.counter import count


class RowIssuer(wiring.Component):
    """Reads each accumulator row as often as its lanes need, only when the results have room.

    16 / lanes reads a pixel, back to back (for int32 output four, each giving one word).

    Parameters
    ----------
    lanes: Requantise lanes: 8 or 16.
    depth: Words that may be on their way to the write port.

    Members
    -------
    start: The next command, its constants loaded. Ready when the one before left the pipeline.
    current: The command in the pipeline, held until the next start.
    enable, row, half: Accumulator read of this cycle.
    operand: A row read in the cycle before is at the accumulators' output now.
    steps: Which read of its pixel the operand is that was read 1, 2, 3 cycles ago.
    requested: A residual word was requested: its pixel may be issued.
    queued, written: An output word entered the write queue; left it.
    in_use: Rows are still to be read. quiet: Nothing is between accumulators and write queue.
    final: The next word queued is the command's last.
    drained: Pulse: the last row of a command was read in the cycle before.
    """

    def __init__(self, lanes: int, depth: int):
        self._lanes, self._depth = lanes, depth
        super().__init__(
            {
                "start": In(stream.Signature(DrainCommand)),
                "current": Out(DrainCommand),
                "enable": Out(1), "row": Out(12), "half": Out(1), "operand": Out(1),
                "steps": Out(data.ArrayLayout(2, 3)),
                "requested": In(1), "queued": In(1), "written": In(1),
                "in_use": Out(1), "quiet": Out(1), "final": Out(1), "drained": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        current, step = self.current, Signal(2)
        # Pixels whose residual word was requested; words promised room; words in the pipeline.
        ready, promised, inside = Signal(12), Signal(range(17)), Signal(range(17))
        wide, first, last = current.out_int32, Signal(), Signal()
        needs, begun, ended, starting = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            needs.eq(current.residual_valid & ~wide),
            first.eq(wide | (step == 0)),
            last.eq(step == Mux(wide, 3, 16 // self._lanes - 1)),
            self.enable.eq(
                self.in_use
                & (~first | ((promised != self._depth) & (~needs | (ready != 0))))
            ),
            begun.eq(self.enable & first),
            ended.eq(self.enable & last & (self.row == current.pixels - 1)),
            starting.eq(self.start.valid & self.start.ready),
            self.half.eq(current.half),
            self.quiet.eq(inside == 0),
            self.start.ready.eq(~self.in_use & self.quiet),
            self.final.eq(~self.in_use & (inside == 1)),
        ]
        m.d.sync += [
            self.operand.eq(self.enable),
            self.drained.eq(ended),
            promised.eq(promised + begun - self.written),
            inside.eq(inside + begun - self.queued),
            ready.eq(ready + self.requested - (begun & needs)),
            self.steps[0].eq(step),
            self.steps[1].eq(self.steps[0]),
            self.steps[2].eq(self.steps[1]),
        ]
        with m.If(self.enable):
            m.d.sync += [step.eq(Mux(last, 0, step + 1)), self.row.eq(self.row + last)]
        with m.If(ended):
            m.d.sync += self.in_use.eq(0)
        with m.If(starting):
            m.d.sync += [current.eq(self.start.payload), self.in_use.eq(1), self.row.eq(0)]
        count(m, "stalls", self.in_use & ~self.enable)
        return m
