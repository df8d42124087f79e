# SPDX-License-Identifier: Apache-2.0
"""Network interface: random traffic in all directions against a model of what each word means."""

import os
from collections import defaultdict

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, Combine, ReadOnly, RisingEdge, with_timeout
from cocotb.utils import get_sim_time

from emu.config import Config, Hbm, Mesh, Prefetch, channel_of
from hdl.network_interface import SENDERS, NetworkInterface, ReleaseOp, StoreWord
from hdl.packets import Dest, DownFlit, Exit, HbmRequest, Kind, ReqFlit, UpFlit
from hdl.ports import SignalOp, WriteWord
from sim.streams import Sink, Source, bits_of, unpack

CONFIGS = {
    "base": Config(),
    "one_channel": Config(hbm=Hbm(channels=1), mesh=Mesh(cols=1, rows=4)),
    "wide": Config(mesh=Mesh(cols=5, rows=3), hbm=Hbm(channels=8),
                   prefetch=Prefetch(outstanding=16)),
}
VARIANTS = {name: lambda config=config: NetworkInterface(config)
            for name, config in CONFIGS.items()}
CONFIG = CONFIGS[os.environ.get("HEADRACE_VARIANT", "base")]
X, Y = CONFIG.mesh.cols - 1, 1
HERE = {"x0": X, "x1": X, "y0": Y, "y1": Y, "xs": 0, "ys": 0}


async def start(dut):
    Clock(dut.clk, 1, unit="ns").start()
    dut.x.value, dut.y.value, dut.rst.value, dut.urgent.value = X, Y, 1, 0
    dut.command_word__ready.value = 1
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0


class Events:
    """What the interface tells the tile, cycle by cycle."""

    def __init__(self, dut):
        self.dut = dut
        self.seen: dict[str, list] = defaultdict(list)
        self.waiting = None  # the write offered and not yet taken

    async def run(self):
        dut = self.dut
        while True:
            await ReadOnly()
            if int(dut.arrive__valid.value):
                self._note("arrive", dut.arrive__sem)
            if int(dut.ack__valid.value):
                self._note("ack", dut.ack__words)
            if int(dut.released__valid.value):
                self._note("released", dut.released__frame)
            if int(dut.command_word__valid.value):
                self._note("command", dut.command_word__payload)
            if int(dut.frame__valid.value):
                assert int(dut.write__request__ready.value), "announced before it is written"
                self._note("frame", dut.frame__address, dut.frame__block, dut.frame__tiles,
                           dut.frame__tile_words)
            offered = int(dut.write__request__valid.value)
            self._write(offered)
            assert offered or self.waiting is None, "write withdrawn"
            await RisingEdge(dut.clk)

    def _write(self, offered: int):
        if not offered:
            return
        bits = int(self.dut.write__request__payload.value)
        assert self.waiting in (None, bits), "write changed before its transfer"
        self.waiting = bits
        if int(self.dut.write__request__ready.value):
            self.waiting = None
            word = unpack(WriteWord, bits)
            self.seen["write"].append((word["address"], word["data"]))

    def _note(self, name, *signals):
        self.seen[name].append(tuple(int(signal.value) for signal in signals))


def _idle_ports(dut, names):
    for name in names:
        getattr(dut, f"{name}__valid").value = 0


def _wide(rng) -> int:
    return int.from_bytes(rng.bytes(16), "little")


def _down(rng, kind: int, source) -> dict:
    reply = {
        "rect": HERE, "address": int(rng.integers(0, 1 << 16)), "kind": kind,
        "has_sem": int(rng.integers(0, 2)), "sem": int(rng.integers(0, 32)),
        "block": int(rng.integers(0, 4096)), "tiles": int(rng.integers(0, 16)),
        "tile_words": int(rng.integers(1, 17)), "source_x": source[0], "source_y": source[1],
    }
    return {"data": _wide(rng), "reply": reply, "dest": {"rect": HERE, "exit": Exit.CORE}}


def _up(rng, kind: int) -> dict:
    address = int(rng.integers(0, 64 if kind == Kind.RELEASE else 1 << 16))
    return {
        "data": _wide(rng), "kind": kind, "address": address,
        "has_sem": int(rng.integers(0, 2)), "sem": int(rng.integers(0, 32)),
        "dest": {"rect": HERE, "exit": Exit.CORE},
    }


def _expect(flits, down: bool) -> dict[str, list]:
    """Events that ``flits`` of one plane cause, in order."""
    want: dict[str, list[tuple]] = defaultdict(list)
    for flit in flits:
        head = flit["reply"] if down else flit
        kind = head["kind"]
        if kind in (Kind.DATA, Kind.FRAME):
            want["write"].append((head["address"], flit["data"]))
        if (kind in (Kind.DATA, Kind.FRAME) and head["has_sem"]) or kind == Kind.SIGNAL:
            want["arrive"].append((head["sem"],))
        if kind == Kind.FRAME:
            want["frame"].append(
                (head["address"], head["block"], head["tiles"], head["tile_words"]))
        if kind == Kind.COMMAND:
            want["command"].append((head["address"] | flit["data"] << 16,))
        if kind == Kind.ACK:
            want["ack"].append((head["address"],))
        if kind == Kind.RELEASE:
            want["released"].append((head["address"],))
    return want


def _merges(got, first, second) -> bool:
    """``got`` is an interleaving that keeps the order of ``first`` and of ``second``."""
    reach = {0}  # how many of `first` may have been used
    for n, item in enumerate(got):
        reach = {i + 1 for i in reach if i < len(first) and first[i] == item} | {
            i for i in reach if 0 <= n - i < len(second) and second[n - i] == item}
    return len(got) == len(first) + len(second) and len(first) in reach


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.6], p_stall=[0.0, 0.7])
async def inbound(dut, p_idle, p_stall):
    """Each arriving word has its effects once; the order of each plane is kept per effect."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    _idle_ports(dut, [*SENDERS, "request_fetch", "request_load", "request_blocks"])
    dut.req__ready.value = dut.up__ready.value = 1
    sources = {name: Source(dut, name, shape, p_idle=p_idle, rng=rng)
               for name, shape in (("down_in", DownFlit), ("up_in", UpFlit))}
    sink = Sink(dut, "write__request", WriteWord, p_stall=p_stall, rng=rng)
    await start(dut)
    events = Events(dut)
    for task in (sink.run(), events.run()):
        cocotb.start_soon(task)
    down_kinds = [Kind.DATA, Kind.COMMAND, Kind.FRAME, Kind.ACK]
    up_kinds = [Kind.DATA, Kind.SIGNAL, Kind.RELEASE]
    other = (X + 1, Y)  # words that another tile requested
    down = [_down(rng, down_kinds[n], other) for n in rng.integers(0, 4, 200)]
    up = [_up(rng, up_kinds[n]) for n in rng.integers(0, 3, 200)]
    begin = get_sim_time("ns")
    await with_timeout(Combine(cocotb.start_soon(sources["down_in"].send(down)),
                               cocotb.start_soon(sources["up_in"].send(up))), 10, "us")
    took = get_sim_time("ns") - begin
    await ClockCycles(dut.clk, 3)
    wants = _expect(down, True), _expect(up, False)
    for name in ("write", "arrive", "frame", "command", "ack", "released"):
        got = events.seen[name]
        assert got and _merges(got, wants[0][name], wants[1][name]), name
    assert int(dut.idle.value) == 1
    if not p_idle and not p_stall:  # one word a cycle
        assert took <= 400 + 2
    assert int(dut.count_words_down.value) == int(dut.count_words_up.value) == 200
    assert int(dut.count_frame_words.value) == len(wants[0]["frame"])
    assert int(dut.count_command_words.value) == len(wants[0]["command"])
    assert int(dut.count_semaphore_words.value) == sum(f["kind"] == Kind.SIGNAL for f in up)
    assert int(dut.count_data_words.value) == sum(
        f["kind"] == Kind.DATA for f in [*up, *(flit["reply"] for flit in down)])


@cocotb.test
async def only_data_waits_for_the_scratchpad(dut):
    """With the scratchpad blocked, words of other kinds on the other plane still pass."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    _idle_ports(dut, [*SENDERS, "request_fetch", "request_load", "request_blocks"])
    dut.req__ready.value = dut.up__ready.value = dut.write__request__ready.value = 0
    down, up = Source(dut, "down_in", DownFlit), Source(dut, "up_in", UpFlit)
    await start(dut)
    blocked = cocotb.start_soon(up.send([_up(rng, Kind.DATA)]))
    kinds = [Kind.COMMAND, Kind.ACK] * 10
    await with_timeout(down.send([_down(rng, kind, (X, Y + 1)) for kind in kinds]), 30, "ns")
    assert up.sent == 0
    dut.write__request__ready.value = 1
    await with_timeout(blocked, 5, "ns")
    blocked = cocotb.start_soon(down.send([_down(rng, Kind.FRAME, (X, Y + 1))]))
    dut.write__request__ready.value = 0
    await with_timeout(up.send([_up(rng, Kind.SIGNAL)] * 10), 20, "ns")
    assert down.sent == len(kinds)
    dut.write__request__ready.value = 1
    await with_timeout(blocked, 5, "ns")


def _port(channel: int) -> dict:
    x, y, edge = CONFIG.channel_ports[channel]
    return {"rect": {"x0": x, "x1": x, "y0": y, "y1": y, "xs": 0, "ys": 0},
            "exit": bits_of(Exit.NORTH if edge == "N" else Exit.SOUTH)}


def _address(rng) -> int:
    return int(rng.integers(0, CONFIG.hbm_words))


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.5], p_stall=[0.0, 0.6], urgent=[0, 1])
async def requests(dut, p_idle, p_stall, urgent):
    """Requests reach the right channel once and in order, never more words than allowed."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    _idle_ports(dut, [*SENDERS, "up_in"])
    dut.up__ready.value = dut.write__request__ready.value = 1
    names = ("fetch", "load", "blocks")
    sources = [Source(dut, f"request_{n}", HbmRequest, p_idle=p_idle, rng=rng) for n in names]
    memory = Source(dut, "down_in", DownFlit, p_idle=p_idle, rng=rng)
    sink = Sink(dut, "req", ReqFlit, p_stall=p_stall, rng=rng)
    await start(dut)
    dut.urgent.value = urgent
    cocotb.start_soon(sink.run())
    sent = []
    for stream in range(3):
        requests = []
        for _ in range(40):
            reply = _down(rng, Kind.DATA, (X, Y))["reply"] | {"block": stream}
            address, last = _address(rng), int(rng.integers(0, 16))
            requests.append({"address": address & ~15, "last": last, "reply": reply})
        sent.append(requests)
    tasks = [cocotb.start_soon(s.send(r)) for s, r in zip(sources, sent, strict=True)]
    answered = peak = peak_of_blocks = answered_of_blocks = 0
    for cycle in range(5300):  # answers begin late enough for paced requests to reach the limit
        # The stream that asked, for every word asked for.
        words = [item["reply"]["block"] for item in sink.received for _ in range(item["last"] + 1)]
        asked = len(words)
        peak = max(peak, asked - answered)
        peak_of_blocks = max(peak_of_blocks, words.count(2) - answered_of_blocks)
        if len(sink.received) == 120 and answered == asked:
            break
        if cycle >= 900 and asked > answered and (rng.random() < 0.5 or p_idle == 0.0):
            if rng.random() < 0.1:  # other tiles' words and acknowledgements do not count
                kind, source = ((Kind.DATA, (X, Y + 1)), (Kind.ACK, (X, Y)))[rng.integers(0, 2)]
                await memory.send([_down(rng, kind, source)])
            of_blocks = words[answered] == 2
            await memory.send([_down(rng, Kind.FRAME if of_blocks else Kind.DATA, (X, Y))])
            answered += 1
            answered_of_blocks += of_blocks
        else:
            await RisingEdge(dut.clk)
    await with_timeout(Combine(*tasks), 1, "us")
    await ClockCycles(dut.clk, 3)
    limit = CONFIG.prefetch.outstanding
    assert limit - 15 <= peak <= limit
    own = CONFIG.prefetch.urgent if urgent else CONFIG.prefetch.background
    assert min(own, limit) - 15 <= peak_of_blocks <= min(own, limit)
    for stream, requests in enumerate(sent):
        got = [item for item in sink.received if item["reply"]["block"] == stream]
        assert len(got) == 40
        for item, request in zip(got, requests, strict=True):
            channel, local = channel_of(CONFIG, request["address"])
            assert item["address"] == local and item["last"] == request["last"]
            assert item["dest"] == _port(channel)
            assert item["reply"] == request["reply"] | {"kind": bits_of(request["reply"]["kind"])}
    assert int(dut.count_requests.value) == 120
    assert int(dut.count_request_words.value) == answered > 0
    assert int(dut.count_stall_outstanding.value) > 0
    assert int(dut.idle.value) == 1


@cocotb.test
@cocotb.parametrize(p_idle=[0.0, 0.5], p_stall=[0.0, 0.6])
async def outbound(dut, p_idle, p_stall):
    """Words, stores, signals and releases leave once, complete and in order of each stream."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    _idle_ports(dut, ["down_in", "up_in", "request_fetch", "request_load", "request_blocks"])
    dut.req__ready.value = dut.write__request__ready.value = 1
    shapes = {"push": UpFlit, "store": StoreWord, "signal": SignalOp, "release": ReleaseOp}
    sources = {n: Source(dut, n, s, p_idle=p_idle, rng=rng) for n, s in shapes.items()}
    sink = Sink(dut, "up", UpFlit, p_stall=p_stall, rng=rng)
    await start(dut)
    cocotb.start_soon(sink.run())
    own = {"source_x": X, "source_y": Y}
    sent: dict[str, list] = defaultdict(list)
    want: dict[int, list] = defaultdict(list)
    core = bits_of(Exit.CORE)
    blank = dict(unpack(UpFlit, 0))
    for _ in range(50):
        flit = blank | _up(rng, Kind.DATA) | {"kind": bits_of(Kind.DATA)} | own
        flit["dest"] = unpack(Dest, int(rng.integers(0, 1 << 20)))
        sent["push"].append(flit)
        want[Kind.DATA].append(flit)
        word = {"data": _wide(rng), "address": _address(rng),
                "mask": int(rng.integers(0, 1 << 16)), "last": int(rng.integers(0, 2))}
        channel, local = channel_of(CONFIG, word["address"])
        sent["store"].append(word)
        want[Kind.WRITE].append(
            blank | word | own
            | {"kind": bits_of(Kind.WRITE), "address": local, "dest": _port(channel)})
        signal = unpack(SignalOp, int(rng.integers(0, 1 << 25)))
        sent["signal"].append(signal)
        want[Kind.SIGNAL].append(
            blank | own | {"kind": bits_of(Kind.SIGNAL), "has_sem": 1, "sem": signal["sem"],
                           "dest": {"rect": signal["rect"], "exit": core}})
        release = unpack(ReleaseOp, int(rng.integers(0, 1 << 14)))
        sent["release"].append(release)
        x, y = release["x"], release["y"]
        rect = {"x0": x, "x1": x, "y0": y, "y1": y, "xs": 0, "ys": 0}
        want[Kind.RELEASE].append(
            blank | own | {"kind": bits_of(Kind.RELEASE), "address": release["frame"],
                           "dest": {"rect": rect, "exit": core}})
    tasks = [cocotb.start_soon(source.send(sent[name])) for name, source in sources.items()]
    await with_timeout(Combine(*tasks), 10, "us")
    await ClockCycles(dut.clk, 3)
    assert len(sink.received) == 200
    for kind, flits in want.items():
        assert [item for item in sink.received if item["kind"] == bits_of(kind)] == flits, kind
