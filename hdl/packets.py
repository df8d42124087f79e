# SPDX-License-Identifier: Apache-2.0
"""What travels: flits of the three mesh planes, requests, commands. Each defined once.

Payload first, so that it is aligned in memory words; headers are sideband wires above it.
"""

from amaranth.hdl import signed
from amaranth.lib import data, enum

from emu import isa

ADDRESS_BITS = 28
"""Global HBM word address."""
SPAD_BITS = 16
"""Scratchpad word address."""
WORD_BITS = 128


def layout(fields: isa.Fields) -> data.StructLayout:
    """`StructLayout` of an `emu.isa` field table."""
    return data.StructLayout(
        {
            name: Rect if width == isa.RECT_BITS and name.endswith("rect")
            else width if width > 0 else signed(-width)
            for name, width in fields
        }
    )


Rect = data.StructLayout(dict(isa.RECT))


class Exit(enum.Enum, shape=3):
    """Where a flit leaves its destination router."""

    CORE = 0
    NORTH = 1
    SOUTH = 2
    WEST = 3
    EAST = 4


class Kind(enum.Enum, shape=3):
    """What a tile does with an arriving flit (planes `down` and `up`)."""

    DATA = 0
    """Write ``data`` at scratchpad ``address``, then add 1 to ``sem`` if ``has_sem``."""
    COMMAND = 1
    """Command word for buffer slot ``address``. `down` only."""
    FRAME = 2
    """Write ``data`` at scratchpad ``address``: a word of parameter ``block``. `down` only."""
    ACK = 3
    """``address`` words of this tile's stores are complete in HBM. `down` only."""
    SIGNAL = 4
    """Add 1 to ``sem``. `up` only."""
    RELEASE = 5
    """Frame ``address`` was released by a follower. `up` only."""
    WRITE = 6
    """Store ``data`` at channel word ``address`` under ``mask``. `up` only, to an edge port."""
    SUM = 7
    """A row of a sum (`hdl.hbm.sums`), its last if bit 0 of ``block`` is set, of signed nibbles if
    bit 1 is. Requests only: what comes back is DATA."""


Reply = data.StructLayout(
    {
        "rect": Rect,
        "address": SPAD_BITS,   # of the first word; each later word of a request adds 1
        "kind": Kind,
        "has_sem": 1,
        "sem": isa.SEM_BITS,
        "block": 12,            # FRAME: local block number
        "tiles": 4,             # FRAME: weight tiles of the block, minus 1
        "tile_words": 5,        # FRAME: words per weight tile (so words = (tiles + 1) * tile_words)
        "source_x": 4,          # the requesting tile
        "source_y": 4,
    }
)
"""How the words that answer a request travel back and what becomes of them."""

HbmRequest = data.StructLayout(
    {"address": ADDRESS_BITS, "last": 4, "reply": Reply}
)
"""Inside a tile: read ``last + 1`` words from global ``address``, all in one 16-word segment."""

Dest = data.StructLayout({"rect": Rect, "exit": Exit})

ReqFlit = data.StructLayout({"address": 25, "last": 4, "reply": Reply, "dest": Dest})
"""`req`, X first: a read of ``last + 1`` words from channel word ``address``."""

DownFlit = data.StructLayout({"data": WORD_BITS, "reply": Reply, "dest": Dest})
"""`down`, Y first: a word from memory to the tiles of ``dest``; ``reply.address`` is its own."""

UpFlit = data.StructLayout(
    {
        "data": WORD_BITS,
        "kind": Kind,
        "address": 25,
        "has_sem": 1,
        "sem": isa.SEM_BITS,
        "mask": 16,             # WRITE: bytes to store
        "last": 1,              # WRITE: flush this source's assembly line
        "source_x": 4,
        "source_y": 4,
        "dest": Dest,
    }
)
"""`up`, X first: tile to tiles, tile to HBM, and the signals that announce them."""

Header = layout(isa.HEADER)
Command = data.StructLayout({"bits": isa.COMMAND_BITS})
COMMANDS = {opcode: layout(isa.HEADER + body) for opcode, body in isa.BODIES.items()}
"""Layout of each whole command, header included."""
