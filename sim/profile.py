# SPDX-License-Identifier: Apache-2.0
"""Where a simulation's time goes: each unit's share, from Verilator's own function names and gprof.

Verilator is asked to name its functions after the source (``--prof-cfuncs``); modules stay
separate in that build so that a function belongs to one unit.
"""

from collections.abc import Mapping


def unit_shares(workload: str) -> Mapping[str, float]:
    """Share of simulation time per unit of the chip while ``workload`` runs on ``base``."""
    raise NotImplementedError(workload)
