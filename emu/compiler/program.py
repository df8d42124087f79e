# SPDX-License-Identifier: Apache-2.0
"""A compiled program and the compiler's top: network in, command streams and memory image out.

Binary form
-----------
A program is one image of global HBM, words of 16 bytes, and nothing else:

* word ``i`` (tile ``i = y * cols + x``) is the directory: bits 0-27 the first word of the tile's
  command stream, bits 32-63 its number of commands;
* then activations (`emu.compiler.images.Tensor`), per step the parameters (8 words per output
  group: int32 bias[16], float32 scale[16]) and weight blocks (16 tiles each; a block of every
  channel part side by side, in order of consumption);
* then the command streams (`emu.isa`, 128 bytes a command), each on a 16-word boundary.

`to_channels` splits it over the pseudo-channels as `emu.config.channel_of` does.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emu.compiler.attention_step import attention_constants, plan_attention
from emu.compiler.bag_step import constants as bag_constants
from emu.compiler.bag_step import place_tables, plan_bags
from emu.compiler.emit import Emitter
from emu.compiler.expert_ahead import plan_ahead, without_foresight
from emu.compiler.expert_batch import Cache, is_batch, plan_caches, plan_expert_batch
from emu.compiler.expert_owners import owners, slices
from emu.compiler.expert_step import expert_words, place_experts, plan_experts
from emu.compiler.fit import MAX_FRAMES
from emu.compiler.gather_step import plan_gather, table_words
from emu.compiler.geometry import Geometry, geometry_of
from emu.compiler.images import (
    Bytes,
    Memory,
    Tensor,
    from_channels,
    parameter_words,
    to_channels,
    weight_tiles,
)
from emu.compiler.mapping import single, tile_groups
from emu.compiler.paging import Paging, plan_paging
from emu.compiler.pinning import Pins, pin
from emu.compiler.pipeline import PipelineEmitter, plan_pipeline
from emu.compiler.placed_experts import plan_placed_experts
from emu.compiler.placement import homes, near_channels
from emu.compiler.plan_layer import plan_layer
from emu.compiler.residency import (
    Choice,
    Edge,
    Landing,
    Need,
    areas,
    input_landings,
    modelled_cycles,
    plan_resident,
    residual_landing,
)
from emu.compiler.roofline import Roofline, planned_read_words, step_roofline
from emu.compiler.schedule import schedule
from emu.compiler.space_to_depth import block_of, over_blocks
from emu.compiler.stream import Step, slot_of
from emu.compiler.tiling import Plan, Weights, input_cuts, plan_weights
from emu.compiler.vector_step import UnitStep, VectorLayer, constants_of, plan_vector
from emu.compiler.views import Part, root_of, take_views
from emu.config import (
    BLOCK_TILES,
    SEGMENT_WORDS,
    TILE_WORDS,
    WORD_BYTES,
    Config,
    direct_address,
    interleaved,
)
from emu.errors import UserError
from emu.isa import COMMAND_WORDS
from emu.network.layers import (
    AttentionLayer,
    BagsLayer,
    ConvLayer,
    ExpertLayer,
    GatherLayer,
    Layer,
    Network,
    Operand,
)
from emu.planner import Item, place

FRAME_CAPS = (MAX_FRAMES, 16, 8, 4, 2)
"""Most parameter frames, tried in turn until layers without weights fit beside them."""
HOMES = "homes"
"""In `Memory.shared`: the areas of tiles whose weights are theirs alone."""
TENSOR_ALIGN = 64
"""Words to whose multiple a tensor's address and size in HBM are rounded up."""


@dataclass(frozen=True)
class Program:
    """Everything that a run of a network on a machine needs.

    streams: per tile ``(x, y)`` its encoded commands.
    words: the global HBM image without inputs.
    tensors: where every layer tensor lies (`emu.network.layers` maps graph tensors to them);
        ``input_names`` must be given to `image`, ``output_names`` are what `outputs` returns.
    plans: how each step is split, in words.
    rooflines: bounds per step; ``cycle_limit`` is when a run is declared hung.
    step_reads: words that each step's commands read, repeats included, commands excluded.
    layer_names: Layers in order; lifetimes count them.
    memories: What was placed, in bytes: ``activations`` (every tensor of the network), ``hbm``
        (those that lie there) and ``scratchpad`` (a tile's areas beside its parameter frames).
    network: what was compiled, if it has graph tensors; else inputs and outputs go by layer tensor.
    dump_words: words per channel that hold everything `outputs` reads.
    constants: First word behind the activations: from there on HBM is only read.
    paging: Where constants lie in storage, with ``storage.enabled``.
    pinned_bytes: Of weights that are loaded once, at the start, for all steps that use them.
    """

    config: Config
    streams: dict[tuple[int, int], list[bytes]]
    words: Bytes
    tensors: dict[str, Tensor]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    rooflines: tuple[Roofline, ...]
    plans: tuple[str, ...]
    step_reads: tuple[int, ...]
    layer_names: tuple[str, ...] = ()
    memories: dict[str, tuple[Item, ...]] = field(default_factory=dict)
    network: Network | None = None
    pinned_bytes: int = 0
    constants: int = 0
    paging: Paging | None = None

    @property
    def constants_line(self) -> int:
        """First 64-byte line of every channel from which on it is only read."""
        row = self.config.hbm.channels * SEGMENT_WORDS
        return -(-self.constants // row) * SEGMENT_WORDS // 4

    @property
    def planned_read_bytes(self) -> int:
        """What the commands read, repeats included, commands excluded."""
        return WORD_BYTES * sum(self.step_reads)

    @property
    def compulsory_bytes(self) -> dict[str, int]:
        """Distinct HBM bytes that the layers refer to, commands excluded."""
        inputs: dict[str, int] = {}
        for bound in self.rooflines:
            for name, words in bound.reads.items():
                inputs[name] = max(inputs.get(name, 0), words)
        read = sum(inputs.values()) + sum(bound.constant_words for bound in self.rooflines)
        written = sum(bound.write_words for bound in self.rooflines)
        return {"hbm_read": WORD_BYTES * read, "hbm_write": WORD_BYTES * written}

    @property
    def roofline(self) -> dict[str, float]:
        """Least cycles by resource, over all steps."""
        return {
            "compute": sum(bound.compute for bound in self.rooflines),
            "hbm": sum(bound.hbm for bound in self.rooflines),
            "inbound": sum(bound.inbound for bound in self.rooflines),
        }

    @property
    def macs(self) -> int:
        """Multiply-accumulates by definition, padded channels excluded."""
        return sum(bound.macs for bound in self.rooflines)

    @property
    def command_bytes(self) -> int:
        return sum(len(command) for stream in self.streams.values() for command in stream)

    @property
    def roofline_cycles(self) -> float:
        return sum(r.cycles for r in self.rooflines)

    @property
    def cycle_limit(self) -> int:
        limit = int(20 * self.roofline_cycles) + 100_000
        if self.paging:
            storage = self.config.storage
            page = storage.latency + storage.shared_page_cycles(self.config.hbm.channels)
            words = self.config.hbm.channels * storage.page_words
            # Every channel fetches each page it is asked for, some more than once.
            limit += 4 * page * (self.paging.pages + sum(self.step_reads) // words)
        return limit

    @property
    def dump_words(self) -> int:
        line = self.config.hbm.channels * SEGMENT_WORDS
        return -(-len(self.words) // line) * SEGMENT_WORDS

    def global_image(self, inputs: Mapping[str, NDArray]) -> Bytes:
        """The global HBM image with ``inputs`` (by graph name; of bare layers by tensor) in place.

        Raises
        ------
        UserError
            If an input is missing, unknown or of the wrong shape.
        """
        expected = set(self.input_names)
        if self.network:
            expected = {tensor.name for tensor in self.network.inputs}
        unknown, missing = sorted(set(inputs) - expected), sorted(expected - set(inputs))
        if unknown or missing:
            raise UserError(
                f"inputs: {'missing ' + ', '.join(missing) if missing else ''}"
                f"{'; ' if missing and unknown else ''}"
                f"{'not an input: ' + ', '.join(unknown) if unknown else ''}"
            )
        if self.network:
            inputs = self.network.to_layers(inputs)
        words = self.words.copy()
        for name, values in inputs.items():
            tensor = self.tensors[name]
            words[tensor.addresses] = tensor.pack(values)
        return words

    def image(self, inputs: Mapping[str, NDArray]) -> list[Bytes]:
        """Per channel its image ``uint8[dump_words, 16]``."""
        return to_channels(self.config, self.global_image(inputs))

    def outputs(self, image: list[Bytes]) -> dict[str, NDArray]:
        """Outputs from (dumped) channel images: graph outputs; of bare layers output tensors."""
        short = min(len(channel) for channel in image)
        if short < self.dump_words:
            raise UserError(f"the dump has {short} words per channel, {self.dump_words} are needed")
        return self.graph_outputs(from_channels(self.config, image))

    def graph_outputs(self, words: Bytes) -> dict[str, NDArray]:
        """As `outputs`, from the global image."""
        found = self.read_tensors(words)
        return self.network.from_layers(found) if self.network else found

    def read_tensors(self, words: Bytes, every: bool = False) -> dict[str, NDArray]:
        """Output (or all) layer tensors from the global image."""
        names = self.tensors if every else self.output_names
        return {
            name: t.unpack(words[t.addresses])
            for name in names for t in [self.tensors[name]]
        }

    def write_images(self, image: list[Bytes], folder: Path) -> None:
        """``channel_N.bin`` as the DRAM array loads them: words most significant byte first.

        With ``storage.enabled`` the constants are in ``storage_N.bin`` and no longer there.
        """
        for channel, words in enumerate(image):
            if self.paging:
                first, last = 4 * self.paging.first, 4 * self.paging.last
                words[first:last, ::-1].tofile(folder / f"storage_{channel}.bin")
                words = words.copy()
                words[first:last] = 0
            np.ascontiguousarray(words[:, ::-1]).tofile(folder / f"channel_{channel}.bin")

    def read_dump(self, folder: Path) -> list[Bytes]:
        """Channel images as the DRAM array dumps them: words least significant byte first.

        Raises
        ------
        UserError
            If a channel's file is missing or cut short.
        """
        image = []
        for channel in range(self.config.hbm.channels):
            path = folder / f"channel_{channel}.bin"
            if not path.is_file():
                raise UserError(f"no dump of channel {channel}: {path} is missing")
            data = np.fromfile(path, np.uint8)
            if len(data) % WORD_BYTES:
                raise UserError(f"{path}: {len(data)} bytes are no whole number of words")
            image.append(data.reshape(-1, WORD_BYTES))
        return image


def compile_network(
    network: Network | Sequence[Layer], config: Config, *, check: bool = True
) -> Program:
    """Compile ``network``, or layers in order of execution, for ``config``.

    Parameters
    ----------
    check: Play the token game over the finished streams (`emu.interpreter.verify`).

    Raises
    ------
    UserError
        If a layer fits neither the scratchpads nor HBM, or a size exceeds its command field.
    """
    layers = list(network.layers if isinstance(network, Network) else network)
    if not layers:
        raise UserError("the network has no layers")
    macs = {layer.name: _macs(layer) for layer in layers if isinstance(layer, ConvLayer)}
    produced = {layer.target.name for layer in layers}
    wanted = produced - {source.name for layer in layers for source in layer.sources}
    if isinstance(network, Network):
        wanted = {tensor.layer_name for tensor in network.outputs}
    layers = without_foresight(config, layers, wanted)
    layers, parts, viewed = take_views(layers)
    pipelined = config.mapping.mode == "pipeline"
    blocks: Blocks = {}
    if not pipelined:
        layers, blocks = _fill_lanes(layers)
    if config.core.packed_weights:
        layers = [replace(each, packed=True) if isinstance(each, ConvLayer) and each.fits_nibbles
                  else each for each in layers]
    machine, (config, caches) = config, plan_caches(config, layers)
    pipeline = plan_pipeline(config, layers, wanted | set(viewed)) if pipelined else None
    layers = pipeline.layers if pipeline else layers
    for cap in FRAME_CAPS:
        choices = pipeline.choices if pipeline else _plan(config, layers, cap)
        memory = Memory(config)
        memory.allocate(config.mesh.tiles, "the directory")
        in_hbm = _in_hbm(layers, choices, wanted | set(viewed))
        tensors = _tensors(memory, layers, blocks, in_hbm, wanted, parts, viewed, pipelined)
        constants = memory.used
        if pipeline:
            memory.shared[HOMES] = homes(memory, pipeline.stored_words(), "weights")
        try:
            steps = _steps(memory, layers, choices, tensors, caches)
            break
        except UserError:  # a layer without weights wants what the frames take
            if not choices or pipeline or cap == FRAME_CAPS[-1]:
                raise
    convs = {k: step for k, step in enumerate(steps) if isinstance(step, Step)}
    if pipeline:
        pins = pipeline.pins(list(convs.values()))
        emitter: Emitter = PipelineEmitter(config, list(convs.values()), pins, pipeline)
    else:
        pins = pin(config, convs) if config.scratchpad.pinned_kib else Pins()
        emitter = Emitter(config, steps, pins, plan_ahead(config, steps))
    again = set(pins.bases) - pins.first
    streams = emitter.emit()
    paging = plan_paging(config, memory, constants) if config.storage.enabled else None
    _place_streams(memory, config, streams)
    if paging:
        paging = paging.beside(config, memory.used)
    rooflines = tuple(
        step.roofline(config) if isinstance(step, UnitStep)
        else step_roofline(config, step, macs[step.layer.name], k in again)
        for k, step in enumerate(steps)
    )
    step_reads = tuple(
        step.read_words() if isinstance(step, UnitStep)
        else planned_read_words(config, step, int(k not in again) if k in pins.bases else None)
        for k, step in enumerate(steps)
    )
    plans = tuple(
        step.describe() if isinstance(step, UnitStep) else step.plan.describe() for step in steps
    )
    if pipeline:
        rooflines, step_reads = pipeline.rooflines(config, rooflines), pipeline.by_step(step_reads)
        plans = (pipeline.describe(),) * len(rooflines)
    program = Program(
        config=machine, streams=streams, words=memory.build(), tensors=tensors,
        input_names=tuple(t for t in tensors if t not in produced),
        output_names=tuple(t for t in tensors if t in wanted),
        rooflines=rooflines, plans=plans, step_reads=step_reads,
        pinned_bytes=WORD_BYTES * pins.initial_words, constants=constants, paging=paging,
        layer_names=tuple(layer.name for layer in layers),
        memories=_memories(layers, choices, tensors, blocks, wanted, parts, viewed,
                           pipeline.memory if pipeline else None),
        network=network if isinstance(network, Network) else None,
    )
    if check:
        from emu.interpreter import verify  # the interpreter reads programs: imported late

        verify(program)
    return program


def _macs(layer: ConvLayer) -> int:
    outputs, group_inputs, kh, kw = layer.weights.shape
    batch, _, height, width = layer.output_shape
    return batch * height * width * outputs * group_inputs * kh * kw


def _plan(config: Config, layers: list[Layer], cap: int) -> dict[int, Choice]:
    """The plans of every layer with weights; all share one area of at most ``cap`` frames."""
    shapes = {k: geometry_of(each) for k, each in enumerate(layers) if isinstance(each, ConvLayer)}
    if config.mapping.mode == "activation_streaming":
        shapes = _in_groups(config, layers, shapes)
    apart = _plan_apart(config, shapes, cap)
    if not config.scratchpad.resident:
        return apart
    cycles = {k: modelled_cycles(config, each) for k, each in apart.items()}
    return plan_resident(config, _needs(layers, shapes), cap, cycles) or apart


def _in_groups(
    config: Config, layers: list[Layer], shapes: Mapping[int, Geometry]
) -> dict[int, Geometry]:
    """Shapes with an area each: as many groups of tiles as the mesh has equal ones for, each for
    as many neighbouring layers. Layers with the same weights share a group."""
    weights = {k: id(layer.weights) for k in shapes if isinstance(layer := layers[k], ConvLayer)}
    order = {which: i for i, which in enumerate(dict.fromkeys(weights.values()))}
    groups = tile_groups(config, len(order))
    return {
        k: replace(shape, area=groups[order[weights[k]] * len(groups) // len(order)])
        for k, shape in shapes.items()
    }


def _plan_apart(config: Config, shapes: Mapping[int, Geometry], cap: int) -> dict[int, Choice]:
    """Plans with every activation in HBM."""
    first = {k: plan_layer(config, shape, None) for k, shape in shapes.items()}
    frames = min((plan.frames for plans in first.values() for plan in plans), default=0)
    frames = min(frames, cap)
    if any(plan.frames != frames for plans in first.values() for plan in plans):
        first = {k: plan_layer(config, shape, frames) for k, shape in shapes.items()}
    return {k: Choice(plans) for k, plans in first.items()}


def _needs(layers: list[Layer], shapes: Mapping[int, Geometry]) -> list[Need]:
    """Which layers with weights read what others of them produce, no vector layer in between."""
    producer: dict[str, int] = {}
    needs = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, ConvLayer):
            producer.clear()  # its slots may lie anywhere
            continue
        added = layer.residual.source.name if layer.residual else ""
        needs.append(Need(index, shapes[index], producer.get(layer.input_name),
                          producer.get(added)))
        producer[layer.target.name] = index
    return needs


def _in_hbm(layers: list[Layer], choices: Mapping[int, Choice], outputs: set[str]) -> set[str]:
    """Tensors that lie in HBM: inputs, outputs, and what some layer reads from there."""
    found = outputs | {each.name for layer in layers for each in layer.sources}
    for layer in layers:
        found.discard(layer.target.name)
    for index, layer in enumerate(layers):
        choice = choices.get(index)
        for position, source in enumerate(layer.sources):
            edge = (choice.residual if position else choice.source) if choice else None
            if edge is None:
                found.add(source.name)
    return found | outputs


def _steps(
    memory: Memory, layers: list[Layer], choices: Mapping[int, Choice], tensors: dict[str, Tensor],
    caches: dict[int, Cache],
) -> list[Step | UnitStep]:
    """Every layer's steps in order, with weights, parameters and tables laid out."""
    config = memory.config
    steps: list[Step | UnitStep] = []
    by_layer: dict[int, list[Step]] = {}
    limit = min((plan.frames_base for each in choices.values() for plan in each.plans),
                default=config.scratchpad.free_words)
    for index, layer in enumerate(layers):
        memory.begin_layer()
        if isinstance(layer, ConvLayer):
            choice = choices[index]
            by_layer[index] = [
                _place(memory, layer, plan, tensors, choice) for plan in choice.plans
            ]
            steps += by_layer[index]
        elif isinstance(layer, VectorLayer):
            base = _constants(memory, layer, constants_of(layer))
            steps.append(plan_vector(config, layer, tensors, limit, base))
        elif isinstance(layer, AttentionLayer):
            base = _constants(memory, layer, attention_constants(layer))
            steps.append(plan_attention(config, layer, tensors, limit, base))
        elif isinstance(layer, GatherLayer):
            base = _constants(memory, layer, table_words(layer))
            steps.append(plan_gather(config, layer, tensors, limit, base))
        elif isinstance(layer, BagsLayer):
            base = _constants(memory, layer, bag_constants(layer))
            tables = place_tables(memory, layer)
            steps.append(plan_bags(config, layer, tensors, limit, base, tables))
        elif isinstance(layer, ExpertLayer):
            steps.append(_experts(memory, layer, tensors, limit, caches))
        else:
            raise UserError(f"layer {layer.name}: the compiler has no {type(layer).__name__} yet")
    for index, choice in choices.items():
        for step in by_layer[index]:
            step.landings = [(edge, _landings(by_layer[edge.reader][0], edge))
                             for edge in choice.filled]
    return steps


def _experts(
    memory: Memory, layer: ExpertLayer, tensors: dict[str, Tensor], limit: int,
    caches: dict[int, Cache],
) -> UnitStep:
    """A step of experts; layers with the very same arrays share them."""
    key = ("experts", id(layer.weights), id(layer.bias), id(layer.scale), id(layer.table))
    placed = memory.config.mapping.experts == "placed"
    work = owners(memory.config, layer) if placed else None
    base, weights = memory.once(key, lambda: (
        _constants(memory, layer, expert_words(layer)),
        place_experts(memory, layer, slices(work) if work else None)))
    if work:
        return plan_placed_experts(memory.config, layer, tensors, limit, base, weights, work)
    if not is_batch(layer):
        return plan_experts(memory.config, layer, tensors, limit, base, weights)
    cache = caches.get(id(layer.weights))
    if cache is not None and ("cache", id(layer.weights)) not in memory.shared:
        empty = _constants(memory, layer, cache.contents())
        memory.shared["cache", id(layer.weights)] = empty
        cache = replace(cache, empty=empty, begins=True)
    return plan_expert_batch(memory.config, layer, tensors, limit, base, weights, cache)


def _constants(memory: Memory, layer: Layer, words: Bytes) -> int:
    """First HBM word of a layer's tables, laid out; 0 if there are none."""
    if not len(words):
        return 0
    base = memory.allocate(len(words), f"the tables of {layer.name}",
                           scattered=isinstance(layer, GatherLayer))
    memory.put(base, words)
    return base


def _landings(reader: Step, edge: Edge) -> list[Landing]:
    """Where every word of ``edge`` goes in the tiles of the step that reads it."""
    plan = reader.plan
    if edge.is_residual:
        return [residual_landing(plan, p, c) for p, c in reader.work]
    if plan.share_inputs:
        items = [(plan.split.activation_rect(p), reader.work[p, reader.leader_of_inputs(p)])
                 for p in range(plan.split.pixel_parts)]
    else:
        items = [(single(*plan.split.tile(p, c)), work) for (p, c), work in reader.work.items()]
    return [
        replace(landing, offset=landing.offset + slot * plan.slot_words,
                piece=landing.piece + slot * edge.pieces)
        for rect, work in items for item in work.items for slot in [slot_of(reader, item.number)]
        for landing in input_landings(plan.shape, rect, item)
    ]


Blocks = dict[str, tuple[tuple[int, int], tuple[int, int]]]
"""Tensor to (block, image size) of those that are packed in blocks."""


def _fill_lanes(layers: list[Layer]) -> tuple[list[Layer], Blocks]:
    """Layers that alone read an input of few channels, over blocks of pixels."""
    produced = {layer.target.name for layer in layers}
    readers = Counter(source.name for layer in layers for source in layer.sources)
    found: list[Layer] = []
    blocks: Blocks = {}
    for layer in layers:
        if isinstance(layer, ConvLayer):
            name, block = layer.input_name, block_of(layer)
            if block != (1, 1) and name not in produced and readers[name] == 1:
                blocks[name] = block, layer.input_shape[2:]
                layer = over_blocks(layer, block)
        found.append(layer)
    return found, blocks


def _tensors(
    memory: Memory, layers: list[Layer], blocks: Blocks, in_hbm: set[str], outputs: set[str],
    parts: dict[str, Part], viewed: dict[str, Operand], apart: bool,
) -> dict[str, Tensor]:
    """The tensors that lie in HBM; those that never live at one time may share addresses, unless
    they are to lie ``apart`` because steps overlap."""
    tensors = _all_tensors(layers, blocks, viewed)
    items = [item for item in lifetimes(layers, tensors, outputs, parts) if item.name in in_hbm]
    if apart:
        items = [replace(item, first=0, last=len(layers)) for item in items]
    placement = place(items)
    area = memory.allocate(placement.high_water, "activations", TENSOR_ALIGN)
    placed = {
        item.name: replace(tensors[item.name], base=area + offset)
        for item, offset in zip(items, placement.offsets, strict=True)
    }
    for name in parts:
        root = root_of(name, parts)
        whole = placed[root.whole]
        base = whole.base + root.group * whole.plane + root.pixel
        placed[name] = replace(tensors[name], base=base, pitch=whole.plane)
    _check_whole(layers, placed)
    return placed


def _all_tensors(
    layers: list[Layer], blocks: Blocks, viewed: dict[str, Operand]
) -> dict[str, Tensor]:
    """Every tensor of ``layers``, and of concatenations and slices, without an address."""
    tensors: dict[str, Tensor] = {}
    ends = [(layer.name, end) for layer in layers for end in (*layer.sources, layer.target)]
    for name, end in [*ends, *viewed.items()]:
        known = tensors.get(end.name)
        if known is None:
            block = blocks.get(end.name, ((1, 1), (0, 0)))
            tensors[end.name] = Tensor(end.name, end.shape, 0, end.is_signed, end.zero, *block)
        elif known.shape != tuple(end.shape) or known.is_signed != end.is_signed:
            raise UserError(
                f"layer {name}: tensor {end.name} is {known.shape}, {end.shape} expected"
            )
    return tensors


def _memories(
    layers, choices, tensors, blocks, outputs, parts, viewed, scratchpad: Sequence[Item] | None
) -> dict[str, tuple[Item, ...]]:
    """What was placed where, in bytes, see `Program.memories`; ``scratchpad``: if it is known."""
    activations = lifetimes(layers, _all_tensors(layers, blocks, viewed), outputs, parts)
    edges = [edge for choice in choices.values() for edge in (choice.source, choice.residual)
             if edge]
    if scratchpad is None:
        scratchpad = [replace(item, name=f"{item.name} {layers[index].name}")
                      for item, index in (areas(choices, edges) if edges else [])]
    found = {"activations": activations, "hbm": [i for i in activations if i.name in tensors],
             "scratchpad": scratchpad}
    return {name: tuple(replace(item, size=WORD_BYTES * item.size) for item in items)
            for name, items in found.items()}


def _check_whole(layers: list[Layer], tensors: Mapping[str, Tensor]) -> None:
    """Convolutions read whole tensors only."""
    for layer in layers:
        if isinstance(layer, ConvLayer) and layer.input_name in tensors:
            tensor = tensors[layer.input_name]
            if tensor.plane != tensor.pixels and tensor.groups > 1:
                raise UserError(f"layer {layer.name}: it reads {tensor.name}, a part of another "
                                "tensor: not supported")


def lifetimes(
    layers: Sequence[Layer], tensors: Mapping[str, Tensor], outputs: set[str],
    parts: Mapping[str, Part] | None = None,
) -> list[Item]:
    """Every tensor from the layer that makes it to the last that reads it; inputs are there from
    the start, outputs to the end. A tensor with ``parts`` lives as long as any of them, and stands
    for them. Sizes in words."""
    parts = parts or {}
    first = {layer.target.name: index for index, layer in enumerate(layers)}
    last = {source.name: index for index, layer in enumerate(layers) for source in layer.sources}
    made = {part.whole for part in parts.values()} - set(parts)
    begin: dict[str, int] = {}
    end: dict[str, int] = {}
    for name in tensors:
        root = root_of(name, dict(parts)).whole if parts else name
        born = first.get(name, 0)
        died = len(layers) if name in outputs else max(last.get(name, 0), born)
        if not (name == root and root in made and name not in first):  # only its parts are written
            begin[root] = min(begin.get(root, born), born)
        end[root] = max(end.get(root, died), died)
    return [
        Item(
            name, -(-tensor.words // TENSOR_ALIGN) * TENSOR_ALIGN, begin.get(name, 0), end[name],
        )
        for name, tensor in tensors.items() if name not in parts
    ]


def _place(
    memory: Memory, layer: ConvLayer, plan: Plan, tensors: dict[str, Tensor], choice: Choice
) -> Step:
    """Lay out parameters and weight blocks of one step and schedule its tiles."""
    cuts = () if choice.source else input_cuts(plan)
    active = [
        c for c in range(plan.split.channel_parts)
        if plan.channel_range(c)[0] < plan.channel_range(c)[1]
    ]
    weights = {c: plan_weights(plan, c, cuts) for c in active}
    params, bases, stride = _laid_out(memory, layer, plan, weights, cuts)
    work = {
        (p, c): schedule(plan, weights[c], p, c, cuts)
        for p in range(plan.split.pixel_parts) for c in active
    }
    return Step(
        layer=layer, plan=plan, target=tensors.get(layer.target.name), weights=weights, work=work,
        source=None if choice.source else tensors[layer.input_name],
        weight_base=bases, block_stride=stride, params=params,
        residual=tensors[layer.residual.source.name] if layer.residual and not choice.residual
        else None,
        source_edge=choice.source, residual_edge=choice.residual, flow=choice.flow,
    )


def _laid_out(
    memory: Memory, layer: ConvLayer, plan: Plan, weights: Mapping[int, Weights],
    cuts: tuple[int, ...],
) -> tuple[dict[int, int], dict[int, int], int]:
    """Parameters and weight blocks: (first word of each part's, of its blocks, block stride).

    Layers with the very same arrays, as the steps of a decoder have, share them.
    """
    residual = layer.residual and layer.residual.table
    arrays = (layer.weights, layer.bias, layer.scale, residual, layer.table)
    key = (*map(id, arrays), plan.split, plan.groups, plan.mode, plan.batch, plan.parts, cuts,
           plan.share_weights, plan.chunk_pixels, plan.tail)
    return memory.once(key, lambda: _lay_out(memory, layer, plan, weights))


def _lay_out(
    memory: Memory, layer: ConvLayer, plan: Plan, weights: Mapping[int, Weights]
) -> tuple[dict[int, int], dict[int, int], int]:
    """As `_laid_out`, of what no layer before has."""
    params: dict[int, int] = {}
    tables: list[Bytes] = []
    if layer.residual:
        table = np.asarray(layer.residual.table, np.float32)
        tables.append(table.view(np.uint8).reshape(-1, WORD_BYTES))
    if layer.table is not None:
        tables.append(np.asarray(layer.table, np.uint8).reshape(-1, WORD_BYTES))
    for c in weights:
        groups = range(*plan.channel_range(c))
        words = np.concatenate([parameter_words(layer, plan.shape, groups), *tables])
        params[c] = memory.allocate(len(words), f"parameters of {layer.name}")
        memory.put(params[c], words)
    bases, stride = _weight_area(memory, layer, plan, weights)
    for c in weights:
        _put_weights(memory, layer, plan, weights[c], c, bases[c], stride)
    return params, bases, stride


def _weight_area(
    memory: Memory, layer: ConvLayer, plan: Plan, weights: Mapping[int, Weights]
) -> tuple[dict[int, int], int]:
    """(first word of each part's first block, words from block to block).

    Parts lie side by side, block by block, so that what is read at one time is close together: in
    the interleaved space, or, where each part is read by one tile only, in the channels near to
    those tiles.
    """
    config, slot = memory.config, BLOCK_TILES * plan.shape.tile_words
    blocks = max(w.blocks for w in weights.values())
    if areas_of_tiles := memory.shared.get(HOMES):
        return {c: areas_of_tiles.take(plan.split.tile(0, c), blocks * slot) for c in weights}, slot
    near = None
    if plan.split.pixel_parts == 1:
        near = near_channels(
            config, {c: plan.split.tile(0, c) for c in weights},
            {c: w.blocks for c, w in weights.items()},
        )
    if near is None:
        what = f"weights of {layer.name}"
        area = memory.allocate(blocks * len(weights) * slot, what, BLOCK_TILES * TILE_WORDS)
        return {c: area + rank * slot for rank, c in enumerate(weights)}, len(weights) * slot
    members = {k: [c for c in weights if near[c] == k] for k in range(config.hbm.channels)}
    striped = 1 < max(len(parts) for parts in members.values()) <= 1 << config.stripe_bits
    sets = 1 << config.stripe_bits if striped else max(len(parts) for parts in members.values())
    line = config.hbm.channels * SEGMENT_WORDS * (sets if striped else 1)
    words = -(-blocks * sets * slot * config.hbm.channels // line) * line
    first = memory.allocate(words, f"weights of {layer.name}", line) // config.hbm.channels
    if striped:
        return {
            c: direct_address(config, channel, first // sets, rank)
            for channel, parts in members.items() for rank, c in enumerate(parts)
        }, slot
    return {
        c: direct_address(config, channel, first + rank * slot)
        for channel, parts in members.items() for rank, c in enumerate(parts)
    }, sets * slot


def _put_weights(
    memory: Memory, layer: ConvLayer, plan: Plan, weights: Weights, c: int, base: int, stride: int
) -> None:
    """Write the tiles of channel part ``c``, segment by segment, into its blocks."""
    groups = range(*plan.channel_range(c))
    tiles = dict(zip(groups, weight_tiles(layer, plan.shape, groups), strict=True))
    size = plan.shape.tile_words
    for batch in weights.segments:
        for segment in batch:
            parts = []
            for g in range(*segment.groups):
                low = plan.shape.needs[g][0]
                a, b = segment.inputs
                if segment.groups[1] - segment.groups[0] > 1:  # whole windows, maybe advancing
                    a, b = low, low + plan.shape.needs[g][1]
                parts.append(tiles[g][(a - low) * plan.shape.taps : (b - low) * plan.shape.taps])
            data = np.concatenate(parts).reshape(-1, WORD_BYTES)
            first = weights.descriptors[segment.descriptor][0] * BLOCK_TILES + segment.first_tile
            number = first + np.arange(len(data) // size)
            address = base + number // BLOCK_TILES * stride + number % BLOCK_TILES * size
            words = (address[:, None] + np.arange(size)).reshape(-1)
            memory.put(interleaved(memory.config, words), data)


def _place_streams(memory: Memory, config: Config, streams) -> None:
    directory = np.zeros((config.mesh.tiles, 2), np.uint64)
    for (x, y), commands in streams.items():
        base = memory.allocate(len(commands) * COMMAND_WORDS, "the command streams")
        memory.put(base, np.frombuffer(b"".join(commands), np.uint8).reshape(-1, WORD_BYTES))
        directory[y * config.mesh.cols + x, 0] = base | len(commands) << 32
    memory.put(0, directory.view(np.uint8).reshape(-1, WORD_BYTES))
