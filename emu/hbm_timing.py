# SPDX-License-Identifier: Apache-2.0
"""HBM2 pseudo-channels without a clock: timing sets and address maps.

A pseudo-channel is 64 bits wide with bursts of 4: a column command moves 32 bytes in two cycles of
16 bytes. It has four groups of four banks, 1 KiB rows (32 columns) and 2**15 rows; a smaller model
keeps the low row bits. Timings are in cycles of 1 ns, command to command unless named otherwise.
"""

from dataclasses import dataclass

from emu.config import Hbm

GROUPS = 4
BANKS = 16
"""Banks of a pseudo-channel; bank number = 4 * group + bank within the group."""
COLUMN_BITS = 5
ROW_BITS = 15
BYTE_BITS = 29
"""Byte address of a whole pseudo-channel (512 MiB)."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A timing set, in cycles. ``_s`` and ``_l``: different and same bank group."""

    bl: int = 2
    """Data cycles of a column."""
    cl: int
    cwl: int
    rcd_rd: int
    rcd_wr: int
    rp: int
    ras: int
    rc: int
    rrd_s: int
    rrd_l: int
    faw: int
    ccd_s: int
    ccd_l: int
    wtr_s: int
    """From the end of write data to a read, as ``wtr_l``."""
    wtr_l: int
    rtp: int
    wr: int
    """From the end of write data to a precharge."""
    rfc: int
    rfc_pb: int
    rref_d: int
    """Per-bank refresh to a refresh or activate of another bank."""
    refi: int
    """A bank is refreshed once in this many cycles on average."""
    bubble: int = 2
    """Idle data cycles when the bus turns from read to write."""

    @property
    def read_to_write(self) -> int:
        return self.cl + self.bl + self.bubble - self.cwl

    @property
    def write_to_read_s(self) -> int:
        return self.cwl + self.bl + self.wtr_s

    @property
    def write_to_read_l(self) -> int:
        return self.cwl + self.bl + self.wtr_l

    @property
    def write_to_precharge(self) -> int:
        return self.cwl + self.bl + self.wr


TIMINGS = {
    "hbm2_a": Timing(
        cl=14, cwl=5, rcd_rd=14, rcd_wr=12, rp=14, ras=34, rc=48, rrd_s=4, rrd_l=4, faw=15,
        ccd_s=2, ccd_l=4, wtr_s=6, wtr_l=8, rtp=5, wr=16, rfc=260, rfc_pb=160, rref_d=8, refi=3900,
    ),
    "hbm2_b": Timing(
        cl=14, cwl=4, rcd_rd=14, rcd_wr=14, rp=14, ras=34, rc=48, rrd_s=4, rrd_l=6, faw=30,
        ccd_s=2, ccd_l=4, wtr_s=6, wtr_l=8, rtp=6, wr=16, rfc=260, rfc_pb=160, rref_d=8, refi=3900,
    ),
}
"""Named timing sets; `hbm2_b` has a long four-activate window."""

MAPS = {
    "M1": "R" * 15 + "GG" + "BB" + "CCCCC" + "OOOOO",
    "M2": "R" * 15 + "BB" + "CCCC" + "GG" + "C" + "OOOOO",
    "M2X": "R" * 15 + "BB" + "CCCC" + "GG" + "C" + "OOOOO",
}
"""Byte address bits, most significant first: row, group, bank, column, offset in 32 bytes."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a word lies: ``half`` is the 16-byte half of the 32-byte column."""

    row: int
    group: int
    bank: int
    column: int
    half: int


def letters(hbm: Hbm) -> str:
    """Address map of the modelled array: row letters are dropped, highest first, to fit ``mib``."""
    text = MAPS.get(hbm.address_map, hbm.address_map)
    drop = BYTE_BITS - (hbm.mib * 1024 * 1024).bit_length() + 1
    return text.replace("R", "", drop)


def row_bits(hbm: Hbm) -> int:
    return letters(hbm).count("R")


def permuted(hbm: Hbm) -> bool:
    """Whether bank bits are XORed with the fold of all 2-bit digits of the row."""
    return hbm.address_map == "M2X"


def fold(row: int) -> int:
    """XOR of the 2-bit digits of ``row``."""
    value = 0
    while row:
        value ^= row & 3
        row >>= 2
    return value


def word_bits(hbm: Hbm) -> dict[str, list[int]]:
    """For each letter, the word address bits that make the field, least significant first."""
    text = letters(hbm)[::-1]
    fields: dict[str, list[int]] = {letter: [] for letter in "RGBCO"}
    for bit, letter in enumerate(text):
        if bit >= 4:
            fields[letter].append(bit - 4)
    return fields


def place(hbm: Hbm, word: int) -> Place:
    """Row, bank and column of channel word ``word``."""
    value = {
        letter: sum((word >> bit & 1) << i for i, bit in enumerate(bits))
        for letter, bits in word_bits(hbm).items()
    }
    bank = value["B"] ^ (fold(value["R"]) if permuted(hbm) else 0)
    return Place(row=value["R"], group=value["G"], bank=bank, column=value["C"], half=value["O"])


def word(hbm: Hbm, where: Place) -> int:
    """Inverse of `place`."""
    bank = where.bank ^ (fold(where.row) if permuted(hbm) else 0)
    value = {"R": where.row, "G": where.group, "B": bank, "C": where.column, "O": where.half}
    return sum(
        (value[letter] >> i & 1) << bit
        for letter, bits in word_bits(hbm).items()
        for i, bit in enumerate(bits)
    )
