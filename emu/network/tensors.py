# SPDX-License-Identifier: Apache-2.0
"""Input tensors of a network: drawn at random or read from an ``.npz`` file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from emu.network.layers import IndexTensor, Network


def random_inputs(network: Network, seed: int = 1) -> dict[str, NDArray]:
    """Uniform values over each input's whole type, or its rows' numbers, by graph name;
    what the network itself gives, if it does."""
    if network.given is not None:
        return dict(network.given)
    rng = np.random.default_rng(seed)
    found: dict[str, NDArray] = {}
    for tensor in network.inputs:
        if isinstance(tensor, IndexTensor):
            found[tensor.name] = rng.integers(0, tensor.limit, tensor.shape, tensor.dtype)
            continue
        info = np.iinfo(tensor.dtype)
        found[tensor.name] = rng.integers(
            info.min, info.max, tensor.shape, dtype=tensor.dtype, endpoint=True
        )
    return found


def load_inputs(network: Network, path: str | Path) -> dict[str, NDArray]:
    """The arrays of an ``.npz`` file, one per graph input, under its name.

    Raises
    ------
    UserError
        If the file is missing or no npz, or an array is missing, unknown, of another type or shape.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged archive or array fails in many ways
        raise UserError(f"{path}: not an .npz file of plain arrays (numpy.savez)") from None
    if network.boundary:  # floats of a QDQ model are quantised here, on the host
        arrays = {
            name: network.boundary.quantise(name, value)
            if name in network.boundary.inputs and value.dtype.kind == "f" else value
            for name, value in arrays.items()
        }
    check_inputs(network, arrays, str(path))
    return arrays


def check_inputs(network: Network, arrays: dict[str, NDArray], where: str) -> None:
    """Refuse ``arrays`` that are not exactly the network's inputs.

    Raises
    ------
    UserError
        Naming every missing, unknown or wrong array.
    """
    wanted = {tensor.name: tensor for tensor in network.inputs}
    problems = [f"{name} is missing" for name in wanted if name not in arrays]
    for name, array in arrays.items():
        tensor = wanted.get(name)
        if tensor is None:
            problems.append(f"{name} is no input ({', '.join(wanted)})")
        elif array.dtype != np.dtype(tensor.dtype) or array.shape != tensor.shape:
            problems.append(
                f"{name} is {array.dtype}{list(array.shape)}, "
                f"{tensor.dtype}{list(tensor.shape)} expected"
            )
        elif isinstance(tensor, IndexTensor) and array.size and not (
            array.min() >= 0 and array.max() < tensor.limit
        ):
            problems.append(f"{name} holds {array.min()} .. {array.max()}, "
                            f"0 .. {tensor.limit - 1} expected")
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}")
