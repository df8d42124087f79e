# SPDX-License-Identifier: Apache-2.0
"""The chip's Verilog for a configuration, and what it depends on."""

import hashlib
import json
import os
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import emu
import hdl
from emu.config import Config
from hdl.chip import TOP, Chip
from hdl.prefetch.registry import registered_logic
from hdl.verilog import Design, generate
from sim.cache import alone, cache_home


def hardware_key(config: Config) -> Config:
    """``config`` without what only the compiler or the policy registers see.

    Two configurations of one key share a build.
    """
    prefetch = config.prefetch.model_copy(
        update={"policy": "demand", "threshold": 0, "depth": 1, "experts": "distinct",
                "expert_slots": 1, "experts_ahead": "none"}
    )
    mesh = config.mesh.model_copy(update={"multicast": True})
    scratchpad = config.scratchpad.model_copy(update={
        "resident": True, "resident_kib": 0, "pinned_kib": 0})
    core = config.core.model_copy(update={"packed_weights": True})
    hbm = config.hbm.model_copy(update={"sum_rows": min(config.hbm.sum_rows, 1)})
    shape = {name: getattr(config.storage, name)
             for name in ("enabled", "page_kib", "pages", "queue")}
    storage = type(config.storage)(**shape) if shape["enabled"] else type(config.storage)()
    return config.model_copy(update={
        "name": "chip", "storage": storage, "prefetch": prefetch, "mesh": mesh,
        "scratchpad": scratchpad, "core": core, "hbm": hbm, "mapping": type(config.mapping)(),
        "clock": type(config.clock)()})


def design_key(config: Config) -> str:
    """Hash of everything that the chip's Verilog depends on.

    That is the configuration, the sources of `emu` and `hdl`, the tools' versions, and what
    prefetch policies registered from elsewhere elaborate to.
    """
    key = hashlib.sha256(hardware_key(config).model_dump_json().encode())
    key.update(registered_logic().encode() + _sources())
    for name in ("amaranth", "pyosys"):
        key.update(version(name).encode())
    return key.hexdigest()[:20]


@cache
def _sources() -> bytes:
    """Hash of the sources of `emu` and `hdl`: those that this process has loaded, so read once."""
    key = hashlib.sha256()
    for package in (emu, hdl):
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".v", ".vlt"):
                key.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return key.digest()


def design_of(config: Config) -> Design:
    """The chip's Verilog, generated once per `design_key`: it takes seconds, so it is kept beside
    the builds."""
    path = cache_home() / f"verilog-{design_key(config)}.json"
    if not path.exists():
        with alone(path):
            if not path.exists():  # by now another process may have made it
                design = generate(Chip(config), TOP)
                temporary = path.with_suffix(f".{os.getpid()}")
                temporary.write_text(json.dumps(asdict(design)))
                temporary.replace(path)
    return Design(**json.loads(path.read_text()))


__all__ = ["design_key", "design_of", "hardware_key"]
