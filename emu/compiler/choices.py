# SPDX-License-Identifier: Apache-2.0
"""How every layer with weights of a network is run: its split, and where its operands lie."""

from collections.abc import Mapping
from dataclasses import replace

from emu.compiler.geometry import Geometry, geometry_of
from emu.compiler.layer_cost import modelled_cycles
from emu.compiler.mapping import tile_groups
from emu.compiler.plan_layer import plan_layer
from emu.compiler.residency import Choice, Need, plan_resident
from emu.compiler.stream import EDGES, EDGES_BESIDE_EXPERTS
from emu.config import Config
from emu.network.layers import ConvLayer, ExpertLayer, Layer


def plan_layers(config: Config, layers: list[Layer], cap: int) -> dict[int, Choice]:
    """The plans of every layer with weights; all share one area of at most ``cap`` frames."""
    shapes = {k: geometry_of(each) for k, each in enumerate(layers) if isinstance(each, ConvLayer)}
    if config.mapping.mode == "activation_streaming":
        shapes = _in_groups(config, layers, shapes)
    apart = _plan_apart(config, shapes, cap)
    if not config.scratchpad.resident:
        return apart
    cycles = {k: modelled_cycles(config, each) for k, each in apart.items()}
    experts = any(isinstance(each, ExpertLayer) for each in layers)
    semaphores = EDGES_BESIDE_EXPERTS if experts else EDGES
    return plan_resident(config, _needs(layers, shapes), cap, cycles, semaphores) or apart


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


def in_hbm(layers: list[Layer], choices: Mapping[int, Choice], outputs: set[str]) -> set[str]:
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


__all__ = ["in_hbm", "plan_layers"]
