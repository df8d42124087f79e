# SPDX-License-Identifier: Apache-2.0
"""The address map in hardware: the same letters as `emu.hbm_timing`."""

from amaranth.hdl import Cat, Const, Value

from emu.config import Hbm
from emu.hbm_timing import permuted, word_bits
from hdl.hbm.packets import HASH_BITS


def fold(row: Value) -> Value:
    """XOR of the 2-bit digits of ``row``."""
    return Cat(row[0::2].xor(), row[1::2].xor())


def locate(hbm: Hbm, column_address: Value) -> dict[str, Value]:
    """``row``, ``bank`` (group above) and ``column`` of a 32-byte column address."""
    fields = {
        letter: Cat(column_address[bit - 1] for bit in bits)
        for letter, bits in word_bits(hbm).items()
        if letter != "O"
    }
    row = fields["R"] if len(fields["R"]) else Const(0, 1)
    bank = fields["B"] ^ fold(row) if permuted(hbm) else fields["B"]
    return {"row": row, "bank": Cat(bank[:2], fields["G"]), "column": fields["C"]}


def hashed(column_address: Value) -> Value:
    """Index of the conflict filter: XOR of the address's digits, so that neighbours differ."""
    digits = [
        column_address[i:i + HASH_BITS] for i in range(0, len(column_address), HASH_BITS)
    ]
    value = digits[0]
    for digit in digits[1:]:
        value = value ^ digit
    return value[:HASH_BITS]
