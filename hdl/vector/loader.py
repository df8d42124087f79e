# SPDX-License-Identifier: Apache-2.0
"""Loads a vector command's table before its first word."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.packets import SPAD_BITS
from hdl.ports import ScratchpadRead


class TableLoader(wiring.Component):
    """Reads ``words`` consecutive scratchpad words, one a cycle where the port grants it.

    Members
    -------
    start, base, words: Begin with word ``base``; ``words`` is 1 to 64.
    read: Scratchpad port.
    write, row: ``read.data`` is word ``row`` of the table now.
    busy: Words are still to be requested or to come.
    """

    start: In(1)
    base: In(SPAD_BITS)
    words: In(7)
    read: Out(ScratchpadRead)
    write: Out(1)
    row: Out(6)
    busy: Out(1)

    def elaborate(self, platform):
        m = Module()
        left, address, index = Signal(7), Signal(SPAD_BITS), Signal(6)
        request = self.read.request
        moved = request.valid & request.ready
        m.d.comb += [
            request.valid.eq(left != 0),
            request.payload.eq(address),
            self.busy.eq((left != 0) | self.write),
        ]
        m.d.sync += self.write.eq(moved)
        with m.If(moved):
            m.d.sync += [
                left.eq(left - 1), address.eq(address + 1), index.eq(index + 1),
                self.row.eq(index),
            ]
        with m.If(self.start):
            m.d.sync += [left.eq(self.words), address.eq(self.base), index.eq(0)]
        return m
