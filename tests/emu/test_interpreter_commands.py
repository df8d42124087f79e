# SPDX-License-Identifier: Apache-2.0
"""Commands of hand-written streams: gathers, stores to tiles, resident weights, int32 drains."""

import numpy as np
import pytest

from emu.compute_model import DEPTHWISE
from emu.golden_compute import group_sums
from emu.golden_move import moved_words
from emu.interpreter import Interpreter, ProgramError
from emu.isa import Opcode, WeightMode
from emu.requantise import requantise, to_bytes
from tests.emu.programs import DATA, load, program, rect, store


def run(image, **kind):
    config, words = image
    return Interpreter(config, words.copy(), **kind).run()


@pytest.mark.parametrize("eager", [True, False])
def test_gather(eager):
    config, words = program(
        load(100, 3000, 2, sem_valid=1, sem=1),
        load(0, DATA, 2, count2=6, s_stride2=2, f_stride2=3, gather=1, gather_base=100,
             wait0_sem=1, wait0_count=2, sem_valid=1, sem=2),
        store(0, 3500, 12, wait0_sem=2, wait0_count=12),
    )
    numbers = [9, 0, 77, 5, 5, 160]
    words[3000:3002].reshape(-1).view(np.uint32)[:6] = numbers
    after = run((config, words), eager=eager)
    fields = {"run": 2, "count0": 1, "count1": 1, "count2": 6, "f_stride2": 3, "s_stride2": 2,
              "gather": 1, "far": DATA}
    source = moved_words(Opcode.LOAD, fields, numbers)[:, 0]
    np.testing.assert_array_equal(after[3500:3512], words[source])
    run((config, words), eager=eager, values=False)


def test_streams_begin_with_a_segment():
    config, words = program()
    words[0].view(np.uint64)[0] += 8
    with pytest.raises(ProgramError, match="tile 0,0: the stream begins within a segment"):
        run((config, words))


def test_gather_needs_its_list():
    image = program(load(0, DATA, 2, gather=1, gather_base=100))
    with pytest.raises(ProgramError, match="gather reads scratchpad word 100, never written"):
        run(image, values=False)


def push(**fields):
    """Tile (0, 0) sends eight words to itself and tile (1, 0)."""
    both = {"to_tiles": 1, "rect": rect(x1=1), "sem_valid": 1, "sem": 4}
    return store(0, 40, 8, wait0_sem=1, wait0_count=8, **(both | fields))


@pytest.mark.parametrize("eager", [True, False])
def test_store_to_tiles(eager):
    image = program(
        load(0, DATA, 8, sem_valid=1, sem=1), push(),
        (Opcode.SYNC, {"queue": 3, "wait0_sem": 4, "wait0_count": 8}),
        second=(store(40, 3500, 8, wait0_sem=4, wait0_count=8),),
    )
    after = run(image, eager=eager)
    np.testing.assert_array_equal(after[3500:3508], image[1][DATA : DATA + 8])


def test_a_signal_to_a_tile_follows_the_words():
    image = program(
        load(0, DATA, 8, sem_valid=1, sem=1),
        push(sem_valid=0, rect=rect(x0=1, x1=1), signal0_valid=1, signal0_sem=5,
             signal0_rect=rect(x0=1, x1=1)),
        second=(store(40, 3500, 8, wait0_sem=5, wait0_count=1),),
    )
    after = run(image, eager=False)
    np.testing.assert_array_equal(after[3500:3508], image[1][DATA : DATA + 8])


def test_words_for_tiles_that_nobody_awaits_are_seen():
    image = program(load(0, DATA, 8, sem_valid=1, sem=1), push())
    with pytest.raises(ProgramError, match="semaphore 4 ends at 8, not 0"):
        run(image, values=False, eager=False)


SIZES = {WeightMode.ROW: 16, WeightMode.COLUMN: 16, WeightMode.DIAGONAL: 1, WeightMode.INT4: 8,
         WeightMode.ROW_TAP: 3}


def compute(mode, **fields):
    """Two output groups of a 1x2 kernel over three pixels, weights resident from word 200."""
    groups = 1 if mode in DEPTHWISE else 2
    f = dict.fromkeys(("y0", "x0", "dy", "dx", "first_x", "w_keep", "residual_valid"), 0)
    return f | {
        "base": 0, "plane": 8, "row": 8, "step": 1, "height": 1, "width": 4, "sy": 1, "sx": 1,
        "dx": 1, "kh": 1, "kw": 2, "in_groups": groups, "out_width": 3, "pixels": 3,
        "w_resident": 1, "w_base": 40, "w_group_stride": 80, "w_tile_stride": 18,
        "w_mode": int(mode), "out_groups": 2, "advance": 0, "a_signed": 1, "a_zero": 3,
        "w_signed": 1, "w_zero": -1, "first": 1, "last": 1, "out": 300, "out_group": 16,
        "out_step": 5, "params": 220, "out_zero": 1, "clip_low": -128, "clip_high": 127,
        "wait0_sem": 1, "wait0_count": 250, "signal0_valid": 1, "signal0_sem": 2,
    } | fields


@pytest.mark.parametrize("out_int32", [0, 1])
@pytest.mark.parametrize("mode", list(WeightMode))
def test_resident_weights(mode, out_int32):
    f = compute(mode, out_int32=out_int32)
    config, words = program(
        load(0, DATA, 250, sem_valid=1, sem=1), (Opcode.COMPUTE, f),
        store(300, 3500, 4 if out_int32 else 1, count0=3, s_stride0=5, f_stride0=5, count1=2,
              s_stride1=16, f_stride1=16, wait0_sem=2, wait0_count=1),
    )
    scales = np.random.default_rng(1).uniform(1e-4, 1e-2, (2, 16)).astype(np.float32)
    for g in range(2):
        first = DATA + 220 + 8 * g
        words[first + 4 : first + 8] = scales[g].view(np.uint8).reshape(4, 16)
    after = run((config, words))
    run((config, words), values=False)
    memory = words[DATA : DATA + 512]

    def tile(group, k):
        first = 40 + 80 * group + 18 * k
        return memory[first : first + SIZES[mode]]

    for g in range(2):
        first = 220 + 8 * g
        bias = memory[first : first + 4].reshape(-1).view(np.int32)
        total = group_sums(f, g, memory, tile)
        got = after[3500 + 16 * g : 3516 + 16 * g]
        for p in range(3):
            if out_int32:
                wrapped = (total[p] + bias).astype(np.int64).astype(np.uint32)
                np.testing.assert_array_equal(
                    got[5 * p : 5 * p + 4].reshape(-1).view(np.uint32), wrapped
                )
            else:
                want = requantise(total[p], scales[g], bias=bias, zero=1)
                np.testing.assert_array_equal(got[5 * p], to_bytes(want))


def test_resident_weights_must_be_there():
    image = program(
        load(0, DATA, 40, sem_valid=1, sem=1),
        (Opcode.COMPUTE, compute(WeightMode.ROW, wait0_count=40)),
    )
    with pytest.raises(ProgramError, match="COMPUTE reads scratchpad word 40, never written"):
        run(image, values=False)


def test_unknown_weight_mode():
    image = program(
        load(0, DATA, 250, sem_valid=1, sem=1),
        (Opcode.COMPUTE, compute(WeightMode.ROW, w_mode=7)),
    )
    with pytest.raises(ProgramError, match="COMPUTE has no weight mode 7"):
        run(image, values=False)
