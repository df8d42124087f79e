# SPDX-License-Identifier: Apache-2.0
"""A built-in layer from Python: run it, read the result, compare two prefetch policies."""

from sim import compare, run

result = run("tiny.conv3x3", chip="small")
print(f"{result['workload']}: {result['cycles']} cycles, "
      f"{result['verified']['mismatches']} of {result['verified']['outputs']} outputs differ")
print(f"HBM read {result['bytes']['hbm_read']} bytes, scratchpad read "
      f"{result['bytes']['scratchpad_read']} bytes")

rows = compare("tiny.conv3x3", {"prefetch.policy": ("demand", "run_ahead")}, chip="small")
for row in rows:
    print(f"{row['varied']['prefetch.policy']}: {row['cycles']} cycles, "
          f"{row['stalls']['block']} stalled on blocks")
