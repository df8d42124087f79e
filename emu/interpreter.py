# SPDX-License-Identifier: Apache-2.0
"""Command streams executed without a clock: the machine's functional model and the token game.

Every tile's stream is dispatched in order into its four bounded queues; the head of any queue whose
semaphores suffice runs at once. Words that a LOAD requested arrive later, in an order chosen by the
caller, so a program that reads too early or refills too soon computes something else or is caught.
Checked: address ranges, reads of scratchpad words never written, writes over the frames, blocks (at
most as many held as there are frames, each shared one released once by every member), semaphores
that do not end at 0 (words that nobody awaited), and that something can always run.
"""

from collections import deque
from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from emu.compute_model import (
    TILE_WORDS,
    resident_addresses,
    sums,
    weight_addresses,
    weight_matrices,
    window_addresses,
)
from emu.config import (
    BLOCK_TILES,
    BLOCK_WORDS,
    SEGMENT_WORDS,
    WORD_BYTES,
    Config,
    interleaved,
)
from emu.isa import (
    ABSENT,
    COMMAND_BYTES,
    COMMAND_WORDS,
    QUEUE_OF,
    SIGNALS,
    WAITS,
    Opcode,
    Queue,
    decode,
)
from emu.requantise import add_by_table, from_bytes, requantise, to_bytes, wrap_int32
from emu.row_sums import sum_addresses, sum_words, unsummable
from emu.tile_state import Bytes, Counts, Fields, ProgramError, Tile, offsets, tiles_of
from emu.vector_model import (
    early_write,
    read_addresses,
    run_vector,
    table_addresses,
    unsupported,
    write_addresses,
)

AT_DISPATCH = (
    Opcode.LAYER, Opcode.FRAMES, Opcode.PIN, Opcode.UNPIN, Opcode.SET, Opcode.ADD, Opcode.END
)

WAIT_FIELDS = tuple((f"wait{i}_sem", f"wait{i}_count") for i in range(WAITS))
SIGNAL_FIELDS = tuple((f"signal{i}_valid", f"signal{i}_rect", f"signal{i}_sem")
                      for i in range(SIGNALS))


class Interpreter:
    """Runs the streams of ``words`` (a global HBM image) on ``config``.

    Parameters
    ----------
    values: False plays the token game alone: no arithmetic, no data.
    eager: LOADs are delivered as soon as issued (True) or when nothing else can run (False).
    """

    def __init__(self, config: Config, words: Bytes, *, values: bool = True, eager: bool = True):
        self.config, self.values, self.eager = config, values, eager
        self.words = words.copy() if values else words
        self.pending: deque = deque()
        self.counts = Counts()
        self.fetched: set[tuple[tuple[int, int], int, int]] = set()
        self.tiles: dict[tuple[int, int], Tile] = {}
        size = config.scratchpad.words
        decoded: dict[bytes, tuple[Opcode, Fields]] = {}
        directory = words[: config.mesh.tiles].view(np.uint64)
        for y in range(config.mesh.rows):
            for x in range(config.mesh.cols):
                entry = int(directory[y * config.mesh.cols + x, 0])
                base, count = entry & (1 << 28) - 1, entry >> 32
                if base % SEGMENT_WORDS:
                    raise ProgramError(f"tile {x},{y}: the stream begins within a segment")
                raw = self._range(base, count * COMMAND_WORDS, f"tile {x},{y}: stream").tobytes()
                chunks = [raw[k : k + COMMAND_BYTES] for k in range(0, len(raw), COMMAND_BYTES)]
                commands = [decoded.get(c) or decoded.setdefault(c, decode(c)) for c in chunks]
                self.tiles[x, y] = Tile(
                    x, y, commands, np.zeros((size if values else 0, WORD_BYTES), np.uint8),
                    np.zeros(size, bool),
                )

    def _range(self, base: int, count: int, what: str) -> Bytes:
        if base < 0 or base + count > len(self.words):
            raise ProgramError(f"{what}: words {base} .. {base + count - 1} lie outside the image")
        return self.words[base : base + count]

    def run(self) -> Bytes:
        """Execute everything; returns the global HBM image afterwards.

        Raises
        ------
        ProgramError
            If nothing can run although not all tiles are done, or a check fails.
        """
        while not all(tile.done for tile in self.tiles.values()):
            moved = False
            for tile in self.tiles.values():
                if tile.is_stuck:
                    continue
                acted = self._dispatch(tile)
                for queue in Queue:
                    acted |= self._advance(tile, queue)
                tile.is_stuck = not acted
                moved |= acted
            if self.pending and (self.eager or not moved):
                moved = True
                for _ in range(len(self.pending) if self.eager else 1):
                    self.pending.pop()()
            if not moved:
                raise ProgramError(f"the program stops: {self._stuck()}")
        while self.pending:
            self.pending.pop()()
        self._finish()
        return self.words

    def _stuck(self) -> str:
        for tile in self.tiles.values():
            for queue in Queue:
                if tile.queues[queue]:
                    opcode, fields = tile.queues[queue][0]
                    waits = [
                        f"semaphore {fields[f'wait{i}_sem']} >= {fields[f'wait{i}_count']} "
                        f"(is {tile.semaphores[fields[f'wait{i}_sem']]})"
                        for i in range(WAITS) if fields[f"wait{i}_count"]
                    ]
                    return (
                        f"{tile.name}, {opcode.name} in queue {queue.name} awaits "
                        f"{', '.join(waits)}"
                    )
        return "no queue holds a command"

    def _check_shared(self, tile: Tile, layer: int) -> None:
        """Every member uses every shared block: its frame is refilled only then."""
        d = tile.descriptors.get(layer)
        if d is None or d["members"] == 1:
            return
        for block in range(d["blocks"]):
            if ((tile.x, tile.y), layer, block) not in self.fetched:
                raise ProgramError(
                    f"{tile.name}: shared block {block} of layer {layer} is never used"
                )

    def _finish(self) -> None:
        for tile in self.tiles.values():
            for layer in tile.descriptors:
                self._check_shared(tile, layer)
            if any(tile.semaphores):
                sem = next(k for k, value in enumerate(tile.semaphores) if value)
                raise ProgramError(
                    f"{tile.name}: semaphore {sem} ends at {tile.semaphores[sem]}, not 0"
                )
            if tile.held:
                layer, block = min(tile.held)
                raise ProgramError(f"{tile.name}: block {block} of layer {layer} is never released")

    # Dispatch

    def _dispatch(self, tile: Tile) -> bool:
        moved = False
        while tile.next < len(tile.commands) and not tile.done:
            opcode, fields = tile.commands[tile.next]
            if opcode in AT_DISPATCH:
                if not self._at_dispatch(tile, opcode, fields):
                    break
            else:
                queue = tile.queues[QUEUE_OF.get(opcode, fields.get("queue", 0))]
                if len(queue) >= self.config.core.queue_depth:
                    break
                self._check_waits(tile, QUEUE_OF.get(opcode, fields.get("queue", 0)), fields)
                queue.append((opcode, self._indexed(tile, opcode, fields)))
            self.counts.commands += 1
            tile.next += 1
            moved = True
        if tile.next >= len(tile.commands) and not tile.done:
            raise ProgramError(f"{tile.name}: the stream has no END")
        return moved

    def _check_waits(self, tile: Tile, queue: int, fields: Fields) -> None:
        """Every semaphore is awaited in one queue: two would race for its arrivals."""
        for semaphore, amount in WAIT_FIELDS:
            if fields[amount]:
                sem = fields[semaphore]
                other = tile.waiters.setdefault(sem, queue)
                if other != queue:
                    raise ProgramError(
                        f"{tile.name}: semaphore {sem} is awaited in queues "
                        f"{Queue(other).name} and {Queue(queue).name}"
                    )

    def _indexed(self, tile: Tile, opcode: Opcode, fields: Fields) -> Fields:
        if not fields["index_valid"] or opcode in (Opcode.SYNC, Opcode.VECTOR):
            return fields
        name = "base" if opcode == Opcode.COMPUTE else "far"
        return fields | {name: fields[name] + tile.registers[fields["index"]]}

    def _at_dispatch(self, tile: Tile, opcode: Opcode, fields: Fields) -> bool:
        if opcode == Opcode.END:
            if any(tile.queues):
                return False
            tile.done = True
        elif opcode == Opcode.FRAMES:
            if tile.queues[Queue.COMPUTE]:
                return False
            if fields["base"] + fields["count"] * BLOCK_WORDS > self.config.scratchpad.words:
                raise ProgramError(f"{tile.name}: frames beyond the scratchpad")
            tile.frames = fields
        elif opcode == Opcode.LAYER:
            if tile.held and any(layer == fields["layer"] for layer, _ in tile.held):
                raise ProgramError(f"{tile.name}: layer {fields['layer']} rewritten while in use")
            self._check_shared(tile, fields["layer"])
            key = ((tile.x, tile.y), fields["layer"])
            self.fetched = {tag for tag in self.fetched if tag[:2] != key}
            tile.descriptors[fields["layer"]] = fields
        elif opcode == Opcode.SET:
            tile.registers[fields["register"]] = fields["value"]
        elif opcode == Opcode.ADD:
            value = tile.registers[fields["register"]] + fields["value"]
            tile.registers[fields["register"]] = value & (1 << 28) - 1
        return True

    # Queues

    def _advance(self, tile: Tile, queue: Queue) -> bool:
        moved = False
        commands = tile.queues[queue]
        while commands:
            opcode, fields = commands[0]
            need: dict[int, int] = {}
            for semaphore, amount in WAIT_FIELDS:
                if count := fields[amount]:
                    sem = fields[semaphore]
                    need[sem] = need.get(sem, 0) + count
            if any(tile.semaphores[sem] < count for sem, count in need.items()):
                break
            for sem, count in need.items():
                tile.semaphores[sem] -= count
            commands.popleft()
            if opcode == Opcode.COMPUTE:
                self._compute(tile, fields)
            elif opcode == Opcode.LOAD:
                self._load(tile, fields)
            elif opcode == Opcode.STORE:
                self._store(tile, fields)
            elif opcode == Opcode.VECTOR:
                self._vector(tile, fields)
            self._signal(tile, fields)
            moved = True
        return moved

    def _signal(self, tile: Tile, fields: Fields) -> None:
        for valid, rect, semaphore in SIGNAL_FIELDS:
            if fields[valid]:
                receivers = tiles_of(fields[rect])
                # A signal to another tile travels behind the words sent before it.
                while tile.pushes and receivers != ((tile.x, tile.y),):
                    self._pushed(tile)
                for where in receivers:
                    self._count(self.tiles[where], fields[semaphore], 1)

    def _count(self, tile: Tile, sem: int, amount: int) -> None:
        tile.is_stuck = False
        tile.semaphores[sem] += amount
        if tile.semaphores[sem] >= 1 << 16:
            raise ProgramError(f"{tile.name}: semaphore {sem} overflows")

    # Moves

    def _load(self, tile: Tile, fields: Fields) -> None:
        receivers = tiles_of(fields["rect"])
        if (tile.x, tile.y) not in receivers:
            raise ProgramError(f"{tile.name}: LOAD does not include the tile itself")
        near, far = self._addresses(tile, fields)
        if fields["sum"]:
            if problem := unsummable(fields, far, self.config.hbm.sum_rows):
                raise ProgramError(f"{tile.name}: LOAD of sums: {problem}")
            near = sum_addresses(fields)
        far = interleaved(self.config, far)
        self._check(tile, near, len(tile.written), "LOAD to scratchpad")
        here = self._present(tile, fields, len(far))
        if not here.all() and fields["turn"] * fields["count2"] != len(far):
            raise ProgramError(f"{tile.name}: LOAD of absent rows: {fields['turn']} words a turn")
        self._check(tile, far[here], len(self.words), "LOAD from HBM")
        self.counts.load_words += int(here.sum())
        self.pending.append(partial(self._loaded, fields, near, far, here, receivers))

    def _present(self, tile: Tile, fields: Fields, words: int) -> NDArray[np.bool_]:
        """Which of a LOAD's words are loaded: not those whose number is `ABSENT`."""
        numbers = self._numbers(tile, fields) if fields["gather"] else np.zeros(0)
        if not (numbers == ABSENT).any():
            return np.ones(words, bool)
        if receivers := set(tiles_of(fields["rect"])) - {(tile.x, tile.y)}:
            raise ProgramError(f"{tile.name}: LOAD of absent rows for {len(receivers)} other tiles")
        return np.repeat(numbers != ABSENT, words // len(numbers))

    def _addresses(self, tile: Tile, f: Fields) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Scratchpad and far words of a move, in order. Without values, index lists are all 0."""
        indices = None
        if f["gather"]:
            indices = self._numbers(tile, f)
            indices[indices == ABSENT] = 0
        return f["scratchpad"] + offsets(f, "s"), f["far"] + offsets(f, "f", indices)

    def _numbers(self, tile: Tile, f: Fields) -> NDArray[np.int64]:
        """The index list of a move. Without values it is all 0."""
        words = f["gather_base"] + np.arange(-(-f["count2"] // 4))
        self._check(tile, words, len(tile.written), "index list")
        self._check_written(tile, words, "gather")
        numbers = np.zeros(f["count2"], np.int64)
        if self.values:
            numbers[:] = tile.data[words].reshape(-1).view(np.uint32)[: f["count2"]]
        return numbers

    def _loaded(
        self, fields: Fields, near: NDArray, far: NDArray, here: NDArray[np.bool_], receivers
    ) -> None:
        words = None
        if self.values:
            words = self.words[np.where(here, far, 0)]
            words[~here] = self.tiles[receivers[0]].data[near[~here]] if not here.all() else 0
        if fields["sum"] and words is not None:
            words = sum_words(fields, words)
        self._deliver("LOAD", fields, near, words, receivers)

    def _deliver(
        self, what: str, fields: Fields, near: NDArray, words: Bytes | None, receivers
    ) -> None:
        for where in receivers:
            other = self.tiles[where]
            self._check_frames(other, near, what)
            if words is not None:
                other.data[near] = words
            other.written[near] = True
            self.counts.inbound[where] = self.counts.inbound.get(where, 0) + len(near)
            if fields["sem_valid"]:
                self._count(other, fields["sem"], len(near))

    def _pushed(self, tile: Tile) -> None:
        """The oldest words on their way to tiles arrive, if a signal has not pushed them on."""
        if tile.pushes:
            self._deliver("STORE", *tile.pushes.popleft())

    def _check(self, tile: Tile, index: NDArray, limit: int, what: str) -> None:
        if index.size and (index.min() < 0 or index.max() >= limit):
            raise ProgramError(
                f"{tile.name}: {what} reaches words {index.min()} .. {index.max()}, limit {limit}"
            )

    def _check_frames(self, tile: Tile, index: NDArray, what: str) -> None:
        base, count = tile.frames.get("base", 0), tile.frames.get("count", 0)
        if ((index >= base) & (index < base + count * BLOCK_WORDS)).any():
            raise ProgramError(f"{tile.name}: {what} overwrites the parameter frames")

    def _store(self, tile: Tile, fields: Fields) -> None:
        near, far = self._addresses(tile, fields)
        if fields["gather"] and len(near):
            numbers = self._numbers(tile, fields)
            there = np.repeat(numbers != ABSENT, len(near) // len(numbers))
            near, far = near[there], far[there]
        self._check(tile, near, len(tile.written), "STORE from scratchpad")
        tile.scatters |= bool(fields["gather"] and fields["to_tiles"])
        if self.values or not tile.scatters:  # without values nobody knows where words went
            self._check_written(tile, near, "STORE")
        if fields["to_tiles"]:
            self._check(tile, far, len(tile.written), "STORE to tiles")
            words = tile.data[near] if self.values else None
            tile.pushes.append((fields, far, words, tiles_of(fields["rect"])))
            self.pending.append(partial(self._pushed, tile))
            return
        far = interleaved(self.config, far)
        self._check(tile, far, len(self.words), "STORE to HBM")
        self.counts.store_words += len(far)
        if self.values:
            self.words[far] = tile.data[near]

    def _check_written(self, tile: Tile, index: NDArray, what: str) -> None:
        if not tile.written[index].all():
            missing = int(index[~tile.written[index]][0])
            raise ProgramError(
                f"{tile.name}: {what} reads scratchpad word {missing}, never written"
            )

    # Compute

    def _compute(self, tile: Tile, f: Fields) -> None:
        pixels = f["pixels"]
        if not 1 <= pixels <= self.config.core.accumulator_rows:
            raise ProgramError(f"{tile.name}: {pixels} pixels in one COMPUTE")
        if f["out_groups"] > 1 and not (f["first"] and f["last"]):
            raise ProgramError(f"{tile.name}: several output groups without first and last")
        self._use_blocks(tile, f)
        f = self._counted(tile, f)
        if not f["pixels"]:
            return
        index, inside = window_addresses(f)
        if self.values:
            weights = self._weights(tile, f)
        for g in range(f["out_groups"]):
            where = index + g * f["advance"]
            self._check(tile, where[:, inside], len(tile.written), "COMPUTE")
            self._check_written(tile, where[:, inside].reshape(-1), "COMPUTE")
            if self.values:
                raw = tile.data[np.where(inside[None], where, 0)]
                total = sums(f, raw, inside, weights[g])
                tile.accumulators = total if f["first"] else tile.accumulators + total
            if f["last"]:
                self._drain(tile, f, g)

    def _counted(self, tile: Tile, f: Fields) -> Fields:
        """With as many pixels as there are rows. Without values nobody knows: with all."""
        if not f["rows_valid"]:
            return f
        if not f["w_resident"]:
            raise ProgramError(f"{tile.name}: COMPUTE of counted rows with blocks of weights")
        where = np.array([f["rows"]])
        self._check(tile, where, len(tile.written), "COMPUTE's rows")
        self._check_written(tile, where, "COMPUTE")
        if not self.values:
            return f
        rows = int(tile.data[f["rows"], :4].view(np.uint32)[0])
        return f | {"pixels": min(f["pixels"], rows)}

    def _weights(self, tile: Tile, f: Fields) -> list[NDArray[np.float64]]:
        if f["w_resident"]:
            return weight_matrices(f, tile.data[resident_addresses(f)])
        index = weight_addresses(f, tile.descriptors[f["w_layer"]])
        index = interleaved(self.config, index)
        self._check(tile, index, len(self.words), "weights")
        return weight_matrices(f, self.words[index])

    def _use_blocks(self, tile: Tile, f: Fields) -> None:
        if f["w_mode"] not in TILE_WORDS:
            raise ProgramError(f"{tile.name}: COMPUTE has no weight mode {f['w_mode']}")
        if f["w_resident"]:
            index = resident_addresses(f)
            self._check(tile, index, len(tile.written), "weights")
            self._check_written(tile, index.reshape(-1), "COMPUTE")
            return
        d = tile.descriptors.get(f["w_layer"])
        if d is None or not tile.frames:
            raise ProgramError(f"{tile.name}: layer {f['w_layer']} has no descriptor or no frames")
        tiles = f["in_groups"] * f["kh"] * f["kw"] * f["out_groups"]
        last = f["w_tile"] + tiles - 1
        if last > (d["blocks"] - 1) * BLOCK_TILES + d["last_tiles"]:
            raise ProgramError(f"{tile.name}: tile {last} is beyond layer {f['w_layer']}")
        blocks = range(f["w_tile"] // BLOCK_TILES, last // BLOCK_TILES + 1)
        for block in blocks:
            self._use_block(tile, f, d, block)
        if len(tile.held) > tile.frames["count"]:
            raise ProgramError(f"{tile.name}: {len(tile.held)} blocks held in fewer frames")

    def _use_block(self, tile: Tile, f: Fields, d: Fields, block: int) -> None:
        tag = ((tile.x, tile.y), f["w_layer"], block)
        key = (f["w_layer"], block)
        if tag not in self.fetched:
            self.fetched.add(tag)
            tiles = d["last_tiles"] + 1 if block == d["blocks"] - 1 else BLOCK_TILES
            words = tiles * d["tile_words"]
            where = (tile.x, tile.y)
            self.counts.inbound[where] = self.counts.inbound.get(where, 0) + words
            if where == (d["leader_x"], d["leader_y"]):
                self.counts.block_words += words
        elif d["members"] > 1 and key not in tile.held:
            raise ProgramError(f"{tile.name}: shared block {block} is used again after its release")
        if f["w_keep"]:
            tile.held.add(key)
        else:
            tile.held.discard(key)

    def _drain(self, tile: Tile, f: Fields, g: int) -> None:
        params = f["params"] + 8 * g + np.arange(4 if f["out_int32"] else 8)
        out = f["out"] + g * f["out_group"] + np.arange(f["pixels"]) * f["out_step"]
        if f["out_int32"]:
            out = (out[:, None] + np.arange(4)).reshape(-1)
        else:
            self._check_tables(tile, f, g)
        self._check(tile, params, len(tile.written), "parameters")
        self._check_written(tile, params, "drain")
        self._check(tile, out, len(tile.written), "drain")
        self._check_frames(tile, out, "drain")
        tile.written[out] = True
        if self.values:
            raw = tile.data[params].reshape(-1)
            if f["out_int32"]:
                total = wrap_int32(tile.accumulators + raw.view(np.int32))
                tile.data[out] = total.view(np.uint8).reshape(-1, WORD_BYTES)
                return
            result = requantise(
                tile.accumulators, raw[64:].view(np.float32), bias=raw[:64].view(np.int32),
                zero=f["out_zero"], low=f["clip_low"], high=f["clip_high"],
            )
            tile.data[out] = self._behind(tile, f, g, result)

    def _residual_words(self, f: Fields, g: int) -> NDArray[np.int64]:
        return f["residual"] + g * f["residual_group"] + np.arange(f["pixels"]) * f["out_step"]

    def _check_tables(self, tile: Tile, f: Fields, g: int) -> None:
        reads = []
        if f["residual_valid"]:
            reads = [f["residual_table"] + np.arange(64), self._residual_words(f, g)]
        if f["table_valid"]:
            reads.append(f["table"] + np.arange(16))
        for index in reads:
            self._check(tile, index, len(tile.written), "drain")
            self._check_written(tile, index, "drain")

    def _behind(self, tile: Tile, f: Fields, g: int, y: NDArray[np.int32]) -> Bytes:
        """Residual and table of a drain: bytes [pixel, lane]."""
        if f["residual_valid"]:
            other = tile.data[self._residual_words(f, g)]
            index, multiplied = to_bytes(y), other
            if f["residual_indexes"]:
                index, multiplied = multiplied, index
            table = tile.data[f["residual_table"] + np.arange(64)].reshape(-1).view(np.float32)
            y = add_by_table(
                from_bytes(multiplied, bool(f["residual_signed"])), index,
                np.uint32(f["residual_scale"]).view(np.float32), table,
                offset=f["residual_a_zero"], low=f["residual_low"], high=f["residual_high"],
            )
        data = to_bytes(y)
        if f["table_valid"]:
            data = tile.data[f["table"] + np.arange(16)].reshape(-1)[data]
        return data

    # Vector

    def _vector(self, tile: Tile, f: Fields) -> None:
        if reason := unsupported(f):
            raise ProgramError(f"{tile.name}: {reason}")
        reads = np.concatenate([table_addresses(f), read_addresses(f)[0]])
        where = write_addresses(f)
        self._check(tile, reads, len(tile.written), "VECTOR")
        self._check(tile, where, len(tile.written), "VECTOR")
        self._check_written(tile, reads, "VECTOR")
        self._check_frames(tile, where, "VECTOR")
        if (early := early_write(f)) is not None:
            raise ProgramError(f"{tile.name}: VECTOR writes word {early} before it reads it")
        if self.values:
            where, words = run_vector(f, tile.data)
            tile.data[where] = words
        tile.written[where] = True


def verify(program) -> Counts:
    """Play the token game over ``program`` in both orders of arrival.

    Raises
    ------
    ProgramError
        If the program would stop or breaks a rule of the machine.
    """
    for eager in (True, False):
        interpreter = Interpreter(program.config, program.words, values=False, eager=eager)
        interpreter.run()
    return interpreter.counts


def execute(program, inputs: Mapping[str, NDArray], *, eager: bool = True) -> dict[str, NDArray]:
    """Run ``program`` functionally; inputs and outputs as in `Program.image` and `outputs`."""
    interpreter = Interpreter(program.config, program.global_image(inputs), eager=eager)
    return program.graph_outputs(interpreter.run())
