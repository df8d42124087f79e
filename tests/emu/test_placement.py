# SPDX-License-Identifier: Apache-2.0
"""Private weights go to near channels, evenly, or stay interleaved."""

import numpy as np

from emu.compiler.images import Memory
from emu.compiler.placement import homes, near_channels
from emu.config import interleaved, load_config


def tiles(config):
    return {y * config.mesh.cols + x: (x, y)
            for y in range(config.mesh.rows) for x in range(config.mesh.cols)}


def test_each_tile_of_base_reads_from_its_own_column():
    config = load_config("base")
    where = near_channels(config, tiles(config), dict.fromkeys(range(16), 9))
    ports = config.channel_ports
    for part, (x, y) in tiles(config).items():
        px, py, _ = ports[where[part]]
        assert px == x and abs(py - y) <= 1
    assert sorted(where.values()) == sorted([*range(8), *range(8)])


def test_uneven_parts_stay_interleaved():
    config = load_config("base")
    assert near_channels(config, {0: (0, 0)}, {0: 9}) is None
    assert near_channels(config, tiles(config), {k: 90 if k == 3 else 9 for k in range(16)}) is None


def test_a_memory_without_spare_address_bits_stays_interleaved():
    config = load_config("base", ["hbm.mib=256"])
    assert near_channels(config, tiles(config), dict.fromkeys(range(16), 9)) is None


def test_homes_of_sixteen_tiles():
    """Two tiles a channel, of its own column and nearest to its edge, a stripe each."""
    config = load_config("base")
    memory = Memory(config)
    memory.allocate(5, "something before")
    tiles = [(x, y) for y in range(4) for x in range(4)]
    found = homes(memory, dict.fromkeys(tiles, 600), "weights")
    assert found is not None
    for (x, y), (channel, stripe) in found.where.items():
        port_x, port_y, _ = config.channel_ports[channel]
        assert (x, abs(y - port_y)) == (port_x, stripe if port_y == 0 else 1 - stripe)
    taken = [found.take(tile, 300) + np.arange(300) for _ in range(2) for tile in tiles]
    words = interleaved(config, np.concatenate(taken))
    assert len(set(words.tolist())) == len(words) and words.min() >= 5
    assert words.max() < memory.used
    first, second = taken[0], taken[16]
    assert second[0] == first[-1] + 1


def test_no_homes_where_channels_are_uneven():
    assert homes(Memory(load_config("base")), {(0, 0): 900, (0, 1): 100}, "weights") is None
    one = load_config("base", ["mesh.rows=1", "mesh.cols=8"])
    assert homes(Memory(one), dict.fromkeys([(x, 0) for x in range(8)], 64), "weights")
