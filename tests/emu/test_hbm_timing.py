# SPDX-License-Identifier: Apache-2.0
"""Address maps: bijections with the published bit order; timing sets: what they allow."""

import numpy as np
import pytest

from emu.config import Hbm
from emu.hbm_timing import TIMINGS, Place, letters, place, row_bits, word

CUSTOM = "GGRRRRRRRRRRRRRRRCCCBBCCOOOOO"


@pytest.mark.parametrize("mib", [1, 32, 512])
@pytest.mark.parametrize("address_map", ["M1", "M2", "M2X", CUSTOM])
def test_map_is_a_bijection(address_map, mib):
    hbm = Hbm(address_map=address_map, mib=mib)
    rng = np.random.default_rng(mib)
    words = [int(w) for w in rng.integers(0, hbm.words, 500)] + [0, hbm.words - 1]
    places = [place(hbm, w) for w in words]
    assert [word(hbm, p) for p in places] == words
    assert all(p.row < 1 << row_bits(hbm) and p.bank < 4 and p.group < 4 for p in places)
    assert len(letters(hbm)) == (mib << 20).bit_length() - 1


def test_one_mib_is_covered():
    hbm = Hbm(address_map="M2X", mib=1)
    assert len({place(hbm, w) for w in range(hbm.words)}) == hbm.words


@pytest.mark.parametrize(
    "address_map, byte, expected",
    [
        ("M1", 0x400, Place(row=0, group=0, bank=1, column=0, half=0)),
        ("M1", 0x1000, Place(row=0, group=1, bank=0, column=0, half=0)),
        ("M1", 0x4000, Place(row=1, group=0, bank=0, column=0, half=0)),
        ("M2", 0x40, Place(row=0, group=1, bank=0, column=0, half=0)),
        ("M2", 0x130, Place(row=0, group=0, bank=0, column=3, half=1)),
        ("M2", 0x1000, Place(row=0, group=0, bank=1, column=0, half=0)),
        ("M2X", 0x4000, Place(row=1, group=0, bank=1, column=0, half=0)),
        ("M2X", 0x14000, Place(row=5, group=0, bank=0, column=0, half=0)),
    ],
)
def test_published_bits(address_map, byte, expected):
    assert place(Hbm(address_map=address_map, mib=512), byte // 16) == expected


def test_timing_sets():
    a, b = TIMINGS["hbm2_a"], TIMINGS["hbm2_b"]
    assert (a.read_to_write, a.write_to_read_l, a.write_to_precharge) == (13, 15, 23)
    assert (b.read_to_write, b.write_to_read_l, b.write_to_precharge) == (14, 14, 22)
    assert a.rc == a.ras + a.rp and b.rc == b.ras + b.rp
    # Four activates of 64 bytes: set A can stream random lines, set B half of the time.
    assert 4 * 4 / max(a.faw, 4 * a.rrd_s) == 1.0 and 4 * 4 / b.faw < 0.54
