# SPDX-License-Identifier: Apache-2.0
"""What travels inside a pseudo-channel: line requests, columns, commands, data beats.

A *line* is 64 bytes (two columns, four words), a *column* 32 bytes (one burst, two words).
Banks are numbered 4 * group + bank.
"""

from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from emu.config import Hbm
from emu.hbm_timing import COLUMN_BITS, ROW_BITS, row_bits
from hdl.packets import WORD_BITS

LINE_BITS = 23
TAG_BITS = 6
SLOT_BITS = 6
BANK_BITS = 4
STAMP_BITS = 10
HASH_BITS = 10

LineRead = data.StructLayout({"line": LINE_BITS, "words": 4, "tag": TAG_BITS})
"""Read the words of ``line`` whose bits are set in ``words`` (at least one)."""

def line_read(ecc: bool) -> data.StructLayout:
    """`LineRead`; with ECC also ``patch``: what is read is merged into write buffer ``tag``."""
    return data.StructLayout(LineRead.members | ({"patch": 1} if ecc else {}))


LineWrite = data.StructLayout({"line": LINE_BITS, "halves": 2, "slot": SLOT_BITS})
"""Write the columns of ``line`` set in ``halves`` (at least one) from write buffer ``slot``."""

def line_write(ecc: bool) -> data.StructLayout:
    """`LineWrite`; with ECC also the columns of which not all bytes are written."""
    return data.StructLayout(LineWrite.members | ({"partial": 2} if ecc else {}))


ReadWord = data.StructLayout({"data": WORD_BITS, "tag": TAG_BITS, "index": 4})
"""A word read; ``index`` is the low 4 bits of its channel word address."""

BeatAddress = data.StructLayout({"beat": 1, "half": 1, "slot": SLOT_BITS})
"""A word of the write buffer."""

ReadItem = data.StructLayout({"words": 2, "index": 3, "tag": TAG_BITS})
"""What a queued column read carries: words wanted, column within the 256-byte segment, request."""

def read_item(ecc: bool) -> data.StructLayout:
    """`ReadItem`; with ECC also ``patch``, see `line_read`."""
    return data.StructLayout(ReadItem.members | ({"patch": 1} if ecc else {}))


WriteItem = data.StructLayout({"half": 1, "slot": SLOT_BITS, "hash": HASH_BITS})
"""What a queued column write carries."""


class RowKind(enum.Enum, shape=3):
    """Commands of the row bus."""

    ACTIVATE = 0
    PRECHARGE = 1
    PRECHARGE_ALL = 2
    REFRESH_ALL = 3
    REFRESH_BANK = 4


RowBus = data.StructLayout(
    {"valid": 1, "kind": RowKind, "bank": BANK_BITS, "row": ROW_BITS}
)
ColumnBus = data.StructLayout(
    {"valid": 1, "write": 1, "bank": BANK_BITS, "column": COLUMN_BITS}
)

Phy = wiring.Signature(
    {
        "row": Out(RowBus),
        "column": Out(ColumnBus),
        "write_data": Out(WORD_BITS),
        "write_mask": Out(16),
        "read_data": In(WORD_BITS),
    }
)
"""Controller to DRAM. Data of a column command in cycle t: writes in t + cwl and the next cycle,
reads in t + cl and the next, low word first."""


def phy(ecc: bool) -> wiring.Signature:
    """`Phy`; with ECC the pins of the mask carry check bits, and words read have some too."""
    return wiring.Signature(dict(Phy.members) | ({"read_check": In(16)} if ecc else {}))


def column_layout(hbm: Hbm, item: data.Layout) -> data.StructLayout:
    """A queued column access of a machine."""
    return data.StructLayout(
        {"item": item, "column": COLUMN_BITS, "row": row_bits(hbm), "bank": BANK_BITS}
    )


