# SPDX-License-Identifier: Apache-2.0
"""Channel map: the hardware agrees with `emu.config.channel_of` and `channel_ports`."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from emu.config import Config, channel_of, direct_address, interleaved
from hdl.network_interface import ChannelMap
from hdl.packets import Exit


def direct(config, rng):
    """Direct and striped addresses, if the machine has them."""
    for _ in range(200 if config.has_direct else 0):
        channel = int(rng.integers(config.hbm.channels))
        yield direct_address(config, channel, int(rng.integers(config.hbm.words)))
        stripe = int(rng.integers(1 << config.stripe_bits))
        word = int(rng.integers(config.hbm.words >> config.stripe_bits))
        yield direct_address(config, channel, word, stripe)


@pytest.mark.parametrize(("channels", "cols", "rows"), [(1, 1, 4), (2, 2, 2), (8, 4, 4),
                                                       (8, 5, 3), (16, 8, 8), (32, 16, 2)])
def test_channel_map(channels, cols, rows):
    config = Config(hbm={"channels": channels}, mesh={"cols": cols, "rows": rows})
    unit = ChannelMap(config)
    rng = np.random.default_rng(channels)
    seen = set()

    async def bench(ctx):
        for address in [0, config.hbm_words - 1, *rng.integers(0, config.hbm_words, 400).tolist(),
                        *direct(config, rng)]:
            ctx.set(unit.address, address)
            await ctx.delay(1e-9)
            channel, local = channel_of(config, int(interleaved(config, np.array([address]))[0]))
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
