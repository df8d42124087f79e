# SPDX-License-Identifier: Apache-2.0
"""Quantised softmax exactly as ONNX Runtime's ``QLinearSoftmax`` computes it: integers and a table.

A row's bytes, counted from the type's minimum, are u. With M the row's largest u,
``e = T[u + 255 - M]``, ``S = sum(e)`` and ``y = clamp((e*F + S//2) // S + zero)``, F = floor(1/sy).
"""

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError

ENTRY_LIMIT = 0x7FFFFF
"""Largest entry: with a factor of at most `FACTOR_LIMIT`, ``e*F + S//2`` stays within 32 bits."""
FACTOR_LIMIT = 256
Ints = NDArray[np.integer]


def softmax_table(channels: int, scale: float) -> NDArray[np.uint32]:
    """``T[i] = rne(q * exp((i - 255) * scale))``, ``q = min((2**32 - 1) / channels, 0x7fffff)``."""
    if channels < 1:
        raise UserError(f"softmax over {channels} channels")
    top = min((2.0**32 - 1) / channels, float(ENTRY_LIMIT))
    exponents = (np.arange(256) - 255) * float(np.float32(scale))
    return np.rint(top * np.exp(exponents)).astype(np.uint32)


def softmax_factor(out_scale: float) -> int:
    """``floor(1 / out_scale)``.

    Raises
    ------
    UserError
        If it is not 1 to `FACTOR_LIMIT`.
    """
    factor = int(np.floor(np.float32(1) / np.float32(out_scale)))
    if not 1 <= factor <= FACTOR_LIMIT:
        raise UserError(
            f"softmax: output scale {float(out_scale):g} must be 1/{FACTOR_LIMIT} to 1"
        )
    return factor


def softmax(
    values: Ints, table: NDArray[np.uint32], factor: int, *, is_signed: bool, zero: int = 0,
    low: int = -128, high: int = 127,
) -> NDArray[np.int32]:
    """Softmax over the last axis of quantised ``values`` (int8 or uint8 domain)."""
    u = np.asarray(values, np.int64) + (128 if is_signed else 0)
    e = np.asarray(table, np.int64)[u + 255 - u.max(axis=-1, keepdims=True)]
    total = e.sum(axis=-1, keepdims=True)
    return np.clip((e * factor + total // 2) // total + zero, low, high).astype(np.int32)
