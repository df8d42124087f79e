# SPDX-License-Identifier: Apache-2.0
"""``make bench-mesh``: the mesh beside BookSim 2, fairness, ten million flits, multicast."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from emu.errors import UserError
from sim.errors import RunError
from sim.noc.reference import BOOKSIM
from sim.noc.run import mesh

SOAK_CYCLES, SOAK_FLITS = 1_100_000, 10_000_000
FAIR = 0.8
CYCLES_A_HOP = 2


@dataclass(frozen=True)
class Row:
    """One figure: ``reached`` if ``value`` is at least (or at most) ``bound``."""

    what: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def measure() -> Iterator[Row]:
    """Every figure in turn. Loads are compared at BookSim's two decimals."""
    for traffic, rows in BOOKSIM.items():
        for row in rows:
            if row.channels > 1:
                continue
            found = mesh(traffic, settings=[f"mesh.buffer_depth={row.depth}"])
            name = f"{traffic}, depth {row.depth}"
            yield Row(f"{name}: cycles a hop at zero load",
                      found["zero_load_latency"] / found["mean_hops"], CYCLES_A_HOP, at_most=True)
            yield Row(f"{name}: saturation", round(found["saturation"], 2), row.saturation)
            yield Row(f"{name}: accepted at full load", round(found["accepted_at_full_load"], 3),
                      row.accepted)
    yield _fairness(mesh("uniform"), "uniform 4x4")
    yield _fairness(mesh("uniform", size="8x8"), "uniform 8x8")
    for node in ("0,0", "2,0", "1,2"):
        yield _fairness(mesh(f"hotspot:{node}"), f"hotspot {node}")
    soak = mesh("uniform", multicast=0.1, soak=SOAK_CYCLES)
    yield Row("flits of a soak with multicast, each delivered once and in order",
              soak["delivered"], SOAK_FLITS)
    tree, single = mesh("broadcast:0,0"), mesh("scatter:0,0")
    yield Row("links crossed by a word to 16 nodes, one multicast",
              16 * tree["link_flits_per_delivery"], 15, at_most=True)
    yield Row("bytes on links that 16 unicasts move for one that a multicast moves",
              single["link_flits_per_delivery"] / tree["link_flits_per_delivery"], 1)


def _fairness(found: dict[str, Any], name: str) -> Row:
    return Row(f"{name}: node that gets least, of the mean, at full load",
               found["worst_node_accepted"] / found["accepted_at_full_load"], FAIR)


def main() -> int:
    """Print the table; returns 1 if a figure is not reached."""
    rows = list(measure())
    table = Table("figure", "measured", "wanted", "", title="the mesh, X first")
    for row in rows:
        sign = "at most" if row.at_most else "at least"
        bound = f"{sign} {row.bound:,.3f}".removesuffix(".000")
        table.add_row(row.what, f"{row.value:,.3f}".removesuffix(".000"), bound,
                      "" if row.reached else "NOT reached")
    table.columns[1].justify = table.columns[2].justify = "right"
    Console(width=110).print(table)
    return int(not all(row.reached for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
