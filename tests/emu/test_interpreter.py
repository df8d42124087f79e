# SPDX-License-Identifier: Apache-2.0
"""The token game finds what is wrong with a program, and says where."""

import dataclasses

import numpy as np
import pytest

from emu.compiler import Program, compile_network
from emu.config import load_config
from emu.interpreter import ProgramError, execute, verify
from emu.isa import COMMAND_WORDS, Opcode, decode, encode
from tests.emu.compiler_layers import make_input, make_layer


@pytest.fixture(scope="module")
def program() -> Program:
    layer = make_layer(
        np.random.default_rng(0), c=48, m=32, h=24, w=20, k=(3, 3), pads=(1, 1, 1, 1)
    )
    return compile_network([layer], load_config("small", ["scratchpad.kib=16"]))


def change(program: Program, opcode: Opcode, occurrence: int = 0, **fields: int) -> Program:
    """``program`` with fields of one command of tile 0,0 replaced."""
    words = program.words.copy()
    base = int(words[0].view(np.uint64)[0]) & (1 << 28) - 1
    found = 0
    for number, command in enumerate(program.streams[0, 0]):
        kind, values = decode(command)
        if kind != opcode:
            continue
        if found == occurrence:
            values = {k: v for k, v in values.items() if k != "opcode"} | fields
            data = np.frombuffer(encode(kind, **values), np.uint8).reshape(-1, 16)
            first = base + number * COMMAND_WORDS
            words[first : first + COMMAND_WORDS] = data
            return dataclasses.replace(program, words=words)
        found += 1
    raise AssertionError(f"no {opcode.name} {occurrence}")


def test_a_good_program_passes(program):
    counts = verify(program)
    outputs = program.tensors["y"].words
    assert counts.store_words == outputs > 0
    assert 16 * (counts.load_words + counts.block_words) == program.planned_read_bytes


@pytest.mark.parametrize(
    "opcode, fields, message",
    [
        (Opcode.LOAD, dict(sem=30), "the program stops: tile 0,0, COMPUTE in queue COMPUTE"),
        (Opcode.LOAD, dict(scratchpad=1023), "LOAD to scratchpad reaches words"),
        (Opcode.LOAD, dict(far=(1 << 28) - 1), "LOAD from HBM reaches words"),
        (Opcode.LOAD, dict(scratchpad=600), "overwrites the parameter frames"),
        (Opcode.COMPUTE, dict(pixels=300), "300 pixels in one COMPUTE"),
        (Opcode.COMPUTE, dict(w_layer=63), "layer 63 has no descriptor"),
        (Opcode.COMPUTE, dict(w_tile=60000), "is beyond layer"),
        (Opcode.STORE, dict(far=(1 << 28) - 1), "STORE to HBM reaches words"),
        (Opcode.STORE, dict(signal0_valid=0), "the program stops"),
        (Opcode.FRAMES, dict(count=100), "frames beyond the scratchpad"),
    ],
)
def test_broken_programs(program, opcode, fields, message):
    with pytest.raises(ProgramError, match=message):
        verify(change(program, opcode, **fields))


def test_reading_before_arrival_is_seen(program):
    broken = change(program, Opcode.COMPUTE, **{f"wait{i}_count": 0 for i in range(3)})
    with pytest.raises(ProgramError, match="never written"):
        verify(broken)


def test_both_orders_of_arrival_agree(program):
    layer = make_layer(
        np.random.default_rng(0), c=48, m=32, h=24, w=20, k=(3, 3), pads=(1, 1, 1, 1)
    )
    inputs = {"x": make_input(np.random.default_rng(1), layer)}
    first, second = (execute(program, inputs, eager=eager) for eager in (True, False))
    np.testing.assert_array_equal(first["y"], second["y"])
