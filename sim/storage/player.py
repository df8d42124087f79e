# SPDX-License-Identifier: Apache-2.0
"""A decode on the storage tier: plays references, checks every word read, in Verilog.

So Python sleeps until the end, however long storage takes.
"""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from emu.config import Config
from hdl.packets import WORD_BITS, Kind
from hdl.ports import PrefetchControl
from hdl.storage.packets import CLIENT, FRAME_BITS, StorageControl, index_bits
from hdl.storage.reader import PageReader
from hdl.storage.tier import StorageTier

NAME = "headrace_decode_player"
WRITTEN = 16
"""Words of a page that a writing use changes: its first segment."""
MOST = 1 << 16
"""References of a trace, at most."""

_TEXT = """\
// SPDX-License-Identifier: Apache-2.0
// Stores the regions of +regions=FILE (64-bit records), then plays the references of +trace=FILE
// (32-bit records: last of a token, 11 zeros, write, region, page) in order: looks the page up,
// reads all of it, compares with what +storage=DIR and the writes so far say, changes the first
// words if it writes. Then flushes. Writes +totals=FILE and to +tokens=FILE the time after each
// token.
module headrace_decode_player(
  input clk,
  input start,
  input [31:0] now,
  output describe,
  output [47:0] region,
  output lookup_valid,
  input lookup_ready,
  output [19:0] lookup,
  output reg read_start,
  input read_done,
  input word_valid,
  input [@INDEX_TOP@:0] word_index,
  input [127:0] word_data,
  output write_valid,
  input write_ready,
  output [3:0] write_index,
  output [127:0] write_data,
  input [7:0] acknowledged,
  output reg release_page,
  input [6:0] peek,
  output peek_valid,
  output [19:0] peek_reference,
  output reg flush,
  input flushed,
  input idle,
  output reg dump,
  output reg done
);
  localparam INDEX = @INDEX@;
  reg [31:0] trace [0:@MOST@-1];
  reg [63:0] regions [0:127];
  reg [127:0] expected [0:@WORDS@-1];
  reg [8*512-1:0] name, path;
  integer file, tokens, length, count, i;

  localparam LOAD = 0, DESCRIBE = 1, OFFER = 2, READ = 3, WRITE = 4, SETTLE = 5, FLUSH = 6,
             SAVE = 7, END = 8;
  reg [3:0] state;
  reg [31:0] at, began, offered, stalls, steps, words, mismatches, last;
  reg [4:0] wrote, acked;
  reg [7:0] described;

  wire [31:0] here = trace[at];
  wire [31:0] ahead = at + peek;
  wire [11+INDEX:0] place = {here[11:0], word_index};
  wire [11+INDEX:0] target = {here[11:0], {(INDEX-4){1'b0}}, wrote[3:0]};
  wire [31:0] change = 32'h9E3779B9 * (at + 1);
  assign lookup_valid = state == OFFER;
  assign lookup = here[19:0];
  assign peek_valid = ahead < length;
  assign peek_reference = trace[ahead];
  assign describe = state == DESCRIBE;
  assign region = regions[described];
  assign write_valid = state == WRITE;
  assign write_index = wrote[3:0];
  assign write_data = expected[target] ^ {4{change}};

  initial begin
    state = LOAD;
    read_start = 0;
    release_page = 0;
    flush = 0;
    dump = 0;
    done = 0;
    at = 0;
    stalls = 0;
    steps = 0;
    words = 0;
    mismatches = 0;
    described = 0;
    length = 0;
    for (i = 0; i < @MOST@; i = i + 1) trace[i] = 0;
  end

  always @(posedge clk) begin
    read_start <= 0;
    release_page <= 0;
    if (start && state != END) steps <= steps + 1;
    if (word_valid) begin
      words <= words + 1;
      if (word_data !== expected[place]) mismatches <= mismatches + 1;
    end
    case (state)
      LOAD: if (start) begin
        if ($value$plusargs("storage=%s", name)) begin
          $sformat(path, "%0s/storage_0.bin", name);
          file = $fopen(path, "rb");
          count = $fread(expected, file);
          $fclose(file);
        end
        if ($value$plusargs("trace=%s", name)) begin
          file = $fopen(name, "rb");
          length = $fread(trace, file) / 4;
          $fclose(file);
        end
        if ($value$plusargs("regions=%s", name)) begin
          file = $fopen(name, "rb");
          count = $fread(regions, file) / 8;
          $fclose(file);
        end
        if ($value$plusargs("tokens=%s", name)) tokens = $fopen(name, "w");
        state <= DESCRIBE;
      end
      DESCRIBE: begin
        described <= described + 1;
        if (described == count - 1) begin
          state <= OFFER;
          began <= now + 1;
          offered <= now + 1;
        end
      end
      OFFER: if (lookup_ready) begin
        stalls <= stalls + (now - offered);
        read_start <= 1;
        state <= READ;
      end
      READ: if (read_done) begin
        wrote <= 0;
        acked <= 0;
        if (here[19]) state <= WRITE;
        else begin
          release_page <= 1;
          state <= SETTLE;
        end
      end
      WRITE: if (write_ready) begin
        expected[target] <= write_data;
        wrote <= wrote + 1;
        if (wrote == @WRITTEN@ - 1) state <= SETTLE;
      end
      SETTLE: if (!here[19] || acked == @WRITTEN@) begin
        release_page <= here[19];
        if (here[31]) $fwrite(tokens, "%0d\\n", now - began);
        at <= at + 1;
        offered <= now + 1;
        last <= now;
        state <= at + 1 == length ? FLUSH : OFFER;
      end
      FLUSH: begin
        flush <= 1;
        if (flushed && idle) begin
          dump <= 1;
          state <= SAVE;
        end
      end
      SAVE: begin
        if ($value$plusargs("totals=%s", name)) begin
          file = $fopen(name, "w");
          $fwrite(file, "cycles %0d\\nsteps %0d\\nstall_cycles %0d\\nwords %0d\\nmismatches %0d\\n",
                  last - began, steps, stalls, words, mismatches);
          $fclose(file);
        end
        $fclose(tokens);
        state <= END;
      end
      END: done <= 1;
    endcase
    if (state == WRITE || state == SETTLE) acked <= acked + acknowledged;
  end
endmodule
"""


class DecodeBench(wiring.Component):
    """The storage tier and a decode that uses it.

    Members
    -------
    start: Begin, when tags and channel are ready. ``leap``: See `StorageTier`.
    control, prefetch, exact: Registers. ``done``: All is over.
    error, unused: As of `StorageTier`.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "start": In(1), "leap": In(1), "control": In(StorageControl),
                "prefetch": In(PrefetchControl), "exact": In(1),
                "done": Out(1), "error": Out(1), "unused": Out(FRAME_BITS + 1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        storage = self._config.storage
        m.submodules.tier = tier = StorageTier(self._config)
        m.submodules.reader = reader = PageReader(storage, CLIENT)
        width = index_bits(storage)
        values = {"INDEX": width, "INDEX_TOP": width - 1, "MOST": MOST, "WRITTEN": WRITTEN,
                  "WORDS": storage.pages * storage.page_words}
        text = _TEXT
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        platform.add_source(NAME, text)
        lookup, write, reply = tier.lookup, tier.write, tier.down.reply
        frame, index = Signal(FRAME_BITS), Signal(4)
        read_start, data = Signal(), Signal(WORD_BITS)
        m.submodules.player = Instance(
            NAME,
            i_clk=ClockSignal(), i_start=self.start, i_now=tier.now,
            o_describe=tier.describe, o_region=tier.region,
            o_lookup_valid=lookup.valid, i_lookup_ready=lookup.ready, o_lookup=lookup.payload,
            o_read_start=read_start, i_read_done=reader.done,
            i_word_valid=reader.word_valid, i_word_index=reader.word.index,
            i_word_data=reader.word.data,
            o_write_valid=write.valid, i_write_ready=write.ready, o_write_index=index,
            o_write_data=data,
            i_acknowledged=Mux(
                tier.down_valid & (reply.kind == Kind.ACK) & (reply.rect.x0 == CLIENT),
                reply.address[:8], 0),
            o_release_page=tier.release,
            i_peek=tier.peek, o_peek_valid=tier.peek_valid,
            o_peek_reference=tier.peek_reference,
            o_flush=tier.flush, i_flushed=tier.flushed, i_idle=tier.idle, o_dump=tier.dump,
            o_done=self.done,
        )
        connect(m, reader.request, tier.request)
        connect(m, flipped(self.control), tier.control)
        connect(m, flipped(self.prefetch), tier.prefetch)
        m.d.comb += [
            reader.start.eq(read_start), reader.frame.eq(frame),
            reader.down.eq(tier.down), reader.down_valid.eq(tier.down_valid),
            write.payload.kind.eq(Kind.WRITE), write.payload.mask.eq(0xFFFF),
            write.payload.source_x.eq(CLIENT), write.payload.data.eq(data),
            write.payload.address.eq(Cat(index, Const(0, width - 4), frame)),
            tier.exact.eq(self.exact), tier.go.eq(self.start), tier.leap.eq(self.leap),
            self.error.eq(tier.error), self.unused.eq(tier.unused),
        ]
        with m.If(lookup.valid & lookup.ready):
            m.d.sync += frame.eq(tier.frame)
        return m
