# SPDX-License-Identifier: Apache-2.0
"""Every component bench under `sim.benches`, in every simulator that is here."""

import pytest

from sim import runner

VERILATOR_TOO = ("compute.engine", "stream.fifo")
"""Benches that run in Verilator too; each build costs seconds, so most run in Icarus alone."""


@pytest.mark.rtl
@pytest.mark.parametrize("name", runner.bench_names())
def test_bench(name, simulator, tmp_path):
    if simulator == "verilator" and runner.available("icarus") and name not in VERILATOR_TOO:
        pytest.skip("runs in Icarus here")
    report = runner.run_bench(name, simulator, workdir=tmp_path)
    assert report
    for variant, (tests, failed) in report.items():
        log = tmp_path / variant / "run.log"
        assert tests and not failed, f"{name} {variant}: {failed} of {tests} failed, see {log}"
