# SPDX-License-Identifier: Apache-2.0
"""Golden results: ONNX Runtime's own, confirmed by exact integer arithmetic.

ONNX Runtime runs the model as it is: one thread, no graph optimisation, so that every QLinear
operator stays one integer kernel. On x86-64 machines without VNNI its uint8 x int8 kernels saturate
pairs of products to 16 bits; that is a property of the kernel, not of the model. Then, and only
then, the golden result is the exact one, and `Golden.conditions` says so.
"""

import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.distance import distances
from emu.network.exact import exact
from emu.network.graph import one_line
from emu.network.layers import ConvLayer, Network
from emu.network.qdq import to_integers
from emu.network.segments import has_own, run_segments
from emu.network.sessions import open_session
from emu.network.tensors import check_inputs, load_inputs, random_inputs

SATURATION = "u8s8_saturation"
"""Condition: ONNX Runtime saturated uint8 x int8 products; the outputs are the exact ones."""
INTEGERS = "integer_definition"
"""Condition: no operators of ONNX Runtime say the same; the outputs are those of `exact`."""
OWN_OPERATORS = "own_operators"
"""Condition: ONNX Runtime has no integer operator for some nodes; it ran all others."""
EXPLAIN = {
    OWN_OPERATORS: "ONNX Runtime has no integer operator for some nodes, which are computed by "
    "their integer definition; it ran all others",
    INTEGERS: "ONNX Runtime has no integer operator for some layers; outputs are compared with "
    "their integer definition",
    SATURATION: "ONNX Runtime saturates uint8 x int8 products on this machine (no VNNI); outputs "
    "are compared with exact integer arithmetic instead",
}
"""What each condition means to whoever reads the result."""


class GoldenWarning(UserWarning):
    """The golden result is not ONNX Runtime's; the text names the condition."""


@dataclass(frozen=True)
class Golden:
    """Outputs by graph name, and the named conditions under which they were obtained."""

    outputs: dict[str, NDArray]
    conditions: tuple[str, ...] = ()
    distances: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the integer definitions from the float operators (`emu.network.distance`)."""


def session(network: Network) -> Any:
    """An ONNX Runtime session of the network's model.

    Raises
    ------
    UserError
        If ONNX Runtime refuses the model.
    """
    return open_session(network.model, network.name)


def run_onnxruntime(network: Network, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """ONNX Runtime's outputs, by graph name.

    Raises
    ------
    UserError
        If ONNX Runtime refuses the model or fails to run it.
    """
    if has_own(network.model):
        return run_segments(network.model, inputs, network.name)
    names = [tensor.name for tensor in network.outputs]
    runner = session(network)
    try:
        values = runner.run(names, dict(inputs))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"{network.name}: ONNX Runtime fails: {one_line(error)}") from None
    return dict(zip(names, values, strict=True))


def may_saturate(layer: ConvLayer) -> bool:
    """Whether two uint8 x int8 products of the layer can leave 16 bits, as raw values."""
    if layer.x_signed or not layer.weight_signed:
        return False
    largest = int(np.abs(layer.weights.astype(np.int16)).max(initial=0))
    return 2 * 255 * largest > np.iinfo(np.int16).max


def evaluate(network: Network, inputs: Mapping[str, NDArray]) -> Golden:
    """Golden outputs of ``network`` with their conditions.

    Raises
    ------
    UserError
        If inputs do not fit, or ONNX Runtime fails or differs from exact arithmetic without a
        reason that is known.
    """
    check_inputs(network, dict(inputs), network.name)
    tensors = exact(network, inputs, every=True)
    ours, apart = network.from_layers(tensors), distances(network, tensors)
    del tensors
    if network.model is None:
        return Golden(ours, (INTEGERS,), apart)
    theirs = run_onnxruntime(network, inputs)
    wrong = sum(int(np.count_nonzero(theirs[name] != ours[name])) for name in ours)
    if wrong == 0:
        return Golden(theirs, (OWN_OPERATORS,) if has_own(network.model) else (), apart)
    convolutions = [layer for layer in network.layers if isinstance(layer, ConvLayer)]
    if any(may_saturate(layer) for layer in convolutions):
        return Golden(ours, (SATURATION,), apart)
    import onnxruntime

    raise UserError(
        f"{network.name}: ONNX Runtime {onnxruntime.__version__} on {platform.machine()} differs "
        f"from exact integer arithmetic in {wrong} outputs: this version is not a golden model here"
    )


def qdq_mismatches(
    network: Network, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]
) -> tuple[int, int, int]:
    """(outputs, how many differ, by how many steps at most) between a QDQ network's integers and
    its original model, which ONNX Runtime runs in float between its quantisers; a step of rounding
    here and there is usual.

    Raises
    ------
    UserError
        If ONNX Runtime fails.
    """
    boundary = network.boundary
    names = list(boundary.outputs)
    runner = session(replace(network, model=boundary.original, boundary=None))
    try:
        values = runner.run(names, boundary.reals(inputs))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"{network.name}: ONNX Runtime fails: {one_line(error)}") from None
    wrong = total = most = 0
    for name, value in zip(names, values, strict=True):
        total += value.size
        theirs = to_integers(value, boundary.outputs[name]).astype(np.int32)
        apart = np.abs(theirs - outputs[name])
        wrong += int(np.count_nonzero(apart))
        most = max(most, int(apart.max(initial=0)))
    return total, wrong, most


def golden(network: Network, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Golden outputs by graph name; warns (`GoldenWarning`) if they are not ONNX Runtime's.

    Raises
    ------
    UserError
        As `evaluate`.
    """
    result = evaluate(network, inputs)
    for condition in result.conditions:
        warnings.warn(
            f"{network.name}: {condition}: {EXPLAIN[condition]}", GoldenWarning, stacklevel=2
        )
    return result.outputs


__all__ = [
    "EXPLAIN",
    "SATURATION",
    "Golden",
    "GoldenWarning",
    "evaluate",
    "golden",
    "load_inputs",
    "random_inputs",
    "run_onnxruntime",
    "session",
]
