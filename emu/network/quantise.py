# SPDX-License-Identifier: Apache-2.0
"""Float ONNX models into QDQ ones, by ONNX Runtime's own static quantiser.

Batch normalisations and constants are folded first (its graph optimiser). Activations are int8 with
scales from calibration data, weights int8 or int4 with a scale per output channel.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network import rewrite
from emu.network.graph import constants_of, load_model, one_line
from emu.network.qdq import is_qdq
from emu.network.qdq.functions import ELEMENTWISE

OBSERVERS = ("min_max", "percentile")
INT4_OPSET = 21
"""The first with 4-bit tensors."""
QUANTISABLE = ("Softmax", "Concat", "GlobalAveragePool")
"""Beside those that the quantiser takes by itself."""
_WEIGHTED = {"Conv": 0, "Gemm": 0, "MatMul": 1}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to quantise.

    observer: ``min_max``, or ``percentile`` with ``percentile`` of the absolute values kept.
    int4: Names of nodes whose weights get 4 bits; ``all`` for every node with weights.
    """

    observer: str = "min_max"
    percentile: float = 99.99
    int4: tuple[str, ...] = ()


def quantise(model: str | Path, calibration: str | Path, options: Options) -> Any:
    """The QDQ ``ModelProto`` of the float model at ``model``.

    Raises
    ------
    UserError
        If a file is no model or no calibration data, they do not fit one another, or the quantiser
        refuses the model.
    """
    _check(options)
    proto = load_model(model, str(model))
    if is_qdq(proto):
        raise UserError(f"{model}: is quantised already")
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    feeds = calibration_data(proto, calibration)
    methods = {"min_max": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    with tempfile.TemporaryDirectory(prefix="headrace-") as name:
        folder = Path(name)
        folded = _folded(Path(model), folder, bool(options.int4))
        inside = _rewritten(folded, str(model))
        more: dict[str, Any] = {"CalibPercentile": options.percentile} if (
            options.observer == "percentile") else {}
        if options.int4:
            more["TensorQuantOverrides"] = _int4_weights(
                onnx.load(folded), options.int4, QuantType.QInt4, str(model))
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # its hints are about what was just done
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                quantize_static(
                    folded, folder / "out.onnx", _Reader(feeds), quant_format=QuantFormat.QDQ,
                    per_channel=True, activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8, calibrate_method=methods[options.observer],
                    op_types_to_quantize=sorted(
                        {*QDQRegistry, *QLinearOpsRegistry, *ELEMENTWISE, *QUANTISABLE}),
                    nodes_to_exclude=inside,
                    extra_options=more,
                )
            return onnx.load(folder / "out.onnx")
        except Exception as error:  # it raises whatever it meets
            raise UserError(f"{model}: cannot be quantised: {one_line(error)}") from None
        finally:
            logging.getLogger().setLevel(level)


def _check(options: Options) -> None:
    if options.observer not in OBSERVERS:
        raise UserError(f"observer {options.observer}: must be one of {', '.join(OBSERVERS)}")
    if not 50 < options.percentile <= 100:
        raise UserError(f"percentile {options.percentile}: must be above 50, at most 100")


def _folded(model: Path, folder: Path, int4: bool) -> Path:
    """The model with constants and batch normalisations folded, and a new enough opset."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    options.log_severity_level = 4
    try:
        proto = onnx.load(model)
        opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
        wanted = INT4_OPSET if int4 else 13
        if opset < wanted:
            proto = onnx.version_converter.convert_version(proto, wanted)
        onnxruntime.InferenceSession(proto.SerializeToString(), options,
                                     providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"{model}: ONNX Runtime refuses it: {one_line(error)}") from None
    return folder / "folded.onnx"


def _rewritten(path: Path, where: str) -> list[str]:
    """Rewrite the model at ``path`` (`emu.network.rewrite`); names of nodes to leave in float."""
    import onnx

    proto = onnx.load(path)
    rewrite.name_nodes(proto)
    constants = constants_of(proto.graph, where)
    rewrite.take_biases(proto, constants)
    rewrite.scale_first(proto, constants)
    onnx.save(proto, path)
    return rewrite.inside_functions(proto, constants)


def _int4_weights(proto: Any, names: tuple[str, ...], kind: Any, where: str) -> dict[str, Any]:
    """Overrides by weight name for the nodes called ``names``."""
    nodes = {node.name: node for node in proto.graph.node if node.op_type in _WEIGHTED}
    chosen = list(nodes) if names == ("all",) else list(names)
    unknown = [name for name in chosen if name not in nodes]
    if unknown:
        raise UserError(f"{where}: no Conv, Gemm or MatMul called {', '.join(unknown)}: there are "
                        f"{', '.join(nodes)}")
    constants = constants_of(proto.graph, where)
    found = {}
    for name in chosen:
        node = nodes[name]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        if node.input[1] in constants:
            found[node.input[1]] = [{"quant_type": kind, "axis": axis, "symmetric": True}]
    return found


def calibration_data(proto: Any, path: str | Path) -> list[dict[str, NDArray]]:
    """One feed per sample of an ``.npz`` whose arrays have samples along their first axis.

    Raises
    ------
    UserError
        If the file is no npz, or its arrays are not the model's inputs.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged archive or array fails in many ways
        raise UserError(f"{path}: not an .npz file of plain arrays (numpy.savez)") from None
    constants = {value.name for value in proto.graph.initializer}
    inputs = {v.name: v.type.tensor_type for v in proto.graph.input if v.name not in constants}
    if set(arrays) != set(inputs):
        raise UserError(f"{path}: has arrays {', '.join(sorted(arrays)) or 'none'}, the model's "
                        f"inputs are {', '.join(sorted(inputs))}")
    counts = set()
    for name, array in arrays.items():
        dims = [d.dim_value or None for d in inputs[name].shape.dim]
        batch = dims[0] or 1 if dims else 1
        fits = array.ndim == len(dims) and all(
            want in (None, have) for want, have in zip(dims[1:], array.shape[1:], strict=False))
        if not fits or not len(array) or len(array) % batch:
            shape = ", ".join("?" if d is None else str(d) for d in dims[1:])
            raise UserError(f"{path}: {name} is {list(array.shape)}, [N, {shape}] expected, N a "
                            f"multiple of {batch}")
        counts.add(len(array) // batch)
    if len(counts) != 1:
        raise UserError(f"{path}: arrays have different numbers of samples")
    count = counts.pop()
    return [{name: part for name, part in zip(arrays, parts, strict=True)}
            for parts in zip(*(np.split(array, count) for array in arrays.values()), strict=True)]


class _Reader:
    """What ONNX Runtime's quantiser calls a calibration data reader."""

    def __init__(self, feeds: Iterable[dict[str, NDArray]]):
        self._feeds: Iterator[dict[str, NDArray]] = iter(feeds)

    def get_next(self) -> dict[str, NDArray] | None:
        return next(self._feeds, None)
