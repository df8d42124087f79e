# SPDX-License-Identifier: Apache-2.0
"""The frames of a parameter store: which block each holds and who still needs it."""

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.config import BLOCKS

FRAMES = 64
USE_BITS = 4
OWED_BITS = 9

Residence = data.StructLayout(
    {
        "frame": 6, "block": 12,
        "prefetched": 1,     # fetched before anyone looked it up
        "pinned": 1,
        "shared": 1,
        "owed": OWED_BITS,   # releases that followers will send
    }
)
"""The start of a block's stay in a frame."""


class FrameTable(wiring.Component):
    """State of 64 frames, and the table from block numbers to them.

    A table entry only names a frame; the frame's own state says whether it holds that block, so
    entries are never cleared. After reset they are written once, one a cycle from block 0 on; until
    then ``fetch_known`` is low and the block must not begin. Every event shows in the next cycle.
    At most one of ``touch`` and ``drop`` and at most one of ``begin`` with releases owed and
    ``paid`` may come in a cycle.

    Members
    -------
    clear: Forget everything; ``ready`` falls until that is done, a cycle per frame, and also while
        a frame that this tile has done with awaits followers' releases.
    wasted: While clearing: a prefetched block was never used.
    begin, residence: A residence begins. ``completed``, ``completed_frame``: its last word came.
    paid, paid_frame: A follower's release arrived.
    lookup_block: The lookup's view, one cycle later: ``lookup_frame``, ``lookup_match`` (the frame
        holds or awaits the block), ``lookup_complete``, ``lookup_fresh`` (not yet touched),
        ``lookup_prefetched``, ``lookup_closed`` (shared, and its one use has had its last lookup).
    touch, touch_open: The view's block is in use; more lookups of this use follow if open.
    drop_block, or drop_index if drop_direct: The release's view, one cycle later: ``drop_frame``,
        ``drop_match``, ``drop_used``, ``drop_holds`` (block number, only direct).
    drop, drop_invalid: One use of the view's block ends; the block is then gone if invalid.
    unpin: The view's frame is no longer pinned; the block is gone if ``drop_invalid``.
    fetch_block: The fetch pointer's view, one cycle later: ``fetch_present``, ``fetch_owed`` (gone
        here, but followers still owe releases of it); ``fetch_known`` at once.
    victim: Frame whose ``victim_free`` (may be refilled), ``victim_spare`` (may be if need be, at
        the cost of a prefetched block) and ``victim_wasted`` (that is so) are given at once.
    filling: Frames that await words.
    """

    def __init__(self):
        super().__init__(
            {
                "clear": In(1), "ready": Out(1), "wasted": Out(1),
                "begin": In(1), "residence": In(Residence),
                "completed": In(1), "completed_frame": In(6),
                "paid": In(1), "paid_frame": In(6),
                "lookup_block": In(12), "lookup_frame": Out(6), "lookup_match": Out(1),
                "lookup_complete": Out(1), "lookup_fresh": Out(1), "lookup_prefetched": Out(1),
                "lookup_closed": Out(1), "touch": In(1), "touch_open": In(1),
                "drop_block": In(12), "drop_direct": In(1), "drop_index": In(6),
                "drop_frame": Out(6), "drop_match": Out(1), "drop_used": Out(1),
                "drop_holds": Out(12), "drop": In(1), "drop_invalid": In(1), "unpin": In(1),
                "fetch_block": In(12), "fetch_present": Out(1), "fetch_owed": Out(1),
                "fetch_known": Out(1),
                "victim": In(6), "victim_free": Out(1), "victim_spare": Out(1),
                "victim_wasted": Out(1),
                "filling": Out(FRAMES), "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = Memory(shape=6, depth=BLOCKS, init=[])
        m.submodules.blocks = blocks = Memory(shape=12, depth=FRAMES, init=[])
        m.submodules.uses = uses = Memory(shape=USE_BITS, depth=FRAMES, init=[])
        m.submodules.owed = owed = Memory(shape=OWED_BITS, depth=FRAMES, init=[])
        flags = {
            name: Signal(FRAMES, name=name)
            for name in ("valid", "complete", "touched", "open", "prefetched", "pinned", "shared")
        }
        sweep, mark = Signal(range(FRAMES + 1)), Signal(range(BLOCKS + 1))
        table_write, block_write = table.write_port(), blocks.write_port()
        new = self.residence
        writing = Signal()
        m.d.comb += [
            self.ready.eq(sweep[-1]),
            self.filling.eq(flags["valid"] & ~flags["complete"]),
            self.busy.eq(~self.ready | ~mark[-1]),
            writing.eq(~self.begin & ~mark[-1]),
            table_write.addr.eq(Mux(self.begin, new.block, mark)),
            table_write.data.eq(Mux(self.begin, new.frame, 0)),
            table_write.en.eq(self.begin | writing),
            block_write.addr.eq(Mux(self.begin, new.frame, mark)),
            block_write.data.eq(Mux(self.begin, new.block, 0)),
            block_write.en.eq(self.begin | (writing & (mark < FRAMES))),
            self.fetch_known.eq(self._known(mark, self.fetch_block)),
        ]
        m.d.sync += mark.eq(mark + writing)
        use = self._views(m, table, blocks, uses, owed, flags, mark)
        swept = self._counts(m, uses, owed, flags, sweep, *use)
        self._flags(m, flags, sweep, swept)
        return m

    def _flag(self, flags, name, frame):
        return flags[name].bit_select(frame, 1)

    def _known(self, mark, block):
        """The entry of ``block`` has been written since reset."""
        return mark[-1] | (block < mark)

    def _frame_of(self, m, table, blocks, mark, name, block):
        """The frame that the table names for ``block``, a cycle later, and whether it agrees."""
        reader, holder = table.read_port(domain="comb"), blocks.read_port(domain="comb")
        frame, asked = Signal(6, name=f"{name}_at"), Signal(12, name=f"{name}_asked")
        m.d.comb += [reader.addr.eq(block), holder.addr.eq(frame)]
        m.d.sync += [frame.eq(Mux(self._known(mark, block), reader.data, 0)), asked.eq(block)]
        return frame, holder.data, holder.data == asked

    def _views(self, m, table, blocks, uses, owed, flags, mark):
        """The four views."""
        frame, _, same = self._frame_of(m, table, blocks, mark, "lookup", self.lookup_block)
        lookup_uses = self._read(m, uses, frame)
        m.d.comb += [
            self.lookup_frame.eq(frame),
            self.lookup_complete.eq(self._flag(flags, "complete", frame)),
            self.lookup_fresh.eq(~self._flag(flags, "touched", frame)),
            self.lookup_prefetched.eq(self._flag(flags, "prefetched", frame)),
            self.lookup_closed.eq(
                self._flag(flags, "shared", frame) & ~self._flag(flags, "open", frame)
                & (lookup_uses != 0)
            ),
        ]
        m.d.comb += self.lookup_match.eq(same & self._flag(flags, "valid", frame))

        frame, holds, same = self._frame_of(m, table, blocks, mark, "drop", self.drop_block)
        with m.If(self.drop_direct):
            m.d.sync += frame.eq(self.drop_index)
        drop_uses = self._read(m, uses, frame)
        m.d.comb += [
            self.drop_frame.eq(frame),
            self.drop_holds.eq(holds),
            self.drop_used.eq(drop_uses != 0),
        ]
        m.d.comb += self.drop_match.eq(
            self._flag(flags, "valid", frame) & (same | self.drop_direct)
        )

        frame, _, same = self._frame_of(m, table, blocks, mark, "fetch", self.fetch_block)
        valid = self._flag(flags, "valid", frame)
        m.d.comb += [
            self.fetch_present.eq(same & valid),
            self.fetch_owed.eq(same & ~valid & (self._read(m, owed, frame) != 0)),
        ]

        self._victim(m, uses, owed, flags)
        return lookup_uses, drop_uses

    def _read(self, m, memory, address):
        port = memory.read_port(domain="comb")
        m.d.comb += port.addr.eq(address)
        return port.data

    def _victim(self, m, uses, owed, flags):
        frame = self.victim
        idle = (self._read(m, uses, frame) == 0) & (self._read(m, owed, frame) == 0)
        valid, complete, touched, shared, pinned, prefetched = (
            self._flag(flags, name, frame)
            for name in ("valid", "complete", "touched", "shared", "pinned", "prefetched")
        )
        idle = idle & ~pinned & (~valid | complete)
        m.d.comb += [
            # A shared block that is still here is either unused or pinned.
            self.victim_free.eq(idle & (~valid | touched & ~shared)),
            self.victim_spare.eq(idle & valid & ~touched & ~shared),
            self.victim_wasted.eq(valid & ~touched & prefetched),
        ]

    def _counts(self, m, uses, owed, flags, sweep, lookup_uses, drop_uses):
        """Writes of the two counts of each frame; returns whether ``sweep`` clears its frame."""
        use_write, owed_write = uses.write_port(), owed.write_port()
        swept, first = Signal(), Signal(init=1)
        owed_now = self._read(m, owed, sweep[:-1])
        # After reset the counts mean nothing yet; later, wait for what followers still owe.
        settled = first | self._flag(flags, "valid", sweep[:-1]) | (owed_now == 0)
        with m.If(~self.ready & settled & ~self.paid):
            m.d.comb += [
                swept.eq(1),
                self.wasted.eq(
                    flags["valid"].bit_select(sweep[:-1], 1)
                    & ~flags["touched"].bit_select(sweep[:-1], 1)
                    & flags["prefetched"].bit_select(sweep[:-1], 1)
                ),
            ]
            m.d.sync += sweep.eq(sweep + 1)
        with m.If(self.ready):
            m.d.sync += first.eq(0)
        with m.If(self.clear):
            m.d.sync += sweep.eq(0)

        again = ~self._flag(flags, "open", self.lookup_frame) | (lookup_uses == 0)
        m.d.comb += [
            use_write.en.eq(swept | self.touch | self.drop),
            use_write.addr.eq(sweep),
            owed_write.en.eq(swept | self.paid | (self.begin & self.residence.shared)),
            owed_write.addr.eq(sweep),
        ]
        with m.If(self.touch):
            m.d.comb += [
                use_write.addr.eq(self.lookup_frame), use_write.data.eq(lookup_uses + again)
            ]
        with m.Elif(self.drop):
            m.d.comb += [use_write.addr.eq(self.drop_frame), use_write.data.eq(drop_uses - 1)]
        with m.If(self.paid):
            paid = self._read(m, owed, self.paid_frame)
            m.d.comb += [owed_write.addr.eq(self.paid_frame), owed_write.data.eq(paid - 1)]
        with m.Elif(self.begin & self.residence.shared):
            m.d.comb += [
                owed_write.addr.eq(self.residence.frame), owed_write.data.eq(self.residence.owed)
            ]
        return swept

    def _flags(self, m, flags, sweep, swept):
        """Set and clear flags by masks of one bit."""

        def mask(enable, frame, name):
            bits = Signal(FRAMES, name=f"mask_{name}")
            m.d.comb += bits.eq(Mux(enable, Const(1, FRAMES) << frame, 0))
            return bits

        new = self.residence
        begin = mask(self.begin, new.frame, "begin")
        completed = mask(self.completed, self.completed_frame, "completed")
        touch = mask(self.touch, self.lookup_frame, "touch")
        drop = mask(self.drop | self.unpin, self.drop_frame, "drop")
        cleared = mask(swept, sweep[:-1], "cleared")

        def only(condition, bits):
            return Mux(condition, bits, 0)

        changes = {
            "valid": (only(self.drop_invalid, drop), begin),
            "complete": (begin, completed),
            "touched": (begin, touch),
            "open": (begin | touch, only(self.touch_open, touch)),
            "prefetched": (begin, only(new.prefetched, begin)),
            "pinned": (begin | only(self.unpin, drop), only(new.pinned, begin)),
            "shared": (begin, only(new.shared, begin)),
        }
        with m.If(self.begin | self.completed | self.touch | self.drop | self.unpin | swept):
            for name, (low, high) in changes.items():
                m.d.sync += flags[name].eq((flags[name] & ~(low | cleared)) | high)
