# SPDX-License-Identifier: Apache-2.0
"""The storage tier of a chip: what its pagers are told before a run, what they counted in it."""

from typing import TYPE_CHECKING, Any

from emu.compiler import Program
from emu.config import WORD_BYTES, Config
from hdl.prefetch.registry import policy_number
from hdl.storage.packets import PAGE_BITS, Region
from sim.errors import ConservationError
from sim.streams import pack

if TYPE_CHECKING:
    from sim.measure import Counters

SETTLE_CYCLES = (1 << PAGE_BITS) + 100
"""Tags are cleared, entry by entry."""
PAGES = ("lookups", "hits", "demand_fetches", "late", "prefetches", "useful", "useless", "fills",
         "evictions", "write_backs")
"""Counters of `hdl.storage.page_cache`, in pages."""


def registers(program: Program) -> dict[str, Any]:
    """Inputs of the chip by name, and the regions with the cycles that each needs."""
    paging, storage = program.paging, program.config.storage
    assert paging is not None
    return {
        "settle_cycles": SETTLE_CYCLES,
        "registers": {
            "storage__latency": storage.latency,
            "storage__page_cycles": storage.shared_page_cycles(program.config.hbm.channels),
            "storage__frames": storage.cache_pages,
            "storage__random": int(storage.replacement == "random"),
            "prefetch__policy": policy_number(storage.policy),
            "prefetch__depth": storage.depth, "prefetch__threshold": storage.threshold,
            "first": paging.first, "last": paging.last, "base": paging.base,
        },
        "regions": [
            (pack(Region, {"region": number, **{name: int(value)
                                                for name, value in vars(region).items()}}),
             region.pages + 2)
            for number, region in enumerate(paging.regions)
        ],
    }


def moved_bytes(counters: "Counters") -> dict[str, int]:
    """Bytes between storage and HBM, counted at both ends."""
    words = {
        "storage_read": r"pager\.device\.read_words",
        "storage_write": r"pager\.device\.write_words",
        "hbm_fill": r"hbm_\d+\.fill_words",
    }
    return {name: counters.total(pattern) * WORD_BYTES for name, pattern in words.items()}


def measure(config: Config, counters: "Counters") -> dict[str, Any]:
    """Pages of all channels; ``under_way``: requested and not yet complete at the end.

    Raises
    ------
    ConservationError: Naming the boundary and both counts.
    """
    pages = {name: counters.total(rf"pager\.cache\.{name}") for name in PAGES}
    cycles = {name: counters.total(rf"pager\.{name}") for name in ("miss_cycles", "blocked_cycles")}
    requested = counters.total(r"pager\.device\.page_reads")
    unused = pages["prefetches"] - pages["useful"] - pages["useless"]
    found = {**pages, "under_way": requested - pages["fills"], "unused": unused, **cycles}
    check(config, counters, found, requested)
    return found


def check(config: Config, counters: "Counters", pages: dict[str, int], requested: int) -> None:
    """What leaves storage enters HBM; what is in no frame any more was evicted.

    Raises
    ------
    ConservationError: Naming the boundary and both counts.
    """
    total, size = counters.total, config.storage.page_words
    frames = config.hbm.channels * config.storage.cache_pages
    read = total(r"pager\.device\.read_words")
    pairs = {
        "words that leave storage = words written into frames": (
            read, total(r"hbm_\d+\.fill_words")),
        "pages fetched = pages that storage was asked for": (
            pages["demand_fetches"] + pages["prefetches"], requested),
        "write-backs = pages written to storage": (
            pages["write_backs"], total(r"pager\.device\.page_writes")),
        "constants are not written: write-backs = 0": (pages["write_backs"], 0),
        "constants are not written: words written to storage = 0": (
            total(r"pager\.device\.write_words"), 0),
        "reads of HBM and of frames = requests of the mesh": (
            total(r"pager\.direct_reads") + total(r"pager\.paged_reads"),
            total(r"network\.requests")),
    }
    for what, (left, right) in pairs.items():
        if left != right:
            raise ConservationError(f"conservation broken: {what}: {left:,} against {right:,}")
    bounds = {
        "words of complete pages <= words read": (size * pages["fills"], read),
        "words read <= words of pages asked for": (read, size * requested),
        "pages fetched - evicted <= frames": (requested - pages["evictions"], frames),
        "pages evicted <= pages complete": (pages["evictions"], pages["fills"]),
        "prefetched pages used or evicted <= prefetched": (0, pages["unused"]),
        "prefetched pages not used yet <= frames": (pages["unused"], frames),
    }
    for what, (low, high) in bounds.items():
        if low > high:
            raise ConservationError(f"conservation broken: {what}: {low:,} and {high:,}")
