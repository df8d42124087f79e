# SPDX-License-Identifier: Apache-2.0
"""A tile's local memory: single-port banks interleaved by word behind a fixed-priority crossbar."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hdl.counter import count
from hdl.packets import SPAD_BITS, WORD_BITS
from hdl.ports import ScratchpadRead, ScratchpadWrite
from hdl.sram import MultiPort, SinglePort


def _power_of_two(name: str, value: int, low: int, high: int) -> int:
    if value < low or value > high or value & (value - 1):
        raise ValueError(f"{name} must be a power of two, {low} to {high}, not {value!r}")
    return value


class Scratchpad(wiring.Component):
    """``words`` words of 16 bytes for several clients, one access per bank and cycle.

    Word a is row a / banks of bank a % banks. Among the requests for one bank the client first in
    ``priority`` is served, the others see ``ready`` low in that cycle. ``ready`` depends
    combinationally on the ``valid`` and address of all clients, so these must not depend on any
    ``ready``. An access beyond the last word is accepted, does nothing but raise ``error``, and
    reads an arbitrary word.

    Latency: a read's ``data`` is valid in the cycle after its transfer, and only then. A written
    word can be read from the cycle after its transfer on. Throughput: one access per bank a cycle.
    Counters: ``reads`` and ``writes`` in words, ``conflicts`` (requests refused, per cycle), and
    ``refused_<client>`` for each client.

    With ``joined`` all banks are one memory with a port for each client instead of one memory per
    bank behind multiplexers. As the arbitration is the same, no two ports ever touch one bank in
    one cycle, and both forms do the same in every cycle; joined is the one to simulate (a third of
    the time), banked the one to build: without twins (`hdl.macro.MacroLibrary`) it always is.

    Parameters
    ----------
    words: Size, a power of two of at least two words per bank.
    banks: Banks, a power of two, 2 to 16.
    readers, writers: Names of the clients; their ports are ``read_<name>`` and ``write_<name>``.
    priority: All those ports, highest priority first.
    joined: Simulate the banks as one memory.

    Members
    -------
    read_<reader>, write_<writer>: Client ports.
    error: Sticky: an address was beyond the last word.

    Raises
    ------
    ValueError: If a size is not such a power of two or ``priority`` does not name every port once.
    """

    def __init__(
        self,
        words: int,
        banks: int,
        readers: tuple[str, ...],
        writers: tuple[str, ...],
        priority: tuple[str, ...],
        *,
        joined: bool = True,
    ):
        self._banks = _power_of_two("Scratchpad banks", banks, 2, 16)
        self._words = _power_of_two("Scratchpad words", words, 2 * banks, 1 << SPAD_BITS)
        reads = {f"read_{name}": In(ScratchpadRead) for name in readers}
        writes = {f"write_{name}": In(ScratchpadWrite) for name in writers}
        if sorted(priority) != sorted([*reads, *writes]):
            raise ValueError(
                f"Scratchpad priority must name each of {', '.join([*reads, *writes])} once, "
                f"not {priority!r}"
            )
        self._priority = tuple(priority)
        self._joined = joined
        super().__init__({**reads, **writes, "error": Out(1)})

    @property
    def words(self) -> int:
        return self._words

    @property
    def banks(self) -> int:
        return self._banks

    def elaborate(self, platform):
        m = Module()
        wants = {name: Signal(self._banks, name=f"{name}_wants") for name in self._priority}
        gets = {name: Signal(self._banks, name=f"{name}_gets") for name in self._priority}
        self._arbitrate(m, wants, gets)
        if self._joined and getattr(platform, "twins", True):
            self._join(m, gets)
        else:
            self._split(m, wants, gets)
        self._count(m, wants)
        return m

    def _address(self, name):
        payload = getattr(self, name).request.payload
        return payload.address if name.startswith("write_") else payload

    def _row(self, name):
        return self._address(name)[exact_log2(self._banks) : exact_log2(self._words)]

    def _bank(self, name):
        return self._address(name)[: exact_log2(self._banks)]

    def _arbitrate(self, m, wants, gets):
        """One bit per bank: all banks are arbitrated by a few operations on small vectors."""
        taken = Const(0, self._banks)
        beyond = []
        for name in self._priority:
            request = getattr(self, name).request
            inside = ~self._address(name)[exact_log2(self._words) :].any()
            access = Const(1, 1) << self._bank(name)
            after = Signal(self._banks, name=f"{name}_after")
            m.d.comb += [
                wants[name].eq(Mux(request.valid & inside, access, 0)),
                gets[name].eq(wants[name] & ~taken),
                after.eq(taken | wants[name]),
                request.ready.eq(~(wants[name] & taken).any()),
            ]
            beyond.append(request.valid & ~inside)
            taken = after
        with m.If(Cat(beyond).any()):
            m.d.sync += self.error.eq(1)

    def _join(self, m, gets):
        """All banks as one memory: the arbiter has seen to it that its ports never collide."""
        kinds = [name[: name.index("_")] for name in self._priority]
        m.submodules.memory = memory = MultiPort(
            self._words, WORD_BITS, reads=kinds.count("read"), writes=kinds.count("write")
        )
        for place, (name, kind) in enumerate(zip(self._priority, kinds, strict=True)):
            client, number = getattr(self, name), kinds[:place].count(kind)
            enable, row, data = (
                getattr(memory, f"{kind}_{number}_{part}") for part in ("enable", "row", "data")
            )
            m.d.comb += [
                enable.eq(gets[name].any()),
                row.eq(self._address(name)),
                data.eq(client.request.payload.data) if kind == "write" else client.data.eq(data),
            ]

    def _split(self, m, wants, gets):
        """One memory per bank, an address multiplexer before it, a data multiplexer per reader."""
        banks = []
        for index in range(self._banks):
            bank = SinglePort(self._words // self._banks, WORD_BITS)
            m.submodules[f"bank_{index}"] = bank
            self._access(m, bank, wants, gets, index)
            banks.append(bank)
        self._answer(m, banks, gets)

    def _access(self, m, bank, wants, gets, index):
        """Drive one bank: only the address is selected among all clients, words among writers.

        Selections are expressions, not statements: a simulator then evaluates them only where the
        bank is enabled.
        """
        row, word = Const(0, len(bank.row)), Const(0, WORD_BITS)
        for name in reversed(self._priority):
            row = Mux(wants[name][index], self._row(name), row)
        writers = [name for name in self._priority if name.startswith("write_")]
        for place, name in enumerate(reversed(writers)):
            data = getattr(self, name).request.payload.data
            word = Mux(gets[name][index], data, word) if place else data
        m.d.comb += [
            bank.enable.eq(Cat(wants[name][index] for name in self._priority).any()),
            bank.write.eq(Cat(gets[name][index] for name in writers).any()),
            bank.row.eq(row),
            bank.write_data.eq(word),
        ]

    def _answer(self, m, banks, gets):
        """Each reader sees the bank that it read in the cycle before."""
        for name in self._priority:
            if name.startswith("write_"):
                continue
            port = getattr(self, name)
            index = Signal(exact_log2(self._banks), name=f"{name}_bank")
            with m.If(gets[name].any()):
                m.d.sync += index.eq(self._bank(name))
            with m.Switch(index):
                for number, bank in enumerate(banks):
                    with m.Case(number):
                        m.d.comb += port.data.eq(bank.data)

    def _count(self, m, wants):
        served, refused = {"read_": [], "write_": []}, []
        for name in self._priority:
            request = getattr(self, name).request
            served[name[: name.index("_") + 1]].append(request.valid & request.ready)
            refused.append(request.valid & ~request.ready)
            count(m, f"refused_{name}", refused[-1])
        count(m, "reads", sum(served["read_"], Const(0)))
        count(m, "writes", sum(served["write_"], Const(0)))
        count(m, "conflicts", sum(refused, Const(0)))
