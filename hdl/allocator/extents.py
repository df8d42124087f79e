# SPDX-License-Identifier: Apache-2.0
"""The free extents of a memory: a linked list that is searched, cut and joined."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class Late(enum.Enum, shape=2):
    """What the second cycle of a change does."""

    DISCARD = 0  # the node chosen leaves the list
    SPLIT = 1    # the new node gets what is behind the area
    ENTER = 2    # the new node is linked behind the one before it


class FreeExtents(wiring.Component):
    """The free extents in the order of their addresses; neighbours are joined at once.

    Each has a node: its place in one memory, its link in another. Nodes that left the list are a
    list of their own, by the same links.

    Latency: a search looks at one extent a cycle, from the cycle after it is asked for on; then
    comes the change, in one cycle or two, see `hdl.allocator.unit.Allocator`.

    Parameters
    ----------
    words: The largest memory's, a power of two.
    nodes: Extents at most.

    Members
    -------
    begin, capacity: All of ``capacity`` words are free.
    allocate, need, best, aligned: Find and cut ``need`` words: where the first extent has room, or
        the smallest one if ``best``, at a multiple of ``need`` (a power of two) if ``aligned``.
        Not while ``empty``.
    release, offset, words: Join what begins there.
    empty: Nothing is free.
    done, found, found_offset: The last cycle of either; whether and where there was room. All
        operands but ``begin`` and its own hold until then.
    """

    def __init__(self, words: int, nodes: int):
        self._words, self._nodes = words, nodes
        self._place = data.StructLayout({"offset": range(words), "words": range(words + 1)})
        self._link = data.StructLayout({"node": range(nodes), "none": 1})
        super().__init__({
            "begin": In(1), "capacity": In(range(words + 1)),
            "allocate": In(1), "need": In(range(2 * words)), "best": In(1), "aligned": In(1),
            "release": In(1), "offset": In(range(words)), "words": In(range(words + 1)),
            "empty": Out(1), "done": Out(1), "found": Out(1), "found_offset": Out(range(words)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.places = places = Memory(shape=self._place, depth=self._nodes, init=[])
        m.submodules.links = links = Memory(shape=self._link, depth=self._nodes, init=[])
        self._put, self._join = places.write_port(), links.write_port()
        self._head = Signal(self._link, init={"none": 1})
        self._at, self._before, self._back = (  # looked at now; before it: node and place
            Signal(self._link), Signal(self._link), Signal(self._place))
        # The extent to change or, for a release, the first behind it: itself, place, link, the one
        # before it, and where in it an area begins.
        self._node, self._there, self._then = (
            Signal(self._link), Signal(self._place), Signal(self._link))
        self._previous, self._begins = Signal(self._link), Signal(range(self._words))
        self._releasing, self._late = Signal(), Signal(Late)
        self._spares(m, links)

        m.d.comb += [self.empty.eq(self._head.none), self.found_offset.eq(self._begins)]
        with m.FSM(name="step"):
            with m.State("IDLE"):
                m.d.sync += [
                    self._at.eq(self._head), self._before.none.eq(1), self._previous.none.eq(1),
                    self._node.none.eq(1), self._releasing.eq(self.release),
                ]
                with m.If(self.begin):
                    self._begin(m)
                with m.If(self.release & self.empty):
                    m.next = "CHANGE"
                with m.Elif(self.allocate | self.release):
                    m.next = "WALK"
            with m.State("WALK"):
                self._walk(m, places, links)
            with m.State("CHANGE"):
                m.d.comb += [self.done.eq(1), self.found.eq(~self._releasing)]
                with m.If(self._releasing):
                    self._merge(m)
                with m.Else():
                    self._cut(m)
                m.next = "IDLE"
                with m.If(~self.done):
                    m.next = "LATE"
            with m.State("LATE"):
                m.d.comb += [self.done.eq(1), self.found.eq(~self._releasing)]
                self._finish(m)
                m.next = "IDLE"
        return m

    def _spares(self, m, links):
        """Nodes to enter the list: those that left it last first, then those never used."""
        self._spare, fresh = Signal(self._link), Signal(range(self._nodes + 1))
        self._new, self._take, self._discard = Signal(range(self._nodes)), Signal(), Signal()
        self._made = Signal(range(self._nodes))
        read = links.read_port(domain="comb")
        m.d.comb += [
            read.addr.eq(self._spare.node),
            self._new.eq(Mux(self._spare.none, fresh, self._spare.node)),
        ]
        with m.If(self.begin):
            m.d.sync += [fresh.eq(1), self._spare.none.eq(1)]
        with m.If(self._take):
            m.d.sync += self._made.eq(self._new)
            with m.If(self._spare.none):
                m.d.sync += fresh.eq(fresh + 1)
            with m.Else():
                m.d.sync += self._spare.eq(read.data)
        with m.If(self._discard):
            m.d.sync += [self._spare.node.eq(self._node.node), self._spare.none.eq(0)]

    def _write_place(self, m, node, offset, words):
        put = self._put
        m.d.comb += [put.en.eq(1), put.addr.eq(node), put.data.offset.eq(offset),
                     put.data.words.eq(words)]

    def _write_link(self, m, node, link):
        m.d.comb += [self._join.en.eq(1), self._join.addr.eq(node), self._join.data.eq(link)]

    def _follow(self, m, link):
        """``link`` leads on from the node before the chosen one, or is the head."""
        with m.If(self._previous.none):
            m.d.sync += self._head.eq(link)
        with m.Else():
            self._write_link(m, self._previous.node, link)

    def _begin(self, m):
        self._write_place(m, 0, 0, self.capacity)
        self._write_link(m, 0, self._no_link())
        m.d.sync += self._head.eq(0)

    def _no_link(self):
        return Const({"node": 0, "none": 1}, self._link)

    def _link_to(self, node):
        """A link to ``node``."""
        return Cat(node, Const(0, 1))

    def _walk(self, m, places, links):
        """Look at one extent."""
        place, link = places.read_port(domain="comb"), links.read_port(domain="comb")
        extent = place.data
        begins, room, enough, chosen, stop = (
            Signal(range(4 * self._words)), Signal(), Signal(), Signal(), Signal())
        mask = Mux(self.aligned, self.need - 1, 0)
        m.d.comb += [
            place.addr.eq(self._at.node), link.addr.eq(self._at.node),
            begins.eq((extent.offset + mask) & ~mask),
            room.eq(begins + self.need <= extent.offset + extent.words),
            # Nothing is better than the first with room, or than an exact fit.
            enough.eq(room & (~self.best | (extent.words == self.need))),
            chosen.eq(room & (self._node.none | (extent.words < self._there.words))),
            stop.eq(enough | link.data.none),
        ]
        with m.If(self._releasing):
            m.d.comb += [
                chosen.eq(extent.offset > self.offset), stop.eq(chosen | link.data.none),
            ]
        with m.If(chosen):
            m.d.sync += [
                self._node.eq(self._at), self._there.eq(extent), self._then.eq(link.data),
                self._begins.eq(begins), self._previous.eq(self._before),
            ]
        with m.Else():
            m.d.sync += self._back.eq(extent)
            with m.If(self._releasing):
                m.d.sync += self._previous.eq(self._at)
        m.d.sync += [self._before.eq(self._at), self._at.eq(link.data)]
        with m.If(stop):
            m.next = "CHANGE"
            with m.If(~self._releasing & ~chosen & self._node.none):
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"

    def _cut(self, m):
        """Take the area out of the chosen extent."""
        there, end = self._there, self._begins + self.need
        left, right = Signal(range(self._words)), Signal(range(self._words + 1))
        m.d.comb += [
            left.eq(self._begins - there.offset), right.eq(there.offset + there.words - end),
        ]
        with m.If(left != 0):
            self._write_place(m, self._node.node, there.offset, left)
        with m.Elif(right != 0):
            self._write_place(m, self._node.node, end, right)
        with m.If((left == 0) & (right == 0)):
            m.d.comb += self.done.eq(0)
            m.d.sync += self._late.eq(Late.DISCARD)
            self._follow(m, self._then)
        with m.Elif((left != 0) & (right != 0)):
            m.d.comb += [self.done.eq(0), self._take.eq(1)]
            m.d.sync += [
                self._late.eq(Late.SPLIT), self._back.offset.eq(end), self._back.words.eq(right),
            ]
            self._write_link(m, self._node.node, self._link_to(self._new))

    def _merge(self, m):
        """Join the area with the extents at both its ends."""
        back, there = self._back, self._there
        before, behind = Signal(), Signal()
        m.d.comb += [
            before.eq(~self._previous.none & (back.offset + back.words == self.offset)),
            behind.eq(~self._node.none & (self.offset + self.words == there.offset)),
        ]
        joined = self.words + Mux(behind, there.words, 0)
        with m.If(before):
            self._write_place(m, self._previous.node, back.offset, back.words + joined)
            with m.If(behind):
                m.d.comb += self.done.eq(0)
                m.d.sync += self._late.eq(Late.DISCARD)
                self._follow(m, self._then)
        with m.Elif(behind):
            self._write_place(m, self._node.node, self.offset, joined)
        with m.Else():
            m.d.comb += self._take.eq(1)
            self._write_place(m, self._new, self.offset, self.words)
            self._write_link(m, self._new, self._node)
            with m.If(self._previous.none):
                m.d.sync += self._head.eq(self._link_to(self._new))
            with m.Else():
                m.d.comb += self.done.eq(0)
                m.d.sync += self._late.eq(Late.ENTER)

    def _finish(self, m):
        """The second write of what takes two."""
        with m.Switch(self._late):
            with m.Case(Late.DISCARD):
                m.d.comb += self._discard.eq(1)
                self._write_link(m, self._node.node, self._spare)
            with m.Case(Late.SPLIT):
                self._write_place(m, self._made, self._back.offset, self._back.words)
                self._write_link(m, self._made, self._then)
            with m.Case(Late.ENTER):
                self._write_link(m, self._previous.node, self._link_to(self._made))
