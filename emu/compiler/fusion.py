# SPDX-License-Identifier: Apache-2.0
"""Layers fused stripe by stripe (M. Alwani et al., "Fused-Layer CNN Accelerators", MICRO 2016).

A run of convolutions is computed some rows of its last output at a time, all of its layers for one
*stripe* before the next: what lies between them is never whole, so it needs little room and does
not leave the chip. Rows at a stripe's border that the next stripe needs as well are computed again,
and weights are fetched for each stripe; what the run reads and what it makes lie in HBM.

A stripe of a layer is a layer: it reads and makes tensors of fewer rows, of which those outside of
the run are parts of whole ones (`emu.compiler.views`). All else of the compiler knows no stripes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from emu.compiler.choices import in_hbm, plan_layers
from emu.compiler.geometry import geometry_of
from emu.compiler.layer_cost import hbm_words, modelled_cycles
from emu.compiler.mapping import part
from emu.compiler.residency import Choice
from emu.compiler.views import Part
from emu.config import Config
from emu.errors import UserError
from emu.network.layers import ConvLayer, Layer, Operand

MOST_LAYERS = 6
"""Layers of a run."""
STRIPES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
MOST_CYCLES = 1.25
"""Of the modelled cycles of the same layers one by one."""
STEP_CYCLES, STEP_WORDS = 400, 90
"""What a step costs beside its work: cycles from barrier to barrier, and words of commands in every
tile (82 to 96 in MobileNetV2)."""

Rows = tuple[int, int]


@dataclass
class Fusion:
    """Layers after fusion, and where tensors lie that are parts of others.

    shares: Of every layer in ``layers`` whose rows are not all of a layer's, the layer's name and
        the share of its rows that no stripe before has made.
    """

    layers: list[Layer]
    parts: dict[str, Part] = field(default_factory=dict)
    viewed: dict[str, Operand] = field(default_factory=dict)
    shares: dict[str, tuple[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """Layers ``first .. end - 1``; of every stripe the rows of each layer's output; words of HBM
    that are saved."""

    first: int
    end: int
    stripes: list[dict[str, Rows]]
    saved: float


@dataclass(frozen=True)
class _Apart:
    """A network whose layers run one by one; ``stored``: tensors that lie in HBM then, of which
    ``outputs`` do in any case."""

    config: Config
    layers: list[Layer]
    outputs: set[str]
    cap: int
    choices: dict[int, Choice]
    stored: set[str]

    def inner(self, first: int, end: int) -> set[str] | None:
        """Tensors that only layers ``first .. end - 1`` read and make; None if they are no run: all
        are convolutions of one image, and what they make stays among them, but for the last
        one's."""
        run = self.layers[first:end]
        for layer in run:
            if not isinstance(layer, ConvLayer) or layer.target.shape[0] > 1:
                return None
        inner = {layer.target.name for layer in run[:-1]}
        others = {source.name for layer in (*self.layers[:first], *self.layers[end:])
                  for source in layer.sources}
        read = {source.name for layer in run for source in layer.sources}
        return inner if inner <= read and not inner & (others | self.outputs) else None

    def cost(self, first: int, end: int) -> tuple[float, float]:
        """(HBM words, modelled cycles) of some layers, those of their steps included."""
        chosen = {k: self.choices[k] for k in range(first, end)}
        cycles = sum(modelled_cycles(self.config, choice) for choice in chosen.values())
        words, more = _of_steps(self.config, end - first)
        return _traffic(self.layers, chosen, self.stored) + words, cycles + more


def fuse(config: Config, layers: list[Layer], outputs: set[str], cap: int) -> Fusion:
    """Fuse the runs of ``layers`` that save most words of HBM in all and take at most
    ``MOST_CYCLES`` of their modelled cycles; ``outputs``: tensors that lie in HBM in any case.

    A run is judged by itself; what it changes for layers around it, whose edges have other room,
    shows in the end: if all together save nothing, none is fused.

    Raises
    ------
    UserError
        If a tensor of ``layers`` has the name of a stripe.
    """
    choices = plan_layers(config, layers, cap)
    apart = _Apart(config, layers, outputs, cap, choices, in_hbm(layers, choices, outputs))
    found = [
        run for first in range(len(layers))
        for end in range(first + 2, min(first + MOST_LAYERS, len(layers)) + 1)
        if (run := _best(apart, first, end))
    ]
    fused = Fusion([])
    done = 0
    for run in _chosen(found, len(layers)):
        fused.layers += layers[done:run.first]
        _put(fused, layers[run.first:run.end], run.stripes)
        done = run.end
    fused.layers += layers[done:]
    _check_names(layers, fused)
    after = plan_layers(config, fused.layers, cap) if done else choices
    still = in_hbm(fused.layers, after, outputs | set(fused.viewed))
    saves = _traffic(fused.layers, after, still) < _traffic(layers, choices, apart.stored)
    return fused if saves else Fusion(layers)


def _check_names(layers: Sequence[Layer], fused: Fusion) -> None:
    old = {end.name for layer in layers for end in (*layer.sources, layer.target)}
    kept = set(map(id, layers))
    stripes = {layer.target.name for layer in fused.layers if id(layer) not in kept}
    if taken := sorted(old & (stripes | set(fused.parts))):
        raise UserError(f"mapping.fused: a stripe would be called {taken[0]}, like a tensor of the "
                        "network: rename that")


def _traffic(layers: Sequence[Layer], choices: Mapping[int, Choice], stored: set[str]) -> int:
    return sum(hbm_words(choice, layers[k].target.name in stored) for k, choice in choices.items())


def _of_steps(config: Config, steps: int) -> tuple[int, int]:
    """(HBM words, cycles) of steps beside their work."""
    return STEP_WORDS * config.mesh.tiles * steps, STEP_CYCLES * steps


def _chosen(runs: Sequence[_Run], count: int) -> list[_Run]:
    """Those of ``runs`` that do not overlap and save most together, in order."""
    best: list[tuple[float, list[_Run]]] = [(0.0, [])]
    for end in range(1, count + 1):
        options = [best[end - 1]]
        options += [(best[run.first][0] + run.saved, [*best[run.first][1], run])
                    for run in runs if run.end == end]
        best.append(max(options, key=lambda option: option[0]))
    return best[-1][1]


def _best(apart: _Apart, first: int, end: int) -> _Run | None:
    """The number of stripes that saves most; None if nothing is saved or the run has no stripes."""
    run, inner = apart.layers[first:end], apart.inner(first, end)
    if inner is None or not inner & apart.stored:  # nothing between the layers goes through HBM
        return None
    words, cycles = apart.cost(first, end)
    ends = _ends(run)
    more = sum(_words(tensor) for name, tensor in ends.items() if name not in apart.stored)
    least, each = sum(map(_words, ends.values())), _least_words(apart, run)
    height = run[-1].target.shape[2]
    best: _Run | None = None
    for count in (count for count in STRIPES if count <= height):
        if least + count * each >= words:
            break
        stripes = [rows for k in range(count) if (rows := _rows(run, part(height, count, k)))]
        found = _cost(apart, run, stripes[count // 2]) if len(stripes) == count else None
        if found is None:
            continue
        saved = words - count * found[0] - more
        if saved > 0 and count * found[1] <= MOST_CYCLES * cycles:
            if best and saved <= best.saved:
                break
            best = _Run(first, end, stripes, saved)
    return best


def _cost(
    apart: _Apart, run: Sequence[Layer], rows: Mapping[str, Rows]
) -> tuple[float, float] | None:
    """(HBM words, modelled cycles) of a stripe and its steps; None if what lies between its layers
    does not stay on the chip."""
    stripe = Fusion([])
    _put_stripe(stripe, run, rows, 0)
    choices = plan_layers(apart.config, stripe.layers, apart.cap)
    stored = in_hbm(stripe.layers, choices, set(stripe.parts))
    if any(layer.target.name in stored for layer in stripe.layers[:-1]):
        return None
    words, cycles = _of_steps(apart.config, len(run))
    work = sum(modelled_cycles(apart.config, choice) for choice in choices.values())
    return words + _traffic(stripe.layers, choices, stored), cycles + work


def _least_words(apart: _Apart, run: Sequence[Layer]) -> int:
    """HBM words of every stripe beside what the run reads and makes: weights and steps."""
    shapes = [geometry_of(layer) for layer in run if isinstance(layer, ConvLayer)]
    weights = sum(shape.tile_words * sum(map(shape.passes, range(shape.out_groups)))
                  for shape in shapes)
    return weights + _of_steps(apart.config, len(run))[0]


def _ends(run: Sequence[Layer]) -> dict[str, Operand]:
    """What a run reads from outside and what it makes."""
    made = {layer.target.name for layer in run}
    ends = {source.name: source for layer in run for source in layer.sources
            if source.name not in made}
    return ends | {run[-1].target.name: run[-1].target}


def _words(tensor: Operand) -> int:
    n, channels, height, width = tensor.shape
    return n * -(-channels // 16) * height * width


def _window(layer: ConvLayer, rows: Rows) -> Rows:
    """Rows of a layer's input, padding included, that rows ``rows`` of its output need."""
    reach = (layer.weights.shape[2] - 1) * layer.dilations[0] + 1
    first, last = (row * layer.strides[0] - layer.pads[0] for row in (rows[0], rows[1] - 1))
    return first, last + reach


def _reads(layer: ConvLayer, rows: Rows) -> Iterator[tuple[Operand, Rows]]:
    """What rows ``rows`` of a layer's output need of each operand."""
    source, *added = layer.sources
    first, end = _window(layer, rows)
    yield source, (max(first, 0), min(end, source.shape[2]))
    for addend in added:
        yield addend, rows


def _rows(run: Sequence[Layer], last: Rows) -> dict[str, Rows] | None:
    """Rows of every layer's output that rows ``last`` of the run's output need, by tensor; None if
    two layers of the run need different ones, or one needs none but padding."""
    made = {layer.target.name for layer in run}
    rows = {run[-1].target.name: last}
    for layer in reversed(run):
        assert isinstance(layer, ConvLayer)
        for source, needed in _reads(layer, rows[layer.target.name]):
            same = source.name not in made or rows.setdefault(source.name, needed) == needed
            if not same or needed[0] >= needed[1]:
                return None
    return rows


def _put(fused: Fusion, run: Sequence[Layer], stripes: Sequence[Mapping[str, Rows]]) -> None:
    """Append all stripes of a run, whose ``rows`` are given."""
    done = dict.fromkeys((layer.target.name for layer in run), 0)
    for number, rows in enumerate(stripes):
        _put_stripe(fused, run, rows, number)
        for layer, stripe in zip(run, fused.layers[-len(run):], strict=True):
            name, height = layer.target.name, layer.target.shape[2]
            end = rows[name][1] if number < len(stripes) - 1 else height
            fused.shares[stripe.name] = layer.name, (end - done[name]) / height
            done[name] = end


def _put_stripe(
    fused: Fusion, run: Sequence[Layer], rows: Mapping[str, Rows], number: int
) -> None:
    """Append stripe ``number``."""

    def outside(whole: Operand, name: str, first: int, end: int) -> Operand:
        piece = _cut(whole, name, end - first)
        fused.parts[piece.name] = Part(whole.name, 0, first * whole.shape[3])
        fused.viewed |= {whole.name: whole, piece.name: piece}
        return piece

    for layer in run:
        assert isinstance(layer, ConvLayer)
        first, end = rows[layer.target.name]
        name = f"{layer.target.name}@{number}"
        sources = [  # an addend may be other rows of what the layer reads as its input
            _cut(source, f"{source.name}@{number}", high - low) if source.name in rows
            else outside(source, f"{source.name}@{name}@{place}", low, high)
            for place, (source, (low, high)) in enumerate(_reads(layer, (first, end)))
        ]
        is_last = layer is run[-1]
        target = (outside(layer.target, name, first, end) if is_last
                  else _cut(layer.target, name, end - first))
        fused.layers.append(_stripe(layer, sources, target, (first, end), number))


def _cut(whole: Operand, name: str, rows: int) -> Operand:
    n, channels, _, width = whole.shape
    return replace(whole, name=name, shape=(n, channels, rows, width))


def _stripe(
    layer: ConvLayer, sources: Sequence[Operand], target: Operand, rows: Rows, number: int
) -> ConvLayer:
    """``layer`` for ``rows`` of its output alone."""
    (first, end), (_, left, _, right) = _window(layer, rows), layer.pads
    residual, table_target, output = layer.residual, layer.table_target, layer.output_name
    if residual:
        residual = replace(residual, source=sources[1], target=_cut(
            residual.target, target.name, target.shape[2]))
    if table_target:
        table_target = target
    if not residual and not table_target:
        output = target.name
    return replace(
        layer, name=f"{layer.name}@{number}", input_name=sources[0].name,
        input_shape=sources[0].shape, output_name=output, output_shape=target.shape,
        pads=(max(-first, 0), left, max(end - layer.input_shape[2], 0), right), residual=residual,
        table_target=table_target,
    )


__all__ = ["Fusion", "fuse"]
