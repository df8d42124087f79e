# SPDX-License-Identifier: Apache-2.0
"""Float ONNX models as exporters write them, with seeded weights."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

TOKENS, WIDTH, HEADS, ROWS = 12, 32, 2, 50


class Graph:
    """Nodes and constants; every node's output has its name."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, name, value, dtype=np.float32):
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def normal(self, name, *shape, scale=1.0):
        return self.constant(name, self.rng.standard_normal(shape) * scale)

    def linear(self, name, x, inputs, outputs):
        """As PyTorch writes it: a product, then the bias first."""
        weights = self.normal(f"{name}.w", inputs, outputs, scale=inputs**-0.5)
        product = self.node("MatMul", [x, weights], f"{name}.product")
        return self.node("Add", [self.normal(f"{name}.b", outputs, scale=0.1), product], name)

    def model(self, inputs, outputs, opset=17):
        def value(name, kind, shape):
            return helper.make_tensor_value_info(name, kind, shape)

        graph = helper.make_graph(
            self.nodes, "net", [value(n, *kind) for n, kind in inputs.items()],
            [value(n, *kind) for n, kind in outputs.items()], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)],
                                 ir_version=8)


def _norm(net, name, x, decomposed):
    gamma = net.constant(f"{name}.gamma", net.rng.normal(1, 0.2, WIDTH))
    beta = net.normal(f"{name}.beta", WIDTH, scale=0.2)
    if not decomposed:
        return net.node("LayerNormalization", [x, gamma, beta], name, axis=-1, epsilon=1e-5)
    mean = net.node("ReduceMean", [x], f"{name}.mean", axes=[-1], keepdims=1)
    centred = net.node("Sub", [x, mean], f"{name}.centred")
    square = net.node("Pow", [centred, net.constant(f"{name}.two", 2)], f"{name}.square")
    spread = net.node("ReduceMean", [square], f"{name}.var", axes=[-1], keepdims=1)
    root = net.node("Sqrt", [net.node("Add", [spread, net.constant(f"{name}.e", 1e-5)],
                                      f"{name}.eps")], f"{name}.root")
    ratio = net.node("Div", [centred, root], f"{name}.ratio")
    return net.node("Add", [net.node("Mul", [ratio, gamma], f"{name}.scaled"), beta], name)


def _activation(net, kind, x):
    if kind != "erf":
        return net.node(kind, [x], "act")
    inner = net.node("Div", [x, net.constant("root2", np.sqrt(2))], "act.1")
    inner = net.node("Add", [net.node("Erf", [inner], "act.2"), net.constant("one", 1)], "act.3")
    return net.node("Mul", [net.node("Mul", [x, inner], "act.4"), net.constant("half", 0.5)], "act")


def transformer(activation="erf", decomposed=False, embedded=True, opset=17):
    """One encoder block with a head; ``embedded``: from token numbers, with positions."""
    net = Graph()
    x = "x"
    if embedded:
        rows = net.node("Gather", [net.normal("rows", ROWS, WIDTH), "ids"], "tokens")
        x = net.node("Add", [rows, net.normal("positions", 1, TOKENS, WIDTH, scale=0.3)], "x0")
    x = _norm(net, "norm0", x, decomposed)
    split = net.constant("split", [1, TOKENS, HEADS, WIDTH // HEADS], np.int64)
    whole = net.constant("whole", [1, TOKENS, WIDTH], np.int64)
    orders = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
    q, k, v = (
        net.node("Transpose", [net.node("Reshape", [net.linear(name, x, WIDTH, WIDTH), split],
                                        f"{name}.split")], f"{name}.heads", perm=order)
        for name, order in orders.items()
    )
    scores = net.node("Div", [net.node("MatMul", [q, k], "scores"),
                              net.constant("root", np.sqrt(WIDTH / HEADS))], "scaled")
    mixed = net.node("MatMul", [net.node("Softmax", [scores], "weights", axis=-1), v], "mixed")
    mixed = net.node("Transpose", [mixed], "mixed.heads", perm=[0, 2, 1, 3])
    mixed = net.node("Reshape", [mixed, whole], "mixed.whole")
    x = _norm(net, "norm1", net.node("Add", [net.linear("out", mixed, WIDTH, WIDTH), x], "sum1"),
              decomposed)
    y = _activation(net, activation, net.linear("wide", x, WIDTH, 4 * WIDTH))
    x = _norm(net, "norm2", net.node("Add", [net.linear("narrow", y, 4 * WIDTH, WIDTH), x],
                                     "sum2"), decomposed)
    net.node("Identity", [net.linear("head", x, WIDTH, 16)], "y")
    given = ({"ids": (TensorProto.INT64, [1, TOKENS])} if embedded
             else {"x": (TensorProto.FLOAT, [1, TOKENS, WIDTH])})
    return net.model(given, {"y": (TensorProto.FLOAT, [1, TOKENS, 16])}, opset)


def samples(embedded=True, count=8, seed=1):
    """Calibration data of `transformer`."""
    rng = np.random.default_rng(seed)
    if embedded:
        return {"ids": rng.integers(0, ROWS, (count, TOKENS), np.int64)}
    return {"x": rng.standard_normal((count, TOKENS, WIDTH)).astype(np.float32)}
