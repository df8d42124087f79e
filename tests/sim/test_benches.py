# SPDX-License-Identifier: Apache-2.0
"""Every component bench: a short run in one simulator; full runs and the other one are slow."""

import pytest

from sim import runner

IN_VERILATOR = ("compute.engine", "hbm.bandwidth", "hbm.traces", "hbm.traffic", "prefetch.store",
                "storage.pager")
"""Benches that are so long that compiling pays; others run sooner in Icarus, if it is here."""
IN_BOTH = ("stream.fifo",)


def cases():
    for name in runner.bench_names():
        icarus = runner.available("icarus") and name not in IN_VERILATOR
        for simulator in ("verilator", "icarus"):
            wanted = (simulator == "icarus") == icarus or name in IN_BOTH
            marks = () if wanted else pytest.mark.slow
            yield pytest.param(name, simulator, marks=marks, id=f"{name}-{simulator}")


def check(name, simulator, folder, quick):
    report = runner.run_bench(name, simulator, workdir=folder, quick=quick)
    assert report
    for variant, (tests, failed) in report.items():
        log = folder / variant / "run.log"
        assert tests and not failed, f"{name} {variant}: {failed} of {tests} failed, see {log}"


@pytest.mark.rtl
@pytest.mark.parametrize(("name", "simulator"), list(cases()), indirect=["simulator"])
def test_bench(name, simulator, tmp_path):
    check(name, simulator, tmp_path, quick=True)


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.parametrize("name", runner.bench_names())
def test_full_bench(name, tmp_path):
    check(name, "verilator", tmp_path, quick=False)
