# SPDX-License-Identifier: Apache-2.0
"""The sequencer: fetches a tile's commands, dispatches them in order, runs four queues."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from emu.config import Config
from emu.isa import SEM_BITS, Opcode, Queue
from hdl.clock_gate import gate
from hdl.counter import count
from hdl.packets import COMMANDS, HbmRequest
from hdl.ports import SignalOp, WaitOp
from hdl.sequencer.dispatch import Dispatcher, LayerCommand
from hdl.sequencer.fetch import DIRECTORY_SLOT, CommandFetch, CommandWord
from hdl.sequencer.queue import CommandQueue, QueueSignal

STEP_BITS = 16
LAYOUTS = {queue.name.lower(): COMMANDS[Opcode[queue.name]] for queue in Queue}
"""Layout of each queue's command, by the queue's name, in the order of `emu.isa.Queue`."""


class SignalMerge(wiring.Component):
    """Signals of all queues, sorted into local and remote ones. One of each in two cycles."""

    def __init__(self):
        super().__init__(
            {
                **{f"i_{name}": In(stream.Signature(QueueSignal)) for name in LAYOUTS},
                "signal": Out(stream.Signature(SEM_BITS)),
                "remote_signal": Out(stream.Signature(SignalOp)),
                "settled": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        inputs = [getattr(self, f"i_{name}") for name in LAYOUTS]
        m.d.comb += self.settled.eq(~self.signal.valid & ~self.remote_signal.valid)
        for local, out in ((1, self.signal), (0, self.remote_signal)):
            with m.If(out.valid):
                m.d.sync += out.valid.eq(~out.ready)
            # Fixed priority: a queue signals far less often than every other cycle.
            for i in inputs:
                with m.Elif(i.valid & (i.payload.local == local)):
                    m.d.comb += i.ready.eq(1)
                    m.d.sync += [
                        out.valid.eq(1),
                        Value.cast(out.payload).eq(Value.cast(i.payload)),
                    ]
        return m


class Sequencer(wiring.Component):
    """Runs the command stream of one tile.

    Latency from a command's first word in the buffer to its engine: 8 cycles of dispatch, then as
    many as the command has words, then one per wait that is not yet over. Throughput: a command in
    8 cycles. Counters: ``commands`` dispatched (END included), ``command_words`` fetched,
    ``wait_cycles_<queue>`` a head blocked on a semaphore, ``dispatch_stalls`` a command that could
    not be dispatched.

    Parameters
    ----------
    config: ``core.queue_depth`` commands wait per queue.

    Members
    -------
    x, y, index: This tile and its directory word (tile number).
    start: Begin fetching (level or pulse).
    request, command_word: Reads of the stream, kind COMMAND, and their words (any order).
    layer_command: LAYER, FRAMES, PIN and UNPIN, for the parameter store.
    wait_<queue>, command_<queue>, done_<queue>: To the semaphores and the engine of each queue.
    signal: Signals to this tile itself.
    remote_signal: All others.
    done: END has passed: everything is complete. Stays up.
    error: Sticky: unknown opcode, or a stream without END.
    step: Steps of the program that have begun: marked SYNCs that have passed.
    busy: Per queue, whether it holds a command or its engine works on one.
    """

    def __init__(self, config: Config):
        self._config = config
        members = {
            "x": In(4), "y": In(4), "index": In(8), "start": In(1),
            "request": Out(stream.Signature(HbmRequest)),
            "command_word": In(stream.Signature(CommandWord)),
            "layer_command": Out(stream.Signature(LayerCommand)),
            "signal": Out(stream.Signature(SEM_BITS)),
            "remote_signal": Out(stream.Signature(SignalOp)),
            "done": Out(1), "error": Out(1), "busy": Out(len(LAYOUTS)), "step": Out(STEP_BITS),
        }
        for name, layout in LAYOUTS.items():
            members |= {
                f"wait_{name}": Out(stream.Signature(WaitOp)),
                f"command_{name}": Out(stream.Signature(layout)),
                f"done_{name}": In(1),
            }
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.fetch = fetch = CommandFetch()
        m.submodules.dispatch = dispatch = Dispatcher()
        m.submodules.merge = merge = SignalMerge()
        connect(m, fetch.request, wiring.flipped(self.request))
        connect(m, wiring.flipped(self.command_word), fetch.command_word)
        connect(m, fetch.o, dispatch.i)
        connect(m, dispatch.layer_command, wiring.flipped(self.layer_command))
        connect(m, merge.signal, wiring.flipped(self.signal))
        connect(m, merge.remote_signal, wiring.flipped(self.remote_signal))
        m.d.comb += [
            fetch.x.eq(self.x),
            fetch.y.eq(self.y),
            fetch.index.eq(self.index),
            fetch.start.eq(self.start),
            dispatch.exhausted.eq(fetch.exhausted),
            dispatch.settled.eq(merge.settled),
            self.done.eq(dispatch.done),
            self.error.eq(dispatch.error),
        ]
        queues = [self._queue(m, name, dispatch, merge, platform) for name in LAYOUTS]
        m.d.comb += [
            dispatch.room.eq(Cat(queue.room for queue in queues)),
            dispatch.idle.eq(Cat(queue.idle for queue in queues)),
            self.busy.eq(~dispatch.idle),
        ]
        m.d.sync += self.step.eq(self.step + Cat(queue.mark for queue in queues).any())
        was_done = Signal()
        m.d.sync += was_done.eq(self.done)
        count(m, "commands", dispatch.dispatched | (self.done & ~was_done))
        word = self.command_word
        count(m, "command_words", word.valid & (word.payload.address < DIRECTORY_SLOT))
        count(m, "dispatch_stalls", dispatch.stalled)
        return m

    def _queue(self, m, name, dispatch, merge, platform):
        queue = CommandQueue(LAYOUTS[name], self._config.core.queue_depth)
        gate(m, f"queue_{name}", queue, queue.push | ~queue.idle | queue.done, platform)
        wait = getattr(self, f"wait_{name}")
        connect(m, queue.wait, wiring.flipped(wait))
        connect(m, queue.command, wiring.flipped(getattr(self, f"command_{name}")))
        connect(m, queue.signal, getattr(merge, f"i_{name}"))
        m.d.comb += [
            queue.x.eq(self.x),
            queue.y.eq(self.y),
            queue.push.eq(dispatch.push[list(LAYOUTS).index(name)]),
            queue.word.eq(dispatch.word),
            queue.done.eq(getattr(self, f"done_{name}")),
        ]
        count(m, f"wait_cycles_{name}", wait.valid & ~wait.ready)
        return queue
