# SPDX-License-Identifier: Apache-2.0
"""A prefetch policy of one's own, in this file alone, beside the built-in ones on a real layer.

Or from the command line, where ``--load`` runs this file down to its main part:

    headrace compare resnet50.res4_3x3 --chip small --load examples/new_policy.py \\
        --vary prefetch.policy=demand,run_ahead,frugal
"""

import sys

from amaranth.hdl import Module

from hdl.prefetch.policy import Policy
from hdl.prefetch.registry import POLICIES, register
from sim import compare


@register("frugal")
class Frugal(Policy):
    """Fetches ahead, into the next layer too, only while no fetched block awaits its first use.

    Blocks that are fetched long before they are needed take HBM and mesh from the activations.
    """

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.fetch.eq(self.unused == 0)
        return m


if __name__ == "__main__":
    workload, chip = sys.argv[1:] or ("resnet50.res4_3x3", "small")
    rows = compare(workload, {"prefetch.policy": list(POLICIES)}, chip=chip)
    print(f"{workload} on {chip}: {sum(row['verified']['mismatches'] for row in rows)} of "
          f"{sum(row['verified']['outputs'] for row in rows)} outputs differ")
    for row in rows:
        print(f"{row['varied']['prefetch.policy']:>14}: {row['cycles']:,} cycles, "
              f"{row['stalls']['block']:,} tile cycles stalled on blocks, "
              f"{row['bytes']['hbm_read']:,} bytes read")
