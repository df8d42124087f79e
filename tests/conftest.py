# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: simulators at hand, and where their builds go."""

import os

import pytest

from sim import runner


@pytest.fixture(params=["verilator", "icarus"])
def simulator(request) -> str:
    """Each simulator that is here; a missing Icarus skips, unless CI requires it."""
    if not runner.available(request.param):
        if os.environ.get("HEADRACE_REQUIRE_ICARUS"):
            pytest.fail(f"{request.param} is required here and missing")
        pytest.skip(f"{request.param} is not installed")
    return request.param
