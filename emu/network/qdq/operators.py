# SPDX-License-Identifier: Apache-2.0
"""Operators with a quantised result: handler(converter, node, its protobuf, operands, result)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emu.network.graph import MICROSOFT, OWN, Node
from emu.network.qdq.scales import Scale, Weights

if TYPE_CHECKING:
    from emu.network.qdq.converter import Converter

Handler = Callable[["Converter", Node, Any, list[Any], Scale], None]


def _outputs(node_op: str, node: Node, weights: Weights) -> tuple[int, int]:
    """(number of output channels of a product, the weights' axis that has them)."""
    if node_op in ("Conv", "ConvInteger") or (node_op == "Gemm" and node.get("transB", 0)):
        return weights.values.shape[0], 0
    return weights.values.shape[-1], weights.values.ndim - 1


def _per_channel(op: str, value: NDArray, count: int) -> NDArray | None:
    """A constant that a product's result meets, by output channel; None if it is none."""
    if value.size == 1:
        return np.full(count, value.reshape(-1)[0])
    axis = 3 if op in ("Conv", "ConvInteger") else 1
    if value.size == count and value.ndim >= axis and value.shape[-axis] == count:
        return value.reshape(-1)
    return None


def fold(node: Node, operands: list[Any], value: NDArray, op: str) -> list[Any] | None:
    """Operands of product ``op`` that make the following Add, Mul or Div by constant ``value``
    unnecessary; None if there are none."""
    x, right = operands[:2]
    if node.op != "Add" and not np.all(value > 0):
        return None
    if not isinstance(right, Weights):
        if node.op == "Add" or value.size != 1:
            return None
        factor = np.float32(value.reshape(-1)[0])
        scale = x.scale * factor if node.op == "Mul" else x.scale / factor
        return [Scale(x.name, np.float32(scale), x.zero), right]
    count, axis = _outputs(op, node, right)
    spread = _per_channel(op, value, count)
    if spread is None:
        return None
    bias = operands[2] if len(operands) > 2 else None
    old = np.zeros(count) if bias is None else np.broadcast_to(
        np.asarray(bias.real if isinstance(bias, Weights) else bias, np.float64).reshape(-1), count)
    if node.op == "Add":
        return [x, right, old + spread]
    factors = spread if node.op == "Mul" else 1 / spread
    if np.all(factors == factors[0]) and right.scale.size == 1:
        factors = factors[:1]
    scale = (right.scale.reshape(-1).astype(np.float64) * factors).astype(np.float32)
    weights = Weights(right.values, scale, right.zero, axis)
    return [x, weights] if bias is None else [x, weights, old * factors]


def operator_sums(converter: "Converter", node: Node) -> list[Any] | None:
    """Operands of a MatMulInteger or ConvInteger, with scales of 1; None if it was refused."""
    source, constants = node.inputs[0], converter.constants
    values = constants.get(node.inputs[1])
    known = converter.real.get(f"{source}\0")
    dtype = (np.dtype(np.uint8) if known is None else known.zero.dtype)
    if source in converter.graph_inputs:
        code = converter.graph_inputs[source].type.tensor_type.elem_type
        dtype = np.dtype(np.int8 if code == 3 else np.uint8)
    zeros = [np.zeros(1, dtype if i == 2 else np.int8) if not node.input(i)
             else constants.get(node.input(i)) for i in (2, 3)]
    if values is None or zeros[0] is None or zeros[1] is None:
        converter.refuse(node, "its right side and its zero points must be constants")
        return None
    if not (known or source in converter.integers or source in converter.graph_inputs):
        converter.refuse(node, f"{source} is not a quantised tensor")
        return None
    if zeros[0].size != 1:
        converter.refuse(node, "zero points by row are not supported")
        return None
    axis = values.ndim - 1 if node.op == "MatMulInteger" else 0
    x = Scale(source, np.float32(1), np.asarray(zeros[0].reshape(-1)[0]))
    return [x, Weights(values, np.ones(1, np.float32), zeros[1].astype(np.int32), axis)]


def _bias(
    converter: "Converter", x: Scale, weight_scale: NDArray, bias: Any, name: str
) -> list[str]:
    """int32 in steps of x_scale * weight_scale, as the integer operator wants it."""
    if bias is None:
        return []
    steps = (np.float64(x.scale) * weight_scale.astype(np.float64)).reshape(-1)
    if isinstance(bias, Weights):
        same = np.allclose(bias.scale.astype(np.float64).reshape(-1), steps, rtol=1e-5)
        values = bias.values if same and not bias.zero.any() else np.rint(bias.real / steps)
    else:
        values = np.rint(np.asarray(bias, np.float64) / steps)
    info = np.iinfo(np.int32)
    return [converter.add(f"{name}.bias", np.clip(values, info.min, info.max).astype(np.int32))]


def _weight_operands(converter: "Converter", weights: Weights, name: str) -> list[str]:
    scale = weights.scale.reshape(-1) if weights.scale.size > 1 else weights.scale.reshape(())
    zero = np.broadcast_to(weights.zero.reshape(-1) if weights.zero.size > 1
                           else weights.zero.reshape(()), scale.shape)
    return [converter.add(f"{name}.w", weights.values),
            converter.add(f"{name}.w_scale", scale.astype(np.float32)),
            converter.add(f"{name}.w_zero", zero.astype(weights.values.dtype))]


def _needs_weights(converter: "Converter", node: Node, operands: list) -> bool:
    if len(operands) > 1 and isinstance(operands[1], Weights):
        return True
    converter.refuse(node, "its weights must be a constant behind a DequantizeLinear")
    return False


def _conv(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
    if not _needs_weights(converter, node, operands):
        return
    x, weights = operands[:2]
    bias = operands[2] if len(operands) > 2 else None
    converter.copy(
        proto, [x.name, *converter.scales(x, to.name, "x"),
                *_weight_operands(converter, weights, to.name), *converter.scales(to, to.name, "y"),
                *_bias(converter, x, weights.scale, bias, to.name)], to.name, op="QLinearConv")


def _gemm(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
    if not _needs_weights(converter, node, operands):
        return
    if node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0 or node.get("transA", 0):
        converter.refuse(node, "alpha, beta and transA are not supported")
        return
    x, weights = operands[:2]
    bias = operands[2] if len(operands) > 2 else None
    names = _bias(converter, x, weights.scale, bias, to.name) or [""]
    converter.copy(
        proto, [x.name, *converter.scales(x, to.name, "x"),
                *_weight_operands(converter, weights, to.name), *names,
                *converter.scales(to, to.name, "y")],
        to.name, op="QGemm", domain=MICROSOFT, drop=("beta",))


def _matmul(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
    a, b = operands[:2]
    if len(operands) > 2:
        _biased(converter, node, operands, to)
        return
    right = (_weight_operands(converter, b, to.name) if isinstance(b, Weights)
             else [b.name, *converter.scales(b, to.name, "b")])
    converter.copy(proto, [a.name, *converter.scales(a, to.name, "a"), *right,
                            *converter.scales(to, to.name, "y")], to.name, op="QLinearMatMul")


def _biased(converter: "Converter", node: Node, operands: list, to: Scale) -> None:
    """A matrix product and a bias: a QGemm, whose left side has two dimensions."""
    x, weights, bias = operands
    shape = converter.shape(node.outputs[0])
    if weights.values.ndim != 2 or shape is None:
        converter.refuse(node, "with a bias behind it, it needs a constant matrix and a known "
                                "shape")
        return
    flat, y = x.name, to.name
    if len(shape) != 2:
        flat, y = f"{to.name}.rows", f"{to.name}.product"
        converter.emit("Reshape", [x.name, converter.add(
            f"{to.name}.as_rows", np.array([-1, weights.values.shape[0]]))], flat)
    converter.emit(
        "QGemm", [flat, *converter.scales(x, to.name, "x"),
                  *_weight_operands(converter, weights, to.name),
                  *_bias(converter, x, weights.scale, bias, to.name),
                  *converter.scales(to, to.name, "y")], y, MICROSOFT)
    if y != to.name:
        converter.emit("Reshape", [y, converter.add(f"{to.name}.shape", np.array(shape))],
                        to.name)


def _binary(op: str) -> Handler:
    def emit(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
        like = next(each for each in operands if isinstance(each, Scale))
        names: list[str] = []
        for index, each in enumerate(operands):
            role = "ab"[index]
            if not isinstance(each, Scale):
                each = _constant_operand(converter, each, like, f"{to.name}.{role}")
            names += [each.name, *converter.scales(each, to.name, role)]
        converter.copy(proto, [*names, *converter.scales(to, to.name, "y")], to.name, op=op,
                        domain=MICROSOFT)
    return emit


def _constant_operand(
    converter: "Converter", value: Any, like: Scale, name: str
) -> Scale:
    """A constant addend or factor in the type of the other operand; its own integers if it can."""
    dtype = like.zero.dtype
    if isinstance(value, Weights) and value.values.dtype == dtype and value.scale.size == 1:
        zero = np.asarray(value.zero.reshape(-1)[0], dtype)
        return Scale(converter.add(name, value.values), np.float32(value.scale.reshape(-1)[0]),
                     zero)
    real = np.asarray(value.real if isinstance(value, Weights) else value, np.float64)
    zero = np.asarray(0 if dtype == np.int8 else 128, dtype)
    scale = np.float32(max(np.abs(real).max(initial=0), 1e-30) / 127)
    steps = np.clip(np.rint(real / scale), -127, 127) + int(zero)
    return Scale(converter.add(name, steps.astype(dtype)), scale, zero)


def _concat(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
    if not all(isinstance(each, Scale) for each in operands):
        converter.refuse(node, "constants beside activations are not supported")
        return
    ends = converter.scales(to, to.name, "y")
    for index, each in enumerate(operands):
        ends += [each.name, *converter.scales(each, f"{to.name}.{index}", "x")]
    converter.copy(proto, ends, to.name, op="QLinearConcat", domain=MICROSOFT)


def _layer_norm(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
    from onnx import helper

    x, rank = operands[0], len(converter.shape(node.inputs[0]) or ())
    if any(node.outputs[1:]):
        converter.refuse(node, "its mean and deviation are not supported as outputs")
        return
    if node.get("axis", -1) not in (-1, rank - 1):
        converter.refuse(node, "only the last axis is supported")
        return
    if any(isinstance(each, Scale) for each in operands[1:]):
        converter.refuse(node, "its scale and bias must be constants")
        return
    rest = [np.asarray(each.real if isinstance(each, Weights) else each, np.float32).reshape(-1)
            for each in operands[1:]]
    gamma = rest[0]
    beta = rest[1] if len(rest) > 1 else np.zeros_like(gamma)
    converter.emit("LayerNorm", [
        x.name, *converter.scales(x, to.name, "x"), converter.add(f"{to.name}.gamma", gamma),
        converter.add(f"{to.name}.beta", beta), *converter.scales(to, to.name, "y")], to.name, OWN)
    converter.nodes[-1].attribute.append(
        helper.make_attribute("epsilon", float(node.get("epsilon", 1e-5))))
    converter.nodes[-1].name = node.name


def _unary(op: str, **more: Any) -> Handler:
    def emit(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
        from onnx import helper

        x = operands[0]
        converter.copy(
            proto, [x.name, *converter.scales(x, to.name, "x"),
                    *converter.scales(to, to.name, "y")], to.name, op=op, domain=MICROSOFT)
        for name, value in more.items():
            converter.nodes[-1].attribute.append(helper.make_attribute(name, value))
    return emit


def _softmax(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
    from onnx import helper

    _unary("QLinearSoftmax")(converter, node, proto, operands, to)
    converter.nodes[-1].attribute.append(helper.make_attribute("opset", converter.opset))


def _max_pool(converter: "Converter", node: Node, proto: Any, operands: list, to: Scale) -> None:
    x = operands[0]
    inner = to if x.same(to) else Scale(f"{to.name}.pooled", x.scale, x.zero)
    converter.copy(proto, [x.name], inner.name)
    if inner is not to:
        converter._requantise(inner, to)


OPERATORS: dict[str, Handler] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "Add": _binary("QLinearAdd"),
    "Mul": _binary("QLinearMul"), "Sigmoid": _unary("QLinearSigmoid"),
    "LeakyRelu": _unary("QLinearLeakyRelu"), "Softmax": _softmax, "MaxPool": _max_pool,
    "AveragePool": _unary("QLinearAveragePool"), "Concat": _concat,
    "GlobalAveragePool": _unary("QLinearGlobalAveragePool", channels_last=0),
    "LayerNormalization": _layer_norm,
}
