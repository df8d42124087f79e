# SPDX-License-Identifier: Apache-2.0
"""Train a small mixture of experts and write `emu/network/data/experts.npz`; needs scikit-learn.

    pip install scikit-learn && python tools/train_experts.py

The 8x8 digits of `train_digits.py`, an image a token, every fifth held out: a linear layer, three
residual layers of eight experts of which two are mixed by their probabilities over all experts
(not renormalised, as `emu.network.experts.moe_block` mixes), a classifier. A loss keeps experts in
use (W. Fedus et al., "Switch Transformers", JMLR 2022, equation 4, over both choices). The weights
are rounded to int8 by tensor; the routing of the held-out images, in their order, is recorded with
the rounded weights as scores of int8, one scale a layer, the chosen ones raised by 1 so that
rounding makes no ties with others; ``foreseen`` likewise what a layer's router says of the input of
the layer before. Gradients are written out in numpy.
"""

import sys
from pathlib import Path

import numpy as np

SEED, EPOCHS, BATCH, RATE, BALANCE = 7, 40, 32, 3e-3, 0.02
WIDTH, INNER, EXPERTS, CHOSEN, LAYERS = 32, 32, 8, 2, 3
HIGHEST = 120
DATA = Path(__file__).resolve().parents[1] / "emu" / "network" / "data"


def chosen(scores):
    """The two largest of each row as a mask; of equals the first."""
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.argsort(-scores, 1, kind="stable")[:, :CHOSEN], True, 1)
    return mask


def softmax(x):
    p = np.exp(x - x.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def fresh(rng):
    """Weights by name."""
    def drawn(*shape):
        return (rng.standard_normal(shape) * np.sqrt(1 / shape[-1])).astype(np.float32)

    w = {"first": drawn(WIDTH, 64), "last": drawn(10, WIDTH)}
    for k in range(LAYERS):
        w[f"router{k}"] = drawn(EXPERTS, WIDTH)
        w[f"up{k}"] = drawn(EXPERTS, INNER, WIDTH)
        w[f"down{k}"] = drawn(EXPERTS, WIDTH, INNER)
    return w


def forward(w, x):
    """(logits, what the backward pass needs of each layer, the residual stream's end)."""
    h, kept = x @ w["first"].T, []
    for k in range(LAYERS):
        scores = h @ w[f"router{k}"].T
        p, mask = softmax(scores), chosen(scores)
        hidden = np.maximum(np.einsum("bd,ehd->beh", h, w[f"up{k}"], optimize=True), 0)
        out = np.einsum("beh,edh->bed", hidden, w[f"down{k}"], optimize=True)
        kept.append((h, scores, p, mask, hidden, out))
        h = h + ((p * mask)[..., None] * out).sum(1)
    return h @ w["last"].T, kept, h


def backward(w, x, grad, kept, end):
    found, g, batch = {"last": grad.T @ end}, grad @ w["last"], len(x)
    for k in reversed(range(LAYERS)):
        h, _, p, mask, hidden, out = kept[k]
        used = mask.mean(0) / CHOSEN
        dp = (g[:, None] * out).sum(2) * mask + BALANCE * EXPERTS * used / batch
        dscores = p * (dp - (p * dp).sum(1, keepdims=True))
        dout = (p * mask)[..., None] * g[:, None]
        found[f"down{k}"] = np.einsum("bed,beh->edh", dout, hidden, optimize=True)
        dhidden = np.einsum("bed,edh->beh", dout, w[f"down{k}"], optimize=True) * (hidden > 0)
        found[f"up{k}"] = np.einsum("beh,bd->ehd", dhidden, h, optimize=True)
        found[f"router{k}"] = dscores.T @ h
        g = (g + dscores @ w[f"router{k}"]
             + np.einsum("beh,ehd->bd", dhidden, w[f"up{k}"], optimize=True))
    found["first"] = g.T @ x
    return found


def train(x, labels):
    rng = np.random.default_rng(SEED)
    w = fresh(rng)
    first = {name: np.zeros_like(v) for name, v in w.items()}
    second = {name: np.zeros_like(v) for name, v in w.items()}
    step, steps = 0, EPOCHS * (len(x) // BATCH)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            pick = order[start : start + BATCH]
            logits, kept, end = forward(w, x[pick])
            p = softmax(logits)
            p[np.arange(BATCH), labels[pick]] -= 1
            grads = backward(w, x[pick], (p / BATCH).astype(np.float32), kept, end)
            step += 1
            rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, grad in grads.items():
                m, v = first[name], second[name]
                m += 0.1 * (grad - m)
                v += 0.001 * (grad * grad - v)
                w[name] -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return w


def recorded(scores):
    """Scores [layer, token, expert] as int8 with the same choices."""
    scales = HIGHEST / abs(scores).max((1, 2), keepdims=True)
    found = (np.rint(scores * scales) + [chosen(layer) for layer in scores]).astype(np.int8)
    assert all((chosen(a) == chosen(b)).all() for a, b in zip(found, scores, strict=True))
    return found


def main() -> int:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images.reshape(-1, 64) / 16).astype(np.float32)
    labels = found.target
    held = np.arange(len(x)) % 5 == 0
    w = train(x[~held], labels[~held])
    files, rounded = {}, {}
    for name, value in w.items():
        scale = np.float32(abs(value).max() / 127)
        files[name], files[f"{name}.scale"] = np.rint(value / scale).astype(np.int8), scale
        rounded[name] = files[name] * scale
    for kind, weights in (("float", w), ("int8", rounded)):
        for name, which in (("training", ~held), ("held-out", held)):
            right = forward(weights, x[which])[0].argmax(1) == labels[which]
            print(f"{kind} weights, {name}: {right.sum()} of {len(right)} right")
    kept = forward(rounded, x[held])[1]
    masks = np.stack([layer[3] for layer in kept])
    files["scores"] = recorded(np.stack([layer[1] for layer in kept]))
    files["foreseen"] = recorded(np.stack([
        kept[k - 1][0] @ rounded[f"router{k}"].T for k in range(1, LAYERS)]))
    for k, mask in enumerate(masks):
        assert (chosen(files["scores"][k]) == mask).all()
        line = f"layer {k}: tokens of each expert {mask.sum(0).tolist()}"
        if k:
            early = chosen(files["foreseen"][k - 1])
            line += f"; {(early & mask).sum()} of {mask.sum()} foreseen from layer {k - 1}'s input"
        repeated = (mask[1:] & mask[:-1]).sum()
        print(f"{line}; {repeated} of {mask[1:].sum()} are the token's before")
    np.savez_compressed(DATA / "experts.npz", **files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
