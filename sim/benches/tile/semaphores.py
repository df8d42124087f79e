# SPDX-License-Identifier: Apache-2.0
"""Semaphores: every increment and wait against a plain array of counters, in every cycle."""

import os

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from hdl.ports import Credit, WaitOp
from hdl.semaphores import Semaphores
from sim.streams import pack

QUEUES = ("compute", "vector", "load", "store")
WAITERS = {"four": QUEUES, "three": QUEUES[:3]}
VARIANTS = {name: lambda waiters=waiters: Semaphores(waiters) for name, waiters in WAITERS.items()}


def waiters():
    return WAITERS[os.environ["HEADRACE_VARIANT"]]


async def start(dut):
    dut.arrive__valid.value = 0
    dut.arrive__sem.value = 0
    dut.signal__valid.value = 0
    dut.signal__payload.value = 0
    dut.credit__valid.value = 0
    dut.credit__payload.value = 0
    for name in waiters():
        getattr(dut, f"wait_{name}__valid").value = 0
        getattr(dut, f"wait_{name}__payload").value = 0
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(p_arrive=[0.1, 0.9, 1.0], p_signal=[0.0, 0.3], sems=[1, 32])
async def random(dut, p_arrive, p_signal, sems):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    value = [0] * 32
    waiting: dict[str, tuple[int, int]] = {}
    taken, arrivals, patience = 0, 0, dict.fromkeys(waiters(), 0)
    credit: tuple[int, int] | None = None
    for _ in range(1500):
        if credit is None and rng.random() < p_signal / 3:
            credit = int(rng.integers(sems)), int(rng.integers(0, 5))
        dut.credit__valid.value = int(credit is not None)
        if credit is not None:
            given = {"sem": credit[0], "words": credit[1]}
            dut.credit__payload.value = pack(Credit, given)
        arrive, signal = rng.random() < p_arrive, rng.random() < p_signal
        a, s = (int(v) for v in rng.integers(0, sems, 2))
        dut.arrive__valid.value, dut.arrive__sem.value = int(arrive), a
        dut.signal__valid.value, dut.signal__payload.value = int(signal), s
        for name in waiters():
            if rng.random() < 0.02:  # withdrawn: what few arrivals cannot meet must not stay
                waiting.pop(name, None)
                patience[name] = 0
            if name not in waiting and rng.random() < 0.3:
                waiting[name] = int(rng.integers(sems)), int(rng.integers(0, 6))
            getattr(dut, f"wait_{name}__valid").value = int(name in waiting)
            if name in waiting:
                sem, n = waiting[name]
                getattr(dut, f"wait_{name}__payload").value = pack(WaitOp, {"sem": sem, "count": n})
        await ReadOnly()
        assert int(dut.signal__ready.value) == 1
        assert int(dut.credit__ready.value) == (not signal)
        before = list(value)
        credited = credit is not None and not signal
        if credit is not None and credited:
            value[credit[0]] += credit[1]
            credit = None
        for name in list(waiting):
            sem, n = waiting[name]
            if int(getattr(dut, f"wait_{name}__ready").value):
                assert before[sem] >= n
                value[sem] -= n
                taken += 1
                patience[name] = 0
                del waiting[name]
            elif not signal and not credited:
                # In turn: one look every len(waiters()) cycles without a signal or a credit.
                patience[name] = patience[name] + 1 if before[sem] >= n else 0
                assert patience[name] <= len(waiters()), name
        value[a] += arrive
        value[s] += signal
        arrivals += arrive
        await RisingEdge(dut.clk)
    assert taken > 20
    await ReadOnly()
    assert int(dut.count_arrivals.value) == arrivals
    assert int(dut.error.value) == 0


async def in_turn(dut, name, count) -> int:
    """Wait for ``count`` on semaphore 7; returns the cycles in which it was not taken."""
    getattr(dut, f"wait_{name}__payload").value = pack(WaitOp, {"sem": 7, "count": count})
    getattr(dut, f"wait_{name}__valid").value = 1
    cycles, taken = -1, 0
    while not taken:
        await ReadOnly()
        taken = int(getattr(dut, f"wait_{name}__ready").value)
        await RisingEdge(dut.clk)
        cycles += 1
    getattr(dut, f"wait_{name}__valid").value = 0
    return cycles


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(case=["arrival", "signal", "both", "lowered", "credit"])
async def overflow(dut, case):
    """65535 is reached without error; one more is one."""
    await start(dut)
    name = waiters()[0]
    dut.arrive__valid.value = 1
    dut.arrive__sem.value = 7
    await ClockCycles(dut.clk, 65535 - 3 * (case == "credit") - (case == "both"))
    if case == "credit":
        dut.arrive__valid.value = 0
        dut.credit__valid.value = 1
        dut.credit__payload.value = pack(Credit, {"sem": 7, "words": 3})
        await RisingEdge(dut.clk)
        dut.credit__payload.value = pack(Credit, {"sem": 7, "words": 2})
    dut.arrive__valid.value = int(case in ("arrival", "both"))
    dut.signal__valid.value = int(case in ("signal", "both"))
    dut.signal__payload.value = 7
    if case == "lowered":
        await in_turn(dut, name, 0)  # now the turn is known
        await ClockCycles(dut.clk, len(waiters()) - 1)
        dut.arrive__valid.value = 1
        assert await in_turn(dut, name, 1) == 0
        dut.arrive__valid.value = 0
    assert int(dut.error.value) == 0
    await RisingEdge(dut.clk)
    dut.arrive__valid.value = dut.signal__valid.value = dut.credit__valid.value = 0
    await ReadOnly()
    assert int(dut.error.value) == (case != "lowered")


@cocotb.test(timeout_time=10, timeout_unit="us")
async def after_reset(dut):
    """Counters are 0 and usable in the first cycle after a reset, whatever they were before."""
    await start(dut)
    dut.arrive__valid.value, dut.arrive__sem.value = 1, 3
    await ClockCycles(dut.clk, 5)
    dut.rst.value, dut.arrive__valid.value = 1, 0
    await RisingEdge(dut.clk)
    dut.rst.value = 0
    name = waiters()[-1]
    getattr(dut, f"wait_{name}__payload").value = pack(WaitOp, {"sem": 3, "count": 1})
    getattr(dut, f"wait_{name}__valid").value = 1
    for _ in range(8):
        await ReadOnly()
        assert int(getattr(dut, f"wait_{name}__ready").value) == 0
        await RisingEdge(dut.clk)
