# SPDX-License-Identifier: Apache-2.0
"""What the device stores: a behavioural memory in plain Verilog, loaded from and saved to a file.

Only the cells are a model; queue, latency and bandwidth are `hdl.storage.device`'s.
"""

from amaranth.hdl import ClockSignal, Instance

from emu.config import Storage

NAME = "headrace_storage_cells"

_TEXT = """\
// SPDX-License-Identifier: Apache-2.0
// Cells of storage device number N. Plusargs: +storage=DIR loads DIR/storage_N.bin (16-byte words,
// most significant byte first) at the first clock edge; +storage_dump=DIR writes DIR/storage_N.bin
// (least significant byte first) at a rising edge of dump.
module headrace_storage_cells(
  input clk,
  input [7:0] number,
  input dump,
  input [@TOP@:0] read_address,
  output [127:0] read_data,
  input write,
  input [@TOP@:0] write_address,
  input [127:0] write_data
);
  reg [127:0] cells [0:@WORDS@-1];
  reg started, dumped;
  reg [8*512-1:0] folder, name;
  integer file, count, i;

  assign read_data = cells[read_address];

  initial begin
    started = 0;
    dumped = 0;
  end

  always @(posedge clk) begin
    if (!started && $value$plusargs("storage=%s", folder)) begin
      $sformat(name, "%0s/storage_%0d.bin", folder, number);
      file = $fopen(name, "rb");
      if (file == 0) begin
        $display("headrace_storage_cells: cannot open %0s", name);
        $finish;
      end else begin
        count = $fread(cells, file);
        $fclose(file);
      end
    end
    started = 1;
    if (write) cells[write_address] = write_data;
    if (dump && !dumped && $value$plusargs("storage_dump=%s", folder)) begin
      $sformat(name, "%0s/storage_%0d.bin", folder, number);
      file = $fopen(name, "wb");
      for (i = 0; i < @WORDS@; i = i + 1) $fwrite(file, "%u", cells[i]);
      $fclose(file);
    end
    dumped = dump;
  end
endmodule
"""


def verilog(storage: Storage) -> str:
    """Text of module `NAME` for a device's size."""
    words = storage.pages * storage.page_words
    values = {"WORDS": words, "TOP": words.bit_length() - 2}
    text = _TEXT
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def instance(number, dump, read_address, read_data, write, write_address, write_data) -> Instance:
    """The cells."""
    return Instance(
        NAME, i_clk=ClockSignal(), i_number=number, i_dump=dump, i_read_address=read_address,
        o_read_data=read_data, i_write=write, i_write_address=write_address,
        i_write_data=write_data,
    )
