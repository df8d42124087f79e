# SPDX-License-Identifier: Apache-2.0
"""Train, quantise and write `emu/network/data/digits.*`; needs scikit-learn beside the project.

    pip install scikit-learn && python tools/train_digits.py

A CNN of three 3x3 convolutions for the 8x8 digits that scikit-learn bundles (a copy of the test set
of UCI's "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998). Every fifth
image is held out. Forward and backward passes are written out in numpy: the network is small.
"""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from emu.network.quantise import Options, quantise

SEED, EPOCHS, BATCH, RATE = 7, 60, 32, 3e-3
CHANNELS = (1, 16, 32, 64)
DATA = Path(__file__).resolve().parents[1] / "emu" / "network" / "data"


def patches(x):
    """[N, C, H, W] to [N, H, W, C*9]: 3x3 windows, padding 1."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(len(x), *x.shape[2:], -1)


def unpatch(grad, shape):
    """The adjoint of `patches`."""
    n, c, h, w = shape
    grad = grad.reshape(n, h, w, c, 3, 3)
    out = np.zeros((n, c, h + 2, w + 2), np.float32)
    for dy in range(3):
        for dx in range(3):
            out[:, :, dy : dy + h, dx : dx + w] += grad[..., dy, dx].transpose(0, 3, 1, 2)
    return out[:, :, 1:-1, 1:-1]


class Net:
    """conv, relu, conv, relu, max pool, conv, relu, global average, linear."""

    def __init__(self, rng):
        self.w = [
            (rng.standard_normal((b, a * 9)) * np.sqrt(2 / (a * 9))).astype(np.float32)
            for a, b in pairwise(CHANNELS)
        ]
        self.w.append((rng.standard_normal((10, CHANNELS[-1])) * 0.2).astype(np.float32))
        self.b = [np.zeros(len(w), np.float32) for w in self.w]

    @property
    def parameters(self):
        return [*self.w, *self.b]

    def forward(self, x):
        """(logits, what the backward pass needs)."""
        kept = []
        for k in range(3):
            cols = patches(x)
            y = (cols @ self.w[k].T + self.b[k]).transpose(0, 3, 1, 2)
            mask, y = y > 0, np.maximum(y, 0)
            where = None
            shape = x.shape
            x = y
            if k == 1:
                n, c, h, w = y.shape
                blocks = y.reshape(n, c, h // 2, 2, w // 2, 2)
                x = blocks.max((3, 5))
                where = blocks == x[:, :, :, None, :, None]
            kept.append((cols, mask, where, shape))
        pooled = x.mean((2, 3))
        return pooled @ self.w[3].T + self.b[3], (kept, pooled, x.shape)

    def backward(self, grad, saved):
        kept, pooled, shape = saved
        dw, db = [None] * 4, [None] * 4
        dw[3], db[3] = grad.T @ pooled, grad.sum(0)
        g = np.broadcast_to((grad @ self.w[3])[:, :, None, None] / (shape[2] * shape[3]), shape)
        for k in reversed(range(3)):
            cols, mask, where, before = kept[k]
            if where is not None:
                share = where / where.sum((3, 5), keepdims=True)
                g = (share * g[:, :, :, None, :, None]).reshape(mask.shape)
            g = (g * mask).transpose(0, 2, 3, 1)
            flat = g.reshape(-1, g.shape[-1])
            dw[k], db[k] = flat.T @ cols.reshape(len(flat), -1), flat.sum(0)
            if k:
                g = unpatch(g @ self.w[k], before)
        return [*dw, *db]


def train(x, labels):
    rng = np.random.default_rng(SEED)
    net = Net(rng)
    first = [np.zeros_like(p) for p in net.parameters]
    second = [np.zeros_like(p) for p in net.parameters]
    step, steps = 0, EPOCHS * (len(x) // BATCH)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            pick = order[start : start + BATCH]
            logits, saved = net.forward(x[pick])
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(BATCH), labels[pick]] -= 1
            grads = net.backward((p / BATCH).astype(np.float32), saved)
            step += 1
            rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            for value, grad, m, v in zip(net.parameters, grads, first, second, strict=True):
                m += 0.1 * (grad - m)
                v += 0.001 * (grad * grad - v)
                value -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return net


def float_model(net, images):
    nodes, constants, x = [], [], "image"
    for k in range(3):
        shape = (CHANNELS[k + 1], CHANNELS[k], 3, 3)
        constants += [numpy_helper.from_array(net.w[k].reshape(shape), f"w{k}"),
                      numpy_helper.from_array(net.b[k], f"b{k}")]
        nodes.append(helper.make_node("Conv", [x, f"w{k}", f"b{k}"], [f"c{k}"], f"conv{k}",
                                      kernel_shape=[3, 3], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"], f"relu{k}"))
        x = f"r{k}"
        if k == 1:
            nodes.append(helper.make_node("MaxPool", [x], ["pooled"], "pool",
                                          kernel_shape=[2, 2], strides=[2, 2]))
            x = "pooled"
    nodes += [helper.make_node("GlobalAveragePool", [x], ["mean"], "mean"),
              helper.make_node("Flatten", ["mean"], ["flat"], "flat", axis=1),
              helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], "classify", transB=1)]
    constants += [numpy_helper.from_array(net.w[3], "w3"), numpy_helper.from_array(net.b[3], "b3")]
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [images, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [images, 10])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> int:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images[:, None] / 16).astype(np.float32)
    labels = found.target.astype(np.uint8)
    held = np.arange(len(x)) % 5 == 0
    net = train(x[~held], labels[~held])
    for name, which in (("training", ~held), ("held-out", held)):
        right = net.forward(x[which])[0].argmax(1) == labels[which]
        print(f"float accuracy, {name}: {right.mean():.4f} of {len(right)}")
    count = int(held.sum())
    with tempfile.TemporaryDirectory() as folder:
        model, samples = Path(folder) / "digits.onnx", Path(folder) / "samples.npz"
        onnx.save(float_model(net, count), model)
        np.savez(samples, image=x[~held][: 3 * count])
        onnx.save(quantise(model, samples, Options()), DATA / "digits.onnx")
    np.savez_compressed(DATA / "digits.npz", image=np.rint(16 * x[held]).astype(np.uint8),
                        label=labels[held])
    return 0


if __name__ == "__main__":
    sys.exit(main())
