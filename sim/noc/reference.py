# SPDX-License-Identifier: Apache-2.0
"""What BookSim 2 reaches on a 4x4 mesh: XY order, packets of one flit, input-queued routers.

Its shortest pipeline takes 3 cycles a router. Latency is from creation to ejection, saturation the
highest offered load (flits a node and cycle) with a mean latency below three times that at zero
load, accepted what a node gets on average when all offer 1.0. Uniform traffic includes the source.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """One row: virtual channels, flits buffered in each, and what was reached."""

    channels: int
    depth: int
    zero_load_latency: float
    saturation: float
    accepted: float

    @property
    def name(self) -> str:
        return f"BookSim 2, {self.channels} VC x {self.depth}"


SIZE = (4, 4)
BOOKSIM = {
    "uniform": (Figures(1, 4, 12.6, 0.50, 0.507), Figures(1, 8, 12.6, 0.66, 0.676),
                Figures(2, 8, 12.6, 0.75, 0.763)),
    "transpose": (Figures(1, 4, 12.5, 0.26, 0.500), Figures(1, 8, 12.5, 0.33, 0.625)),
    "exchange": (Figures(1, 4, 8.0, 0.79, 0.80), Figures(1, 8, 8.0, 1.00, 1.00)),
}
