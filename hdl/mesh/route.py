# SPDX-License-Identifier: Apache-2.0
"""Where a flit goes next: dimension order, multicast rectangles, exits.

Paths exist as a table of connections (`connections`), which the hardware is built from and a test
proves free of cycles; `route` is the hardware that chooses among them.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import data

from hdl.packets import Exit

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


def compare(dest: data.View, x, y, exits: tuple[str, ...]) -> dict[str, Value]:
    """What a router needs to know of a flit's ``dest``: bits named by `compared`.

    ``x_below``: the rectangle has columns west of ``x``. ``x_above``: east of it. ``x_member``: it
    has column ``x``. The same for rows. ``exit_SIDE``: the flit leaves the mesh there.
    """
    rect, bits = dest["rect"], {}
    for axis, here in (("x", x), ("y", y)):
        low, high, stride = (rect[name] for name in (f"{axis}0", f"{axis}1", f"{axis}s"))
        # Strides are 1, 2, 4 or 8: the bits of the offset below the stride must be 0.
        skipped = (here - low) & Cat(stride != 0, stride[1], stride == 3)
        bits |= {
            f"{axis}_below": low < here, f"{axis}_above": high > here,
            f"{axis}_member": (low <= here) & (here <= high) & ~skipped.any(),
        }
    leave = dest["exit"].as_value()
    return bits | {f"exit_{side}": leave == EXITS[side] for side in exits}


def compared(exits: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the bits of `compare`."""
    axes = tuple(f"{axis}_{what}" for axis in "xy" for what in ("below", "above", "member"))
    return axes + tuple(f"exit_{side}" for side in exits)


def route(
    m: Module, order: str, bits: dict[str, Value], *,
    inputs: tuple[str, ...], feeds: dict[str, tuple[str, ...]], boundary: dict[str, Value],
) -> dict[str, Value]:
    """Output -> which inputs' head flits go there, a bit per input.

    Each copy of a multicast flit carries the whole rectangle. Which part of it is its own follows
    from where it comes from: a flit that moves east covers the columns that are still east of it.

    Parameters
    ----------
    bits: Of `compare`, each with a bit per input.
    feeds: As from `connections`.
    boundary: Edge input -> whether its neighbour is outside the mesh.
    """
    first, second = ORDERS[order]
    count = len(inputs)
    column, row = bits["x_member"], bits["y_member"]
    here, leaves = Signal(count, name="here"), Signal(count, name="leaves")
    exits = [bits[f"exit_{side}"] for side in SIDES if f"exit_{side}" in bits]
    m.d.comb += [here.eq(column & row), leaves.eq(reduce(or_, exits, Const(0, count)))]
    toward = {"west": bits["x_below"], "east": bits["x_above"],
              "north": bits["y_below"], "south": bits["y_above"]}
    entered = column if order == "x_first" else row  # the first dimension is done here

    def may_pass(source: str, output: str) -> Value:
        """Whether flits go on from ``source`` to ``output``, other than to leave the mesh."""
        if source in second and output in first:
            return boundary.get(source, Const(0))
        return Const(int(source in feeds[output]))

    rows = {}
    for output, sources in feeds.items():
        allowed = Const(sum(1 << inputs.index(source) for source in sources), count)
        if output == "core":
            rows[output] = here & ~leaves & allowed
            continue
        go = toward[output] if output in first else toward[output] & entered
        rows[output] = go & Cat(may_pass(source, output) for source in inputs)
        if f"exit_{output}" in bits:
            rows[output] |= here & bits[f"exit_{output}"] & allowed
    return rows
