# SPDX-License-Identifier: Apache-2.0
"""Steps of experts for many tokens: which weights leave HBM, and how often.

Every tile has some of the output groups of all experts, as in `expert_step`. What it goes through
is a list (`prefetch.experts`): ``distinct``: the experts that occur, each once, found on the chip
(DISTINCT); what is left of the list's length is absent and costs nothing. ``all``: all experts. In
both an expert sees all tokens, and a store by list (PLACES) keeps the results of its own.
``cached``: as distinct, but in slots that keep their experts from step to step (RETAIN).
``per_token``: each token's own list; every weight comes as often as it is used.
``sorted``: tokens are permuted (SORT): blocks of rows of one expert each, as many as may be needed.
An expert sees its own tokens alone; its weights come once for each of its blocks.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.compiler.expert_cache import Cache
from emu.compiler.expert_step import MOST_WORDS, PARAMETER_WORDS, TABLE_WORDS, deal
from emu.compiler.images import LANES, Tensor
from emu.compiler.roofline import Roofline
from emu.compiler.stream import (
    Tile,
)
from emu.compiler.tile_expert_batch import BUFFERS, TileExpertBatch
from emu.compiler.vector_step import UnitStep
from emu.config import TILE_WORDS, Config
from emu.errors import UserError
from emu.network.layers import NUMBERS, ExpertLayer

if TYPE_CHECKING:
    from emu.compiler.emit import Emitter
    from emu.compiler.expert_ahead import Ahead

MOST_EXPERTS, MOST_PIXELS = 16, 256


@dataclass
class ExpertBatchStep(UnitStep):
    """A planned layer of experts: tile to its output groups.

    mode: `prefetch.experts`. base, weights: As in `ExpertStep`. shared: Inputs are loaded once for
        all tiles. chunk: Output groups at a time.
    """

    layer: ExpertLayer
    sources: tuple[Tensor, ...]
    target: Tensor
    work: dict[Tile, tuple[int, int]]
    base: int
    weights: dict[Tile, int]
    mode: str
    shared: bool
    cache: Cache | None = None
    chunk: int = 0
    block: int = 0
    """Rows of a block, if tokens are sorted."""
    ahead: "tuple[Ahead, ...]" = ()
    """What is fetched for it during earlier steps; the last is awaited."""

    @property
    def depth(self) -> int:
        return self.sources[0].groups

    @property
    def tokens(self) -> int:
        return self.target.pixels // self.layer.k

    @property
    def words(self) -> int:
        """Of the list that is gone through, each with ``each`` experts."""
        if self.mode == "per_token":
            return self.tokens
        experts = len(self.layer.weights)
        if self.cache is not None:
            return self.cache.slots
        if self.block:  # at worst each expert's last block has one row
            choices = self.target.pixels
            return (choices + min(experts, choices) * (self.block - 1)) // self.block
        return experts if self.mode == "all" else min(experts, self.target.pixels)

    @property
    def each(self) -> int:
        return self.layer.k if self.mode == "per_token" else 1

    @property
    def places(self) -> int:
        """Words of a list of places."""
        return 0 if self.mode == "per_token" else -(-self.unit_rows // NUMBERS)

    @property
    def unit_rows(self) -> int:
        """Rows that an entry of the list computes."""
        return self.block or self.sources[0].pixels

    @property
    def rows(self) -> int:
        """Of the inputs in a scratchpad."""
        return self.words * self.block or self.sources[0].pixels

    @property
    def table_words(self) -> int:
        return 0 if self.layer.table is None else TABLE_WORDS

    @property
    def unit(self) -> int:
        """Words of weights and parameters of a group of one expert."""
        return self.depth * TILE_WORDS + PARAMETER_WORDS

    def fixed(self, count: int) -> int:
        """Scratchpad words beside the weights of a tile with ``count`` groups."""
        kept = count * (self.target.pixels + 1)
        each = 1 + self.places * (2 if self.block else 1)
        lists = self.tokens + (self.words * each if self.places else 0)
        out = BUFFERS * count * self.unit_rows if self.places else 0
        return lists + self.table_words + self.depth * self.rows + out + kept

    def read_words(self) -> int:
        """At most: of the experts that occur."""
        total = self.depth * self.rows * (1 if self.shared else len(self.work))
        for first, end in self.work.values():
            total += self.tokens + self.table_words
            if self.cache is not None and self.cache.begins:
                total += self.cache.head
            total += self.words * self.each * (end - first) * self.unit
        return total + sum(each.read_words() for each in self.ahead)

    def describe(self) -> str:
        blocks = f" in {self.words} blocks of {self.block}" if self.block else ""
        return (f"experts, {self.layer.k} of {len(self.layer.weights)} for {self.tokens} tokens, "
                f"{self.mode}{blocks}, on {len(self.work)} tiles")

    def emit(self, emitter: "Emitter", index: int, tile: Tile) -> None:
        TileExpertBatch(emitter, index, self, tile).emit()

    def roofline(self, config: Config) -> Roofline:
        """Compulsory is one expert's weights: all tokens may choose the same; none where a cache
        may hold all that occur from an earlier step."""
        most = max(end - first for first, end in self.work.values())
        least = self.layer.k if self.places and self.mode != "all" else self.words * self.each
        held = self.cache is not None and not self.cache.begins
        loaded = 0 if held else least
        chosen = loaded * self.target.groups * self.unit
        reads = {tensor.name: tensor.words for tensor in self.sources[:1]}
        total = sum(reads.values()) + chosen + self.table_words + self.target.words
        return Roofline(
            name=self.layer.name, compute=least * most * self.depth * TILE_WORDS,
            hbm=total / config.hbm.channels,
            inbound=self.tokens + self.sources[0].words + loaded * most * self.unit, reads=reads,
            constant_words=self.table_words + (0 if held else self.target.groups * self.unit),
            write_words=self.target.words, macs=self.layer.macs,
        )


def plan_expert_batch(
    config: Config, layer: ExpertLayer, tensors: dict[str, Tensor], limit: int, base: int,
    weights: dict[Tile, int], cache: Cache | None = None,
) -> ExpertBatchStep:
    """Output groups dealt to the tiles, as many at a time as fit words 0 .. ``limit`` - 1.

    Raises
    ------
    UserError
        If one group does not fit twice, or there are more tokens or experts than lists can hold.
    """
    sources = tuple(tensors[s.name] for s in layer.sources)
    target = tensors[layer.target.name]
    work = deal(config, target.groups)
    step = ExpertBatchStep(
        layer=layer, sources=sources, target=target, base=base, weights=weights, work=work,
        mode=config.prefetch.experts, cache=cache,
        shared=config.mesh.multicast and len(work) == config.mesh.tiles,
    )
    if sources[0].pixels > MOST_PIXELS or len(layer.weights) > MOST_EXPERTS:
        raise UserError(f"layer {layer.name}: {sources[0].pixels} inputs of {len(layer.weights)} "
                        f"experts: up to {MOST_PIXELS} of up to {MOST_EXPERTS} are supported")
    own = sources[0].pixels != step.tokens
    if layer.k == 3 and own and step.places and step.mode != "sorted":
        raise UserError(f"layer {layer.name}: inputs of their own for 3 experts a token: 1, 2 or 4")
    most = max(end - first for first, end in step.work.values())
    if cache is not None:
        needed = min(len(layer.weights), target.pixels)
        if cache.slots < needed or step.fixed(most) > limit:
            raise UserError(f"layer {layer.name}: {needed} experts may occur at once, beside a "
                            f"cache of {cache.slots}: set prefetch.expert_slots")
        step.chunk = most
        return step
    if step.mode == "sorted":
        step.block = _block(step, limit - BUFFERS * step.unit, most)
    room = (limit - step.fixed(most)) // (BUFFERS * step.each * step.unit)
    step.chunk = min(room, MOST_WORDS // (step.each * step.unit), most)
    if step.chunk < 1:
        raise UserError(f"layer {layer.name}: the weights of 16 outputs of an expert do not fit "
                        f"the scratchpad of {config.scratchpad.free_words} words twice beside "
                        f"inputs and outputs of {step.tokens} tokens: raise scratchpad.kib")
    return step


def _block(step: ExpertBatchStep, room: int, most: int) -> int:
    """Rows of a block: an expert's mean, or fewer if that does not fit; a pass takes 16 at least.
    """
    mean = step.target.pixels / len(step.layer.weights)
    for step.block in range(max(LANES, -(-int(mean) // LANES) * LANES), LANES, -LANES):
        if step.fixed(most) <= room and step.depth * step.rows <= MOST_WORDS - TABLE_WORDS:
            return step.block
    return LANES


__all__ = ["ExpertBatchStep", "plan_expert_batch"]
