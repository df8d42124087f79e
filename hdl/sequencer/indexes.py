# SPDX-License-Identifier: Apache-2.0
"""Index registers and their addition to the address of a passing command."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu.isa import Opcode
from hdl.packets import ADDRESS_BITS, COMMANDS, WORD_BITS, Header

REGISTERS = 8
INDEXED = {Opcode.COMPUTE: "base", Opcode.LOAD: "far", Opcode.STORE: "far"}
"""Field to which an index register is added."""


def pieces(opcode: Opcode, field: str) -> list[tuple[int, int, int, int]]:
    """Where ``field`` lies in a command: (word, bit in the word, bit in the field, bits)."""
    place = COMMANDS[opcode][field]
    found, bit = [], 0
    while bit < place.width:
        word, low = divmod(place.offset + bit, WORD_BITS)
        width = min(place.width - bit, WORD_BITS - low)
        found.append((word, low, bit, width))
        bit += width
    return found


class IndexRegisters(wiring.Component):
    """Eight registers; adds the one that a command names while its words pass.

    No latency: ``o`` is ``i`` with the field's part of the sum, the carry kept between words.

    Members
    -------
    i, o: The word before and after the addition.
    count: Which word of its command it is.
    opcode: Of the command.
    taken: The word passes in this cycle.
    change: Write ``register``: ``value``, or ``value`` more than it was if ``add``.
    ready: The registers are cleared; words may pass and registers change.
    """

    i: In(WORD_BITS)
    o: Out(WORD_BITS)
    count: In(3)
    opcode: In(4)
    taken: In(1)
    change: In(1)
    add: In(1)
    register: In(3)
    value: In(ADDRESS_BITS)
    ready: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = registers = Memory(shape=ADDRESS_BITS, depth=REGISTERS, init=[])
        write, read = registers.write_port(), registers.read_port(domain="comb")
        sweep, index, index_valid = Signal(range(REGISTERS + 1)), Signal(3), Signal()
        header = data.View(Header, self.i[: Header.size])
        addend, carry, first = Signal(ADDRESS_BITS), Signal(), Signal()

        m.d.comb += [
            first.eq(self.count == 0),
            self.ready.eq(sweep[-1]),
            write.en.eq(~self.ready | self.change),
            write.addr.eq(Mux(self.ready, self.register, sweep)),
            read.addr.eq(
                Mux(self.change, self.register, Mux(first, header.index, index))
            ),
            self.o.eq(self.i),
        ]
        with m.If(~self.ready):
            m.d.sync += sweep.eq(sweep + 1)
        with m.Elif(self.add):
            m.d.comb += write.data.eq(self.value + read.data)
        with m.Else():
            m.d.comb += write.data.eq(self.value)

        with m.If(self.taken & first):
            m.d.sync += [index.eq(header.index), index_valid.eq(header.index_valid)]
        with m.If(Mux(first, header.index_valid, index_valid)):
            m.d.comb += addend.eq(read.data)
        with m.If(self.taken):
            m.d.sync += carry.eq(0)
        with m.Switch(Cat(self.opcode, self.count)):
            for opcode, field in INDEXED.items():
                for word, low, bit, width in pieces(opcode, field):
                    with m.Case(opcode | word << 4):
                        part = Signal(width + 1, name=f"{opcode.name.lower()}_{bit}")
                        m.d.comb += [
                            part.eq(self.i[low : low + width] + addend[bit : bit + width]
                                    + (carry if bit else 0)),
                            self.o[low : low + width].eq(part),
                        ]
                        with m.If(self.taken):
                            m.d.sync += carry.eq(part[width])
        return m
