# SPDX-License-Identifier: Apache-2.0
"""Policy `run_ahead`: up to ``depth`` blocks ahead, inside the layer."""

from amaranth.hdl import Module

from hdl.prefetch.policy import Policy


class RunAhead(Policy):
    """Fetches the next ``depth`` blocks of the layer."""

    def elaborate(self, platform):
        m = Module()
        near = (self.distance <= self.depth) & ~self.crossing
        m.d.comb += self.fetch.eq(self.waiting | near)
        return m
