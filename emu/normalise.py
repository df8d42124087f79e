# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation in integers: the machine's own definition, as no integer operator exists.

Of a row of N values less their zero point, u: ``S1 = sum(u)`` and ``S2 = sum(u*u)`` exactly, so
``V = N*S2 - S1*S1`` is N*N times the variance, exactly, and ``d = N*u - S1`` is N times a value's
distance from the mean. With ``W = V + E``, E = N*N*epsilon in the input's units, the normalised
value is d / sqrt(W). ``W * 4**s`` is put into 2**44 .. 2**46 - 1; ``r = isqrt`` of that,
``t = 2**45 // r``, and ``n = (d*t + half) >> (31 - s)`` has `VALUE_BITS` bits behind the point.
Then ``y = clamp(rne(n*gain + offset) + zero)``, gain and offset of each channel with `GAIN_BITS`
bits behind the point. The root mean square variant is the same with S1 = 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError

VALUE_BITS, GAIN_BITS = 14, 12
CHANNELS_LIMIT = 1 << 14
EPSILON_LIMIT = 1 << 45
GAIN_LIMIT = 1 << 23
ROOT_BITS = 23
Ints = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class NormParameters:
    """What a normalisation over ``len(gain)`` channels needs.

    gain, offset: int32 of each channel.
    epsilon: E.
    """

    gain: NDArray[np.int32]
    offset: NDArray[np.int32]
    epsilon: int


def norm_parameters(
    gamma, beta, *, in_scale: float, out_scale: float, epsilon: float
) -> NormParameters:
    """Integers from the float operator's parameters and scales.

    Raises
    ------
    UserError
        If there are too many channels, or a parameter is too large for its field.
    """
    gamma, beta = np.asarray(gamma, np.float64), np.asarray(beta, np.float64)
    count = len(gamma)
    if not 1 <= count < CHANNELS_LIMIT:
        raise UserError(f"normalisation over {count} channels: at most {CHANNELS_LIMIT - 1}")
    gain = np.rint(gamma / float(out_scale) * (1 << GAIN_BITS))
    offset = np.rint(beta / float(out_scale) * (1 << GAIN_BITS))
    if not (np.abs(gain) < GAIN_LIMIT).all() or not (np.abs(offset) < 2.0**31).all():
        raise UserError(
            f"normalisation: a gain of {np.abs(gamma).max():g} or an offset of "
            f"{np.abs(beta).max():g} is too large for an output scale of {float(out_scale):g}"
        )
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        extra = np.rint(float(count) ** 2 * np.float64(epsilon) / np.float64(in_scale) ** 2)
    if not 0 <= extra < EPSILON_LIMIT:
        raise UserError(
            f"normalisation: epsilon {float(epsilon):g} is too large for an input scale of "
            f"{float(in_scale):g}"
        )
    return NormParameters(
        gain=gain.astype(np.int32), offset=offset.astype(np.int32), epsilon=int(extra)
    )


def parameter_words(parameters: NormParameters) -> NDArray[np.uint8]:
    """Scratchpad words, eight a 16-channel group: 4 offsets and 4 gains for lanes 0-3, 4-7, ..."""
    groups = -(-len(parameters.gain) // 16)
    both = np.zeros((2, groups * 16), np.int32)
    both[0, : len(parameters.gain)] = parameters.offset
    both[1, : len(parameters.gain)] = parameters.gain
    return (
        both.reshape(2, groups, 4, 4).transpose(1, 2, 0, 3).copy().view(np.uint8).reshape(-1, 16)
    )


def root_reciprocal(w: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(t, s) of each W."""
    w = np.asarray(w, np.int64)
    s = np.zeros_like(w)
    for _ in range(ROOT_BITS - 1):
        small = (w << 2 * s) < 1 << 2 * (ROOT_BITS - 1)
        s = s + small
    s = np.where(w == 0, ROOT_BITS - 1, s)
    scaled = w << 2 * s
    root = np.floor(np.sqrt(scaled.astype(np.float64))).astype(np.int64)
    root -= root * root > scaled  # a square root below 2**26 is at most one off
    root += (root + 1) * (root + 1) <= scaled
    return (1 << 2 * ROOT_BITS - 1) // np.maximum(root, 1), s


def normalise(
    values: Ints, parameters: NormParameters, *, in_zero: int = 0, zero: int = 0, low: int = -128,
    high: int = 127, centred: bool = True,
) -> NDArray[np.int32]:
    """Normalise over the last axis of quantised ``values``.

    ``centred``: layer normalisation; otherwise the mean counts as 0 (root mean square).
    """
    u = np.asarray(values, np.int64) - in_zero
    count = u.shape[-1]
    total = u.sum(axis=-1, keepdims=True) if centred else np.zeros((*u.shape[:-1], 1), np.int64)
    spread = count * (u * u).sum(axis=-1, keepdims=True) - total * total
    t, s = root_reciprocal(spread + parameters.epsilon)
    shift = 31 - s
    n = ((count * u - total) * t + (np.int64(1) << shift - 1)) >> shift
    wide = n * parameters.gain + (parameters.offset.astype(np.int64) << VALUE_BITS)
    point = VALUE_BITS + GAIN_BITS
    even = wide >> point & 1
    y = (wide + (1 << point - 1) - 1 + even) >> point
    return np.clip(y + zero, low, high).astype(np.int32)


def layer_norm(
    values: Ints, gamma, beta, *, in_scale: float, in_zero: int, out_scale: float, zero: int,
    epsilon: float, low: int = -128, high: int = 127,
) -> NDArray[np.int32]:
    """Layer normalisation over the last axis, from the float operator's parameters and scales."""
    parameters = norm_parameters(
        gamma, beta, in_scale=in_scale, out_scale=out_scale, epsilon=epsilon
    )
    return normalise(values, parameters, in_zero=in_zero, zero=zero, low=low, high=high)
