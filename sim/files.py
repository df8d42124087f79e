# SPDX-License-Identifier: Apache-2.0
"""Files that results go to: refused early if they cannot be written, whole or not there at all."""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emu.errors import UserError
from sim.cache import cache_home


def check_writable(path: str | None) -> None:
    """Refuse a ``path`` that no file can be written to.

    Raises
    ------
    UserError
        If it is a folder, or its folder is missing or not writable.
    """
    if path is None:
        return
    if not path or Path(path).is_dir():
        raise UserError(f"cannot write {path!r}: it is a folder: name a file in it")
    folder = Path(path).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}: folder {folder} is missing or not writable")


def write(path: str, data: bytes) -> None:
    """Write a file at once: beside its place first, then moved there.

    Raises
    ------
    UserError
        If it cannot be written, a full disk included.
    """
    target = Path(path).resolve()
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        if target.exists() and not target.is_file():  # a pipe or a device
            target.write_bytes(data)
            return
        try:
            temporary.write_bytes(data)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def npz(arrays: Mapping[str, NDArray]) -> bytes:
    """An ``.npz`` archive of ``arrays``, whatever their names (`np.savez` takes no ``file``)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


def check_cache() -> None:
    """Refuse a cache folder that builds cannot be kept in.

    Raises
    ------
    UserError
        If it cannot be made or written, or its path has spaces, which make cannot bear.
    """
    home = cache_home()
    advice = "set HEADRACE_CACHE to another folder"
    if any(character.isspace() for character in str(home.resolve())):
        raise UserError(f"cannot build in {str(home)!r}: make refuses spaces in paths: {advice}")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot keep builds in {home}: {error.strerror}: {advice}") from None
    if not os.access(home, os.W_OK):
        raise UserError(f"cannot keep builds in {home}: it is not writable: {advice}")
