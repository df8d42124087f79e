# SPDX-License-Identifier: Apache-2.0
"""The folder of builds and rows, each under the hash of what it was made of."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def cache_home() -> Path:
    """Where builds are kept: ``$HEADRACE_CACHE`` or the user's cache folder."""
    base = os.environ.get("HEADRACE_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "headrace"


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time makes ``path``: a second one waits here, then finds it made."""
    lock = path.with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, lock):  # its last holder removed it while this process waited
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def keep_log(folder: Path) -> Path:
    """A failed build's log, out of the folder that is about to go."""
    kept = cache_home() / "last-failure.log"
    shutil.copyfile(folder / "build.log", kept)
    return kept


__all__ = ["alone", "cache_home", "digest", "keep_log"]
