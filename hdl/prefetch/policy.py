# SPDX-License-Identifier: Apache-2.0
"""The interface of a prefetch policy: one decision about one candidate block."""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

DISTANCE_BITS = 7

POLICY_INPUTS = {
    "distance": DISTANCE_BITS,
    "waiting": 1,
    "crossing": 1,
    "frequency": 8,
    "threshold": 8,
    "depth": 6,
    "frames": 7,
    "unused": 7,
}
"""What a policy may look at.

``distance``: blocks from the last one looked up to the candidate, in the stream order of layer
descriptors. ``waiting``: the candidate is looked up now and absent (then ``distance`` is 0).
``crossing``: the candidate belongs to a later layer than the last lookup. ``frequency``: of the
candidate's layer. ``threshold``, ``depth``: the prefetch registers. ``frames``: frames in all.
``unused``: frames that hold prefetched blocks not yet looked up.
"""


class Policy(wiring.Component):
    """Combinational: ``fetch`` says whether the candidate, which is absent, may be fetched.

    A fetch still waits for a free frame; what a lookup waits for is fetched whatever a policy says.
    Derive from this class and decorate with `hdl.prefetch.registry.register`.
    """

    def __init__(self):
        super().__init__(
            {**{name: In(width) for name, width in POLICY_INPUTS.items()}, "fetch": Out(1)}
        )
