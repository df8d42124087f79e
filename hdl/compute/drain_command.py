# SPDX-License-Identifier: Apache-2.0
"""What the compute engine asks of its drain: one output group of one `COMPUTE` command."""

from amaranth.hdl import signed
from amaranth.lib import data

DrainCommand = data.StructLayout(
    {
        "pixels": 12,                  # rows 0 .. pixels - 1 of accumulator half `half`, >= 1
        "out": 16,                     # scratchpad word of pixel 0
        "out_step": 16,                # words from one pixel's output to the next
        "out_int32": 1,                # accumulator + bias as four words a pixel, nothing else
        "params": 16,                  # 8 words: int32 bias[16] then float32 scale[16]
        "out_zero": signed(9),
        "clip_low": signed(9),         # in the output's own domain
        "clip_high": signed(9),
        "table_valid": 1,              # byte table applied last
        "table": 16,                   # 16 words
        "residual_valid": 1,
        "residual": 16,                # word of pixel 0; step is `out_step`
        "residual_table": 16,          # 64 words: float32 T[256]
        "residual_scale": 32,
        "residual_low": signed(9),
        "residual_high": signed(9),
        "residual_a_zero": signed(9),  # subtracted from the multiplied addend before the multiply
        "residual_signed": 1,          # the multiplied addend's bytes are int8
        "residual_indexes": 1,         # the residual indexes T and the output is multiplied
        "half": 1,
        # 1: the tables in the scratchpad are those of the command before (a later output group of
        # the same COMPUTE); 0 loads them anew, which is always right and costs up to 80 cycles.
        "same_tables": 1,
    }
)
