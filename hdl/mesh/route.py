# SPDX-License-Identifier: Apache-2.0
"""Where a flit goes next: dimension order, multicast rectangles, exits.

Paths exist as a table of connections (`connections`), which the hardware is built from and a test
proves free of cycles; `route_mask` is the hardware that chooses among them.
"""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data

from hdl.packets import Dest, Exit

SIDES = ("north", "south", "west", "east")
ALONG_X, ALONG_Y = ("west", "east"), ("north", "south")
ORDERS = {"x_first": (ALONG_X, ALONG_Y), "y_first": (ALONG_Y, ALONG_X)}
"""Order -> (sides of the first dimension, sides of the second)."""
OPPOSITE = {"north": "south", "south": "north", "west": "east", "east": "west"}
EXITS = {side: Exit[side.upper()] for side in SIDES}


def connections(
    order: str, inputs: tuple[str, ...], outputs: tuple[str, ...],
    edges: tuple[str, ...], exits: tuple[str, ...],
) -> dict[str, tuple[str, ...]]:
    """Output -> the inputs that may feed it.

    Parameters
    ----------
    order: ``"x_first"`` or ``"y_first"``.
    inputs, outputs: Those that exist, of `SIDES` and ``"core"``.
    edges: Sides on which something outside the mesh sends. Its flits may still need both
        dimensions, so inputs of the second dimension there can turn into the first (at the
        boundary only).
    exits: Sides on which flits leave the mesh. Flits of the second dimension can turn into such an
        output of the first (at their destination only, where the output leads out of the mesh).
    """
    first, second = ORDERS[order]

    def allowed(source: str, output: str) -> bool:
        if "core" in (source, output):
            return True
        if source == output:
            return False
        if output == OPPOSITE[source] or (source in first and output in second):
            return True
        return source in second and output in first and (source in edges or output in exits)

    return {output: tuple(i for i in inputs if allowed(i, output)) for output in outputs}


def _axis(m: Module, axis: str, rect, here) -> tuple[Signal, Signal, Signal]:
    """Whether ``rect`` has coordinates below and above ``here`` and whether it has ``here``."""
    low, high, stride = (rect[name] for name in (f"{axis}0", f"{axis}1", f"{axis}s"))
    below, above = Signal(name=f"{axis}_below"), Signal(name=f"{axis}_above")
    member, offset = Signal(name=f"{axis}_member"), Signal(3, name=f"{axis}_offset")
    # Strides are 1, 2, 4 or 8: the bits of the offset below the stride must be 0.
    skipped = (offset & Cat(stride != 0, stride[1], stride == 3)).any()
    m.d.comb += [
        below.eq(low < here),
        above.eq(high > here),
        offset.eq(here - low),
        member.eq((low <= here) & (here <= high) & ~skipped),
    ]
    return below, above, member


def route_mask(
    m: Module, order: str, dest: data.View, x, y, *,
    source: str, outputs: tuple[str, ...], exits: tuple[str, ...], boundary,
) -> Signal:
    """Outputs (a bit each, in the order of ``outputs``) for a flit from input ``source``.

    Each copy of a multicast flit carries the whole rectangle. Which part of it is its own follows
    from where it comes from: a flit that moves east covers the columns that are still east of it.

    Parameters
    ----------
    x, y: The router's coordinates.
    outputs: Those that ``source`` is connected to.
    exits: As in `connections`.
    boundary: 1 if the neighbour at ``source`` is outside the mesh.
    """
    assert Dest == dest.shape()
    rect, leave = dest["rect"], dest["exit"].as_value()
    west, east, column = _axis(m, "x", rect, x)
    north, south, row = _axis(m, "y", rect, y)
    toward = {"west": west, "east": east, "north": north, "south": south}
    first, second = ORDERS[order]
    entered = column if order == "x_first" else row  # the first dimension is done here
    here = Signal()
    m.d.comb += here.eq(column & row)
    bits = []
    for output in outputs:
        if output == "core":
            bits.append(here & (leave == Exit.CORE) if exits else here)
            continue
        go = toward[output] if output in first else toward[output] & entered
        if source in second and output in first:
            go &= boundary
        if output in exits:
            go |= here & (leave == EXITS[output])
        bits.append(go)
    mask = Signal(len(outputs))
    m.d.comb += mask.eq(Cat(bits))
    return mask
