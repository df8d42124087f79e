# SPDX-License-Identifier: Apache-2.0
"""Where a simulation spends its time: program counters, sampled by a timer inside the process.

Python cannot see the machine code that a signal interrupts, so the handler is a few lines of C++,
compiled beside the build. The timer runs in real time, because the kernel's processor-time timers
tick only every few milliseconds. `sim.profile` gives the addresses their meaning.
"""

import ctypes
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_US = 200
CAPACITY = 1 << 20
LIBRARY = "libheadrace_sampler.so"

_TEXT = """\
// Records the program counter at every SIGALRM; generated.
#include <csignal>
#include <cstdint>
#include <sys/time.h>
#include <ucontext.h>

static uint64_t* samples;
static long capacity;
static volatile long count;

static void record(int, siginfo_t*, void* context) {
    const mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    const uint64_t address = machine.gregs[REG_RIP];
#else
    const uint64_t address = machine.pc;
#endif
    if (count < capacity) samples[count++] = address;
}

static void every(long microseconds) {
    itimerval timer{};
    timer.it_interval.tv_usec = timer.it_value.tv_usec = microseconds;
    setitimer(ITIMER_REAL, &timer, nullptr);
}

extern "C" void sampler_start(uint64_t* buffer, long size, long microseconds) {
    samples = buffer;
    capacity = size;
    count = 0;
    struct sigaction action{};
    action.sa_sigaction = record;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(SIGALRM, &action, nullptr);
    every(microseconds);
}

extern "C" long sampler_stop() {
    every(0);
    return count;
}
"""


def compile_into(folder: Path) -> Path:
    """The sampler as a shared library in ``folder``, compiled once."""
    path = folder / LIBRARY
    if not path.exists():
        source = path.with_suffix(".cpp")
        source.write_text(_TEXT)
        subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return path


@contextmanager
def sampling(library: str | None, result: str | None) -> Iterator[None]:
    """Sample this process inside the block and write ``result``; without ``library`` do nothing.

    ``result`` is JSON: ``addresses`` in the main program, relative to where its file is loaded, and
    samples of each; ``elsewhere``, samples by file name of shared libraries.
    """
    if not library or not result:
        yield
        return
    sampler = ctypes.CDLL(library)
    sampler.sampler_stop.restype = ctypes.c_long
    buffer = (ctypes.c_uint64 * CAPACITY)()
    sampler.sampler_start(buffer, ctypes.c_long(CAPACITY), ctypes.c_long(INTERVAL_US))
    try:
        yield
    finally:
        taken = Counter(buffer[: sampler.sampler_stop()])
        Path(result).write_text(json.dumps(_located(taken)))


def _located(taken: Counter[int]) -> dict:
    """Absolute addresses as offsets in the main program, or as names of other files."""
    program = str(Path("/proc/self/exe").resolve())
    areas = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, name = (line + " ?").split(maxsplit=5)
        low, high = (int(text, 16) for text in span.split("-"))
        areas.append((low, high, int(offset, 16), name.removesuffix(" ?")))
    base = min((low - offset for low, _, offset, name in areas if name == program), default=0)
    addresses: Counter[int] = Counter()
    elsewhere: Counter[str] = Counter()
    for address, samples in taken.items():
        name = next((name for low, high, _, name in areas if low <= address < high), "?")
        if name == program:
            addresses[address - base] += samples
        else:
            elsewhere[Path(name).name] += samples
    return {"program": program, "addresses": addresses, "elsewhere": elsewhere}
