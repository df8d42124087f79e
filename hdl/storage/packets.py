# SPDX-License-Identifier: Apache-2.0
"""What travels between storage, page cache and the client that reads pages."""

from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from emu.config import Storage
from hdl.packets import WORD_BITS

PAGE_BITS = 12
FRAME_BITS = 10
REGION_BITS = 7
TIME_BITS = 32
CLIENT, CACHE = 0, 1
"""Whom the HBM channel answers: ``x`` of the requesting tile in its flits."""

PageRef = data.StructLayout({"page": PAGE_BITS, "region": REGION_BITS, "write": 1})
"""A use of a page: which, in which region of the program; whether it will be written."""

Region = data.StructLayout(
    {
        "region": REGION_BITS,    # its own number
        "first": PAGE_BITS, "pages": PAGE_BITS,
        "child": REGION_BITS,     # what follows in the stream order
        "frequency": 8,           # of its use in a pass, 255: always
        "optional": 1,            # a pass may go by it: an expert
        "scattered": 1,           # single pages of it are used: an embedding table
    }
)
"""A layer's pages: what a layer descriptor is to blocks."""

StorageRequest = data.StructLayout({"write": 1, "page": PAGE_BITS, "frame": FRAME_BITS})
"""Read or write ``page``; the words of a read carry ``frame``."""

StorageControl = wiring.Signature(
    {
        "latency": Out(20), "page_cycles": Out(20), "frames": Out(FRAME_BITS + 1),
        "random": Out(1),
    }
)
"""The tier's registers: inputs, so that one simulator build serves every study. Cycles until a
page read begins to come, cycles that the medium needs for a page, page frames in HBM, whether they
are refilled in random order."""


def index_bits(storage: Storage) -> int:
    """Bits of a word's number in its page."""
    return storage.page_words.bit_length() - 1


def page_word(storage: Storage) -> data.StructLayout:
    """A word of a page that goes to or comes from the device."""
    return data.StructLayout({"data": WORD_BITS, "index": index_bits(storage)})


def frame_word(storage: Storage) -> data.StructLayout:
    """A word of a page on its way to its frame."""
    return data.StructLayout(page_word(storage).members | {"frame": FRAME_BITS})
