# SPDX-License-Identifier: Apache-2.0
"""The compiler's top: network in, command streams and memory image out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from emu.compiler.activations import Blocks, fill_lanes, memories_of, place_tensors
from emu.compiler.attention_step import attention_constants, plan_attention
from emu.compiler.bag_step import constants as bag_constants
from emu.compiler.bag_step import place_tables, plan_bags
from emu.compiler.choices import in_hbm, plan_layers
from emu.compiler.emit import Emitter
from emu.compiler.expert_ahead import plan_ahead, without_foresight
from emu.compiler.expert_batch import plan_expert_batch
from emu.compiler.expert_cache import Cache, is_batch, plan_caches
from emu.compiler.expert_owners import owners, slices
from emu.compiler.expert_step import expert_words, place_experts, plan_experts
from emu.compiler.fit import MAX_FRAMES
from emu.compiler.fusion import fuse
from emu.compiler.gather_step import plan_gather, table_words
from emu.compiler.images import Bytes, Memory, Tensor
from emu.compiler.mapping import single
from emu.compiler.paging import plan_paging
from emu.compiler.pinning import Pins, pin
from emu.compiler.pipeline import Pipeline, PipelineEmitter, plan_pipeline
from emu.compiler.placed_experts import plan_placed_experts
from emu.compiler.placement import homes
from emu.compiler.program import Program
from emu.compiler.residency import (
    Choice,
    Edge,
    Landing,
    input_landings,
    residual_landing,
)
from emu.compiler.roofline import Roofline, planned_read_words, step_roofline
from emu.compiler.stream import Step, slot_of
from emu.compiler.vector_step import UnitStep, VectorLayer, constants_of, plan_vector
from emu.compiler.views import take_views
from emu.compiler.weight_layout import HOMES, place_streams, place_weights
from emu.config import WORD_BYTES, Config
from emu.errors import UserError
from emu.network.layers import (
    AttentionLayer,
    BagsLayer,
    ConvLayer,
    ExpertLayer,
    GatherLayer,
    Layer,
    Network,
)

FRAME_CAPS = (MAX_FRAMES, 16, 8, 4, 2)
"""Most parameter frames, tried in turn until layers without weights fit beside them."""


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
        layers, blocks = fill_lanes(layers)
    if config.core.packed_weights:
        layers = [replace(each, packed=True) if isinstance(each, ConvLayer) and each.fits_nibbles
                  else each for each in layers]
    if config.mapping.fused:
        fused = fuse(config, layers, wanted | set(viewed), FRAME_CAPS[0])
        layers, parts, viewed = fused.layers, parts | fused.parts, viewed | fused.viewed
        produced |= {layer.target.name for layer in layers} | set(fused.parts)
        macs |= {name: round(share * macs[whole]) for name, (whole, share) in fused.shares.items()}
    machine, (config, caches) = config, plan_caches(config, layers)
    pipeline = plan_pipeline(config, layers, wanted | set(viewed)) if pipelined else None
    layers = pipeline.layers if pipeline else layers
    for cap in FRAME_CAPS:
        choices = pipeline.choices if pipeline else plan_layers(config, layers, cap)
        memory = Memory(config)
        memory.allocate(config.mesh.tiles, "the directory")
        stored = in_hbm(layers, choices, wanted | set(viewed))
        tensors = place_tensors(memory, layers, blocks, stored, wanted, parts, viewed, pipelined)
        constants = memory.used
        if pipeline:
            memory.shared[HOMES] = homes(memory, pipeline.stored_words(), "weights")
        try:
            steps = _steps(memory, layers, choices, tensors, caches)
            break
        except UserError:  # a layer without weights wants what the frames take
            if not choices or pipeline or cap == FRAME_CAPS[-1]:
                raise
    emitter, pins = _emitter(config, steps, pipeline)
    streams = emitter.emit()
    paging = plan_paging(config, memory, constants) if config.storage.enabled else None
    place_streams(memory, config, streams)
    if paging:
        paging = paging.beside(config, memory.used)
    rooflines, step_reads, plans = _described(config, steps, macs, pins)
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
        memories=memories_of(layers, choices, tensors, blocks, wanted, parts, viewed,
                           pipeline.memory if pipeline else None),
        network=network if isinstance(network, Network) else None,
    )
    if check:
        from emu.interpreter import verify  # the interpreter reads programs: imported late

        verify(program)
    return program


def _emitter(
    config: Config, steps: Sequence[Step | UnitStep], pipeline: Pipeline | None
) -> tuple[Emitter, Pins]:
    """What writes the command streams, and the weights that stay."""
    convs = {k: step for k, step in enumerate(steps) if isinstance(step, Step)}
    if pipeline:
        stages = list(convs.values())
        pins = pipeline.pins(stages)
        return PipelineEmitter(config, stages, pins, pipeline), pins
    pins = pin(config, convs) if config.scratchpad.pinned_kib else Pins()
    return Emitter(config, steps, pins, plan_ahead(config, steps)), pins


def _described(
    config: Config, steps: Sequence[Step | UnitStep], macs: Mapping[str, int], pins: Pins
) -> tuple[tuple[Roofline, ...], tuple[int, ...], tuple[str, ...]]:
    """Of every step its bounds, the words that its commands read, and how it is split."""
    again = set(pins.bases) - pins.first
    rooflines, reads, plans = [], [], []
    for k, step in enumerate(steps):
        if isinstance(step, UnitStep):
            rooflines.append(step.roofline(config))
            reads.append(step.read_words())
            plans.append(step.describe())
        else:
            once = int(k not in again) if k in pins.bases else None
            rooflines.append(step_roofline(config, step, macs[step.layer.name], k in again))
            reads.append(planned_read_words(config, step, once))
            plans.append(step.plan.describe())
    return tuple(rooflines), tuple(reads), tuple(plans)


def _macs(layer: ConvLayer) -> int:
    outputs, group_inputs, kh, kw = layer.weights.shape
    batch, _, height, width = layer.output_shape
    return batch * height * width * outputs * group_inputs * kh * kw


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
                place_weights(memory, layer, plan, tensors, choice) for plan in choice.plans
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
    if cache is not None:
        own, contents = ("cache", id(layer.weights)), cache.contents()
        begins = own not in memory.shared
        empty = memory.once(own, lambda: _constants(memory, layer, contents))
        cache = replace(cache, empty=empty, begins=begins)
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


__all__ = ["compile_network"]
