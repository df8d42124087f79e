# SPDX-License-Identifier: Apache-2.0
"""The study of weights of 4 bytes, a byte and half a byte."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network import precision, trained
from emu.network.exact import exact
from emu.network.layers import Network
from emu.network.transformers import decoder
from emu.network.workloads import load_network
from sim.experiments.framework import Case, Experiment, compared, kept

BUDGETS = {"digits": 0.0, "minilm": 0.02}
"""Error that a mixed plan may have on the selection half: of held-out digits wrong more than in
int8, of minilm's cosines the mean absolute difference from the float model."""


SOME_BLOCKS = "GPT-2 small, 3 of its 12 blocks, one token"
"""With 4 bytes a weight all of them exceed HBM."""


@cache
def _network(workload: str) -> Network:
    if workload == SOME_BLOCKS:
        return decoder(SOME_BLOCKS, 13, layers=3, width=768, heads=12, cached=128, steps=1)
    return load_network(workload)


@cache
def _digits() -> Callable[[Sequence[str], slice], float]:
    """Held-out images wrong with some layers in 4 bits, as a fraction."""
    network = _network("digits")
    inputs = trained.samples("digits", network)
    assert inputs is not None
    with np.load(trained.DATA / "digits.npz") as archive:
        labels = archive["label"]

    def error(names: Sequence[str], part: slice) -> float:
        variant = precision.with_nibbles(network, names) if names else network
        found = exact(variant, inputs)["logits"].argmax(1)
        return float(np.mean(found[part] != labels[part]))

    return error


@cache
def _minilm() -> Callable[[Sequence[str], slice], float]:
    """Mean absolute difference of cosines from the float model's."""
    from emu.minilm.model import load_minilm
    from emu.minilm.network import PAIRS, build, calibrate, cosines

    model = load_minilm()
    scales = calibrate(model)

    @cache
    def task(first: int, end: int | None) -> tuple[Network, Network, NDArray[np.float64]]:
        """The network, the same with all layers in 4 bits, the float model's cosines."""
        texts = [text for pair in PAIRS[first:end] for text in pair]
        network = build(model, scales, [model.tokenizer(text) for text in texts])
        narrow = precision.with_nibbles(network, list(precision.weighted(network)))
        return network, narrow, cosines(np.array([model.embed(text) for text in texts]))

    def error(names: Sequence[str], part: slice) -> float:
        network, narrow, theirs = task(part.start, part.stop)
        layers = tuple(one if one.name in names else layer for layer, one in
                       zip(network.layers, narrow.layers, strict=True))
        network = replace(network, layers=layers)
        out = exact(network, network.given or {})["mean"]
        ours = cosines(scales["mean"].real(out[0, :, 0].T))
        return float(np.abs(ours - theirs).mean())

    return error


_TASKS = {"digits": (_digits, slice(0, 180), slice(180, None)),
          "minilm": (_minilm, slice(0, 10), slice(10, None))}
"""Error, the half that plans are made on, the half that is reported."""


def _mixed(workload: str) -> list[str]:
    """The mixed plan of a trained workload, kept."""
    make, chosen, _ = _TASKS[workload]

    def search() -> list[str]:
        error = make()
        allowed = BUDGETS[workload] + (error([], chosen) if workload == "digits" else 0)
        return precision.plan(precision.weighted(_network(workload)),
                              lambda names: error(names, chosen), allowed)

    sources = (Path(precision.__file__), Path(__file__))
    return kept(f"plan {workload}", sources, search)


def _all(workload: str) -> list[str]:
    return list(precision.weighted(_network(workload)))


def _task(workload: str, names: Callable[[], list[str]], what: str):
    def measure() -> dict[str, Any]:
        make, _, reported = _TASKS[workload]
        return {"error": what, "value": make()(names(), reported), "layers_in_4_bits": names()}
    return measure


_ERRORS = {"digits": "held-out images wrong (those that no plan was made on)",
           "minilm": "mean absolute difference of cosines from the float model (pairs that no plan "
           "was made on; integers as on the RTL)"}


def _group(workload: str, chip: str, copies: Sequence[int], mixed: bool) -> list[Case]:
    def case(name: str, names: Callable[[], list[str]] | None, copies: int = 1) -> Case:
        def network() -> Network:
            found = _network(workload)
            if names is not None:
                found = precision.with_nibbles(found, names())
            return precision.with_copies(found, copies) if copies > 1 else found

        task = None
        if workload in _TASKS and copies == 1:
            task = _task(workload, names or list, _ERRORS[workload])
        return Case(name, workload, workload, chip, network=network, task=task,
                    is_baseline=name == "int8")

    cases = [case("int8", None)]
    cases += [case(f"{n} bytes a weight, movement only", None, n) for n in copies]
    if mixed:
        cases.append(case("int4 and int8 by error budget", lambda: _mixed(workload)))
    return [*cases, case("int4", lambda: _all(workload))]


def _cases(quick: bool) -> list[Case]:
    if quick:
        # Without int4 alone in digits: three such runs took 22 of a quick set's 83 seconds of rows.
        return [*_group("digits", "small", (), True)[:2],
                *_group("tiny.decode", "small", (4,), False),
                *_group("tiny.conv3x3", "small", (), False)]
    cases = [*_group(SOME_BLOCKS, "base", (2, 4), False),
             *_group("digits", "base", (4,), True)]
    try:
        _network("minilm")
    except UserError:
        pass  # an extra that is not installed: the study says what it has
    else:
        cases += _group("minilm", "base", (), True)
    return [*cases, *_group("resnet50.res4_3x3", "base", (), False)]


def _hbm(row: Mapping[str, Any]) -> float:
    return row["traffic_bytes"]["hbm_read"] + row["traffic_bytes"]["hbm_write"]


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cycles = {(g, c): r for g, c, r in compared(rows, lambda row: row["cycles"])}
    found = [f"{group}: {case}: {ratio:.3f} of int8's HBM bytes, {cycles[group, case]:.3f} of its "
             "cycles" for group, case, ratio in compared(rows, _hbm)]
    for row in rows:
        if "task" in row:
            task = row["task"]
            found.append(f"{row['group']}, {row['case']}: {task['error']}: {task['value']:.4f}; "
                         f"{len(task['layers_in_4_bits'])} layers in 4 bits")
    return found


PRECISION = Experiment(
    name="precision",
    idea="weights of fewer bits: what memory moves shrinks, and with it the time of what memory "
    "bounds",
    baseline="int8, a scale for each output channel",
    cases=_cases,
    null_case="resnet50.res4_3x3 (quick: tiny.conv3x3): arithmetic bounds it, half the weight "
    "bytes save hardly any time",
    losing_case="int4 everywhere in minilm: the cosines leave the budget of 0.02; a mixed plan "
    "keeps it on the pairs that it was made on",
    findings=_findings,
)
