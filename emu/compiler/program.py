# SPDX-License-Identifier: Apache-2.0
"""A compiled program and the compiler's top: network in, command streams and memory image out.

Binary form
-----------
A program is one image of global HBM, words of 16 bytes, and nothing else:

* word ``i`` (tile ``i = y * cols + x``) is the directory: bits 0-27 the first word of the tile's
  command stream, bits 32-63 its number of commands;
* then activations (`emu.compiler.images.Tensor`), per step the parameters (8 words per output
  group: int32 bias[16], float32 scale[16]) and weight blocks (16 tiles each; a block of every
  channel part side by side, in order of consumption);
* then the command streams (`emu.isa`, 128 bytes a command), each on a 16-word boundary.

`to_channels` splits it over the pseudo-channels as `emu.config.channel_of` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emu.compiler.images import Bytes, Tensor, from_channels, to_channels
from emu.compiler.paging import Paging
from emu.compiler.roofline import Roofline
from emu.config import SEGMENT_WORDS, WORD_BYTES, Config
from emu.errors import UserError
from emu.network.layers import Network
from emu.planner import Item


@dataclass(frozen=True)
class Program:
    """Everything that a run of a network on a machine needs.

    streams: per tile ``(x, y)`` its encoded commands.
    words: the global HBM image without inputs.
    tensors: where every layer tensor lies (`emu.network.layers` maps graph tensors to them);
        ``input_names`` must be given to `image`, ``output_names`` are what `outputs` returns.
    plans: how each step is split, in words.
    rooflines: bounds per step; ``cycle_limit`` is when a run is declared hung.
    step_reads: words that each step's commands read, repeats included, commands excluded.
    layer_names: Layers in order; lifetimes count them.
    memories: What was placed, in bytes: ``activations`` (every tensor of the network), ``hbm``
        (those that lie there) and ``scratchpad`` (a tile's areas beside its parameter frames).
    network: what was compiled, if it has graph tensors; else inputs and outputs go by layer tensor.
    dump_words: words per channel that hold everything `outputs` reads.
    constants: First word behind the activations: from there on HBM is only read.
    paging: Where constants lie in storage, with ``storage.enabled``.
    pinned_bytes: Of weights that are loaded once, at the start, for all steps that use them.
    """

    config: Config
    streams: dict[tuple[int, int], list[bytes]]
    words: Bytes
    tensors: dict[str, Tensor]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    rooflines: tuple[Roofline, ...]
    plans: tuple[str, ...]
    step_reads: tuple[int, ...]
    layer_names: tuple[str, ...] = ()
    memories: dict[str, tuple[Item, ...]] = field(default_factory=dict)
    network: Network | None = None
    pinned_bytes: int = 0
    constants: int = 0
    paging: Paging | None = None

    @property
    def constants_line(self) -> int:
        """First 64-byte line of every channel from which on it is only read."""
        row = self.config.hbm.channels * SEGMENT_WORDS
        return -(-self.constants // row) * SEGMENT_WORDS // 4

    @property
    def planned_read_bytes(self) -> int:
        """What the commands read, repeats included, commands excluded."""
        return WORD_BYTES * sum(self.step_reads)

    @property
    def compulsory_bytes(self) -> dict[str, int]:
        """Distinct HBM bytes that the layers refer to, commands excluded. A stripe of a fused layer
        is a layer: it refers to its weights, and to rows at its borders, once more."""
        inputs: dict[str, int] = {}
        for bound in self.rooflines:
            for name, words in bound.reads.items():
                inputs[name] = max(inputs.get(name, 0), words)
        read = sum(inputs.values()) + sum(bound.constant_words for bound in self.rooflines)
        written = sum(bound.write_words for bound in self.rooflines)
        return {"hbm_read": WORD_BYTES * read, "hbm_write": WORD_BYTES * written}

    @property
    def roofline(self) -> dict[str, float]:
        """Least cycles by resource, over all steps."""
        return {
            "compute": sum(bound.compute for bound in self.rooflines),
            "hbm": sum(bound.hbm for bound in self.rooflines),
            "inbound": sum(bound.inbound for bound in self.rooflines),
        }

    @property
    def macs(self) -> int:
        """Multiply-accumulates by definition, padded channels excluded."""
        return sum(bound.macs for bound in self.rooflines)

    @property
    def command_bytes(self) -> int:
        return sum(len(command) for stream in self.streams.values() for command in stream)

    @property
    def roofline_cycles(self) -> float:
        return sum(r.cycles for r in self.rooflines)

    @property
    def cycle_limit(self) -> int:
        limit = int(20 * self.roofline_cycles) + 100_000
        if self.paging:
            storage = self.config.storage
            page = storage.latency + storage.shared_page_cycles(self.config.hbm.channels)
            words = self.config.hbm.channels * storage.page_words
            # Every channel fetches each page it is asked for, some more than once.
            limit += 4 * page * (self.paging.pages + sum(self.step_reads) // words)
        return limit

    @property
    def dump_words(self) -> int:
        line = self.config.hbm.channels * SEGMENT_WORDS
        return -(-len(self.words) // line) * SEGMENT_WORDS

    def global_image(self, inputs: Mapping[str, NDArray]) -> Bytes:
        """The global HBM image with ``inputs`` (by graph name; of bare layers by tensor) in place.

        Raises
        ------
        UserError
            If an input is missing, unknown or of the wrong shape.
        """
        expected = set(self.input_names)
        if self.network:
            expected = {tensor.name for tensor in self.network.inputs}
        unknown, missing = sorted(set(inputs) - expected), sorted(expected - set(inputs))
        if unknown or missing:
            raise UserError(
                f"inputs: {'missing ' + ', '.join(missing) if missing else ''}"
                f"{'; ' if missing and unknown else ''}"
                f"{'not an input: ' + ', '.join(unknown) if unknown else ''}"
            )
        if self.network:
            inputs = self.network.to_layers(inputs)
        words = self.words.copy()
        for name, values in inputs.items():
            tensor = self.tensors[name]
            words[tensor.addresses] = tensor.pack(values)
        return words

    def image(self, inputs: Mapping[str, NDArray]) -> list[Bytes]:
        """Per channel its image ``uint8[dump_words, 16]``."""
        return to_channels(self.config, self.global_image(inputs))

    def outputs(self, image: list[Bytes]) -> dict[str, NDArray]:
        """Outputs from (dumped) channel images: graph outputs; of bare layers output tensors."""
        short = min(len(channel) for channel in image)
        if short < self.dump_words:
            raise UserError(f"the dump has {short} words per channel, {self.dump_words} are needed")
        return self.graph_outputs(from_channels(self.config, image))

    def graph_outputs(self, words: Bytes) -> dict[str, NDArray]:
        """As `outputs`, from the global image."""
        found = self.read_tensors(words)
        return self.network.from_layers(found) if self.network else found

    def read_tensors(self, words: Bytes, every: bool = False) -> dict[str, NDArray]:
        """Output (or all) layer tensors from the global image."""
        names = self.tensors if every else self.output_names
        return {
            name: t.unpack(words[t.addresses])
            for name in names for t in [self.tensors[name]]
        }

    def write_images(self, image: list[Bytes], folder: Path) -> None:
        """``channel_N.bin`` as the DRAM array loads them: words most significant byte first.

        With ``storage.enabled`` the constants are in ``storage_N.bin`` and no longer there.
        """
        for channel, words in enumerate(image):
            if self.paging:
                first, last = 4 * self.paging.first, 4 * self.paging.last
                words[first:last, ::-1].tofile(folder / f"storage_{channel}.bin")
                words = words.copy()
                words[first:last] = 0
            np.ascontiguousarray(words[:, ::-1]).tofile(folder / f"channel_{channel}.bin")

    def read_dump(self, folder: Path) -> list[Bytes]:
        """Channel images as the DRAM array dumps them: words least significant byte first.

        Raises
        ------
        UserError
            If a channel's file is missing or cut short.
        """
        image = []
        for channel in range(self.config.hbm.channels):
            path = folder / f"channel_{channel}.bin"
            if not path.is_file():
                raise UserError(f"no dump of channel {channel}: {path} is missing")
            data = np.fromfile(path, np.uint8)
            if len(data) % WORD_BYTES:
                raise UserError(f"{path}: {len(data)} bytes are no whole number of words")
            image.append(data.reshape(-1, WORD_BYTES))
        return image


__all__ = ["Program"]
