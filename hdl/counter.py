# SPDX-License-Identifier: Apache-2.0
"""Event counters: 32-bit registers whose names start with ``count_``.

The generator finds them by that name and lists each in the manifest under its dotted path
(``tile_1_2.scratchpad.read_words``); benches read them there.
"""

from amaranth.hdl import Module, Signal, ValueLike

PREFIX = "count_"


def count(m: Module, name: str, amount: ValueLike) -> Signal:
    """Add a counter ``name`` to the component of ``m`` that grows by ``amount`` every cycle.

    Latency: an event in cycle t shows in cycle t + 1. Wraps at 2**32.
    """
    register = Signal(32, name=PREFIX + name, attrs={"keep": 1})
    m.d.sync += register.eq(register + amount)
    return register
