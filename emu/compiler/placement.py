# SPDX-License-Identifier: Apache-2.0
"""In which pseudo-channel the weights of a tile lie when no other tile reads them.

Interleaved, every channel sends to every tile, and all those flows cross: the `down` plane is full
long before the channels are. Private weights in the channel nearest to their tile go straight down
a column and meet nobody.
"""

from collections.abc import Mapping

from emu.config import Config

UNEVEN = 1.1
"""Busiest channel over the mean from which on interleaving, which is even, is better."""


def near_channels(
    config: Config, tiles: Mapping[int, tuple[int, int]], blocks: Mapping[int, int]
) -> dict[int, int] | None:
    """Part -> channel, for parts read by one tile each; None if channels would be too uneven.

    Nearest pairs first, as long as a channel holds no more than its share.

    Parameters
    ----------
    tiles: Part -> (x, y) of its tile.
    blocks: Part -> how much is read.
    """
    if not config.has_direct:
        return None
    ports = config.channel_ports
    share = -(-sum(blocks.values()) // len(ports))
    pairs = sorted(
        (abs(x - px) + abs(y - py), part, channel)
        for part, (x, y) in tiles.items()
        for channel, (px, py, _) in enumerate(ports)
    )
    load = [0] * len(ports)
    chosen: dict[int, int] = {}
    for _, part, channel in pairs:
        if part not in chosen and load[channel] + blocks[part] <= share:
            chosen[part] = channel
            load[channel] += blocks[part]
    for part in tiles.keys() - chosen.keys():
        chosen[part] = min(range(len(ports)), key=load.__getitem__)
        load[chosen[part]] += blocks[part]
    mean = sum(load) / len(load)
    return chosen if max(load) <= UNEVEN * mean else None
