# SPDX-License-Identifier: Apache-2.0
"""Parts of a tile that need no simulator: parameter checks and the golden model of moves."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.golden_move import FAR_WORDS, NEAR_WORDS, line_ends, load_requests, move_runs, moved_words
from emu.isa import ABSENT, Opcode
from hdl.move_loops import MoveCommand
from hdl.packets import COMMANDS
from hdl.scratchpad import Scratchpad
from hdl.semaphores import Semaphores

PORTS = {"readers": ("a",), "writers": ("b",), "priority": ("read_a", "write_b")}

COUNT = st.integers(0, 4)
NEAR, FAR = st.integers(0, NEAR_WORDS - 1), st.integers(0, FAR_WORDS - 1)
NEAR_STRIDE = st.integers(-NEAR_WORDS, NEAR_WORDS - 1)
FAR_STRIDE = st.integers(-FAR_WORDS, FAR_WORDS - 1)
MOVES = st.fixed_dictionaries(
    {
        "scratchpad": NEAR,
        "far": FAR,
        "run": st.integers(0, 40),
        **{f"count{k}": COUNT for k in range(3)},
        **{f"s_stride{k}": NEAR_STRIDE for k in range(3)},
        **{f"f_stride{k}": FAR_STRIDE for k in range(3)},
        "gather": st.integers(0, 1),
    }
)
LISTS = st.lists(st.integers(0, ABSENT), min_size=4, max_size=6)


@pytest.mark.parametrize("words", [0, 8, 100, 1 << 17])
def test_scratchpad_words(words):
    with pytest.raises(ValueError, match=f"words must be a power of two, 16 to 65536, not {words}"):
        Scratchpad(words, 8, **PORTS)


@pytest.mark.parametrize("banks", [1, 3, 32])
def test_scratchpad_banks(banks):
    with pytest.raises(ValueError, match=f"banks must be a power of two, 2 to 16, not {banks}"):
        Scratchpad(1024, banks, **PORTS)


@pytest.mark.parametrize("priority", [("read_a",), ("read_a", "read_a", "write_b"), ("a", "b")])
def test_scratchpad_priority(priority):
    with pytest.raises(ValueError, match="priority must name each of read_a, write_b once"):
        Scratchpad(1024, 8, ("a",), ("b",), priority)


def test_semaphores_without_waiters():
    with pytest.raises(ValueError, match="at least one waiter"):
        Semaphores(())


def test_load_and_store_are_one_layout():
    assert COMMANDS[Opcode.LOAD] == COMMANDS[Opcode.STORE] == MoveCommand


def plainly(fields, numbers):
    """The definition in `emu.isa`, word by word."""
    for i2, i1, i0, w in itertools.product(
        *(range(fields[f"count{k}"]) for k in (2, 1, 0)), range(fields["run"])
    ):
        outer = numbers[i2] if fields["gather"] else i2
        if fields["gather"] and outer == ABSENT:
            continue
        near = i0 * fields["s_stride0"] + i1 * fields["s_stride1"] + i2 * fields["s_stride2"]
        far = i0 * fields["f_stride0"] + i1 * fields["f_stride1"] + outer * fields["f_stride2"]
        near, far = fields["scratchpad"] + near + w, fields["far"] + far + w
        yield [near % NEAR_WORDS, far % FAR_WORDS]


@settings(deadline=None)
@given(MOVES, LISTS)
def test_moved_words(fields, numbers):
    moved = list(plainly(fields, numbers))
    assert moved_words(Opcode.STORE, fields, numbers).tolist() == moved
    assert moved_words(Opcode.LOAD, fields, numbers).tolist() == [[f, n] for n, f in moved]


@settings(deadline=None)
@given(MOVES, LISTS)
def test_load_requests_cover_the_words_within_segments(fields, numbers):
    words = []
    for address, count, near in load_requests(fields, numbers):
        assert 1 <= count <= 16 and address // 16 == (address + count - 1) // 16
        words += [[address + i, (near + i) % NEAR_WORDS] for i in range(count)]
    assert words == moved_words(Opcode.LOAD, fields, numbers).tolist()


def test_gather_needs_its_list():
    with pytest.raises(ValueError, match="a gather of 3 needs as many indices"):
        move_runs({"run": 1, "count0": 1, "count1": 1, "count2": 3, "gather": 1}, [1, 2])


def test_line_ends():
    assert line_ends([0, 1, 2, 3, 4]) == [False, False, False, True, True]
    assert line_ends([5, 6, 9, 8]) == [False, True, False, True]
    assert line_ends([]) == []
