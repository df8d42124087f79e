# SPDX-License-Identifier: Apache-2.0
"""Small tables that several lanes look up at once, loaded a scratchpad word at a time."""

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2


class LookupTable(wiring.Component):
    """256 entries of ``width`` bits; ``lanes`` lookups a cycle, combinational.

    A word holds 128 / ``width`` entries, so the memory is that many banks by low index bits, each
    with one write port; every lane has its own read port (a copy of the banks in an SRAM macro).

    Parameters
    ----------
    width: Bits of an entry: 8 or 32.
    lanes: Lookups a cycle.

    Members
    -------
    write, row, word: Write ``word`` as entries ``row * 128 / width`` and following.
    index: Byte of each lane.
    entry: Its entry, in the same cycle.

    Raises
    ------
    ValueError: If ``width`` is not 8 or 32.
    """

    def __init__(self, width: int, lanes: int):
        if width not in (8, 32):
            raise ValueError(f"LookupTable width must be 8 or 32, not {width!r}")
        self._width, self._lanes = width, lanes
        self._per_word = 128 // width
        super().__init__(
            {
                "write": In(1),
                "row": In(ceil_log2(256 // self._per_word)),
                "word": In(data.ArrayLayout(width, self._per_word)),
                "index": In(data.ArrayLayout(8, lanes)),
                "entry": Out(data.ArrayLayout(width, lanes)),
            }
        )

    @property
    def width(self) -> int:
        return self._width

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=self._width, depth=256, init=[])
        bank_bits = ceil_log2(self._per_word)
        for bank in range(self._per_word):
            port = memory.write_port()
            m.d.comb += [
                port.en.eq(self.write),
                port.addr.eq((self.row << bank_bits) | bank),
                port.data.eq(self.word[bank]),
            ]
        for lane in range(self._lanes):
            read = memory.read_port(domain="comb")
            m.d.comb += [read.addr.eq(self.index[lane]), self.entry[lane].eq(read.data)]
        return m
