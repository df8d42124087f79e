# SPDX-License-Identifier: Apache-2.0
"""Policy `next_layer`: run ahead, and into the child if it is likely enough."""

from amaranth.hdl import Module

from hdl.prefetch.policy import Policy


class NextLayer(Policy):
    """`run_ahead` that goes on in a child whose access frequency exceeds the threshold."""

    def elaborate(self, platform):
        m = Module()
        likely = ~self.crossing | (self.frequency > self.threshold)
        near = (self.distance <= self.depth) & likely
        m.d.comb += self.fetch.eq(self.waiting | near)
        return m
