# SPDX-License-Identifier: Apache-2.0
"""The DRAM of one pseudo-channel: a behavioural model in plain Verilog behind the command bus.

Only the storage cells are a model: it keeps the open row of each bank itself, so a controller that
opens the wrong row gets the wrong data. Timing is not checked here but by `hdl.hbm.checker`.
"""

from amaranth.hdl import ClockSignal, Instance

from emu.config import Hbm
from emu.ecc import DATA_BITS, ROWS
from emu.hbm_timing import TIMINGS, permuted, word_bits

NAME = "headrace_dram_array"

_TEXT = """\
// SPDX-License-Identifier: Apache-2.0
// DRAM of one pseudo-channel. Plusargs: +images=DIR loads DIR/channel_N.bin (16-byte words, most
// significant byte first) at the first clock edge; +dump=DIR writes DIR/channel_N.bin (least
// significant byte first) at a rising edge of dump, its first N words with +dump_words=N.
module headrace_dram_array(
  input clk,
  input [7:0] channel,
  input dump,
  input row_valid,
  input [2:0] row_kind,
  input [3:0] row_bank,
  input [14:0] row,
  input column_valid,
  input column_write,
  input [3:0] column_bank,
  input [4:0] column,
  input [127:0] write_data,
  input [15:0] write_mask,
  output reg [127:0] read_data@CHECK_PORT@
);
  localparam WORDS = @WORDS@;
  localparam BITS = @BITS@;
  localparam CL = @CL@;
  localparam CWL = @CWL@;
  reg [127:0] cells [0:WORDS-1];
  reg [14:0] rows [0:15];
  reg [BITS-1:0] reads [0:31];
  reg [BITS-1:0] writes [0:31];
  reg [4:0] now;
  reg [CL-1:0] reading;
  reg [CWL:0] writing;
  reg started, dumped;
@CHECKS@
  // The inverse of the address map.
  wire [14:0] r = rows[column_bank];
  wire [1:0] g = column_bank[3:2];
  wire [1:0] b = column_bank[1:0]@PERMUTE@;
  wire [4:0] c = column;
  wire [BITS-1:0] address = {@ADDRESS@};

  // Second beats are one cycle later: the same entry, the upper word.
  wire second_read = reading[CL-1];
  wire second_write = writing[CWL];
  wire [4:0] read_entry = now - (CL - 1) - second_read;
  wire [4:0] write_entry = now - CWL - second_write;
  wire [BITS-1:0] read_word = reads[read_entry] | (second_read << @HALF@);
  wire [BITS-1:0] write_word = writes[write_entry] | (second_write << @HALF@);

  reg [8*512-1:0] folder, name;
  reg [127:0] word;
  integer file, count, i;

  task load;
@SCRUB@    if ($value$plusargs("images=%s", folder)) begin
      $sformat(name, "%0s/channel_%0d.bin", folder, channel);
      file = $fopen(name, "rb");
      if (file == 0) begin
        $display("headrace_dram_array: cannot open %0s", name);
        $finish;
      end else begin
        count = $fread(cells, file);
        $fclose(file);
@ENCODE@      end
    end
@END@  endtask

  task save;
    if ($value$plusargs("dump=%s", folder)) begin
      if (!$value$plusargs("dump_words=%d", count)) count = WORDS;
      $sformat(name, "%0s/channel_%0d.bin", folder, channel);
      file = $fopen(name, "wb");
      if (file == 0) begin
        $display("headrace_dram_array: cannot write %0s", name);
        $finish;
      end else begin
        for (i = 0; i < count && i < WORDS; i = i + 1) $fwrite(file, "%u", cells[i]);
        $fclose(file);
      end
    end
  endtask

  initial begin
    now = 0;
    reading = 0;
    writing = 0;
    started = 0;
    dumped = 0;
  end

  always @(posedge clk) begin
    now <= now + 1;
    reading <= {reading[CL-2:0], column_valid & ~column_write};
    writing <= {writing[CWL-1:0], column_valid & column_write};
    if (row_valid && row_kind == 0) rows[row_bank] <= row;
    if (column_valid && !column_write) reads[now] <= address;
    if (column_valid && column_write) writes[now] <= address;
  end

  always @(posedge clk) begin
    if (!started) load;
    started = 1;
    if (reading[CL-2] | reading[CL-1]) @READ@
    if (writing[CWL-1] | writing[CWL]) begin
      @WRITE@if (&write_mask) cells[write_word] = write_data;
      else begin
        word = cells[write_word];
        for (i = 0; i < 16; i = i + 1)
          if (write_mask[i]) word[8*i +: 8] = write_data[8*i +: 8];
        cells[write_word] = word;
      end
    end
    if (dump && !dumped) save;
    dumped = dump;
  end
endmodule
"""


_ECC = {
    "CHECK_PORT": ",\n  output reg [15:0] read_check",
    "CHECKS": """\
  reg [15:0] checks [0:WORDS-1];

  function [15:0] check_of(input [127:0] word);
    check_of = {@PARITIES@};
  endfunction
""",
    # Without check bits from the start, what was never written would be full of errors.
    "SCRUB": """\
    begin
      for (i = 0; i < WORDS; i = i + 1) begin
        cells[i] = 0;
        checks[i] = 0;
      end
""",
    "ENCODE": """\
        for (i = 0; i < count / 16; i = i + 1) checks[i] = check_of(cells[i]);
""",
    "END": "    end\n",
    "READ": """\
begin
      read_data <= cells[read_word];
      read_check <= checks[read_word];
    end""",
    # Whole words only: the mask's pins carry the check bits.
    "WRITE": """\
checks[write_word] = write_mask;
      cells[write_word] = write_data;
      if (0) """,
    "PARITIES": ", ".join(
        f"^(word[{low + DATA_BITS - 1}:{low}] & {DATA_BITS}'h{row:x})"
        for low in (DATA_BITS, 0) for row in reversed(ROWS)
    ),
}
_PLAIN = {"CHECK_PORT": "", "CHECKS": "", "SCRUB": "", "ENCODE": "", "END": "", "WRITE": "",
          "READ": "read_data <= cells[read_word];"}


def verilog(hbm: Hbm) -> str:
    """Text of module `NAME` for a machine: size, latencies and address map are constants in it."""
    timing, fields = TIMINGS[hbm.timing], word_bits(hbm)
    bits = sum(len(where) for where in fields.values())
    source = {
        bit: f"{letter.lower()}[{i}]" if letter != "O" else "1'b0"
        for letter, where in fields.items()
        for i, bit in enumerate(where)
    }
    even = " ^ ".join(f"r[{i}]" for i in range(0, 15, 2) if i < len(fields["R"]))
    odd = " ^ ".join(f"r[{i}]" for i in range(1, 15, 2) if i < len(fields["R"]))
    values = {
        "WORDS": hbm.words, "BITS": bits, "CL": timing.cl, "CWL": timing.cwl,
        "HALF": fields["O"][0],
        "PERMUTE": f" ^ {{{odd}, {even}}}" if permuted(hbm) else "",
        "ADDRESS": ", ".join(source[bit] for bit in reversed(range(bits))),
    }
    text = _TEXT
    for key, value in {**(_ECC if hbm.ecc else _PLAIN), **values}.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def instance(phy, channel, dump) -> Instance:
    """The array on a `hdl.hbm.packets.Phy` (the controller's side)."""
    row, column = phy.row, phy.column
    return Instance(
        NAME,
        i_clk=ClockSignal(), i_channel=channel, i_dump=dump,
        i_row_valid=row.valid, i_row_kind=row.kind, i_row_bank=row.bank, i_row=row.row,
        i_column_valid=column.valid, i_column_write=column.write, i_column_bank=column.bank,
        i_column=column.column,
        i_write_data=phy.write_data, i_write_mask=phy.write_mask,
        o_read_data=phy.read_data,
        **({"o_read_check": phy.read_check} if hasattr(phy, "read_check") else {}),
    )
