# SPDX-License-Identifier: Apache-2.0
"""A controller under a trace: the player is Verilog, so that Python sleeps until the end."""

from amaranth.hdl import ClockSignal, Const, Instance, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from emu.config import Hbm
from emu.hbm_timing import TIMINGS
from hdl.hbm.checker import Checker, Rule
from hdl.hbm.controller import HbmController
from hdl.hbm.packets import TAG_BITS

NAME = "headrace_trace_player"
TAGS = 1 << TAG_BITS
MASK = 0x0FF3
COMMANDS = ("ACT", "PRE", "PREA", "REFAB", "REFPB", "RD", "WR")

_TEXT = """\
// SPDX-License-Identifier: Apache-2.0
// Offers the requests of +trace=FILE (records of 64 bits: cycle, write, line) in order, each from
// its cycle on, with at most +window=N reads under way; of the writes each +masked=N-th is masked
// (0: none). Writes the latency of each read to
// +latencies=FILE, every command to +commands=FILE and the totals to +totals=FILE.
// Cycles count from the first one with start.
module headrace_trace_player(
  input clk,
  input start,
  output read_valid,
  input read_ready,
  output [22:0] read_line,
  output [5:0] read_tag,
  output write_valid,
  input write_ready,
  output [22:0] write_line,
  output write_masked,
  input entering,
  input word_valid,
  input [5:0] word_tag,
  input fetch,
  input idle,
  input violated,
  input ecc,
  input row_valid,
  input [2:0] row_kind,
  input [3:0] row_bank,
  input [14:0] row,
  input column_valid,
  input column_write,
  input [3:0] column_bank,
  input [4:0] column,
  output reg done
);
  reg [8*512-1:0] name;
  reg [63:0] record;
  integer requests, latencies, commands, totals, got, window, masked, i;

  reg opened, some, write;
  reg [31:0] now, earliest, last, turn;
  reg [22:0] line;
  reg first;
  reg [6:0] count;
  reg [5:0] head, tail;
  reg [5:0] free [0:63];
  reg [2:0] missing [0:63];
  reg [31:0] accepted [0:63];
  reg [14:0] rows [0:15];
  reg [31:0] counts [0:6];
  reg [31:0] violations;

  wire running = opened & start & ~done;
  wire due = running & some & (now >= earliest);
  assign read_valid = due & ~write & (count != 0);
  assign write_valid = due & write;
  assign read_line = line;
  assign read_tag = free[head];
  assign write_line = line;
  assign write_masked = turn == masked;
  wire read_taken = read_valid & read_ready;
  wire returned = word_valid & (missing[word_tag] == 1);

  task next;
    begin
      got = $fread(record, requests);
      some <= got == 8;
      earliest <= record[63:32];
      write <= record[31];
      line <= record[22:0];
    end
  endtask

  task log(input [8*5-1:0] command, input [3:0] bank, input integer at_row,
           input integer at_column);
    if (commands != 0)
      $fwrite(commands, "%0d %0s %0d %0d %0d %0d\\n", now, command, bank[3:2], bank[1:0],
              at_row, at_column);
  endtask

  task log_all(input [8*5-1:0] command);
    if (commands != 0) $fwrite(commands, "%0d %0s -1 -1 -1 -1\\n", now, command);
  endtask

  initial begin
    opened = 0;
    some = 0;
    write = 0;
    done = 0;
    now = 0;
    last = 0;
    first = 1;
    count = 0;
    head = 0;
    tail = 0;
    line = 0;
    turn = 1;
    masked = 0;
    earliest = 0;
    violations = 0;
    commands = 0;
    for (i = 0; i < 64; i = i + 1) begin
      free[i] = i;
      missing[i] = 0;
    end
    for (i = 0; i < 7; i = i + 1) counts[i] = 0;
  end

  always @(posedge clk) begin
    if (!opened) begin
      if (!$value$plusargs("window=%d", window)) window = 32;
      if (!$value$plusargs("masked=%d", masked)) masked = 0;
      count <= window;
      tail <= window;
      if ($value$plusargs("trace=%s", name)) requests = $fopen(name, "rb");
      if ($value$plusargs("latencies=%s", name)) latencies = $fopen(name, "w");
      if ($value$plusargs("totals=%s", name)) totals = $fopen(name, "w");
      if ($value$plusargs("commands=%s", name)) commands = $fopen(name, "w");
      next;
      opened <= 1;
    end
    if (running) begin
      now <= now + 1;
      if (read_taken | (write_valid & write_ready)) next;
      if (write_valid & write_ready) turn <= write_masked ? 1 : turn + 1;
      // The first column of a line is taken before the line is.
      if (entering) begin
        if (first) accepted[read_tag] <= now;
        first <= read_taken;
      end
      if (read_taken) begin
        head <= head + 1;
        missing[read_tag] <= 4;
      end
      if (word_valid) missing[word_tag] <= missing[word_tag] - 1;
      if (returned) begin
        free[tail] <= word_tag;
        tail <= tail + 1;
        // A word is here one cycle after it was on the bus, or after it was corrected.
        $fwrite(latencies, "%0d\\n", now - 1 - accepted[word_tag]);
      end
      count <= count - read_taken + returned;
      // The last word on the bus: ECC fetches a word one cycle early and gives one out one late.
      if (fetch) last <= now + ecc;
      else if (word_valid) last <= now - 1 - ecc;

      if (column_valid) begin
        log(column_write ? "WR" : "RD", column_bank, rows[column_bank], column);
        counts[column_write ? 6 : 5] <= counts[column_write ? 6 : 5] + 1;
      end
      if (row_valid) begin
        counts[row_kind] <= counts[row_kind] + 1;
        case (row_kind)
          0: begin
            log("ACT", row_bank, row, -1);
            rows[row_bank] <= row;
          end
          1: log("PRE", row_bank, -1, -1);
          2: log_all("PREA");
          3: log_all("REFAB");
          4: log("REFPB", row_bank, -1, -1);
        endcase
      end
      if (violated) violations <= violations + 1;
      if (!some && idle && count == window && !word_valid) begin
        done <= 1;
        $fwrite(totals, "cycles %0d\\nviolations %0d\\n", last + 1, violations);
        for (i = 0; i < 7; i = i + 1) $fwrite(totals, "%0d %0d\\n", i, counts[i]);
        $fclose(totals);
        $fclose(latencies);
        if (commands != 0) $fclose(commands);
      end
    end
  end
endmodule
"""


class TraceBench(wiring.Component):
    """A controller and its checker, without a DRAM: what is read does not matter.

    Members
    -------
    start: From here on cycles count; after the controller's filter has cleared itself.
    done: The trace is over and all of it answered. ``error``, ``rule``: As the checker's.
    """

    def __init__(self, hbm: Hbm):
        self._hbm = hbm
        super().__init__({"start": In(1), "done": Out(1), "error": Out(1), "rule": Out(Rule)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.controller = controller = HbmController(self._hbm, debug=True)
        m.submodules.checker = checker = Checker(
            TIMINGS[self._hbm.timing], self._hbm.refresh)
        phy, read, write = controller.phy, controller.read, controller.write
        platform.add_source(NAME, _TEXT)
        m.submodules.player = Instance(
            NAME,
            i_clk=ClockSignal(), i_start=self.start, o_done=self.done,
            o_read_valid=read.valid, i_read_ready=read.ready,
            o_read_line=read.payload.line, o_read_tag=read.payload.tag,
            o_write_valid=write.valid, i_write_ready=write.ready,
            o_write_line=write.payload.line, o_write_masked=write.payload.slot[0],
            i_entering=controller.entering,
            i_word_valid=controller.words.valid, i_word_tag=controller.words.payload.tag,
            i_fetch=controller.fetch, i_idle=controller.idle, i_violated=checker.violated,
            i_ecc=Const(self._hbm.ecc, 1),
            i_row_valid=phy.row.valid, i_row_kind=phy.row.kind, i_row_bank=phy.row.bank,
            i_row=phy.row.row,
            i_column_valid=phy.column.valid, i_column_write=phy.column.write,
            i_column_bank=phy.column.bank, i_column=phy.column.column,
        )
        m.d.comb += [
            read.payload.words.eq(0xF), write.payload.halves.eq(3),
            controller.words.ready.eq(1),
            # Masked writes are those of slot 1: both columns, some bytes of each word.
            controller.write_mask.eq(Mux(controller.beat.slot[0], MASK, 0xFFFF)),
            checker.row.eq(phy.row), checker.column.eq(phy.column),
            self.error.eq(checker.error), self.rule.eq(checker.rule),
        ]
        if self._hbm.ecc:
            m.d.comb += write.payload.partial.eq(write.payload.slot[0].replicate(2))
        return m
