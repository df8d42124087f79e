# SPDX-License-Identifier: Apache-2.0
"""Play a decode on the RTL of the storage tier, check every byte, measure."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu.config import WORD_BYTES, Config
from emu.errors import UserError
from emu.storage import References, final_image, initial_image
from hdl.prefetch.registry import policy_number
from hdl.storage.packets import Region
from hdl.verilog import Design, generate
from sim import doctor, runner
from sim.errors import RunError
from sim.files import check_cache
from sim.storage.player import MOST, DecodeBench
from sim.streams import pack

TOP = "decode_bench"
CACHE = ("lookups", "hits", "demand_fetches", "late", "prefetches", "useful", "useless", "fills",
         "evictions", "write_backs")
DEVICE = ("page_reads", "page_writes", "read_words", "write_words", "queue_stalls")


@dataclass(frozen=True, kw_only=True)
class Play:
    """How a decode is played.

    exact: Candidates are the decode's own next references, not the program's regions.
    leap: Let time leap while nothing but storage is awaited.
    optimise: See `sim.runner.build`. ``seed``: Of what is stored at first, and of the simulator.
    """

    exact: bool = False
    leap: bool = True
    simulator: str = "verilator"
    optimise: bool = True
    seed: int = 1


def design(config: Config) -> Design:
    """The bench. Latency, bandwidth, frames and policy are inputs: one build serves all."""
    return generate(DecodeBench(config), TOP)


def _check(config: Config, references: References, simulator: str) -> None:
    storage = config.storage
    room = config.hbm.words // storage.page_words
    if storage.cache_pages > room:
        raise UserError(f"storage.cache_pages {storage.cache_pages}: hbm.mib={config.hbm.mib} "
                        f"holds {room} pages of {storage.page_kib} KiB")
    if int(references.page.max()) >= storage.pages:
        raise UserError(f"page {int(references.page.max())} is beyond storage.pages="
                        f"{storage.pages}")
    if len(references) > MOST:
        raise UserError(f"{len(references)} references: must be at most {MOST}")
    missing = doctor.missing_for(simulator)
    if missing:
        raise UserError(f"simulator {simulator} needs {' and '.join(missing)}: install first")


def play(
    config: Config, references: References, options: Play | None = None,
    *, made: Design | None = None, progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Play ``references``; ``made`` is `design` of an equal machine.

    Raises
    ------
    UserError: If the decode does not fit the machine, before anything is built.
    RunError: If the run does not end, or a byte is lost, doubled or wrong.
    """
    options = options or Play()
    _check(config, references, options.simulator)
    number = policy_number(config.storage.policy)
    check_cache()
    made = made or design(config)
    progress("building (cached by content)")
    try:
        folder = runner.build(made, options.simulator, optimise=options.optimise)
    except RuntimeError as error:
        raise RunError(f"the build failed: {error}") from None
    progress("simulating")
    workdir = Path(tempfile.mkdtemp(prefix="headrace-"))
    try:
        image = initial_image(config.storage, options.seed)
        _inputs(references, image, workdir)
        limit = _simulate(config, references, options, (made, folder), number, workdir)
        return _measure(config, references, image, workdir, limit)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def _inputs(references: References, image: np.ndarray, workdir: Path) -> None:
    (workdir / "storage_0.bin").write_bytes(image[:, ::-1].tobytes())
    records = (references.last.astype(np.int64) << 31 | references.write.astype(np.int64) << 19
               | references.region << 12 | references.page)
    (workdir / "trace").write_bytes(records.astype(">u4").tobytes())
    regions = [pack(Region, {"region": i, **{name: int(value)
                                             for name, value in vars(region).items()}})
               for i, region in enumerate(references.regions)]
    (workdir / "regions").write_bytes(np.array(regions, ">u8").tobytes())


def _simulate(config, references, options, build, number, workdir) -> int:
    storage = config.storage
    made, folder = build
    registers = {
        "control__latency": storage.latency, "control__page_cycles": storage.page_cycles,
        "control__frames": storage.cache_pages,
        "control__random": int(storage.replacement == "random"), "leap": int(options.leap),
        "exact": int(options.exact), "prefetch__policy": number,
        "prefetch__depth": storage.depth, "prefetch__threshold": storage.threshold,
    }
    # Each reference fetches its page and writes one back, and as many again are useless.
    page = storage.page_cycles + 8 * storage.page_words + (0 if options.leap else storage.latency)
    limit = 4 * (len(references) + storage.cache_pages) * page + 100_000
    env = {
        "HEADRACE_LIMIT": str(limit), "HEADRACE_REGISTERS": json.dumps(registers),
        "HEADRACE_COUNTERS": json.dumps(runner.counter_paths(made, options.simulator)),
        "HEADRACE_FOUND": str(workdir / "counters"),
    }
    (workdir / "dump").mkdir()
    names = ("trace", "regions", "totals", "tokens")
    try:
        tests, failed = runner.run(
            made, folder, options.simulator, "sim.storage.bench", workdir=workdir,
            plusargs=(f"+storage={workdir}", f"+storage_dump={workdir / 'dump'}",
                      *(f"+{name}={workdir / name}" for name in names)), env=env,
            seed=options.seed, gpi_clock=True,
        )
    except RuntimeError as error:  # it crashed, or was killed
        raise RunError(f"the simulator ended early: {error}") from None
    if failed or not tests:
        raise RunError(f"the decode did not end in {limit} cycles")
    return limit


def _measure(config, references, image, workdir, limit) -> dict[str, Any]:
    storage = config.storage
    totals = {name: int(value) for name, value in
              (line.split() for line in (workdir / "totals").read_text().splitlines())}
    counters = json.loads((workdir / "counters").read_text())
    cache = {name: counters[f"tier.cache.{name}"] for name in CACHE}
    device = {name: counters[f"tier.device.{name}"] for name in DEVICE}
    ends = [int(line) for line in (workdir / "tokens").read_text().split()]
    stored = np.fromfile(workdir / "dump" / "storage_0.bin", np.uint8).reshape(-1, 16)
    wrong = int((stored != final_image(storage, image, references)).any(axis=1).sum())
    hbm = {name.rsplit(".", 1)[1]: value for name, value in counters.items()
           if name.startswith("tier.channel.")
           and name.rsplit(".", 1)[1] in ("read_words", "write_words", "activates")}
    moved = {
        "storage_read": WORD_BYTES * device["read_words"],
        "storage_write": WORD_BYTES * device["write_words"],
        **({"hbm_read": WORD_BYTES * hbm["read_words"],
            "hbm_write": WORD_BYTES * hbm["write_words"]} if "read_words" in hbm else {}),
    }
    result = {
        **totals, "token_cycles": np.diff([0, *ends]).tolist(), "bytes": moved, "cache": cache,
        "device": device, "unused": counters["unused"], "wrong_words": wrong,
        "activates": hbm.get("activates", 0),
    }
    problems = conserved(config, references, result)
    if counters["error"]:
        problems.append("an illegal DRAM command was given")
    if problems:
        raise RunError(f"the run is not consistent: {'; '.join(problems)}")
    return result


def conserved(config: Config, references: References, result: dict[str, Any]) -> list[str]:
    """What of ``result`` contradicts itself: bytes at every boundary, and data."""
    page, cache, device = config.storage.page_words, result["cache"], result["device"]
    used = len(references)
    written = int(references.write.sum()) * 16
    equal = {
        "lookups": (cache["lookups"], used),
        "words checked": (result["words"], used * page),
        "mismatches": (result["mismatches"], 0),
        "wrong words stored": (result["wrong_words"], 0),
        "tokens": (len(result["token_cycles"]), int(references.last.sum())),
        "page reads": (device["page_reads"], cache["demand_fetches"] + cache["prefetches"]),
        "fills": (cache["fills"], device["page_reads"]),
        "storage words read": (device["read_words"], page * cache["fills"]),
        "page writes": (device["page_writes"], cache["write_backs"]),
        "storage words written": (device["write_words"], page * cache["write_backs"]),
        "prefetches": (cache["prefetches"], cache["useful"] + cache["useless"]
                       + result["unused"]),
    }
    if "hbm_read" in result["bytes"]:
        equal["HBM bytes read"] = (
            result["bytes"]["hbm_read"], WORD_BYTES * page * (used + cache["write_backs"]))
        equal["HBM bytes written"] = (
            result["bytes"]["hbm_write"], WORD_BYTES * (page * cache["fills"] + written))
    return [f"{name}: {got} instead of {want}" for name, (got, want) in equal.items()
            if got != want]
