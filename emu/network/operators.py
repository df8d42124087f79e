# SPDX-License-Identifier: Apache-2.0
"""Attributes and constant operands of the supported ONNX operators, checked one by one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.network.graph import Node
from emu.network.layers import Shape4
from emu.requantise import scale_of

MAX_K = 33025
"""Products that surely fit an int32 sum: 255 * 255 * 33025 < 2**31."""
Constants = Mapping[str, NDArray]
_TYPES = ("int8 x int8 -> int8", "uint8 x int8 -> uint8", "uint8 x uint8 -> uint8")


@dataclass(frozen=True)
class Arithmetic:
    """Constant operands of a layer; ``scale`` and ``bias`` have one element per output."""

    weights: NDArray[Any]
    weight_zero: int
    x_scale: float
    x_zero: int
    x_signed: bool
    y_scale: float
    y_zero: int
    y_signed: bool
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]


def constant(node: Node, index: int, what: str, constants: Constants) -> NDArray:
    """The constant at input ``index``, or a refusal."""
    name = node.input(index)
    if not name:
        raise node.error(f"has no {what}")
    if name not in constants:
        raise node.error(f"its {what} {name} must be a constant")
    return constants[name]


def _scales(node: Node, index: int, what: str, constants: Constants) -> NDArray[np.float32]:
    values = constant(node, index, what, constants)
    if values.dtype != np.float32:
        raise node.error(f"its {what} is {values.dtype}: float32 expected")
    if not values.size or not np.all(np.isfinite(values)) or not np.all(values > 0):
        raise node.error(f"its {what} must be positive and finite")
    return values


def _scalar(node: Node, values: NDArray, what: str) -> Any:
    if values.size != 1:
        raise node.error(f"its {what} must be a scalar, not {list(values.shape)}")
    return values.reshape(-1)[0]


def _zero(node: Node, index: int, what: str, constants: Constants) -> tuple[int, bool]:
    """(value, signed) of an activation's zero point."""
    values = constant(node, index, what, constants)
    if values.dtype not in (np.int8, np.uint8):
        raise node.error(f"its {what} is {values.dtype}: int8 or uint8 expected")
    return int(_scalar(node, values, what)), values.dtype == np.int8


@dataclass(frozen=True)
class Quantised:
    """Scale, zero point and signedness of an activation as a node's constants say them."""

    scale: float
    zero: int
    signed: bool


def quantised(node: Node, index: int, what: str, constants: Constants) -> Quantised:
    """Of the scale at input ``index`` and the zero point behind it.

    Raises
    ------
    UserError
        If one of them is missing, not constant, no scalar or of a wrong type.
    """
    name = f"{what} scale"
    scale = float(_scalar(node, _scales(node, index, name, constants), name))
    return Quantised(scale, *_zero(node, index + 1, f"{what} zero point", constants))


def _outputs(node: Node, weights: NDArray) -> int:
    """Number of outputs of a layer, which its weights' shape gives."""
    if node.op == "QLinearConv":
        return weights.shape[0]
    if weights.ndim != 2:
        raise node.error(f"its right side B is {list(weights.shape)}: a matrix expected")
    return weights.shape[0] if node.op == "QGemm" and node.get("transB", 0) else weights.shape[1]


def _per_output(node: Node, values: NDArray, outputs: int, what: str) -> NDArray:
    """``values`` of shape (), (1,), (outputs,) or, for a matrix, (1, outputs) as a vector."""
    shapes: tuple[tuple[int, ...], ...] = ((), (1,), (outputs,))
    if node.op != "QLinearConv":
        shapes += ((1, 1), (1, outputs))
    if values.shape not in shapes:
        raise node.error(f"its {what} is {list(values.shape)}: a scalar or [{outputs}] expected")
    return np.broadcast_to(values.reshape(-1), (outputs,))


def _weight_zero(node: Node, weights: NDArray, outputs: int, constants: Constants) -> int:
    zeros = constant(node, 5, "weight zero point", constants)
    if zeros.dtype != weights.dtype:
        raise node.error(f"its weights are {weights.dtype}, their zero point {zeros.dtype}")
    spread = _per_output(node, zeros, outputs, "weight zero point")
    if np.any(spread != spread[0]):
        raise node.error(
            "its weight zero points differ between outputs: one per tensor is supported"
        )
    return int(spread[0])


def arithmetic_of(node: Node, constants: Constants) -> Arithmetic:
    """Operands of a QLinearConv, QLinearMatMul or QGemm.

    Raises
    ------
    UserError
        If an operand is missing, not constant, of a wrong type or shape, or a combination that
        ONNX Runtime does not compute.
    """
    gemm = node.op == "QGemm"
    y_index = 7 if gemm else 6
    if gemm and not (node.input(7) and node.input(8)):
        raise node.error("without y_scale and y_zero_point its output is float: not supported")
    weights = constant(node, 3, "weights", constants)
    if weights.dtype not in (np.int8, np.uint8):
        raise node.error(f"its weights are {weights.dtype}: int8 or uint8 expected")
    if weights.ndim < 2 or not weights.size:
        raise node.error(f"its weights have the shape {list(weights.shape)}")
    outputs = _outputs(node, weights)
    x_scale = np.float32(_scalar(node, _scales(node, 1, "input scale", constants), "input scale"))
    x_zero, x_signed = _zero(node, 2, "input zero point", constants)
    weight_scale = _per_output(
        node, _scales(node, 4, "weight scale", constants), outputs, "weight scale"
    )
    y_scale = _scales(node, y_index, "output scale", constants)
    y_zero, y_signed = _zero(node, y_index + 1, "output zero point", constants)
    w_signed = weights.dtype == np.int8
    if x_signed != y_signed or (x_signed and not w_signed):
        names = ["int8" if s else "uint8" for s in (x_signed, w_signed, y_signed)]
        raise node.error(
            f"{names[0]} x {names[1]} -> {names[2]} is not computed by ONNX Runtime, only "
            + ", ".join(_TYPES)
        )
    y_value = np.float32(_scalar(node, y_scale, "output scale"))
    factor = np.float32(node.get("alpha", 1.0)) * x_scale if gemm else x_scale
    with np.errstate(over="ignore", under="ignore"):
        scale = scale_of(factor, weight_scale, y_value)
    if not np.all(np.isfinite(scale)) or not np.all(scale >= np.finfo(np.float32).tiny):
        raise node.error("input scale * weight scale / output scale must be positive and normal")
    return Arithmetic(
        weights=weights,
        weight_zero=_weight_zero(node, weights, outputs, constants),
        x_scale=float(x_scale),
        x_zero=x_zero,
        x_signed=x_signed,
        y_scale=float(y_value),
        y_zero=y_zero,
        y_signed=y_signed,
        scale=scale,
        bias=_bias(node, outputs, constants),
    )


def _bias(node: Node, outputs: int, constants: Constants) -> NDArray[np.int32]:
    index = {"QLinearConv": 8, "QGemm": 6}.get(node.op)
    if index is None or not node.input(index):
        return np.zeros(outputs, np.int32)
    bias = constant(node, index, "bias", constants)
    if bias.dtype != np.int32:
        raise node.error(f"its bias is {bias.dtype}: int32 expected")
    if node.op == "QLinearConv" and bias.shape != (outputs,):
        raise node.error(f"its bias is {list(bias.shape)}: [{outputs}] expected")
    return _per_output(node, bias, outputs, "bias").copy()


def _ints(node: Node, name: str, count: int, default: int, low: int) -> list[int]:
    values = list(node.get(name, [default] * count))
    if len(values) != count or any(value < low for value in values):
        raise node.error(f"{name} {values} is wrong: {count} numbers of at least {low} expected")
    return values


def _padding(node: Node, size: list[int], span: list[int], stride: list[int], dilated: bool):
    """Padding before and after each dimension."""
    mode = node.get("auto_pad", "NOTSET") or "NOTSET"
    if mode == "NOTSET":
        pads = _ints(node, "pads", 2 * len(size), 0, 0)
        return pads[: len(size)], pads[len(size) :]
    if mode == "VALID":
        return [0] * len(size), [0] * len(size)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise node.error(f"auto_pad {mode} is unknown")
    if dilated:
        raise node.error(f"auto_pad {mode} with dilations is not computed by ONNX Runtime")
    total = [
        max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(size, span, stride, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def conv_window(node: Node, weights: NDArray, shape: Shape4) -> dict[str, Any]:
    """Window attributes and output shape of a QLinearConv over ``shape``; 1-D ones get H = 1.

    Raises
    ------
    UserError
        If an attribute contradicts the shapes or the window does not fit.
    """
    rank = weights.ndim - 2
    groups = node.get("group", 1)
    outputs, per_group = weights.shape[:2]
    if groups < 1 or shape[1] != per_group * groups or outputs % groups:
        raise node.error(
            f"{shape[1]} channels in {groups} groups do not fit weights {list(weights.shape)}"
        )
    kernel = list(weights.shape[2:])
    if list(node.get("kernel_shape", kernel)) != kernel:
        raise node.error(f"kernel_shape {node.get('kernel_shape', kernel)} is not {kernel}")
    stride = _ints(node, "strides", rank, 1, 1)
    dilation = _ints(node, "dilations", rank, 1, 1)
    k = per_group * math.prod(kernel)
    if k > MAX_K:
        raise node.error(f"sums of {k} products can leave 32 bits: at most {MAX_K}")
    size = list(shape[2:])[-rank:]
    span = [(n - 1) * d + 1 for n, d in zip(kernel, dilation, strict=True)]
    before, after = _padding(node, size, span, stride, any(d > 1 for d in dilation))
    out = [(size[i] + before[i] + after[i] - span[i]) // stride[i] + 1 for i in range(rank)]
    if any(n < 1 for n in out):
        raise node.error(f"its kernel spans {span} and its padded input is smaller: no output")
    if rank == 1:
        kernel, stride, dilation, out = [1, *kernel], [1, *stride], [1, *dilation], [1, *out]
        before, after = [0, *before], [0, *after]
    return {
        "weights": weights.reshape(outputs, per_group, *kernel),
        "strides": tuple(stride),
        "dilations": tuple(dilation),
        "pads": (*before, *after),
        "groups": groups,
        "output_shape": (shape[0], outputs, *out),
    }


def pool_window(node: Node, shape: Shape4, rank: int, whole: bool = False) -> dict[str, Any]:
    """Window attributes and output shape of a pooling node; 1-D ones get H = 1.

    ``whole``: the window is the image.

    Raises
    ------
    UserError
        If an attribute is not supported, contradicts the shapes or the window does not fit.
    """
    if node.get("channels_last", 0):
        raise node.error("channels_last is not supported")
    size = list(shape[2:])[-rank:]
    if whole:
        kernel, stride, before, after = size, [1] * rank, [0] * rank, [0] * rank
    else:
        kernel = _ints(node, "kernel_shape", rank, 0, 1)
        stride = _ints(node, "strides", rank, 1, 1)
        if any(d > 1 for d in _ints(node, "dilations", rank, 1, 1)):
            raise node.error("dilations are not supported")
        before, after = _padding(node, size, kernel, stride, False)
    if any(b >= k or a >= k for b, a, k in zip(before, after, kernel, strict=True)):
        raise node.error(f"padding {before + after} is not smaller than its kernel {kernel}")
    room = [size[i] + before[i] + after[i] - kernel[i] for i in range(rank)]
    if any(n < 0 for n in room):
        raise node.error(f"its kernel {kernel} is larger than its padded input: no output")
    out = [n // s + 1 for n, s in zip(room, stride, strict=True)]
    if node.get("ceil_mode", 0):
        out = [-(-n // s) + 1 for n, s in zip(room, stride, strict=True)]
        for i in range(rank):
            if (out[i] - 1) * stride[i] >= size[i] + before[i]:
                raise node.error("with ceil_mode a window would start behind the image")
            after[i] = max(after[i], (out[i] - 1) * stride[i] + kernel[i] - size[i] - before[i])
    if rank == 1:
        kernel, stride, out = [1, *kernel], [1, *stride], [1, *out]
        before, after = [0, *before], [0, *after]
    return {
        "kernel": tuple(kernel),
        "strides": tuple(stride),
        "pads": (*before, *after),
        "output_shape": (*shape[:2], *out),
    }


def gemm_operands(
    node: Node, arithmetic: Arithmetic, shape: tuple[int, ...]
) -> tuple[NDArray, bool]:
    """The constant matrix as (outputs, K), and whether A (of ``shape``) is given as (K, rows)."""
    weights = arithmetic.weights
    gemm = node.op == "QGemm"
    transposed = bool(gemm and node.get("transA", 0))
    if gemm and len(shape) != 2:
        raise node.error(f"its left side A is {list(shape)}: a matrix expected")
    matrix = weights if gemm and node.get("transB", 0) else weights.T
    k = shape[0] if transposed else shape[-1]
    if k != matrix.shape[1]:
        raise node.error(f"A {list(shape)} and B {list(weights.shape)} do not fit")
    return matrix, transposed


def scalar_bounds(node: Node, index: int, dtype: str, constants: Constants) -> tuple[int, int]:
    """(low, high) that a Relu, Clip, Max or Min of one activation (input ``index``) imposes."""
    info = np.iinfo(dtype)
    low, high = int(info.min), int(info.max)
    if node.op == "Relu":
        return max(low, 0), high
    roles = {"Max": ("low",) * 99, "Min": ("high",) * 99, "Clip": ("low", "high")}[node.op]
    if node.op == "Clip" and index:
        raise node.error("its bounds must be constants")
    others = [name for i, name in enumerate(node.inputs) if i != index]
    for name, role in zip(others, roles, strict=False):
        if not name:
            continue
        if name not in constants:
            raise node.error(f"{name} must be a constant")
        bound = constants[name]
        if bound.dtype != np.dtype(dtype) or bound.size != 1 or bound.ndim > 1:
            raise node.error(f"{name} must be one {dtype}, not {bound.dtype}{list(bound.shape)}")
        value = int(bound.reshape(-1)[0])
        low, high = (max(low, value), high) if role == "low" else (low, min(high, value))
    return low, high


def reshaped(node: Node, shape: tuple[int, ...], constants: Constants) -> tuple[int, ...]:
    """The shape that a Reshape, Flatten, Squeeze, Unsqueeze or Identity gives."""
    if node.op == "Identity":
        return shape
    if node.op == "Flatten":
        axis = node.get("axis", 1)
        axis += len(shape) if axis < 0 else 0
        return math.prod(shape[:axis]), math.prod(shape[axis:])
    if node.op == "Reshape":
        target = constant(node, 1, "shape", constants)
        return _reshape_target(node, shape, target.reshape(-1).tolist())
    axes = node.get("axes", None)
    if node.input(1):
        axes = constant(node, 1, "axes", constants).reshape(-1).tolist()
    if node.op == "Squeeze":
        drop = {a % len(shape) for a in axes} if axes is not None else set(range(len(shape)))
        if axes is not None and any(shape[a] != 1 for a in drop):
            raise node.error(f"axes {axes} of {list(shape)} are not all 1")
        return tuple(n for a, n in enumerate(shape) if a not in drop or n != 1)
    rank = len(shape) + len(axes)
    rest = iter(shape)
    added = {a % rank for a in axes}
    return tuple(1 if a in added else next(rest) for a in range(rank))


def _reshape_target(node: Node, shape: tuple[int, ...], target: list[int]) -> tuple[int, ...]:
    sizes = list(target)
    if not node.get("allowzero", 0):
        sizes = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(sizes)]
    known = math.prod(n for n in sizes if n != -1)
    if sizes.count(-1) == 1 and known:
        sizes[sizes.index(-1)] = math.prod(shape) // known
    if math.prod(sizes) != math.prod(shape) or any(n < 1 for n in sizes):
        raise node.error(f"{list(shape)} cannot take the shape {target}")
    return tuple(sizes)
