# SPDX-License-Identifier: Apache-2.0
"""One bench per component, by dotted name: `make sim` lists them and runs one.

A bench is a module with ``VARIANTS`` (name to a function that makes the component) and cocotb
tests; the variant under test is in ``HEADRACE_VARIANT``. What its Verilog loads from files, its
``prepare`` writes into a folder beforehand and returns the plusargs for it. The test suite asks the
long ones for a short run, which checks the same with less traffic (``HEADRACE_QUICK``), and maybe
only of those variants that ``QUICK`` names.
"""

import os
from typing import TypeVar

Size = TypeVar("Size")


def sized(full: Size, quick: Size) -> Size:
    """How much to do: ``full``, or ``quick`` in a short run."""
    return quick if os.environ.get("HEADRACE_QUICK") == "1" else full
