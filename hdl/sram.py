# SPDX-License-Identifier: Apache-2.0
"""The large memories, as modules of their own: what silicon takes from a memory compiler.

Where Verilog is generated each is a few lines of plain Verilog, a module per size and kind. Written
as Amaranth memories they would take half the time of generating a tile: it spells out the initial
value of every bit, which nothing here reads. Amaranth's own simulator gets such a memory.
"""

from amaranth.hdl import ClockSignal, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.macro import MacroLibrary


def _text(name: str, about: str, ports: list[str], rows: int, width: int, body: list[str]) -> str:
    lines = [
        "// SPDX-License-Identifier: Apache-2.0", f"// {about}",
        f"module {name}(", "  input clk,", ",\n".join(f"  {port}" for port in ports), ");",
        f"  reg [{width - 1}:0] cells [0:{rows - 1}];",
        "  always @(posedge clk) begin", *(f"    {line}" for line in body), "  end", "endmodule",
    ]
    return "\n".join(lines) + "\n"


def _port(way: str, width: int, name: str) -> str:
    return f"{way} [{width - 1}:0] {name}" if width > 1 else f"{way} {name}"


class _Sram(wiring.Component):
    """Common to both kinds: an instance of ``self._verilog()`` where Verilog is generated."""

    def elaborate(self, platform):
        if not isinstance(platform, MacroLibrary):
            m = Module()
            self._simulate(m)
            return m
        name, text = self._verilog()
        platform.add_source(name, text)
        ports = {
            f"{'i' if member.flow == wiring.In else 'o'}_{path[0]}": value
            for path, member, value in self.signature.flatten(self)
        }
        return Instance(name, i_clk=ClockSignal(), **ports)


class SinglePort(_Sram):
    """``rows`` words of ``width`` bits behind one port.

    Latency: ``data`` belongs to the read of the cycle before and holds until the next read.
    Throughput: one access a cycle. Nothing is initialised.

    Parameters
    ----------
    rows, width: Words held, bits of each.

    Members
    -------
    enable: Access row ``row`` in this cycle.
    write: The access stores ``write_data``; otherwise it reads.
    """

    def __init__(self, rows: int, width: int):
        self._rows, self._width = rows, width
        super().__init__(
            {
                "enable": In(1), "write": In(1), "row": In(range(rows)),
                "write_data": In(width), "data": Out(width),
            }
        )

    def _verilog(self):
        name = f"headrace_sram_{self._rows}x{self._width}"
        ports = ["input enable", "input write", _port("input", len(self.row), "row"),
                 _port("input", self._width, "write_data"),
                 _port("output reg", self._width, "data")]
        body = ["if (enable & write) cells[row] <= write_data;",
                "if (enable & ~write) data <= cells[row];"]
        about = "Single-port SRAM; data belongs to the latest read, from the cycle after it on."
        return name, _text(name, about, ports, self._rows, self._width, body)

    def _simulate(self, m):
        m.submodules.memory = memory = Memory(shape=self._width, depth=self._rows, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            write.addr.eq(self.row),
            write.data.eq(self.write_data),
            write.en.eq(self.enable & self.write),
            read.addr.eq(self.row),
            read.en.eq(self.enable & ~self.write),
            self.data.eq(read.data),
        ]


class MultiPort(_Sram):
    """``rows`` words of ``width`` bits behind ``reads`` read and ``writes`` write ports.

    Latency: ``read_N_data`` belongs to the read of the cycle before and holds until the next one; a
    read sees what was written in earlier cycles, not in its own. Throughput: one access per port
    and cycle; no two ports may write one row in one cycle. Nothing is initialised.

    Parameters
    ----------
    rows, width: Words held, bits of each.
    reads, writes: Ports of each kind.

    Members
    -------
    read_N_enable, read_N_row, read_N_data: Read port N.
    write_N_enable, write_N_row, write_N_data: Write port N.
    """

    def __init__(self, rows: int, width: int, *, reads: int, writes: int):
        self._rows, self._width, self._reads, self._writes = rows, width, reads, writes
        members = {}
        for kind, ports, flow in (("write", writes, In), ("read", reads, Out)):
            for number in range(ports):
                members |= {
                    f"{kind}_{number}_enable": In(1),
                    f"{kind}_{number}_row": In(range(rows)),
                    f"{kind}_{number}_data": flow(width),
                }
        super().__init__(members)

    def _verilog(self):
        name = f"headrace_sram_{self._rows}x{self._width}_{self._reads}r{self._writes}w"
        bits = len(self.write_0_row)
        ports, body = [], []
        for kind, count, way in (("write", self._writes, "input"),
                                 ("read", self._reads, "output reg")):
            for port in (f"{kind}_{number}" for number in range(count)):
                cell = f"cells[{port}_row]"
                copy = f"{cell} <= {port}_data" if kind == "write" else f"{port}_data <= {cell}"
                ports += [f"input {port}_enable", _port("input", bits, f"{port}_row"),
                          _port(way, self._width, f"{port}_data")]
                body.append(f"if ({port}_enable) {copy};")
        about = "SRAM; a read sees earlier cycles' writes, its data holds until the next read."
        return name, _text(name, about, ports, self._rows, self._width, body)

    def _simulate(self, m):
        m.submodules.memory = memory = Memory(shape=self._width, depth=self._rows, init=[])
        for kind, count in (("write", self._writes), ("read", self._reads)):
            for number in range(count):
                access = memory.write_port() if kind == "write" else memory.read_port()
                enable, row, data = (
                    getattr(self, f"{kind}_{number}_{part}") for part in ("enable", "row", "data")
                )
                m.d.comb += [access.en.eq(enable), access.addr.eq(row)]
                m.d.comb += access.data.eq(data) if kind == "write" else data.eq(access.data)
