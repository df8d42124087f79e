# SPDX-License-Identifier: Apache-2.0
"""What a pager remembers of pages: recent frames, uses in work, and whose a page is."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.storage import RECENT_PAGES
from hdl.storage.packets import FRAME_BITS, PAGE_BITS, REGION_BITS, Region

PIN_BITS = 8


class RecentPages(wiring.Component):
    """The frames of the last eight pages that were looked up; the oldest entry is replaced.

    ``hit`` and ``frame`` are combinational. What is put or forgotten shows in the next cycle.

    Members
    -------
    page: Is it known? ``hit``, ``frame``: Yes, in this frame.
    put, put_page, put_frame: A page was looked up.
    forget, forget_frame: This frame is refilled.
    frames, asked, kept: Of so many frames, this one holds one of the last pages, as many as a
        quarter of the frames.
    """

    def __init__(self):
        super().__init__(
            {
                "page": In(PAGE_BITS), "hit": Out(1), "frame": Out(FRAME_BITS),
                "put": In(1), "put_page": In(PAGE_BITS), "put_frame": In(FRAME_BITS),
                "forget": In(1), "forget_frame": In(FRAME_BITS),
                "frames": In(FRAME_BITS + 1), "asked": In(FRAME_BITS), "kept": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        layout = data.StructLayout({"valid": 1, "page": PAGE_BITS, "frame": FRAME_BITS})
        entries, oldest = [Signal(layout, name=f"entry_{i}") for i in range(RECENT_PAGES)], Signal(
            range(RECENT_PAGES))
        for number, entry in enumerate(entries):
            age = Signal(range(RECENT_PAGES), name=f"age_{number}")
            m.d.comb += age.eq(oldest - 1 - number)
            with m.If(entry.valid & (entry.frame == self.asked) & (age < self.frames >> 2)):
                m.d.comb += self.kept.eq(1)
            with m.If(entry.valid & (entry.page == self.page)):
                m.d.comb += [self.hit.eq(1), self.frame.eq(entry.frame)]
            with m.If(self.forget & (entry.frame == self.forget_frame)):
                m.d.sync += entry.valid.eq(0)
            with m.If(self.put & (oldest == number)):
                m.d.sync += [
                    entry.valid.eq(1), entry.page.eq(self.put_page),
                    entry.frame.eq(self.put_frame),
                ]
        m.d.sync += oldest.eq(oldest + self.put)
        return m


class FramePins(wiring.Component):
    """How many reads of each frame are in work.

    One may begin and one end in a cycle; both show in the next. ``held`` is combinational. After
    reset all counts are cleared, a cycle each; until then ``ready`` is low and none may begin.

    Members
    -------
    take, taken: A read of frame ``taken`` begins. ``give``, ``given``: one ends.
    frame, held: Is any in work?
    """

    def __init__(self):
        super().__init__(
            {
                "take": In(1), "taken": In(FRAME_BITS), "give": In(1), "given": In(FRAME_BITS),
                "frame": In(FRAME_BITS), "held": Out(1), "ready": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.begun = begun = Memory(shape=PIN_BITS, depth=1 << FRAME_BITS, init=[])
        m.submodules.ended = ended = Memory(shape=PIN_BITS, depth=1 << FRAME_BITS, init=[])
        sweep, views = Signal(FRAME_BITS + 1), []
        m.d.comb += self.ready.eq(sweep[-1])
        m.d.sync += sweep.eq(sweep + ~self.ready)
        # Two memories, so that each has one writer: what is held has begun more often than ended.
        events = (begun, self.take, self.taken), (ended, self.give, self.given)
        for memory, event, frame in events:
            write, old = memory.write_port(), memory.read_port(domain="comb")
            view = memory.read_port(domain="comb")
            m.d.comb += [
                old.addr.eq(frame), view.addr.eq(self.frame), write.en.eq(event | ~self.ready),
            ]
            with m.If(self.ready):
                m.d.comb += [write.addr.eq(frame), write.data.eq(old.data + 1)]
            with m.Else():
                m.d.comb += [write.addr.eq(sweep), write.data.eq(0)]
            views.append(view.data)
        m.d.comb += self.held.eq(views[0] != views[1])
        return m


class RegionMap(wiring.Component):
    """The region of every page, learnt from the regions' descriptions.

    A description takes as many cycles as the region has pages, during which none may follow; a
    page that no region names is of region 0 or of whichever named it last.

    Members
    -------
    describe, region: A region. ``page``, ``owner``: The region of a page, combinational.
    """

    def __init__(self):
        super().__init__(
            {
                "describe": In(1), "region": In(Region),
                "page": In(PAGE_BITS), "owner": Out(REGION_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.owners = owners = Memory(shape=REGION_BITS, depth=1 << PAGE_BITS, init=[])
        write, read = owners.write_port(), owners.read_port(domain="comb")
        number, page, left = Signal(REGION_BITS), Signal(PAGE_BITS), Signal(PAGE_BITS)
        m.d.comb += [
            write.addr.eq(page), write.data.eq(number), write.en.eq(left != 0),
            read.addr.eq(self.page), self.owner.eq(read.data),
        ]
        with m.If(self.describe):
            m.d.sync += [
                number.eq(self.region.region), page.eq(self.region.first),
                left.eq(self.region.pages),
            ]
        with m.Elif(left != 0):
            m.d.sync += [page.eq(page + 1), left.eq(left - 1)]
        return m
