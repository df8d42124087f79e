# SPDX-License-Identifier: Apache-2.0
"""What a mesh plane ought to do: ports, random flits, receivers, links of a multicast tree."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from amaranth.lib import data

from emu.config import Config, Hbm
from emu.config import Mesh as MeshConfig
from hdl.mesh.plane import STEPS, Mesh
from hdl.mesh.route import SIDES
from hdl.mesh.router import PLANES, Router, plane_router
from hdl.packets import Dest, Exit
from sim.streams import bits_of

SMALL = data.StructLayout({"data": 32, "dest": Dest})
"""Flit of the general routers: wide enough for a tag."""


@dataclass(frozen=True)
class Case:
    """A mesh under test: a chip's plane, or a router with every edge and exit."""

    plane: str
    cols: int
    rows: int
    order: str = ""
    arbiter: Literal["round_robin", "age"] = "round_robin"
    depth: int = 4

    @property
    def config(self) -> Config:
        mesh = MeshConfig(cols=self.cols, rows=self.rows, arbiter=self.arbiter,
                          buffer_depth=self.depth)
        return Config(mesh=mesh, hbm=Hbm(channels=1))

    def router(self) -> Router:
        if not self.order:
            return plane_router(self.plane, self.config)
        return Router(
            SMALL, self.order, cols=self.cols, rows=self.rows, edges=SIDES, exits=SIDES,
            arbiter=self.arbiter, depth=self.depth,
        )

    def _model(self) -> Router:
        router = self.router()
        router._MustUse__silence = True  # only looked at
        return router

    def mesh(self) -> Mesh:
        return Mesh(self.plane, self.config, self.router if self.order else None)

    @property
    def flit(self) -> data.StructLayout:
        return SMALL if self.order else PLANES[self.plane][0]

    @property
    def x_first(self) -> bool:
        return (self.order or PLANES[self.plane][1]) == "x_first"

    @property
    def tag(self) -> str:
        """The flit's field that carries a tag."""
        return "address" if self.plane == "req" else "data"

    def places(self) -> list[tuple[int, int]]:
        return [(x, y) for y in range(self.rows) for x in range(self.cols)]

    def _edges(self, way: str, sides: tuple[str, ...]) -> dict[str, tuple[int, int, str]]:
        ports = {}
        for x, y in self.places():
            for side in sides:
                dx, dy = STEPS[side]
                if not (0 <= x + dx < self.cols and 0 <= y + dy < self.rows):
                    place = x if side in ("north", "south") else y
                    ports[f"{way}_{side}_{place}"] = (x, y, side)
        return ports

    def sources(self) -> dict[str, tuple[int, int, str]]:
        """Input port -> (x, y, side or "core")."""
        sides = self._model().edges
        cores = {f"core_in_{x}_{y}": (x, y, "core") for x, y in self.places()}
        return (cores if self.plane != "down" else {}) | self._edges("in", sides)

    def sinks(self) -> dict[str, tuple[int, int, str]]:
        """Output port -> (x, y, side or "core")."""
        sides = self._model().exits
        cores = {f"core_out_{x}_{y}": (x, y, "core") for x, y in self.places()}
        return (cores if self.plane != "req" else {}) | self._edges("out", sides)


def members(rect: dict) -> list[tuple[int, int]]:
    """Routers of ``rect``."""
    xs = range(rect["x0"], rect["x1"] + 1, 1 << rect["xs"])
    ys = range(rect["y0"], rect["y1"] + 1, 1 << rect["ys"])
    return [(x, y) for y in ys for x in xs]


def unicast(x: int, y: int) -> dict:
    return {"x0": x, "x1": x, "y0": y, "y1": y, "xs": 0, "ys": 0}


def random_dest(case: Case, source: str, rng: np.random.Generator) -> tuple[dict, list[str]]:
    """A destination that ``source`` may send to, and the output ports it means."""
    sinks = case.sinks()
    exits = [name for name, (_, _, side) in sinks.items() if side != "core"]
    exits = [name for name in exits if name.split("_", 1)[1] != source.split("_", 1)[1]]
    has_core = len(exits) < len(sinks) and case.plane != "req"
    if not has_core or (exits and rng.random() < 0.4):
        name = str(rng.choice(exits))
        x, y, side = sinks[name]
        return {"rect": unicast(x, y), "exit": bits_of(getattr(Exit, side.upper()))}, [name]
    rect: dict[str, int] = {}
    for axis, size in (("x", case.cols), ("y", case.rows)):
        low, high = sorted(int(v) for v in rng.integers(0, size, 2))
        if rng.random() < 0.4:
            high = low
        rect |= {f"{axis}0": low, f"{axis}1": high, f"{axis}s": int(rng.integers(0, 4))}
    return {"rect": rect, "exit": 0}, [f"core_out_{x}_{y}" for x, y in members(rect)]


def tree_links(case: Case, x: int, y: int, rect: dict) -> int:
    """Links between routers that one word to ``rect`` from the core of (x, y) crosses."""
    columns = {place[0] for place in members(rect)}
    rows = {place[1] for place in members(rect)}
    trunk, branches = (columns, rows) if case.x_first else (rows, columns)
    start, root = (x, y) if case.x_first else (y, x)
    span = max(*trunk, start) - min(*trunk, start)
    return span + len(trunk) * (max(*branches, root) - min(*branches, root))
