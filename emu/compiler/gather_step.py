# SPDX-License-Identifier: Apache-2.0
"""Steps that gather rows of a table in HBM by numbers, as an embedding does.

The tokens are dealt to the tiles. A tile loads its numbers, then the rows that they name (one
command: its outermost loop goes by the list), and stores them channel group by channel group.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emu.compiler.images import LANES, Bytes, Tensor
from emu.compiler.mapping import encode_rect, part, single
from emu.compiler.roofline import Roofline
from emu.compiler.stream import IN_FREE, OUT_READY, Stream, Tile
from emu.compiler.vector_step import UnitStep
from emu.config import Config
from emu.errors import UserError
from emu.isa import Opcode, Queue
from emu.network.layers import GatherLayer

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter

LIST, ROOM = IN_FREE, IN_FREE + 1
"""Semaphores of the load queue: words of the list that arrived; rows stored."""
NUMBERS = 4
"""Of a word."""


def table_words(layer: GatherLayer) -> Bytes:
    """The table, row by row; channels padded with the output's zero point."""
    rows, channels = layer.table.shape
    groups = -(-channels // LANES)
    full = np.full((rows, groups * LANES), layer.target.zero & 0xFF, np.uint8)
    full[:, :channels] = layer.table.view(np.uint8)
    return full.reshape(-1, LANES)


@dataclass
class GatherStep(UnitStep):
    """A planned gather: tile to its ranges of words of the list."""

    layer: GatherLayer
    source: Tensor
    target: Tensor
    work: dict[Tile, list[tuple[int, int]]]
    table: int
    list_words: int           # of the largest range

    @property
    def groups(self) -> int:
        return self.target.groups

    def tokens(self, words: tuple[int, int]) -> tuple[int, int]:
        count = self.layer.target.shape[3]
        return NUMBERS * words[0], min(NUMBERS * words[1], count)

    def describe(self) -> str:
        return f"gather, {self.layer.target.shape[3]} rows on {len(self.work)} tiles"

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        stream: Stream = emitter.streams[tile]
        here, groups = single(*tile), self.groups
        rect, rows = encode_rect(here), self.list_words
        for number, words in enumerate(self.work[tile]):
            first, end = self.tokens(words)
            count, last = end - first, number == len(self.work[tile]) - 1
            stream.add(
                Opcode.LOAD, [(ROOM, 1)] if number else [], (), Queue.LOAD, rect=rect, sem_valid=1,
                sem=LIST, scratchpad=0, far=self.source.base + words[0], run=words[1] - words[0],
                count0=1, count1=1, count2=1,
            )
            stream.add(
                Opcode.LOAD, [(LIST, words[1] - words[0])], (), Queue.LOAD, rect=rect, sem_valid=1,
                sem=OUT_READY, scratchpad=rows, far=self.table, run=groups, count0=1, count1=1,
                count2=count, s_stride2=groups, f_stride2=groups, gather=1, gather_base=0,
            )
            signals = [] if last else [(ROOM, here)]
            if last:
                signals += emitter.barrier_signal(index)
            stream.add(
                Opcode.STORE, [(OUT_READY, count * groups)], signals, Queue.STORE, scratchpad=rows,
                far=self.target.base + first, run=1, count0=count, count1=groups, count2=1,
                s_stride0=groups, f_stride0=1, s_stride1=1, f_stride1=self.target.plane,
            )

    def roofline(self, config: Config) -> Roofline:
        count = self.layer.target.shape[3]
        read = self.source.words + count * self.groups
        inbound = max(
            sum(w[1] - w[0] + self.groups * (self.tokens(w)[1] - self.tokens(w)[0]) for w in units)
            for units in self.work.values()
        )
        return Roofline(
            name=self.layer.name, compute=0, hbm=(read + self.target.words) / config.hbm.channels,
            inbound=inbound, reads={self.source.name: self.source.words},
            constant_words=self.groups,  # all numbers may name one row
            write_words=self.target.words, macs=0,
        )

    def read_words(self) -> int:
        return self.source.words + self.layer.target.shape[3] * self.groups


def plan_gather(
    config: Config, layer: GatherLayer, tensors: dict[str, Tensor], limit: int, table: int
) -> GatherStep:
    """Tokens dealt to the tiles, in as many ranges as fit scratchpad words 0 .. ``limit`` - 1.

    Raises
    ------
    UserError
        If four rows do not fit.
    """
    target, words = tensors[layer.target.name], layer.source.shape[3]
    most = min((limit // (1 + NUMBERS * target.groups)), 0x7FFF // (NUMBERS * target.groups))
    if most < 1:
        raise UserError(f"layer {layer.name}: four rows of {target.shape[1]} channels do not fit "
                        "the scratchpad: raise scratchpad.kib")
    tiles = config.mesh.tiles
    parts = min(words, max(tiles, -(-words // most)))
    parts = -(-parts // tiles) * tiles if parts > tiles else parts
    ranges = [part(words, parts, k) for k in range(parts)]
    ranges = [each for each in ranges if each[0] < each[1]]
    every = [(x, y) for y in range(config.mesh.rows) for x in range(config.mesh.cols)]
    return GatherStep(
        layer=layer, source=tensors[layer.source.name], target=target, table=table,
        work={tile: ranges[k::tiles] for k, tile in enumerate(every) if ranges[k::tiles]},
        list_words=max(end - first for first, end in ranges),
    )


__all__ = ["GatherStep", "plan_gather", "table_words"]
