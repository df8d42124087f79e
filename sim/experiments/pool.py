# SPDX-License-Identifier: Apache-2.0
"""Rows of studies made side by side, each by a process of its own.

A row's time goes into one simulation and into compiling in Python, neither of which uses a second
core. Workers are spawned, not forked: ONNX Runtime's threads would not survive a fork.
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from emu.config import load_config
from emu.errors import UserError
from sim.designs import hardware_key
from sim.errors import RunError
from sim.experiments.framework import Experiment, Progress, row_of

Job = tuple[str, int | None]
"""A study's name, and the number of one of its cases or None for what it measures by itself."""
Made = tuple[list[dict[str, Any]], list[str]]
"""Rows, and what was skipped."""
PATIENCE = 10
"""Seconds that a worker has to tidy up when it is told to stop."""


def made(names: Sequence[str], quick: bool, jobs: int, progress: Progress) -> dict[str, Made]:
    """The rows of studies by name, ``jobs`` at a time.

    Raises
    ------
    RunError: If a run fails, or a process was killed. Rows that were made are kept.
    """
    work = [(name, index) for name in names for index in _parts(_study(name), quick)]
    found: dict[str, Made] = {name: ([], []) for name in names}
    if min(jobs, len(work)) == 1:
        return _gathered(found, work, (_make(job, quick, progress) for job in work))
    results: dict[int, Made] = {}
    with _Workers(min(jobs, len(work))) as workers:
        for number, result in workers.results(_ordered(work, quick), quick, progress):
            results[number] = result
    return _gathered(found, work, (results[i] for i in range(len(work))))


def _ordered(work: Sequence[Job], quick: bool) -> list[tuple[int, Job]]:
    """Numbers and jobs: first one of each machine, so that builds run side by side and nobody waits
    for another's; then what a study measures by itself, which takes longest; then the others."""
    seen: set[str] = set()

    def rank(job: Job) -> int:
        name, index = job
        if index is None:
            return 1
        case = _cases(name, quick)[index]
        try:
            machine = hardware_key(load_config(case.chip, case.settings)).model_dump_json()
        except UserError:  # which the case's turn reports
            return 2
        new = machine not in seen
        seen.add(machine)
        return 0 if new else 2

    ranks = [rank(job) for job in work]
    return [(i, work[i]) for i in sorted(range(len(work)), key=ranks.__getitem__)]


def _gathered(found: dict[str, Made], work: Sequence[Job], results: Iterator[Made]):
    for (name, _), (rows, skipped) in zip(work, results, strict=True):
        found[name][0].extend(rows)
        found[name][1].extend(skipped)
    return found


def _study(name: str) -> Experiment:
    from sim.experiments.studies import EXPERIMENTS

    return EXPERIMENTS[name]


@cache
def _cases(name: str, quick: bool):
    return _study(name).cases(quick)


def _parts(study: Experiment, quick: bool) -> list[int | None]:
    alone: list[int | None] = [None] if study.measure else []
    return [*alone, *range(len(_cases(study.name, quick)))]


def _make(job: Job, quick: bool, progress: Progress) -> Made:
    name, index = job
    study = _study(name)
    if index is None:
        assert study.measure is not None
        return study.measure(quick, progress), []
    case = _cases(name, quick)[index]
    try:
        return [row_of(study, case, progress)], []
    except UserError as error:  # the workload does not fit this machine
        return [], [f"{case.group}, {case.name}: {error}"]


class _Workers:
    """Processes that make rows; none is left when the context ends, however it ends."""

    def __init__(self, count: int):
        self._context = get_context("spawn")
        self._count = count

    def __enter__(self) -> "_Workers":
        # Ctrl-C waits until a worker has its handlers: it inherits the mask, which the tracker's
        # start would undo.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._all = dict(self._begun() for _ in range(self._count))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return self

    def _begun(self):
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs,), daemon=False)
        process.start()
        theirs.close()
        return ours, process

    def results(
        self, jobs: list[tuple[int, Job]], quick: bool, progress: Progress
    ) -> Iterator[tuple[int, Made]]:
        """Numbers and what was made, in the order in which it is done."""
        jobs, busy = jobs[::-1], {}
        for pipe in self._all:
            busy[pipe], job = jobs.pop()
            pipe.send((job, quick))
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    raise RunError("a process that made rows was killed, perhaps for want of "
                                   "memory: run it again with --jobs 1; rows that were made are "
                                   "kept") from None
                if kind == "said":
                    progress(value)
                elif kind == "failed":
                    raise value
                else:
                    number = busy.pop(pipe)
                    if jobs:
                        busy[pipe], job = jobs.pop()
                        pipe.send((job, quick))
                    yield number, value

    def __exit__(self, *_) -> None:
        for process in self._all.values():
            process.terminate()
        for pipe, process in self._all.items():
            process.join(PATIENCE)
            process.kill()
            process.join()
            pipe.close()


def _leave(*_) -> NoReturn:
    """A worker's end: what it waits for is ended, its temporary files go, nothing is said."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # SIG_IGN would complain of pending ones
    sys.exit(130)


def _work(pipe: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    while True:
        try:
            job, quick = pipe.recv()
        except EOFError:  # whoever asked is gone
            return
        try:
            pipe.send(("made", _make(job, quick, lambda text: pipe.send(("said", text)))))
        except BrokenPipeError:
            return
        except Exception as error:
            pipe.send(("failed", error))
