# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C: no process stays, nothing half-made stays, whether it comes in a build or in a run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from emu.config import load_config
from sim.cache import cache_home
from sim.designs import design_key, design_of
from sim.execute import run
from sim.interrupt import call, descendants, stopping

pytestmark = [
    pytest.mark.rtl,
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc"),
]
SECONDS = 10
"""Far less than a build or the long run takes to end by itself, on a busy machine too."""


def wait_for(process, ready):
    """Until ``ready`` of a descendant's command line; its process."""
    deadline = time.monotonic() + 120
    while True:
        for pid, command in commands(process.pid).items():
            if ready(command):
                return pid
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupt(process, ready, number):
    """Signal ``process`` alone as soon as ``ready`` of a descendant's command line."""
    wait_for(process, ready)
    children = descendants(process.pid)
    process.send_signal(number)
    error = process.communicate(timeout=SECONDS)[1]
    time.sleep(0.1)
    process.stderr.close()
    return error, [pid for pid in children if alive(pid)]


def commands(pid):
    found = {}
    for child in descendants(pid):
        with suppress(OSError):  # gone by now
            found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
    return found


def alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def start(workload, cache, temporary):
    return begin(["run", workload, "--chip", "small"], cache, temporary)


def begin(arguments, cache, temporary):
    temporary.mkdir()
    environment = {**os.environ, "HEADRACE_CACHE": str(cache), "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-m", "sim.cli", *arguments], text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, start_new_session=True,
    )


def test_threads_start_nothing_after_it(tmp_path):
    """Each thread's first process is ended, and its second one refused."""
    ends = []

    def work(number):
        with (tmp_path / str(number)).open("w") as log:
            ends.append(call(["sleep", "60"], log))
            try:
                call(["sleep", "60"], log)
            except InterruptedError:
                ends.append(None)

    def signal_soon():
        while len(descendants(os.getpid())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stopping(), ThreadPoolExecutor(2) as pool:
        threading.Thread(target=signal_soon).start()
        list(pool.map(work, range(6)))
    assert time.monotonic() - start < SECONDS
    assert sorted(ends, key=str) == [-signal.SIGTERM] * 2 + [None] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_build(tmp_path, number):
    design_of(load_config("small"))
    cache = tmp_path / "cache"
    cache.mkdir()
    name = f"verilog-{design_key(load_config('small'))}.json"
    shutil.copy(cache_home() / name, cache / name)  # straight to the build
    process = start("tiny.conv3x3", cache, tmp_path / "tmp")
    error, left = interrupt(process, lambda c: "cc1plus" in c or "verilator_bin" in c, number)
    assert error == "headrace: interrupted\n" and process.returncode == 130
    assert left == []
    assert [path.name for path in cache.iterdir()] == [name]
    assert list((tmp_path / "tmp").glob("headrace*")) == []


def test_in_a_run(tmp_path):
    run("tiny.conv3x3", chip="small")  # built
    process = start("resnet50.res4_3x3", cache_home(), tmp_path / "tmp")
    error, left = interrupt(process, lambda command: "+images=" in command, signal.SIGINT)
    assert error == "headrace: interrupted\n" and process.returncode == 130
    assert left == []
    assert list((tmp_path / "tmp").glob("headrace*")) == []
    assert run("tiny.conv3x3", chip="small")["verified"]["mismatches"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_processes_that_make_rows(tmp_path, number):
    process = begin(["experiment", "prefetch", "--quick", "--jobs", "2"], tmp_path / "cache",
                    tmp_path / "tmp")
    error, left = interrupt(process, lambda command: "spawn_main" in command, number)
    assert error == "headrace: interrupted\n" and process.returncode == 130
    assert left == []
    assert list((tmp_path / "tmp").glob("headrace*")) == []


def test_a_simulator_that_dies(tmp_path):
    run("tiny.conv3x3", chip="small")  # built
    process = start("resnet50.res4_3x3", cache_home(), tmp_path / "tmp")
    os.kill(wait_for(process, lambda command: "+images=" in command), signal.SIGKILL)
    error = process.communicate(timeout=SECONDS)[1]
    process.stderr.close()
    assert process.returncode == 1 and error.count("\n") == 1
    assert error.startswith("headrace: the simulator ended early: ")
    assert "; replay: headrace run resnet50.res4_3x3" in error
    assert list((tmp_path / "tmp").glob("headrace*")) == []
