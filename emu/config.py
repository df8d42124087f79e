# SPDX-License-Identifier: Apache-2.0
"""The machine's parameters: one frozen model, nested as the machine nests.

Everything that the hardware, the compiler and the benches share about a machine's shape is stated
here once. Sizes that follow from others are properties; nothing derived is ever stored.
"""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from emu.errors import UserError

WORD_BYTES = 16
"""Bytes of a word: of a scratchpad word, a flit's payload and an HBM beat."""
SEGMENT_WORDS = 16
"""Words of an HBM segment: the unit of interleaving over channels and the largest read request."""
TILE_WORDS = 16
"""Words of a 16x16 int8 weight tile."""
BLOCK_TILES = 16
"""Weight tiles of a full parameter block."""
BLOCK_WORDS = TILE_WORDS * BLOCK_TILES
"""Words of a full parameter block, of its frame, and of a storage page (4 KiB)."""
SEMAPHORES = 64
"""Counting semaphores of a tile, 16 bits each."""
DIRECT_BIT = 27
"""Address bit that says: a word of one pseudo-channel, not of the interleaved space."""
STRIPED_BIT = 26
"""With `DIRECT_BIT`: a word of one stripe of the pseudo-channel, see `direct_address`."""
LAYERS = 64
"""Layer descriptors of a tile's parameter store."""
BLOCKS = 4096
"""Local block numbers of a tile."""


class Section(BaseModel):
    """A part of the configuration: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Mesh(Section):
    rows: int = Field(4, ge=1, le=16, description="tiles from north to south")
    cols: int = Field(4, ge=1, le=16, description="tiles from west to east")
    buffer_depth: int = Field(4, ge=2, le=64, description="flits buffered per router input")
    arbiter: Literal["round_robin", "age", "weighted"] = "weighted"
    multicast: bool = Field(True, description="false: the compiler replaces multicast by unicast")

    @property
    def tiles(self) -> int:
        return self.rows * self.cols


class Core(Section):
    lanes: Literal[16] = 16
    cells: Literal[16] = 16
    accumulator_rows: int = Field(256, description="pixels per accumulator half")
    requantise_lanes: Literal[8, 16] = 8
    queue_depth: int = Field(4, ge=1, le=16, description="commands waiting per engine")
    packed_cells: bool = Field(
        True, description="three MAC cells in one 64-bit multiply: a faster twin, same bits"
    )
    packed_weights: bool = Field(
        True, description="weights that all fit 4 bits move and lie as nibbles"
    )

    @model_validator(mode="after")
    def _check(self) -> "Core":
        rows = self.accumulator_rows
        if rows < 16 or rows > 1024 or rows & (rows - 1):
            raise ValueError(
                f"core.accumulator_rows must be a power of two, 16 to 1024, not {rows}"
            )
        return self

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one core in one cycle."""
        return self.lanes * self.cells


class Scratchpad(Section):
    kib: int = Field(256, description="KiB of local SRAM per tile")
    banks: int = Field(8, description="single-port banks interleaved by word")
    resident: bool = Field(
        True, description="activations stay on the chip between layers where they fit"
    )
    resident_kib: int = Field(
        0, ge=0, description="most KiB of each that activations take which stay; 0: what fits"
    )
    pinned_kib: int = Field(
        0, ge=0, description="KiB of each for weights that stay from step to step"
    )

    @model_validator(mode="after")
    def _check(self) -> "Scratchpad":
        if self.kib < 16 or self.kib > 1024 or self.kib & (self.kib - 1):
            raise ValueError(f"scratchpad.kib must be a power of two, 16 to 1024, not {self.kib}")
        if self.banks not in (2, 4, 8, 16):
            raise ValueError(f"scratchpad.banks must be 2, 4, 8 or 16, not {self.banks}")
        if self.pinned_kib > self.kib - 8:
            raise ValueError(f"scratchpad.pinned_kib must leave 8 of {self.kib} KiB, not be "
                             f"{self.pinned_kib}")
        return self

    @property
    def pinned_words(self) -> int:
        return self.pinned_kib * 1024 // WORD_BYTES

    @property
    def free_words(self) -> int:
        """Words below the pinned weights."""
        return self.words - self.pinned_words

    @property
    def words(self) -> int:
        return self.kib * 1024 // WORD_BYTES


class Hbm(Section):
    channels: int = Field(8, ge=1, le=32, description="pseudo-channels, a power of two")
    mib: int = Field(32, description="modelled MiB per pseudo-channel, a power of two")
    timing: Literal["hbm2_a", "hbm2_b"] = "hbm2_a"
    address_map: str = Field("M2X", description="M1, M2, M2X or 29 letters of R G B C O")
    refresh: Literal["none", "all_bank", "per_bank"] = "per_bank"
    scheduler: Literal["in_order", "fr_fcfs", "fr_fcfs_cap"] = "fr_fcfs"
    row_hit_cap: int = Field(16, ge=1, le=255)
    page_policy: Literal["open", "closed", "timeout"] = "open"
    page_timeout: int = Field(200, ge=1, le=4095)
    read_queue: int = Field(64, description="32-byte column reads queued per channel")
    write_queue: int = Field(64, description="32-byte column writes queued per channel")
    write_high: int = Field(
        0, ge=0, le=256, description="queued columns that start a drain of writes; 0: all but two"
    )
    write_low: int = Field(
        0, ge=0, le=255, description="queued columns at which a drain ends if reads wait"
    )
    postponed: int = Field(8, ge=1, le=8, description="refreshes that may be owed")
    ecc: bool = Field(False, description="check bits for every 64 bits; they use the mask's pins")
    ecc_inject: str = Field("", description="single|double,RATE,SEED: bits flipped in words read")
    sum_rows: int = Field(
        0, ge=0, le=128, description="least rows of an embedding bag that the channels sum; 0: "
        "they have no adders"
    )
    edge_kib: int = Field(
        0, ge=0, description="KiB of one scratchpad for constants at the edge of the mesh, shared "
        "by all tiles and spread over the channels; a power of two, or none"
    )

    @model_validator(mode="after")
    def _check(self) -> "Hbm":
        for name in ("channels", "mib", "read_queue", "write_queue"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"hbm.{name} must be a power of two, not {value}")
        if self.edge_kib and (self.edge_kib & (self.edge_kib - 1) or self.edge_kib < self.channels):
            raise ValueError("hbm.edge_kib must be 0 or a power of two, at least a KiB a channel, "
                             f"not {self.edge_kib}")
        if self.mib > 512:
            raise ValueError(f"hbm.mib must be at most 512, not {self.mib}")
        for name in ("read_queue", "write_queue"):
            if not 8 <= getattr(self, name) <= 256:
                raise ValueError(f"hbm.{name} must be 8 to 256, not {getattr(self, name)}")
        if self.write_high > self.write_queue:
            raise ValueError(
                f"hbm.write_high must be at most hbm.write_queue ({self.write_queue}), "
                f"not {self.write_high}"
            )
        if self.write_low >= self.drain_start:
            raise ValueError(
                f"hbm.write_low must be less than where a drain starts ({self.drain_start} "
                f"columns), not {self.write_low}"
            )
        if self.ecc_inject:
            if not self.ecc:
                raise ValueError("hbm.ecc_inject needs hbm.ecc=true")
            _ = self.injection
        if self.address_map not in ("M1", "M2", "M2X"):
            want = {"R": 15, "G": 2, "B": 2, "C": 5, "O": 5}
            have = {letter: self.address_map.count(letter) for letter in set(self.address_map)}
            if have != want:
                raise ValueError(
                    "hbm.address_map must be M1, M2, M2X or 29 letters (R x 15, G x 2, B x 2, "
                    f"C x 5, O x 5), not {self.address_map!r}"
                )
            if not self.address_map.endswith("OOOOO"):
                raise ValueError("hbm.address_map must end in OOOOO: a burst is 32 bytes")
        return self

    @property
    def words(self) -> int:
        """Words of one pseudo-channel."""
        return self.mib * 1024 * 1024 // WORD_BYTES

    @property
    def injection(self) -> tuple[int, float, int] | None:
        """Wrong bits of a code word, share of the code words, seed; None without injection."""
        if not self.ecc_inject:
            return None
        kind, rate, seed = (self.ecc_inject.split(",") + ["", "", ""])[:3]
        try:
            wrong, share, number = {"single": 1, "double": 2}[kind], float(rate), int(seed)
            good = 0 < share <= 1 and number >= 0 and self.ecc_inject.count(",") == 2
        except (KeyError, ValueError):
            good = False
        if not good:
            raise ValueError(
                "hbm.ecc_inject must be single|double,RATE,SEED with 0 < RATE <= 1, "
                f"not {self.ecc_inject!r}"
            )
        return wrong, share, number

    @property
    def drain_start(self) -> int:
        """Queued column writes that start a drain."""
        return self.write_high or self.write_queue - 2


class Prefetch(Section):
    policy: str = Field(
        "next_layer", pattern="^[a-z][a-z0-9_]*$", description="a registered policy")
    threshold: int = Field(
        0, ge=0, le=255, description="access frequency that the child must exceed")
    depth: int = Field(4, ge=1, le=63, description="blocks that run_ahead keeps ahead")
    outstanding: int = Field(
        256, ge=16, le=1024, description="words a tile may have requested"
    )
    urgent: int = Field(
        64, ge=16, le=1024, description="words of blocks of them: more than the channels' queues "
        "hold block the request plane (gpt2.decode_ffn: 256 is 1.6x slower)"
    )
    background: int = Field(
        16, ge=16, le=1024, description="words of blocks, while a block lies ready"
    )
    paced: bool = Field(True, description="request no faster than one word a cycle")
    experts: Literal["distinct", "per_token", "all", "cached", "sorted"] = Field(
        "distinct", description="whose weights are loaded for several tokens: of the experts that "
        "occur, of every token's own, of all, of those that occur and are not there from before; "
        "sorted: as distinct, and tokens go to their experts alone, block by block"
    )
    expert_slots: int = Field(
        4, ge=1, le=16, description="experts of a layer that stay in the scratchpads, if cached"
    )
    experts_ahead: Literal["none", "known", "predicted"] = Field(
        "none", description="if cached, which lists of experts are followed before their step: "
        "those that the router has made already, or also what it makes of an earlier layer's input"
    )

    @model_validator(mode="after")
    def _check(self) -> "Prefetch":
        if self.experts_ahead != "none" and self.experts != "cached":
            raise ValueError(
                f"prefetch.experts_ahead={self.experts_ahead} fetches into the slots of "
                f"prefetch.experts=cached, not {self.experts}")
        return self


class Storage(Section):
    enabled: bool = Field(
        False, description="constants lie in storage devices, one behind each pseudo-channel, "
        "which keeps some of their pages in frames; false: all of them lie in HBM"
    )
    page_kib: int = Field(4, description="KiB of a page, 1 to 16, a power of two")
    pages: int = Field(4096, description="pages of a device, 16 to 4096, a power of two")
    latency: int = Field(
        20_000, ge=1, le=1_000_000, description="cycles until a page read begins to come"
    )
    bytes_per_cycle: int = Field(
        4, ge=1, le=16, description="of the medium, reads and writes; on a chip of all its devices "
        "together"
    )
    queue: int = Field(64, ge=1, le=64, description="page reads outstanding in a device")
    cache_pages: int = Field(
        256, ge=8, le=1024, description="page frames in HBM, in each pseudo-channel"
    )
    replacement: Literal["ring", "random"] = Field(
        "ring", description="which frame is refilled: the oldest, or any"
    )
    policy: str = Field(
        "next_layer", pattern="^[a-z][a-z0-9_]*$",
        description="a registered policy, for pages instead of blocks")
    threshold: int = Field(
        0, ge=0, le=255, description="access frequency that the next layer must exceed")
    depth: int = Field(32, ge=1, le=63, description="pages that run_ahead keeps ahead")

    @model_validator(mode="after")
    def _check(self) -> "Storage":
        for name, least, most in (("page_kib", 1, 16), ("pages", 16, 4096)):
            value = getattr(self, name)
            if not least <= value <= most or value & (value - 1):
                raise ValueError(
                    f"storage.{name} must be a power of two, {least} to {most}, not {value}"
                )
        return self

    @property
    def page_words(self) -> int:
        return self.page_kib * 1024 // WORD_BYTES

    @property
    def page_cycles(self) -> int:
        """Cycles that the medium needs for a page."""
        return self.shared_page_cycles(1)

    def shared_page_cycles(self, devices: int) -> int:
        """Cycles that each of ``devices`` needs for a page if they share the bandwidth."""
        return -(-self.page_kib * 1024 * devices // self.bytes_per_cycle)


class Mapping(Section):
    mode: Literal[
        "auto", "retained", "weight_streaming", "activation_streaming", "pipeline"
    ] = Field(
        "auto", description="how layers with weights are dealt to tiles: as is quickest by the "
        "model; always over output channels; over as many pixels as there are, so that weights are "
        "multicast; every layer to a group of tiles of its own; the same, and the groups work on "
        "different steps at one time"
    )
    groups: Literal["balanced", "equal"] = Field(
        "balanced", description="the tiles of a pipeline's stages: by their layers' arithmetic, or "
        "as many for each"
    )
    bands: int = Field(
        0, ge=0, le=4096, description="parts of a step's pixels that a pipeline works on one after "
        "another; 0: as the model finds quickest"
    )
    fused: bool = Field(
        False, description="runs of convolutions whose activations do not fit are computed stripe "
        "by stripe, where that saves HBM traffic"
    )
    experts: Literal["shared", "placed"] = Field(
        "shared", description="whose experts are: of all tiles, each with a part of every one; "
        "placed: of a group of tiles each, and tokens go to the tiles of their experts"
    )
    expert_tiles: int = Field(
        0, ge=0, le=256, description="tiles of such a group, a power of two; 0: as many as leave "
        "each expert a group"
    )
    expert_copies: int = Field(
        0, ge=0, le=64, description="copies in all at most, of the experts that expect most "
        "tokens, in other groups"
    )

    @model_validator(mode="after")
    def _check(self) -> "Mapping":
        if self.expert_tiles & (self.expert_tiles - 1):
            raise ValueError("mapping.expert_tiles must be a power of two, or 0, not "
                             f"{self.expert_tiles}")
        if self.experts == "shared" and (self.expert_tiles or self.expert_copies):
            raise ValueError("mapping.expert_tiles and mapping.expert_copies need "
                             "mapping.experts=placed")
        return self


class Clock(Section):
    mhz: int = Field(1000, ge=1, le=10000, description="nominal, for reports only")


class Config(Section):
    """A whole machine."""

    name: str = "base"
    mesh: Mesh = Mesh()
    core: Core = Core()
    scratchpad: Scratchpad = Scratchpad()
    hbm: Hbm = Hbm()
    prefetch: Prefetch = Prefetch()
    storage: Storage = Storage()
    mapping: Mapping = Mapping()
    clock: Clock = Clock()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.hbm.channels > 2 * self.mesh.cols:
            raise ValueError(
                f"hbm.channels must be at most twice mesh.cols (one per north and south edge "
                f"port: {2 * self.mesh.cols}), not {self.hbm.channels}"
            )
        if self.mapping.mode == "pipeline" and self.scratchpad.pinned_kib:
            raise ValueError(
                "mapping.mode=pipeline keeps all weights in the scratchpads: "
                f"scratchpad.pinned_kib must be 0, not {self.scratchpad.pinned_kib}"
            )
        if self.mapping.fused and (self.mapping.mode != "auto" or not self.scratchpad.resident):
            raise ValueError("mapping.fused needs mapping.mode=auto and scratchpad.resident=true")
        if self.mapping.experts == "placed" and self.prefetch.experts != "distinct":
            raise ValueError("mapping.experts=placed loads the experts that occur: "
                             "prefetch.experts must be distinct, not "
                             f"{self.prefetch.experts}")
        if self.storage.enabled:
            for name in ("edge_kib", "sum_rows", "ecc"):
                if getattr(self.hbm, name):
                    raise ValueError(f"storage.enabled does not go with hbm.{name}")
        return self

    @property
    def hbm_words(self) -> int:
        """Words of all pseudo-channels: the global HBM address space."""
        return self.hbm.channels * self.hbm.words

    @property
    def has_direct(self) -> bool:
        """Whether addresses leave room for `DIRECT_BIT` and `STRIPED_BIT`."""
        return self.hbm_words <= 1 << STRIPED_BIT

    @property
    def stripe_bits(self) -> int:
        """log2 of the stripes of a pseudo-channel: one for each tile that it is nearest to."""
        return (-(-self.mesh.tiles // self.hbm.channels) - 1).bit_length()

    @property
    def channel_ports(self) -> tuple[tuple[int, int, str], ...]:
        """``(x, y, edge)`` of every pseudo-channel; ``edge`` is ``"N"`` or ``"S"``.

        Even channels sit on the north edge and odd ones on the south edge, spread evenly.
        """
        north = (self.hbm.channels + 1) // 2
        south = self.hbm.channels // 2
        ports = []
        for channel in range(self.hbm.channels):
            edge, count = ("N", north) if channel % 2 == 0 else ("S", south)
            x = (channel // 2) * self.mesh.cols // count
            ports.append((x, 0 if edge == "N" else self.mesh.rows - 1, edge))
        return tuple(ports)


PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    "small": {"mesh": {"rows": 2, "cols": 2}, "hbm": {"channels": 2, "mib": 8}},
    "wafer": {"mesh": {"rows": 8, "cols": 8}, "hbm": {"channels": 16}},
}
"""Named machines, as differences from the defaults."""


def channel_of(config: Config, address: int) -> tuple[int, int]:
    """Pseudo-channel and word within it of global HBM word ``address``.

    Segments of 16 words are interleaved over the channels; the channel is the XOR of all
    log2(channels)-bit digits of the segment number, so that strided streams spread too.
    """
    bits = config.hbm.channels.bit_length() - 1
    segment, offset = divmod(address, SEGMENT_WORDS)
    local = segment >> bits
    channel, rest = segment, local
    while bits and rest:
        channel ^= rest
        rest >>= bits
    return channel & (config.hbm.channels - 1), local * SEGMENT_WORDS + offset


def direct_address(config: Config, channel: int, word: int, stripe: int | None = None) -> int:
    """The address that names ``word`` of pseudo-channel ``channel`` itself.

    The same word also has an interleaved address, which `interleaved` gives. Data that one tile
    reads can so lie in the channel nearest to it. With ``stripe`` it is ``word`` of that stripe:
    segments go to the channel's 2**``config.stripe_bits`` stripes in turn. What several tiles
    read at one pace, a stripe each, then shares DRAM rows.
    """
    address = 1 << DIRECT_BIT | channel * config.hbm.words | word
    if stripe is None:
        return address
    return 1 << STRIPED_BIT | address + stripe * (config.hbm.words >> config.stripe_bits)


def interleaved(config: Config, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
    """Global addresses (the index into an image) of ``addresses``, direct ones translated."""
    addresses = np.asarray(addresses, np.int64)
    if not config.has_direct or not (addresses >> DIRECT_BIT & 1).any():
        return addresses
    bits = config.hbm.channels.bit_length() - 1
    channel, word = np.divmod(addresses & (1 << STRIPED_BIT) - 1, config.hbm.words)
    stripe, inside = np.divmod(word, config.hbm.words >> config.stripe_bits)
    segment, offset = np.divmod(inside, SEGMENT_WORDS)
    striped = (segment << config.stripe_bits | stripe) * SEGMENT_WORDS + offset
    word = np.where(addresses >> STRIPED_BIT & 1, striped, word)
    row, offset = np.divmod(word, SEGMENT_WORDS)
    fold, rest = channel, row
    while bits and rest.any():
        fold, rest = fold ^ rest, rest >> bits
    place = fold & (config.hbm.channels - 1)
    found = (row << bits | place) * SEGMENT_WORDS + offset
    return np.where(addresses >> DIRECT_BIT & 1, found, addresses)


def _problem(error: ValidationError, where: str) -> UserError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        text = "no such setting"
    elif first["type"] != "value_error":  # ours say what they got
        text = f"{text}, not {first['input']!r}"
    return UserError(f"{where}: {name + ': ' if name else ''}{text}")


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def load_config(chip: str = "base", settings: Iterable[str] = ()) -> Config:
    """The machine named ``chip`` (a preset or a TOML file) with ``settings`` (``a.b=value``).

    Raises
    ------
    UserError
        If the preset or file does not exist, a key is unknown or the machine is impossible.
    """
    if chip in PRESETS:
        tree = _merge({"name": chip}, PRESETS[chip])
    else:
        path = Path(chip)
        if not path.is_file():
            known = ", ".join(sorted(PRESETS))
            raise UserError(f"chip {chip!r}: not a preset ({known}) and not a TOML file")
        try:
            tree = tomllib.loads(path.read_text())
        except OSError as error:
            raise UserError(f"{chip}: cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{chip}: not valid TOML: {error}") from None
        base = tree.pop("base", "base")
        if not isinstance(base, str) or base not in PRESETS:
            raise UserError(f"{chip}: base = {base!r} is not a preset ({', '.join(PRESETS)})")
        tree = _merge(_merge({"name": path.stem}, PRESETS[base]), tree)
    settings = list(settings)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {setting}: write it as section.name=value")
        change: Any = _parse(text)
        for part in reversed(key.split(".")):
            change = {part: change}
        tree = _merge(tree, change)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        where = f"{chip} with --set" if settings else chip
        raise _problem(error, where) from None
