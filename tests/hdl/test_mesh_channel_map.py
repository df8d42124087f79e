# SPDX-License-Identifier: Apache-2.0
"""Channel map: the hardware agrees with `emu.config.channel_of` and `channel_ports`."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from emu.config import Config, channel_of
from hdl.network_interface import ChannelMap
from hdl.packets import Exit


@pytest.mark.parametrize(("channels", "cols", "rows"), [(1, 1, 4), (2, 2, 2), (8, 4, 4),
                                                       (8, 5, 3), (16, 8, 8), (32, 16, 2)])
def test_channel_map(channels, cols, rows):
    config = Config(hbm={"channels": channels}, mesh={"cols": cols, "rows": rows})
    unit = ChannelMap(config)
    rng = np.random.default_rng(channels)
    seen = set()

    async def bench(ctx):
        for address in [0, config.hbm_words - 1, *rng.integers(0, config.hbm_words, 400).tolist()]:
            ctx.set(unit.address, address)
            await ctx.delay(1e-9)
            channel, local = channel_of(config, address)
            x, y, edge = config.channel_ports[channel]
            dest = ctx.get(unit.dest)
            assert ctx.get(unit.local) == local
            assert (dest.rect.x0, dest.rect.x1, dest.rect.y0, dest.rect.y1) == (x, x, y, y)
            assert dest.exit == (Exit.NORTH if edge == "N" else Exit.SOUTH)
            seen.add(channel)

    simulator = Simulator(unit)
    simulator.add_testbench(bench)
    simulator.run()
    assert seen == set(range(channels))
