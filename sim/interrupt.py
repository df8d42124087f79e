# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM: nothing that was started goes on, whichever process the signal reached."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

_starting = threading.RLock()
_stopped = threading.Event()


def descendants(pid: int) -> list[int]:
    """Processes that ``pid`` started, theirs included; none where there is no /proc."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone by now
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(path.parent.name))
    found, pending = [], [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        found += children
        pending += children
    return found


def call(command: list[str], log: IO[str]) -> int:
    """Exit status of ``command``, for threads: after a signal none is started any more.

    Raises
    ------
    InterruptedError: If the signal was there first.
    """
    with _starting:
        if _stopped.is_set():
            raise InterruptedError
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    return process.wait()


def _stop(number: int, frame: FrameType | None) -> None:
    with _starting:  # a thread's process is either among those below or never starts
        _stopped.set()
    for pid in descendants(os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
    raise KeyboardInterrupt


@contextmanager
def stopping() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM end every process started here and raise KeyboardInterrupt.

    A terminal's Ctrl-C reaches compilers and simulators by itself; ``kill`` reaches one process,
    and threads that wait for a compiler would go on waiting.
    """
    if threading.current_thread() is not threading.main_thread():  # it gets no signals
        yield
        return
    old = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _stopped.clear()
        for number, handler in old.items():
            signal.signal(number, handler)
