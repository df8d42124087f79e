# SPDX-License-Identifier: Apache-2.0
"""One plane of the mesh by itself, for benches: routers, links, core and edge ports."""

from collections.abc import Callable

from amaranth.hdl import Const, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import connect, flipped

from emu.config import Config
from hdl.macro import Macro
from hdl.mesh.route import OPPOSITE
from hdl.mesh.router import Router, plane_router

STEPS = {"north": (0, -1), "south": (0, 1), "west": (-1, 0), "east": (1, 0)}


class Mesh(wiring.Component):
    """``cols`` x ``rows`` routers of one plane, wired.

    Parameters
    ----------
    plane: ``"req"``, ``"up"`` or ``"down"``; the router is then the chip's.
    config: The machine.
    router: Makes another router instead; ``plane`` is then only a name.

    Members
    -------
    core_in_X_Y, core_out_X_Y: The tile's ports, where the plane has them.
    in_SIDE_N, out_SIDE_N: Edge ports; N is the column (north, south) or the row (west, east).
    """

    def __init__(self, plane: str, config: Config, router: Callable[[], Router] | None = None):
        self._plane, self._mesh = plane, config.mesh
        self._factory = router or (lambda: plane_router(plane, config))
        self._signature = self._router_signature()
        members = {}
        for x, y in self._places():
            for way in ("in", "out"):
                if f"{way}_core" in self._signature.members:
                    members[f"core_{way}_{x}_{y}"] = self._signature.members[f"{way}_core"]
                for side, (dx, dy) in STEPS.items():
                    if not self._inside(x + dx, y + dy):
                        name = f"{way}_{side}_{x if side in ('north', 'south') else y}"
                        members[name] = self._signature.members[f"{way}_{side}"]
        super().__init__(members)

    def _router_signature(self) -> wiring.Signature:
        model = self._factory()
        model._MustUse__silence = True  # made for its signature only
        return model.signature

    def _places(self):
        return [(x, y) for y in range(self._mesh.rows) for x in range(self._mesh.cols)]

    def _inside(self, x: int, y: int) -> bool:
        return 0 <= x < self._mesh.cols and 0 <= y < self._mesh.rows

    def elaborate(self, platform):
        m = Module()
        routers = {}
        for x, y in self._places():
            router = Macro(f"router_{self._plane}", self._factory, self._signature)
            m.submodules[f"router_{x}_{y}"] = routers[x, y] = router
            m.d.comb += [router.x.eq(Const(x, 4)), router.y.eq(Const(y, 4))]
        for (x, y), router in routers.items():
            for way in ("in", "out"):
                if f"{way}_core" in self._signature.members:
                    outer = flipped(getattr(self, f"core_{way}_{x}_{y}"))
                    connect(m, outer, getattr(router, f"{way}_core"))
            for side, (dx, dy) in STEPS.items():
                if self._inside(x + dx, y + dy):
                    far = routers[x + dx, y + dy]
                    connect(m, getattr(router, f"out_{side}"), getattr(far, f"in_{OPPOSITE[side]}"))
                    continue
                number = x if side in ("north", "south") else y
                for way in ("in", "out"):
                    outer = flipped(getattr(self, f"{way}_{side}_{number}"))
                    connect(m, outer, getattr(router, f"{way}_{side}"))
        return m
