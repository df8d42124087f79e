# SPDX-License-Identifier: Apache-2.0
"""Policy `double_buffer`: one block ahead, inside the layer."""

from amaranth.hdl import Module

from hdl.prefetch.policy import Policy


class DoubleBuffer(Policy):
    """Fetches the next block of the layer while the last one is used."""

    def elaborate(self, platform):
        m = Module()
        near = (self.distance <= 1) & ~self.crossing
        m.d.comb += self.fetch.eq(self.waiting | near)
        return m
