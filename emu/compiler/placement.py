# SPDX-License-Identifier: Apache-2.0
"""In which pseudo-channel the weights of a tile lie when no other tile reads them.

Interleaved, every channel sends to every tile, and all those flows cross: the `down` plane is full
long before the channels are. Private weights in the channel nearest to their tile go straight down
a column and meet nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from emu.compiler.images import Memory
from emu.config import SEGMENT_WORDS, Config, direct_address

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


@dataclass
class Homes:
    """One area for each tile, in a stripe of a channel near to it, that is filled from its start.

    where: Channel and stripe. first: First word of every area in its stripe.
    """

    config: Config
    where: Mapping[tuple[int, int], tuple[int, int]]
    first: int
    used: dict[tuple[int, int], int] = field(default_factory=dict)

    def take(self, tile: tuple[int, int], words: int) -> int:
        """Address of the next ``words`` words for ``tile``."""
        start = self.used.get(tile, 0)
        self.used[tile] = start + words
        channel, stripe = self.where[tile]
        return direct_address(self.config, channel, self.first + start, stripe)


def homes(memory: Memory, words: Mapping[tuple[int, int], int], what: str) -> Homes | None:
    """Areas of so many ``words`` for each tile; None if the channels would be too uneven, or one
    near to more tiles than it has stripes."""
    config = memory.config
    near = near_channels_of(config, words)
    if near is None:
        return None
    members: dict[int, list[tuple[int, int]]] = {}
    for tile, channel in sorted(near.items()):
        members.setdefault(channel, []).append(tile)
    stripes = 1 << config.stripe_bits
    if max(map(len, members.values())) > stripes:
        return None
    each = -(-max(words.values()) // SEGMENT_WORDS) * SEGMENT_WORDS
    line = config.hbm.channels * SEGMENT_WORDS * stripes
    first = memory.allocate(each * stripes * config.hbm.channels, what, line)
    where = {tile: (channel, stripe) for channel, tiles in members.items()
             for stripe, tile in enumerate(tiles)}
    return Homes(config, where, first // config.hbm.channels // stripes)


def near_channels_of(
    config: Config, words: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], int] | None:
    """As `near_channels`, of tiles that read so many ``words`` each."""
    tiles = dict(enumerate(sorted(words)))
    found = near_channels(config, tiles, {k: words[tile] for k, tile in tiles.items()})
    return None if found is None else {tiles[k]: channel for k, channel in found.items()}
