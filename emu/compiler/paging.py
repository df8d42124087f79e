# SPDX-License-Identifier: Apache-2.0
"""Constants in storage: which lines of every channel, in which frames, which pages a layer reads.

Areas are interleaved over the channels or of equal size in all of them, so what lies where is the
same in every channel: one table of regions serves all.
"""

from collections import Counter
from dataclasses import dataclass, replace

from emu.compiler.images import Memory
from emu.config import SEGMENT_WORDS, Config
from emu.errors import UserError
from emu.storage import Region

LINE_WORDS = 4
MOST_REGIONS = 128
ALWAYS = 255


@dataclass(frozen=True)
class Paging:
    """What every pager is told, see `hdl.storage.pager.PagerControl`.

    first, last: The channel's 64-byte lines that lie in storage, the second beyond the end.
    pages: Pages of a device that are in use. base: Where frame 0 lies in the channel, in pages.
    regions: In the order of their first use; each names the one that most often follows.
    """

    first: int
    last: int
    pages: int
    base: int
    regions: tuple[Region, ...]

    def beside(self, config: Config, used: int) -> "Paging":
        """With frames where nothing else lies: over the constants, or behind all ``used`` words.

        Raises
        ------
        UserError: If they do not fit.
        """
        page, frames = config.storage.page_words, config.storage.cache_pages
        base = -(-self.first * LINE_WORDS // page)
        if (base + frames) * page > self.last * LINE_WORDS:
            base = -(-_local(config, used, up=True) // page)
        room = config.hbm.words // page - base
        if frames > room:
            raise UserError(
                f"storage.cache_pages={frames}: beside activations and commands hbm.mib="
                f"{config.hbm.mib} has room for {max(room, 0)} pages of "
                f"{config.storage.page_kib} KiB: lower one or raise the other"
            )
        return replace(self, base=base)


def plan_paging(config: Config, memory: Memory, constants: int) -> Paging:
    """Everything allocated from global word ``constants`` on goes to storage.

    Raises
    ------
    UserError: If a device is too small.
    """
    first = _local(config, constants, up=True)
    last = max(first, _local(config, memory.used, up=True))
    page = config.storage.page_words
    pages = -(-(last - first) // page)
    if pages > config.storage.pages:
        raise UserError(
            f"storage.pages={config.storage.pages}: the constants need {pages} pages of "
            f"{config.storage.page_kib} KiB in each of {config.hbm.channels} devices (at most 4096 "
            "can be modelled, storage.page_kib=16 makes them larger)"
        )
    return Paging(first // LINE_WORDS, last // LINE_WORDS, pages, 0,
                  _regions(config, memory, first, pages))


def _local(config: Config, word: int, *, up: bool) -> int:
    """The channel's word at which the row of segments begins (or ends) that holds global ``word``.
    """
    row = config.hbm.channels * SEGMENT_WORDS
    return (-(-word // row) if up else word // row) * SEGMENT_WORDS


def _regions(config: Config, memory: Memory, first: int, pages: int) -> tuple[Region, ...]:
    """Regions of the areas that layers use: what has no page of its own is of the region before."""
    found: list[Region] = []
    owned: dict[int, range] = {}  # area to its regions
    taken = 0
    for number in dict.fromkeys(area for used in memory.uses for area in used):
        area, before = memory.areas[number], len(found)
        begin = _local(config, area.base, up=False) - first
        size = _local(config, area.base + area.words, up=True) - first - begin
        for part in range(area.parts):
            end = -(-(begin + size * (part + 1) // area.parts) // config.storage.page_words)
            if end > taken:
                found.append(Region(
                    first=taken, pages=end - taken,
                    frequency=round(ALWAYS * area.used / area.parts),
                    optional=area.used < area.parts, scattered=area.scattered))
                taken = end
        owned[number] = range(min(before, max(0, len(found) - 1)), len(found))
    return _chained(*_joined(found, owned), memory) if found else ()


def _joined(
    found: list[Region], owned: dict[int, range]
) -> tuple[list[Region], dict[int, range]]:
    """At most `MOST_REGIONS`: the smallest neighbours become one."""
    while len(found) > MOST_REGIONS:
        at = min(range(len(found) - 1), key=lambda i: found[i].pages + found[i + 1].pages)
        one, two = found[at], found.pop(at + 1)
        found[at] = replace(
            one, pages=one.pages + two.pages, frequency=max(one.frequency, two.frequency),
            optional=one.optional and two.optional, scattered=one.scattered and two.scattered)
        for area, regions in owned.items():
            low = regions.start - (regions.start > at)
            owned[area] = range(low, max(low + 1, regions.stop - (regions.stop > at + 1)))
    return found, owned


def _chained(
    found: list[Region], owned: dict[int, range], memory: Memory
) -> tuple[Region, ...]:
    """Every region's child: what most often follows it in the program, whose end its beginning
    follows. A page of small tables that several layers read is nobody's child: who came by it
    would go on at one of them, and mostly at the wrong one."""
    order = [region for used in memory.uses for area in used for region in owned[area]]
    all_of_them = _followers(order)
    tables = {region for region, after in all_of_them.items()
              if len(after) > 1 and found[region].pages == 1}
    follows = all_of_them | _followers([region for region in order if region not in tables])
    return tuple(replace(region, child=follows[i].most_common(1)[0][0] if i in follows else i)
                 for i, region in enumerate(found))


def _followers(order: list[int]) -> dict[int, Counter[int]]:
    """How often what follows each, without itself."""
    found: dict[int, Counter[int]] = {}
    for one, two in zip(order, [*order[1:], *order[:1]], strict=True):
        if one != two:
            found.setdefault(one, Counter())[two] += 1
    return found
