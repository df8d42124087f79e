# SPDX-License-Identifier: Apache-2.0
"""The command set: field tables that give the hardware its layouts and the compiler its words.

A command is 128 bytes (eight words, 1024 bits), little endian, one stream per tile. The first
fields of every command are the same (`HEADER`); the rest depends on the opcode. Twice the 64 bytes
that a first sketch allowed, because a fused convolution with residual and table does not fit
in 512 bits without limiting shapes; commands are under 1% of the bytes of any built-in layer.

Every field is unsigned unless its width is negative: then it is two's complement of ``-width``
bits.
"""

from enum import IntEnum
from functools import cache

from emu.errors import UserError

COMMAND_WORDS = 8
COMMAND_BYTES = 16 * COMMAND_WORDS
COMMAND_BITS = 8 * COMMAND_BYTES
WAITS = 3
SIGNALS = 2
SEM_BITS = 6
"""Of a semaphore's number."""
WAIT_BITS = 15
"""Of one wait's count: a larger one takes two waits."""

Fields = tuple[tuple[str, int], ...]


class Opcode(IntEnum):
    END = 0
    """Wait until every queue is empty and every store acknowledged, then raise ``done``."""
    COMPUTE = 1
    VECTOR = 2
    LOAD = 3
    """HBM to scratchpads."""
    STORE = 4
    """Scratchpad to HBM or to other tiles' scratchpads."""
    SYNC = 5
    """Waits and signals only, in the queue named by ``queue``."""
    LAYER = 6
    """Write a layer descriptor of the parameter store (acts at dispatch)."""
    FRAMES = 7
    """Place the parameter store's frames in the scratchpad and forget all blocks (at dispatch)."""
    PIN = 8
    """Blocks of a layer stay resident from their next arrival on (at dispatch)."""
    UNPIN = 9
    """Blocks of a layer become replaceable again (at dispatch)."""
    SET = 10
    """Index register = immediate (at dispatch)."""
    ADD = 11
    """Index register += immediate, modulo 2**28 (at dispatch)."""


class Queue(IntEnum):
    COMPUTE = 0
    VECTOR = 1
    LOAD = 2
    STORE = 3


QUEUE_OF = {
    Opcode.COMPUTE: Queue.COMPUTE,
    Opcode.VECTOR: Queue.VECTOR,
    Opcode.LOAD: Queue.LOAD,
    Opcode.STORE: Queue.STORE,
}

RECT: Fields = (("x0", 4), ("x1", 4), ("y0", 4), ("y1", 4), ("xs", 2), ("ys", 2))
"""Tiles x0, x0 + 2**xs, ... <= x1 by y0, y0 + 2**ys, ... <= y1: one multicast destination."""
RECT_BITS = sum(width for _, width in RECT)

HEADER: Fields = (
    ("opcode", 4),
    # Block until semaphore >= count, then subtract count; count 0 = no wait.
    *(
        (f"wait{i}_{name}", width)
        for i in range(WAITS)
        for name, width in (("sem", SEM_BITS), ("count", WAIT_BITS))
    ),
    # When the command is complete: +1 on the semaphore in every tile of the rectangle.
    *(
        (f"signal{i}_{name}", width)
        for i in range(SIGNALS)
        for name, width in (("valid", 1), ("sem", SEM_BITS), ("rect", RECT_BITS))
    ),
    # An index register added to the command's HBM address (LOAD, STORE) or window base (COMPUTE).
    ("index_valid", 1),
    ("index", 3),
)


class WeightMode(IntEnum):
    """How a 16-word weight tile enters the shadow registers."""

    ROW = 0
    """Word j holds the 16 input lanes of cell j."""
    COLUMN = 1
    """Word i holds lane i of all 16 cells."""
    DIAGONAL = 2
    """One word: byte j goes to lane j of cell j, all else is the zero point (depthwise)."""
    INT4 = 3
    """Eight words: word j holds cells 2j (low nibbles' 8 bytes) and 2j+1, signed 4-bit."""
    ROW_TAP = 4
    """Three words: byte j of word t meets channel j of the pixel t columns (``step`` words each)
    right of the tap's own, in cell j (depthwise: three kernel columns in one pass)."""


COMPUTE: Fields = (
    # Activations: word(g, y, x) = base + g*plane + y*row + x*step; a pixel outside
    # 0 <= y < height, 0 <= x < width injects 0 after the zero point.
    ("base", 16), ("plane", 16), ("row", 16), ("step", 16),
    ("height", 14), ("width", 14),
    ("y0", -15), ("x0", -15),        # input coordinate of tap (0, 0) for output (row 0, column 0)
    ("sy", 6), ("sx", 6),            # stride
    ("dy", 6), ("dx", 6),            # dilation
    ("kh", 6), ("kw", 6),            # kernel taps, >= 1
    ("in_groups", 12),               # 16-channel input groups per output group, >= 1
    ("out_width", 14),               # output pixels wrap to the next row after this column
    ("first_x", 14),                 # output column of the first pixel (its row is row 0)
    ("pixels", 12),                  # 1 <= pixels <= core.accumulator_rows
    # Weights, in the order: output group, input group, ky, kx.
    ("w_resident", 1),               # 1: at scratchpad w_base; 0: blocks of the parameter store
    ("w_layer", 6), ("w_tile", 16),  # layer descriptor and first tile's number in that layer
    ("w_base", 16), ("w_group_stride", 16), ("w_tile_stride", 16),  # words; a group, a tile
    ("w_mode", 3),
    ("w_keep", 1),                   # 1: blocks are looked up but not released after use
    ("out_groups", 10),              # 16-channel output groups, >= 1
    ("advance", 16),                 # added to base per output group (0 conv, plane depthwise)
    ("a_signed", 1), ("a_zero", -9),
    ("w_signed", 1), ("w_zero", -9),
    ("first", 1),                    # overwrite the accumulators in the first pass of each group
    ("last", 1),                     # drain after the last pass (if either is 0: out_groups = 1)
    # Drain: pixel p of group g goes to word out + g*out_group + p*out_step (x4 words if int32).
    ("out", 16), ("out_group", 16), ("out_step", 16),
    ("out_int32", 1),                # raw accumulator + bias, four words a pixel, no requantisation
    ("params", 16),                  # 8 words per group: int32 bias[16] then float32 scale[16]
    ("out_zero", -9), ("clip_low", -9), ("clip_high", -9),  # clip in the output's own domain
    ("table_valid", 1), ("table", 16),      # 256-entry byte table applied last (16 words)
    ("residual_valid", 1), ("residual", 16), ("residual_group", 16),
    ("residual_table", 16),          # 256 float32 T[c] (64 words): y = rne(f32(a*ra + T[c]))
    ("residual_scale", 32),          # ra, float32
    ("residual_low", -9), ("residual_high", -9),
    ("residual_a_zero", -9), ("residual_signed", 1),   # of a, the one that is multiplied
    ("residual_indexes", 1),         # 0: a is the residual, c the output; 1: the other way round
    # With resident weights: ``pixels`` is at most the uint32 at scratchpad word ``rows``; if that
    # is 0 nothing is computed.
    ("rows_valid", 1), ("rows", 16),
)

MOVE: Fields = (
    # for i2 < count2, i1 < count1, i0 < count0: `run` consecutive words
    # between scratchpad + sum(ik*s_stridek) and far + sum(ik*f_stridek).
    ("scratchpad", 16),              # LOAD: destination in every tile of rect. STORE: source here.
    ("far", 28),                     # global HBM word address, or the remote scratchpad address
    ("run", 20), ("count0", 16), ("count1", 16), ("count2", 16),
    ("s_stride0", -17), ("s_stride1", -17), ("s_stride2", -17),
    ("f_stride0", -29), ("f_stride1", -29), ("f_stride2", -29),
    ("rect", RECT_BITS),             # receivers. LOAD: this tile is one. STORE: if to_tiles.
    ("to_tiles", 1),                 # STORE: 1 = to scratchpads of rect over `up`, 0 = to HBM
    # every arriving word adds 1 to this semaphore (not HBM stores)
    ("sem_valid", 1), ("sem", SEM_BITS),
    # i2*f_stride2 becomes list[i2]*f_stride2; uint32 list, 4 a word
    ("gather", 1), ("gather_base", 16),
    # run * count0 * count1: words that a turn of the outermost loop counts as arrived if `ABSENT`
    ("turn", 16),
    # LOAD, where `hbm.sum_rows`: so many turns of the outermost loop are summed in HBM, by lane.
    # A turn's runs lie in a channel each and within a segment; `s_stride2` is from sum to sum. Of
    # a word of the rows two come back, 16 x s >> 7 and 16 x s & 127; with `sum_int4` four, those
    # of the words' low nibbles (signed) first.
    ("sum", 8), ("sum_int4", 1),
)


ABSENT = 0xFFFFFFFF
"""In the list of a LOAD's outermost loop: nothing is loaded, though its words count as arrived. In
that of a STORE: nothing is stored."""


class VectorOp(IntEnum):
    MAX_POOL = 0
    """Window maximum, int8."""
    SUM_POOL = 1
    """Window sum in int32, requantised (average and global average pooling)."""
    ADD = 2
    """Residual add by table: y = rne(f32(a*scale + T[b]))."""
    MULTIPLY = 3
    """y = requantise((a - a_zero) * (b - b_zero))."""
    TABLE = 4
    """y = table[a]."""
    # Of rows: the channels of one pixel, `channels` lanes of `groups` words at base + g*plane +
    # p*step. Words of SOFTMAX and the norms go to out + g*out_group + p*out_step, and their lanes
    # beyond the channels become out_zero.
    SOFTMAX = 5
    """`emu.softmax`: scale0 is the factor, an integer; uint32 T[256] at ``table``."""
    LAYER_NORM = 6
    """`emu.normalise`: epsilon is scale0 + 2**32 * scale1; its parameters' words at ``table``."""
    RMS_NORM = 7
    """The same about 0 instead of the mean."""
    TOP_K = 8
    """The numbers of the k <= 8 largest values, ties to the lower one, as uint32 in 1 or 2 words at
    out + p*out_step (0 fills them up); with b_mode = 1 also the values' bytes, in one word at
    b_base + p*b_step."""
    # Of lists of numbers below 16, `k` <= 4 uint32 a word: word p of `pixels` at base + p*step.
    DISTINCT = 9
    """The numbers that occur in the words, rising, each alone in a word at out, out + 1, ...;
    `groups` words, of which those left over hold `ABSENT`. With ``causal`` all below `channels`."""
    RETAIN = 11
    """The same with slots that keep what they hold. Slot d of `groups` <= 16 is the word at
    ``b_base`` + d: its number or `ABSENT`, alone. Numbers that occur and are in no slot take those
    whose numbers do not occur, rising, beginning with the slot that word ``table`` names, and round
    after the last; that word becomes the slot after the last taken. ``out`` + d: the number that
    slot d now awaits, or `ABSENT` if it held it before or is free. All must find room."""
    PLACES = 10
    """Where in the lists the number at ``b_base`` is: of word p, p*k + j if its place j holds it,
    else pixels*k; with ``b_mode`` = 1 of every place (k = 1, 2, 4), that or pixels*k. Four uint32 a
    word from out on, the last word filled up with pixels*k."""
    SORT = 12
    """All places sorted by their numbers, which differ within a word, in `groups` blocks of
    `height` rows (of 4): a number that occurs begins a block, rising. Block b's number is the word
    at ``out`` + b, alone; `ABSENT` if there are no more. Row r's place p*k + j, or pixels*k if it
    has none, is entry r at ``b_base``, four a word; at ``table`` its p (with ``b_mode`` = 1 its
    place) or 0. What finds no block is left out."""
    COLLECT = 13
    """The places of one number, ``channels``, in order, in `groups` words of four: a copy's own. Of
    ``kh`` copies ``kw`` has every ``kh``-th block of `height` of these places, so that the copies
    need not ask one another. Entry r at ``b_base`` is its place p*k + j, at ``table`` its p (with
    ``b_mode`` = 1 its place), or `ABSENT` if there are no more; what finds no room is left out.
    ``out`` + 1 becomes how many it has, ``out`` the number or, if it has none, `ABSENT`."""


VECTOR: Fields = (
    ("op", 5),
    ("base", 16), ("plane", 16), ("row", 16), ("step", 16),
    ("height", 14), ("width", 14), ("y0", -15), ("x0", -15),
    ("sy", 6), ("sx", 6), ("kh", 6), ("kw", 6),
    ("groups", 12), ("out_width", 14), ("first_x", 14), ("pixels", 16),
    ("b_base", 16), ("b_plane", 16), ("b_step", 16),
    ("b_mode", 2),                   # 0 window, 1 row broadcast, 2 lane broadcast
    ("out", 16), ("out_group", 16), ("out_step", 16),
    ("table", 16),
    ("a_signed", 1), ("b_signed", 1), ("a_zero", -9), ("b_zero", -9),
    ("out_zero", -9), ("clip_low", -9), ("clip_high", -9),
    ("scale0", 32), ("scale1", 32), ("scale2", 32),
    ("channels", 16), ("k", 5),
    ("causal", 1),                   # SOFTMAX: row p has channels + p lanes
)

LAYER: Fields = (
    ("layer", 6),
    ("first_block", 12), ("blocks", 12),   # local block numbers first .. first + blocks - 1
    ("last_tiles", 4),                     # weight tiles of the last block, minus 1
    ("tile_words", 5),                     # words a weight tile: 16 row/column, 8 int4, 1 diagonal
    ("hbm", 28), ("stride", 28),           # block i at global word hbm + i*stride
    ("child_valid", 1), ("child", 6), ("frequency", 8),  # how often this layer is entered
    ("rect", RECT_BITS), ("members", 9),   # tiles that share the frames
    ("leader_x", 4), ("leader_y", 4),      # the member that fetches; the others send it releases
    ("start", 1),                          # the program enters this layer next: prefetch allowed
)

FRAMES: Fields = (("base", 16), ("count", 7))
PIN: Fields = (("layer", 6),)
REGISTER: Fields = (("register", 3), ("value", 28))
SYNC: Fields = (
    ("queue", 2),
    ("mark", 1),                     # a step of the program begins: counted on chip output `step`
)

BODIES: dict[Opcode, Fields] = {
    Opcode.END: (),
    Opcode.COMPUTE: COMPUTE,
    Opcode.VECTOR: VECTOR,
    Opcode.LOAD: MOVE,
    Opcode.STORE: MOVE,
    Opcode.SYNC: SYNC,
    Opcode.LAYER: LAYER,
    Opcode.FRAMES: FRAMES,
    Opcode.PIN: PIN,
    Opcode.UNPIN: PIN,
    Opcode.SET: REGISTER,
    Opcode.ADD: REGISTER,
}


def pack_fields(fields: Fields, values: dict[str, int]) -> int:
    """Little-endian concatenation of ``fields``; missing values are 0.

    Raises
    ------
    UserError
        If a value has no such field or does not fit it.
    """
    places = _places(fields)
    word = 0
    for name, given in values.items():
        if name not in places:
            raise UserError(f"no such command field: {name}")
        offset, bits, low, high = places[name]
        value = int(given)
        if not low <= value < high:
            raise UserError(f"command field {name} = {value} does not fit {bits} bits")
        word |= (value & (1 << bits) - 1) << offset
    return word


@cache
def _places(fields: Fields) -> dict[str, tuple[int, int, int, int]]:
    """Of each field its first bit, its bits, its least value and one more than its greatest."""
    places, offset = {}, 0
    for name, width in fields:
        bits = abs(width)
        low, high = (-(1 << bits - 1), 1 << bits - 1) if width < 0 else (0, 1 << bits)
        places[name] = offset, bits, low, high
        offset += bits
    return places


def unpack_fields(fields: Fields, word: int) -> dict[str, int]:
    """Inverse of `pack_fields`."""
    values = {}
    for name, width in fields:
        bits = abs(width)
        value = word & (1 << bits) - 1
        values[name] = value - (1 << bits) if width < 0 and value >> bits - 1 else value
        word >>= bits
    return values


def encode(opcode: Opcode, **values: int) -> bytes:
    """One command of `COMMAND_BYTES` bytes."""
    fields = HEADER + BODIES[opcode]
    return pack_fields(fields, {"opcode": opcode, **values}).to_bytes(COMMAND_BYTES, "little")


def decode(data: bytes) -> tuple[Opcode, dict[str, int]]:
    """Opcode and fields of one encoded command."""
    word = int.from_bytes(data, "little")
    opcode = Opcode(unpack_fields(HEADER, word)["opcode"])
    return opcode, unpack_fields(HEADER + BODIES[opcode], word)


for _fields in BODIES.values():
    if sum(abs(width) for _, width in HEADER + _fields) > COMMAND_BITS:
        raise ValueError("a command's fields exceed its size")
