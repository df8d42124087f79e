# SPDX-License-Identifier: Apache-2.0
"""The MAC array as a fast simulation twin: three cells in each 64-bit multiplication.

The weights of cells 3g, 3g+1 and 3g+2 are packed into one 64-bit number, ``w0 + w1*2**21 +
w2*2**42``; the sum over the lanes of its products with the activations then holds three dot
products in signed 21-bit fields, which never meet because each stays below 2**20 in magnitude. A
negative field has borrowed 1 from the next. (In mode ROW_TAP the cells see different activations:
three plain products each.) Packing narrow products into one wide multiplier is the
scheme known from FPGA DSP blocks (Fu et al., Deep Learning with INT8 Optimization on Xilinx
Devices, 2016). It is plain Verilog because a simulator runs one procedural block, skipped as a
whole when idle, much faster than the same thing as separate registers.
"""

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal
from amaranth.lib import wiring

from emu.isa import WeightMode
from hdl.compute.array import CELLS, LANES, SUM_BITS, TAPS, PlainArray, array_signature
from hdl.macro import MacroLibrary

NAME = "headrace_packed_array"
GROUPS = [range(first, min(first + 3, CELLS)) for first in range(0, CELLS, 3)]


def _register(group: int, lane: int) -> int:
    return LANES * group + lane


def _row(cell: int, kind: str) -> list[str]:
    """Statements that put the values ``v`` (or ``n``: nibbles) into cell ``cell``."""
    group, field = divmod(cell, 3)
    start = LANES * (cell % 2) if kind == "n" else 0
    lines = []
    for lane in range(LANES):
        target, value = f"shadow[{_register(group, lane)}]", f"{kind}{start + lane}"
        lines.append(
            f"{target} = {target} + ({value} << {SUM_BITS * field});" if field
            else f"{target} = {value};"
        )
    return lines


def _column(lane: int) -> list[str]:
    """Statements that put the values ``v`` into lane ``lane`` of all cells."""
    return [
        f"shadow[{_register(g, lane)}] = "
        + " + ".join(f"(v{cell} << {SUM_BITS * (cell - cells.start)})" for cell in cells) + ";"
        for g, cells in enumerate(GROUPS)
    ]


def _diagonal() -> list[str]:
    return [
        f"shadow[{_register(g, lane)}] = "
        + (f"v{lane} << {SUM_BITS * (lane - cells.start)};" if lane in cells else "64'd0;")
        for g, cells in enumerate(GROUPS) for lane in range(LANES)
    ]


def _taps() -> dict[int, list[str]]:
    """Statements that put the values ``v`` into one of the three taps of all cells."""
    return {tap: [f"shadow_tap[{TAPS * cell + tap}] = v{cell};" for cell in range(CELLS)]
            for tap in range(TAPS)}


def _case(arms: dict[int, list[str]]) -> list[str]:
    lines = ["case (index)"]
    for value, body in arms.items():
        lines += [f"  4'd{value}: begin", *(f"    {line}" for line in body), "  end"]
    return [*lines, "  default: ;", "endcase"]


def _load() -> list[str]:
    bytes_ = [
        f"v{lane} = {{{{56{{weights[{8 * lane + 7}] & weights_signed}}}}, "
        f"weights[{8 * lane + 7}:{8 * lane}]}} - wide_zero;"
        for lane in range(LANES)
    ]
    nibbles = [
        f"n{n} = {{{{60{{weights[{4 * n + 3}]}}}}, weights[{4 * n + 3}:{4 * n}]}} - wide_zero;"
        for n in range(2 * LANES)
    ]
    rows = {cell: _row(cell, "v") for cell in range(CELLS)}
    columns = {lane: _column(lane) for lane in range(LANES)}
    pairs = {j: _row(2 * j, "n") + _row(2 * j + 1, "n") for j in range(CELLS // 2)}
    arms = {
        WeightMode.COLUMN: bytes_ + _case(columns), WeightMode.DIAGONAL: bytes_ + _diagonal(),
        WeightMode.INT4: nibbles + _case(pairs), WeightMode.ROW_TAP: bytes_ + _case(_taps()),
    }
    lines = ["wide_zero = {{55{weights_zero[8]}}, weights_zero};", "case (mode)"]
    for mode, body in arms.items():
        lines += [f"  3'd{int(mode)}: begin", *(f"    {line}" for line in body), "  end"]
    lines += ["  default: begin", *(f"    {line}" for line in bytes_ + _case(rows)), "  end"]
    return [*lines, "endcase"]


def _multiply() -> list[str]:
    lines = []
    for g, cells in enumerate(GROUPS):
        products = [f"x[{lane}] * active[{_register(g, lane)}]" for lane in range(LANES)]
        lines.append("total = " + "\n  + ".join(products) + ";")
        for cell in cells:
            low = SUM_BITS * (cell - cells.start)
            high = low + SUM_BITS - 1
            borrow = f" + {{31'd0, total[{low - 1}]}}" if low else ""
            lines.append(
                f"sums[{32 * cell + 31}:{32 * cell}] <= "
                f"{{{{11{{total[{high}]}}}}, total[{high}:{low}]}}{borrow};"
            )
    return lines


def _multiply_taps() -> list[str]:
    lines = []
    for cell in range(CELLS):
        words = (f"before_2[{cell}]", f"before_1[{cell}]", f"x[{cell}]")
        products = [f"{word} * active_tap[{TAPS * cell + tap}]" for tap, word in enumerate(words)]
        lines += ["total = " + " + ".join(products) + ";",
                  f"sums[{32 * cell + 31}:{32 * cell}] <= total[31:0];"]
    return lines


def _enable() -> list[str]:
    lines = ["wide_zero = {{55{word_zero[8]}}, word_zero};"]
    lines += ["if (tapped) for (i = 0; i < 16; i = i + 1) begin",
              "  before_2[i] = fresh ? 64'd0 : before_1[i];",
              "  before_1[i] = fresh ? 64'd0 : x[i];", "end", "in_row = tapped;"]
    lines += [
        f"x[{lane}] = in_window ? {{{{56{{word[{8 * lane + 7}] & word_signed}}}}, "
        f"word[{8 * lane + 7}:{8 * lane}]}} - wide_zero : 64'd0;"
        for lane in range(LANES)
    ]
    return lines


_TEXT = """\
// SPDX-License-Identifier: Apache-2.0
// MAC array, three cells in each 64-bit multiplication: a fast twin of the plain array.
/* verilator lint_off BLKSEQ */
module headrace_packed_array(
  input clk,
  input rst,
  input load,
  input [127:0] weights,
  input [3:0] index,
  input [2:0] mode,
  input weights_signed,
  input [8:0] weights_zero,
  input swap,
  input enable,
  input [127:0] word,
  input in_window,
  input tapped,
  input fresh,
  input word_signed,
  input [8:0] word_zero,
  output reg [511:0] sums,
  output reg valid
);
  reg [63:0] x [0:15];
  reg [63:0] active [0:95];
  reg [63:0] shadow [0:95];
  reg [63:0] active_tap [0:47];
  reg [63:0] shadow_tap [0:47];
  reg [63:0] before_1 [0:15];
  reg [63:0] before_2 [0:15];
  reg fed, in_row, shadow_is_tap;
  reg [63:0] total, wide_zero;
  reg [63:0] @VALUES@;
  integer i;

  // Blocking assignments, last stage first: every stage sees the registers of the cycle before.
  always @(posedge clk) begin
    if (rst) valid <= 1'b0;
    else valid <= fed;
    if (fed & ~in_row) begin
@MULTIPLY@
    end
    if (fed & in_row) begin
@MULTIPLY_TAPS@
    end
    if (swap & ~shadow_is_tap) begin
      for (i = 0; i < 96; i = i + 1) active[i] = shadow[i];
    end
    if (swap & shadow_is_tap) begin
      for (i = 0; i < 48; i = i + 1) active_tap[i] = shadow_tap[i];
    end
    if (load) begin
      shadow_is_tap = mode == @ROW_TAP@;
@LOAD@
    end
    if (enable) begin
@ENABLE@
    end
    fed = enable & ~rst;
  end
endmodule
/* verilator lint_on BLKSEQ */
"""


def verilog() -> str:
    """The module's text."""
    values = [f"v{n}" for n in range(LANES)] + [f"n{n}" for n in range(2 * LANES)]
    parts = {
        "VALUES": [", ".join(values)], "MULTIPLY": _multiply(), "LOAD": _load(),
        "ENABLE": _enable(), "MULTIPLY_TAPS": _multiply_taps(),
        "ROW_TAP": [f"3'd{int(WeightMode.ROW_TAP)}"],
    }
    text = _TEXT
    for name, lines in parts.items():
        indent = "" if name in ("VALUES", "ROW_TAP") else " " * 6
        body = "\n".join(indent + line.replace("\n", "\n" + indent) for line in lines)
        text = text.replace(f"@{name}@", body)
    return text


class PackedArray(wiring.Component):
    """The fast twin in Verilog to be simulated, the plain array elsewhere; `array_signature`."""

    def __init__(self):
        super().__init__(array_signature())

    def elaborate(self, platform):
        m = Module()
        if not (isinstance(platform, MacroLibrary) and platform.twins):
            m.submodules.plain = plain = PlainArray()
            wiring.connect(m, wiring.flipped(self), plain)
            return m
        platform.add_source(NAME, verilog())
        ports = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for path, member, value in self.signature.flatten(self):
            # `inside` is a keyword of SystemVerilog.
            port = "in_window" if path[0] == "inside" else path[0]
            ports[f"{'i' if member.flow == wiring.In else 'o'}_{port}"] = value
        m.submodules.array = Instance(NAME, **ports)
        return m


def make_array(packed: bool) -> wiring.Component:
    """The array that ``core.packed_cells`` asks for."""
    return PackedArray() if packed else PlainArray()
