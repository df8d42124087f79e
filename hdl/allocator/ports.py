# SPDX-License-Identifier: Apache-2.0
"""What goes into and out of an allocation unit."""

from amaranth.lib import data, enum

import emu.allocator as model


class Op(enum.Enum, shape=2):
    """See `emu.allocator.Op`."""

    BEGIN = model.Op.BEGIN.value
    PLAN = model.Op.PLAN.value
    ALLOCATE = model.Op.ALLOCATE.value
    FREE = model.Op.FREE.value


class Mode(enum.Enum, shape=2):
    """See `emu.allocator.Mode`."""

    STATIC = model.Mode.STATIC.value
    FIRST_FIT = model.Mode.FIRST_FIT.value
    BEST_FIT = model.Mode.BEST_FIT.value
    POWER_OF_TWO = model.Mode.POWER_OF_TWO.value


def command_layout(words: int, areas: int) -> data.StructLayout:
    """A command to a unit of these sizes; the fields are those of `emu.allocator.Command`."""
    return data.StructLayout({
        "op": Op, "mode": Mode, "spilled": 1, "area": range(areas), "offset": range(words),
        "words": range(words + 1),
    })


def answer_layout(words: int, areas: int) -> data.StructLayout:
    """An answer of a unit of these sizes; the fields are those of `emu.allocator.Answer`."""
    return data.StructLayout({
        "area": range(areas), "offset": range(words), "spilled": 1, "refused": 1,
    })
