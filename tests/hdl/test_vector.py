# SPDX-License-Identifier: Apache-2.0
"""Constructors of the drain's and the vector engine's parts: what they refuse, what they expose."""

import pytest
from amaranth.back import rtlil

from emu.config import load_config
from emu.isa import VectorOp
from hdl.compute.drain import Drain
from hdl.compute.requantise import Requantiser
from hdl.compute.residual import ResidualAdder
from hdl.compute.tables import LookupTable
from hdl.vector.engine import BUILT, VectorEngine

pytestmark = pytest.mark.filterwarnings("ignore:.*created but never used")


@pytest.mark.parametrize("part", [Requantiser, ResidualAdder])
def test_lanes_must_be_positive(part):
    with pytest.raises(ValueError, match=rf"{part.__name__} lanes must be at least 1, not 0"):
        part(0)
    assert part(3).lanes == 3


def test_table_width():
    with pytest.raises(ValueError, match="LookupTable width must be 8 or 32, not 16"):
        LookupTable(16, 1)
    assert LookupTable(8, 2).width == 8


def test_no_product_exceeds_a_machine_word():
    """Multiplications stay within 64 bits, so that a simulator computes each in one operation."""
    for part in (Drain(load_config("base")), VectorEngine(load_config("base"))):
        text = rtlil.convert(part, name="part", emit_src=False)
        widths = [
            int(line.split()[-1])
            for cell in text.split("cell $mul ")[1:]
            for line in cell.split("end\n")[0].splitlines()
            if "Y_WIDTH" in line
        ]
        assert widths and max(widths) <= 64


def test_built_operations_cover_the_networks():
    assert {VectorOp.MAX_POOL, VectorOp.SUM_POOL, VectorOp.ADD, VectorOp.TABLE} <= set(BUILT)
