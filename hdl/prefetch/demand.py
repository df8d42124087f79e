# SPDX-License-Identifier: Apache-2.0
"""Policy `demand`: only what is waited for."""

from amaranth.hdl import Module

from hdl.prefetch.policy import Policy


class Demand(Policy):
    """The baseline without prefetching."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.fetch.eq(self.waiting)
        return m
