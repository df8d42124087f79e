# SPDX-License-Identifier: Apache-2.0
"""From counters to a result: bytes at every boundary, stalls by cause, conservation.

Nothing here is computed from what should have moved: every figure is a sum of RTL counters, except
the roofline and the compulsory bytes, which the compiler states.
"""

import re
from collections.abc import Mapping
from typing import Any

from emu.compiler import Program
from emu.config import WORD_BYTES, Config
from hdl.packets import ReqFlit
from sim import paging
from sim.errors import ConservationError

REQ_BYTES = -(-ReqFlit.size // 8)
"""Bytes of a read request on a `req` link: the narrow plane is charged its header."""

STALLS = {
    "activation": r"compute\..*stall_activation",
    "weight": r"compute\..*stall_weight",
    "block": r"blocks\..*stall_cycles",
    "drain": r"compute\..*stall_drain",
    "wait_compute": r"sequencer\..*wait_cycles_compute",
    "wait_vector": r"sequencer\..*wait_cycles_vector",
    "wait_load": r"sequencer\..*wait_cycles_load",
    "wait_store": r"sequencer\..*wait_cycles_store",
    "dispatch": r"sequencer\..*dispatch_stalls",
    "scratchpad_conflict": r"scratchpad\.conflicts",
    "outstanding": r"network\..*stall_outstanding",
}
"""Cause -> counters, summed over tiles, in cycles of one tile."""


class Counters:
    """The counters of one run by dotted name."""

    def __init__(self, values: Mapping[str, int]):
        self._values = values

    def total(self, pattern: str) -> int:
        """Sum of all counters whose dotted name, below a tile or channel, matches ``pattern``.

        Raises
        ------
        KeyError: If no counter matches: a renamed counter must never read as zero.
        """
        whole = re.compile(rf"(?:tile_\d+_\d+\.|hbm_\d+\.)?(?:{pattern})")
        found = [value for name, value in self._values.items() if whole.fullmatch(name)]
        if not found:
            raise KeyError(f"no counter matches {pattern}")
        return sum(found)


ARRAY = "cycles_busy|stall_activation|stall_weight|stall_block|stall_drain|stall_short"
"""Counters of cycles in which an array has a pixel that is to be multiplied."""


def array_cycles(counters: Counters, config: Config) -> list[int]:
    """Of each tile, row by row: cycles in which its array is at work, stalls included."""
    return _of_tiles(counters, config, rf"compute\.(?:{ARRAY})")


def array_passes(counters: Counters, config: Config) -> list[int]:
    """Of each tile, row by row: weight tiles that met their pixels."""
    return _of_tiles(counters, config, r"compute\.passes")


def _of_tiles(counters: Counters, config: Config, pattern: str) -> list[int]:
    return [counters.total(rf"tile_{x}_{y}\.{pattern}")
            for y in range(config.mesh.rows) for x in range(config.mesh.cols)]


def moved_bytes(
    counters: Counters, edge: bool = False, storage: bool = False
) -> dict[str, int]:
    """Bytes at every boundary."""
    links = {
        plane: counters.total(rf"router_{plane}\..*flits_(?:north|south|west|east)") * size
        for plane, size in (("req", REQ_BYTES), ("up", WORD_BYTES), ("down", WORD_BYTES))
    }
    words = {
        "hbm_read": r"hbm_\d+\.read_words",
        "hbm_write": r"hbm_\d+\.write_words",
        "scratchpad_read": r"scratchpad\.reads",
        "scratchpad_write": r"scratchpad\.writes",
        "array_load": r"compute\..*array_load_words",
        "commands": r"network\.command_words",
    }
    moved = {name: counters.total(pattern) * WORD_BYTES for name, pattern in words.items()}
    if edge:  # what the scratchpad at the edge answers never was in HBM's data path
        moved["edge_read"] = counters.total(r"hbm_\d+\..*edge_words") * WORD_BYTES
        moved["hbm_read"] -= moved["edge_read"]
    if storage:
        moved |= paging.moved_bytes(counters)
    moved["mesh_link"] = sum(links.values())
    return moved | {f"mesh_link_{plane}": value for plane, value in links.items()}


def check_conservation(
    counters: Counters, moved: Mapping[str, int], compulsory: Mapping[str, int], tiles: int
) -> None:
    """What leaves one side enters the other.

    Raises
    ------
    ConservationError: Naming the boundary and both counts.
    """
    total = counters.total
    pairs = {
        "words requested = words that leave HBM": (
            total(r"network\.request_words"), total(r"hbm_\d+\.read_words")),
        "flits delivered = words the tiles took in": (
            total(r"router_(?:down|up)\..*flits_core"),
            total(r"network\.words_down") + total(r"network\.words_up")),
        "words taken in = scratchpad writes + commands + semaphores + acknowledgements": (
            total(r"network\.words_down") + total(r"network\.words_up"),
            total(r"network\.data_words") + total(r"network\.frame_words")
            + total(r"network\.command_words") + total(r"network\.semaphore_words")
            + total(r"network\.ack_words") + total(r"network\.release_words")),
        "command words delivered = one directory word a tile + commands taken": (
            total(r"network\.command_words"), tiles + total(r"sequencer\.command_words")),
    }
    for what, (left, right) in pairs.items():
        if left != right:
            raise ConservationError(f"conservation broken: {what}: {left:,} against {right:,}")
    for name in ("hbm_read", "hbm_write"):
        if moved[name] + (name == "hbm_read") * moved.get("edge_read", 0) < compulsory[name]:
            raise ConservationError(
                f"conservation broken: {name} {moved[name]:,} bytes is below the compulsory "
                f"{compulsory[name]:,}"
            )


def _layers(program: Program, begins: list[int], cycles: int) -> list[dict[str, Any]]:
    """Per step of the program its bounds and its cycles: until tile (0, 0) begins the next one.

    HBM bytes are those that the step's commands name, whenever they move: weights may come early.
    """
    edges = [0, *begins, cycles]
    per_cycle = program.config.mesh.tiles * program.config.core.macs
    peak = program.config.hbm.channels
    found = []
    for bound, plan, words, begin, end in zip(
        program.rooflines, program.plans, program.step_reads, edges[:-1], edges[1:], strict=True
    ):
        moved = words + bound.write_words
        found.append({
            "name": bound.name, "plan": plan, "begin": begin, "cycles": end - begin,
            "macs": bound.macs, "mac_utilisation": bound.macs / per_cycle / max(1, end - begin),
            "hbm_bytes": moved * WORD_BYTES,
            "hbm_utilisation": moved / peak / max(1, end - begin),
            "roofline": {"compute": bound.compute, "hbm": int(bound.hbm), "inbound": bound.inbound},
        })
    return found


def measure(program: Program, simulated: Mapping[str, Any], workload: str) -> dict[str, Any]:
    """The result of a run, schema version 1, without what the host adds.

    Raises
    ------
    ConservationError: If the counters contradict one another.
    """
    config: Config = program.config
    counters, cycles = Counters(simulated["counters"]), simulated["cycles"]
    moved = moved_bytes(counters, bool(config.hbm.edge_kib), config.storage.enabled)
    check_conservation(counters, moved, program.compulsory_bytes, config.mesh.tiles)
    storage = paging.measure(config, counters) if config.storage.enabled else None
    peak = config.hbm.channels * WORD_BYTES * cycles
    macs = config.mesh.tiles * config.core.macs * cycles
    prefetched = counters.total(r"blocks\.table\.prefetched_blocks")
    used = counters.total(r"blocks\.table\.used_prefetched")
    useful = counters.total(r"blocks\.table\.useful")
    ahead_words, used_words, useful_words = (
        counters.total(rf"blocks\.table\.{name}_words")
        for name in ("prefetched", "used_prefetched", "useful"))
    roofline = {name: int(value) for name, value in program.roofline.items()}
    seconds = max(simulated["run_seconds"], 1e-9)
    return {
        "workload": workload,
        "chip": config.model_dump(),
        "policy": {
            "name": config.prefetch.policy,
            "depth": config.prefetch.depth,
            "threshold": config.prefetch.threshold,
        },
        "cycles": cycles,
        "bytes": moved,
        "compulsory_bytes": dict(program.compulsory_bytes),
        "mac_utilisation": program.macs / macs,
        "hbm_utilisation": (moved["hbm_read"] + moved["hbm_write"] + moved.get("hbm_fill", 0))
        / peak,
        "roofline": roofline,
        "roofline_fraction": max(roofline.values()) / cycles,
        "layers": _layers(program, simulated["step_begins"], cycles),
        "stalls": {cause: counters.total(pattern) for cause, pattern in STALLS.items()},
        "prefetch": {
            "useful": useful, "late": used - useful, "useless": prefetched - used,
            "bytes": {"useful": WORD_BYTES * useful_words,
                      "late": WORD_BYTES * (used_words - useful_words),
                      "useless": WORD_BYTES * (ahead_words - used_words)},
        },
        **({"storage": storage} if storage else {}),
        "counters": dict(simulated["counters"]),
        "host": {
            "build_seconds": simulated["build_seconds"],
            "run_seconds": seconds,
            "kilocycles_per_second": cycles / seconds / 1000,
        },
    }
