# SPDX-License-Identifier: Apache-2.0
"""Private weights go to near channels, evenly, or stay interleaved."""

from emu.compiler.placement import near_channels
from emu.config import load_config


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
