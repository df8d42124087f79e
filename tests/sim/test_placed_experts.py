# SPDX-License-Identifier: Apache-2.0
"""Experts on tiles of their own, on the RTL: outputs, and which tiles worked by its counters."""

from collections import Counter

import numpy as np
import pytest

from emu.compiler.expert_owners import Share, owners, rows
from emu.config import load_config
from emu.network.exact import exact
from emu.network.experts import CHOSEN, moe_batch
from emu.network.layers import ExpertLayer
from sim.execute import Options, run
from sim.measure import Counters, array_cycles

ROUTER = 3
"""Passes of the router's product on a tile that has a part of it: 48 channels."""


def program_copies(config, network):
    """Beyond one of each expert."""
    layer = next(each for each in network.layers if isinstance(each, ExpertLayer))
    return len({s for owner in owners(config, layer).values() for s in owner.shares}) - 8


@pytest.mark.rtl
@pytest.mark.parametrize(("tokens", "copies"), [(1, 0), (40, 0), (120, 3)])
def test_tiles_without_tokens_idle(tokens, copies):
    """Every tile makes the passes of those of its experts that some token chose, and skips the
    others; copies have every second block of 16."""
    network = moe_batch("m", 1, tokens=tokens, experts=8, width=48, inner=80, zipf=1.0)
    settings = ["mapping.experts=placed", f"mapping.expert_copies={copies}"]
    config = load_config("small", settings)
    found = run("m", chip="small", settings=settings, options=Options(), network=network)
    assert found["verified"]["mismatches"] == 0 < found["verified"]["outputs"]
    top = exact(network, network.given, every=True)["top"]
    numbers = np.ascontiguousarray(top.reshape(16, -1).T).view(np.uint32)[::2, :CHOSEN]
    chosen = Counter(numbers.reshape(-1).tolist())
    least: Counter[tuple[int, int]] = Counter()
    empty: set[Share] = set()
    for layer in network.layers:
        if isinstance(layer, ExpertLayer):
            depth = -(-layer.weights.shape[2] // 16)
            for tile, owner in owners(config, layer).items():
                for share in owner.shares:
                    if rows(chosen[share.expert], share.copy, share.copies):
                        least[tile] += depth * owner.count
                    else:
                        empty.add(share)
    counters = Counters(found["counters"])
    tiles = [(x, y) for y in range(2) for x in range(2)]
    for (x, y), busy in zip(tiles, array_cycles(counters, config), strict=True):
        passes = counters.total(rf"tile_{x}_{y}\.compute\.passes")
        assert passes - least[x, y] in (0, ROUTER)
        # A pass takes the 16 words of its weights, though the first's may come before a pixel.
        assert busy >= 15 * least[x, y]
    assert (0 in [least[tile] for tile in tiles]) == (tokens == 1)
    assert (counters.total(r"compute\.skipped") > 0) == bool(empty)
    assert program_copies(config, network) == copies
