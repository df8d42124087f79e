# SPDX-License-Identifier: Apache-2.0
"""Models of macros: chips that differ elsewhere share them."""

import pytest

from emu.config import load_config
from sim import lockstep
from sim.designs import design_of
from sim.runner import build, stepped
from sim.verilating import _below, control_file


@pytest.fixture(scope="module")
def designs():
    return [design_of(load_config("small", more)) for more in ([], ["storage.enabled=true"])]


def test_what_a_macro_needs(designs):
    """The tile does not know what is behind the channel; a module that is named is there."""
    plain, paged = ([_below(design, macro) for macro in ("tile", "hbm_channel")]
                    for design in designs)
    assert plain[0].files == paged[0].files and plain[0].counters == paged[0].counters
    assert plain[1].files != paged[1].files
    assert "hbm_channel.v" not in plain[0].files and "tile.v" not in plain[1].files
    assert any(name.startswith("headrace_storage_cells") for name in paged[1].files)
    assert control_file(plain[0], ()) != control_file(plain[1], ())
    for design, parts in zip(designs, (plain, paged), strict=True):
        kept = {module for part in parts for module in part.counters}
        below = {module for module, names in design.counters.items() if names}
        assert below - kept <= {design.top}


@pytest.mark.rtl
def test_chips_share_a_tile(designs):
    folders = [build(design, "verilator") for design in designs]
    assert all(stepped(design, "verilator") for design in designs)
    assert lockstep.macros(designs[0]) == lockstep.macros(designs[1])
    tiles, channels = ({(folder / macro).resolve() for folder in folders}
                       for macro in ("tile", "hbm_channel"))
    assert len(tiles) == 1 and len(channels) == 2
    (tile,) = tiles
    assert (tile / "libVtile.a").is_file() and not list(tile.glob("*.o"))
