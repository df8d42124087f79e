# SPDX-License-Identifier: Apache-2.0
"""Commands survive encoding, and what does not fit is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import UserError
from emu.isa import BODIES, COMMAND_BYTES, HEADER, Opcode, decode, encode


@st.composite
def commands(draw):
    opcode = draw(st.sampled_from(list(Opcode)))
    values = {}
    for name, width in HEADER[1:] + BODIES[opcode]:
        bits = abs(width)
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if width < 0 else (0, (1 << bits) - 1)
        values[name] = draw(st.integers(low, high))
    return opcode, values


@given(commands())
def test_round_trip(command):
    opcode, values = command
    data = encode(opcode, **values)
    assert len(data) == COMMAND_BYTES
    decoded, fields = decode(data)
    assert decoded == opcode
    assert {name: fields[name] for name in values} == values


def test_too_large_is_refused():
    with pytest.raises(UserError, match="pixels = 5000 does not fit 12 bits"):
        encode(Opcode.COMPUTE, pixels=5000)


def test_unknown_field_is_refused():
    with pytest.raises(UserError, match="no such command field: colour"):
        encode(Opcode.LOAD, colour=1)
