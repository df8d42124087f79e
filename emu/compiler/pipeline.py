# SPDX-License-Identifier: Apache-2.0
"""A chain of layers as a pipeline over groups of tiles (``mapping.mode = pipeline``).

Each stage (`emu.compiler.stages`) alone holds its layers' weights and parameters, loaded once.
Steps that repeat the chain on other inputs, cut into bands of pixels, pass through the stages one
behind another: while a stage works on an item, the one before it works on the next. Nothing but the
items holds them together, no barrier: every layer has two input slots; the tiles that fill a slot
await that all readers have released it, the readers that its words have arrived.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from emu.compiler.emit import Emitter
from emu.compiler.fit import counts
from emu.compiler.geometry import Geometry, geometry_of
from emu.compiler.mapping import part
from emu.compiler.pinning import Load, Pins, tile_loads
from emu.compiler.residency import Choice, Edge
from emu.compiler.roofline import Roofline
from emu.compiler.schedule import Op, schedule
from emu.compiler.stages import (
    Dealt,
    Stage,
    activation_words,
    deal,
    parameter_words,
    stage_plan,
    weight_words,
)
from emu.compiler.stream import OUT_READY, PIPELINE_SLOTS, Flow, Signal, Step, Tile, Wait
from emu.compiler.tile_step import TileStep
from emu.compiler.tiling import Plan, plan_weights
from emu.config import BLOCK_TILES, SEMAPHORES, WORD_BYTES, Config
from emu.errors import UserError
from emu.isa import Opcode, Queue
from emu.network.layers import ConvLayer, Layer
from emu.planner import Item

MODE = "mapping.mode=pipeline"
SHARED = (OUT_READY,)
"""Semaphores that all layers of a tile have in common."""
PARTS = 4
"""Parts of a layer's weights that are awaited one by one, if a tile has semaphores for them."""


@dataclass(frozen=True)
class Pipeline:
    """The plan of a pipeline.

    layers: The network's, step after step. length: Layers of a step.
    choices: Of every layer, by its number. weights: First word of each layer's, by its place in
        the chain. loaded: Likewise the semaphores of their parts.
    memory: Areas of the fullest stage's tiles, in words.
    """

    layers: list[Layer]
    length: int
    stages: tuple[Stage, ...]
    bands: int
    choices: dict[int, Choice]
    weights: dict[int, int]
    loaded: dict[int, range]
    memory: tuple[Item, ...]

    def describe(self) -> str:
        """As in ``4 stages on 4 + 4 + 4 + 4 tiles, 2 bands``."""
        tiles = " + ".join(str(stage.area[2] * stage.area[3]) for stage in self.stages)
        return (f"{len(self.stages)} stage{'s' * (len(self.stages) > 1)} on {tiles} tiles, "
                f"{self.bands} band{'s' * (self.bands > 1)}")

    def stored_words(self) -> dict[Tile, int]:
        """Of whole blocks of weights that every tile has in HBM."""
        found: Counter[Tile] = Counter()
        for k in range(self.length):
            plan = self.choices[k].plans[0]
            parts = range(plan.split.channel_parts)
            blocks = max(plan_weights(plan, c, ()).blocks for c in parts)
            for c in parts:
                found[plan.split.tile(0, c)] += blocks * BLOCK_TILES * plan.shape.tile_words
        return dict(found)

    def pins(self, steps: Sequence[Step]) -> Pins:
        """Weights and parameters of all ``steps``: nothing else is loaded more than once."""
        found = Pins(first=set(range(self.length)), parameters=True)
        found.bases = {index: self.weights[index % self.length] for index in range(len(steps))}
        for index, step in enumerate(steps[: self.length]):
            for c in step.weights:
                self._pin(found, index, step, c)
        return found

    def _pin(self, pins: Pins, index: int, step: Step, c: int) -> None:
        """The loads of one tile for one layer: parameters, then weights as they are wanted."""
        tile, sems = step.plan.split.tile(0, c), self.loaded[index]
        first, last = step.plan.channel_range(c)
        words = 8 * (last - first) + step.plan.shape.table_words
        loads = [Load(step.plan.params, step.params[c], words, 1, 0, sems[0])]
        batches = [batch[0] for batch in step.weights[c].segments]
        count = min(len(batches), len(sems))
        for k, sem in zip(range(count), sems, strict=False):
            a, b = part(len(batches), count, k)
            start, end = batches[a].first_tile, batches[b - 1].first_tile + batches[b - 1].tiles
            loads += tile_loads(step, c, self.weights[index], start, end, sem)
            words = sum(load.words for load in loads if load.sem == sem)
            pins.parts[tile, index, start] = sem, words
        pins.loads.setdefault(tile, []).extend(loads)

    def rooflines(self, config: Config, bounds: Sequence[Roofline]) -> tuple[Roofline, ...]:
        """Those of every step from its layers': nothing goes faster than the slowest stage."""
        found = []
        for step in range(len(self.layers) // self.length):
            own = bounds[step * self.length : (step + 1) * self.length]
            stages = [own[stage.first : stage.end] for stage in self.stages]
            reads = {name: words for bound in own for name, words in bound.reads.items()}
            constants = sum(bound.constant_words for bound in own)
            written = sum(bound.write_words for bound in own)
            found.append(Roofline(
                name=f"step {step}", reads=reads, constant_words=constants, write_words=written,
                compute=max(sum(bound.compute for bound in stage) for stage in stages),
                inbound=max(sum(bound.inbound for bound in stage) for stage in stages),
                hbm=(sum(reads.values()) + constants + written) / config.hbm.channels,
                macs=sum(bound.macs for bound in own),
            ))
        return tuple(found)

    def by_step(self, words: Sequence[int]) -> tuple[int, ...]:
        """Sums over the layers of every step."""
        return tuple(sum(words[k : k + self.length]) for k in range(0, len(words), self.length))


class PipelineEmitter(Emitter):
    """Streams without barriers. Layers that share tiles take turns, each an item behind the one
    before it, so that what one has made has time to arrive while the others work. Tile (0, 0), of
    the first stage, marks where its steps begin."""

    def __init__(self, config: Config, steps: Sequence[Step], pins: Pins, pipeline: Pipeline):
        super().__init__(config, steps, pins)
        self._pipeline = pipeline
        self._awaited = dict(pins.parts)
        self._work: dict[int, list[TileStep]] = {}

    def await_pinned(self, tile: Tile, index: int, op: Op) -> list[Wait]:
        """Once what the op's weights are a part of, in the first step."""
        wait = self._awaited.pop((tile, index, op.segment.first_tile), None)
        return [wait] if wait else []

    def begin(self, tile: Tile) -> None:
        """Nothing is fetched by blocks: there are no frames."""

    def barrier_signal(self, index: int) -> list[Signal]:
        return []

    def load_pinned(self) -> None:
        """Behind the first item's inputs; behind the second's, too, if they are soon there: else
        the weights are wanted before."""
        length, words = self._pipeline.length, self.convs[0].plan.slot_words
        soon = self._pipeline.bands == 1 and words <= self.config.prefetch.outstanding
        for index in (0, length) if soon and length < len(self.steps) else (0,):
            for one in self._at(index):
                one.load_first()
        super().load_pinned()

    def _at(self, index: int) -> list[TileStep]:
        """All tiles' parts of step ``index``."""
        if index not in self._work:
            self._work[index] = [TileStep(self, index, self.convs[index], tile, p, c)
                                 for tile, (p, c) in sorted(self.roles[index].items())]
        return self._work[index]

    def emit_steps(self) -> None:
        length, bands = self._pipeline.length, self._pipeline.bands
        behind = {k: k - stage.first for stage in self._pipeline.stages
                  for k in range(stage.first, stage.end)}
        items = len(self.steps) // length * bands
        for turn in range(items + max(behind.values())):
            for k in range(length):
                step, item = divmod(turn - behind[k], bands)
                if not 0 <= turn - behind[k] < items:
                    continue
                if item == 0 and step and not k:
                    self.streams[0, 0].add(Opcode.SYNC, queue=Queue.COMPUTE, mark=1)
                for one in self._at(step * length + k):
                    one.emit_item(item)


def plan_pipeline(config: Config, layers: Sequence[Layer], outputs: set[str]) -> Pipeline:
    """Stages, addresses and semaphores.

    Parameters
    ----------
    outputs: Tensors that are read from outside.

    Raises
    ------
    UserError
        If the layers are no chain, repeated or not, or do not fit the scratchpads.
    """
    steps = _steps(layers, outputs)
    shapes = [geometry_of(layer) for layer in steps[0]]
    bands, dealt = _fastest(config, shapes, len(steps))
    places = _places(config, shapes, dealt.stages, bands)
    try:
        numbers, loaded = _semaphores(places, dealt.stages)
    except UserError:
        places = [replace(place, parts=1) for place in places]
        numbers, loaded = _semaphores(places, dealt.stages)
    choices: dict[int, Choice] = {}
    for step in range(len(steps)):
        for k, place in enumerate(places):
            flow = replace(numbers[k], step=step, steps=len(steps), bands=bands)
            index = step * len(shapes) + k
            edge = _edge(place.plan, flow, index) if k else None
            choices[index] = Choice([place.plan], source=edge, flow=flow)
            if edge:
                choices[index - 1].filled = [edge]
    return Pipeline(
        layers=[layer for step in steps for layer in step], length=len(shapes),
        stages=dealt.stages, bands=bands, choices=choices,
        weights={k: place.weights for k, place in enumerate(places)}, loaded=loaded,
        memory=_memory(dealt.stages, places, len(choices)),
    )


def _steps(layers: Sequence[Layer], outputs: set[str]) -> list[list[ConvLayer]]:
    """The chains that ``layers`` are, all alike."""
    readers = Counter(source.name for layer in layers for source in layer.sources)
    produced = {layer.target.name for layer in layers}
    open_ends: dict[str, list[ConvLayer]] = {}
    found: list[list[ConvLayer]] = []
    for layer in layers:
        if not isinstance(layer, ConvLayer):
            raise UserError(f"{MODE}: layer {layer.name} has no weights: a pipeline is a chain of "
                            "products and convolutions")
        if layer.residual:
            raise UserError(f"{MODE}: layer {layer.name} adds {layer.residual.source.name}: a "
                            "pipeline is a chain of layers of one input")
        name = layer.input_name
        if name in produced and (readers[name] > 1 or name in outputs):
            raise UserError(f"{MODE}: tensor {name} has more readers than layer {layer.name}: a "
                            "pipeline is a chain of layers")
        if name in produced:
            chain = open_ends.pop(name)
        else:
            found.append(chain := [])
        chain.append(layer)
        open_ends[layer.target.name] = chain
    for chain in found[1:]:
        for one, other in zip(found[0], chain, strict=False):
            if _key(one) != _key(other):
                raise UserError(f"{MODE}: layer {other.name} has other weights or another shape "
                                f"than {one.name}: steps must repeat one chain of layers")
        if len(chain) != len(found[0]):
            raise UserError(f"{MODE}: the chain that begins with layer {chain[0].name} has "
                            f"{len(chain)} layers, that with {found[0][0].name} "
                            f"{len(found[0])}: steps must repeat one chain of layers")
    return found


def _key(layer: ConvLayer) -> tuple:
    """What layers have in common that can take turns on the same tiles."""
    arrays = layer.weights, layer.bias, layer.scale, layer.table
    return (*map(id, arrays), replace(geometry_of(layer), name=""))


def _fastest(config: Config, shapes: Sequence[Geometry], steps: int) -> tuple[int, Dealt]:
    """The number of bands and the stages with which all steps take least by the model."""
    best: tuple[float, int, Dealt] | None = None
    for bands in _band_counts(config, shapes):
        dealt = deal(config, shapes, bands, steps)
        if dealt and (best is None or dealt.cycles(steps * bands) < best[0]):
            best = dealt.cycles(steps * bands), bands, dealt
    if best is None:
        words = sum(shape.tile_words * sum(map(shape.passes, range(shape.out_groups)))
                    for shape in shapes)
        have = config.mesh.tiles * config.scratchpad.kib
        raise UserError(
            f"{MODE}: {len(shapes)} layers with {words * WORD_BYTES / 1024:,.0f} KiB of weights "
            f"and two inputs each do not fit the {have:,} KiB of {config.mesh.tiles} scratchpads "
            "in groups of tiles: raise scratchpad.kib or take another mapping.mode"
        )
    return best[1], best[2]


def _band_counts(config: Config, shapes: Sequence[Geometry]) -> Iterable[int]:
    """Numbers of bands to try: passes of less than 16 pixels take as long as those of 16."""
    wanted, pixels = config.mapping.bands, shapes[0].pixels
    pointwise = all(shape.kernel == (1, 1) and shape.stride == (1, 1) and shape.height == 1
                    and shape.pixels == shape.in_plane == pixels for shape in shapes)
    most = pixels if pointwise else 1
    if wanted > most:
        why = "" if pointwise else ": its layers need neighbouring pixels"
        raise UserError(f"mapping.bands: at most {most} for this network, not {wanted}{why}")
    return [wanted] if wanted else counts(max(1, most // 16))


@dataclass(frozen=True)
class _Place:
    """A layer of the chain in its stage's scratchpads; ``stage`` is its number.

    pieces: Of an item. parts: Of the weights, awaited one by one.
    """

    stage: int
    plan: Plan
    weights: int
    pieces: int
    parts: int


def _places(
    config: Config, shapes: Sequence[Geometry], stages: Sequence[Stage], bands: int
) -> list[_Place]:
    found = []
    for number, stage in enumerate(stages):
        used = 0
        for k in range(stage.first, stage.end):
            plan = stage_plan(config, shapes[k], stage.area, bands)
            params = used + activation_words(plan)
            weights = params + parameter_words(plan)
            parts = [plan_weights(plan, c, ()) for c in range(plan.split.channel_parts)]
            pieces = max(len(item.pieces) for c, own in enumerate(parts)
                         for item in schedule(plan, own, 0, c, ()).items)
            batches = max(len(own.segments) for own in parts)
            plan = replace(plan, inputs=used, outputs=used + plan.outputs, params=params)
            found.append(_Place(number, plan, weights, pieces, min(PARTS, batches)))
            used = weights + weight_words(plan)
    return found


def _semaphores(
    places: Sequence[_Place], stages: Sequence[Stage]
) -> tuple[list[Flow], dict[int, range]]:
    """Of every layer of the chain: numbers are those of the tiles that await them; and those of
    its weights' parts."""
    free = dict.fromkeys(range(len(stages)), 0)

    def take(stage: int, count: int) -> int:
        start = free[stage]
        while used := [number for number in SHARED if start <= number < start + count]:
            start = used[-1] + 1
        free[stage] = start + count
        if free[stage] > SEMAPHORES:
            first, end = stages[stage].first, stages[stage].end
            raise UserError(f"{MODE}: the {end - first} layers of stage {stage} need more than the "
                            f"{SEMAPHORES} semaphores of a tile: use more tiles")
        return start

    found: list[Flow] = []
    loaded: dict[int, range] = {}
    for k, place in enumerate(places):
        start = take(place.stage, place.parts)
        loaded[k] = range(start, start + place.parts)
        filler = places[k - 1] if k else None
        in_free = take(filler.stage if filler else place.stage, PIPELINE_SLOTS)
        found.append(Flow(
            arrivals=take(place.stage, PIPELINE_SLOTS * place.pieces), pieces=place.pieces,
            in_free=in_free, out_free=take(place.stage, 1),
            releases=filler.plan.split.activation_rect(0) if filler else None,
        ))
        if k:
            readers = place.plan.split.channel_parts
            found[k - 1] = replace(found[k - 1], room=in_free, readers=readers)
    return found, loaded


def _edge(plan: Plan, flow: Flow, reader: int) -> Edge:
    return Edge(reader - 1, reader, False, plan.plane, PIPELINE_SLOTS * plan.slot_words,
                flow.pieces, base=plan.inputs, sem=flow.arrivals)


def _memory(stages: Sequence[Stage], places: Sequence[_Place], layers: int) -> tuple[Item, ...]:
    """Areas of the stage that has most of them."""
    found: dict[int, list[Item]] = {number: [] for number in range(len(stages))}
    for place in places:
        name, plan = place.plan.shape.name, place.plan
        for what, words in (
            ("inputs of", PIPELINE_SLOTS * plan.slot_words),
            ("outputs of", plan.out_slots * plan.out_slot_words),
            ("parameters of", parameter_words(plan)), ("weights of", weight_words(plan)),
        ):
            found[place.stage].append(Item(f"{what} {name}", words, 0, layers - 1))
    return tuple(max(found.values(), key=lambda items: sum(item.size for item in items)))

