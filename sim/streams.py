# SPDX-License-Identifier: Apache-2.0
"""Drivers and monitors of `stream.Signature` ports: one `Source`, one `Sink`."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from amaranth.hdl import Const
from amaranth.lib import data
from cocotb.triggers import ReadOnly, RisingEdge


def pack(shape: Any, value: Any) -> int:
    """``value`` (an int, or nested dict for a layout) as the bits of ``shape``; range-checked."""
    if isinstance(shape, data.StructLayout) and isinstance(value, dict):
        unknown = set(value) - set(shape.members)
        if unknown:
            raise ValueError(f"no such field: {sorted(unknown)}")
        word = 0
        for name, field in shape:
            word |= pack(field.shape, value.get(name, 0)) << field.offset
        return word
    width = Const.cast(Const(0, 1)).width if shape is None else _width(shape)
    number = int(getattr(value, "value", value))
    if not -(1 << width - 1) <= number < 1 << width:
        raise ValueError(f"{value} does not fit {width} bits")
    return number & (1 << width) - 1


def bits_of(member: Any) -> int:
    """The bits of a member of a hardware enumeration (type checkers take it for an integer)."""
    return member.value


def _width(shape: Any) -> int:
    from amaranth.hdl import Shape

    return Shape.cast(shape).width


def unpack(shape: Any, word: int) -> Any:
    """Inverse of `pack`: an int, or nested dicts for a layout."""
    from amaranth.hdl import Shape

    if isinstance(shape, data.StructLayout):
        return {
            name: unpack(field.shape, word >> field.offset & (1 << field.width) - 1)
            for name, field in shape
        }
    cast = Shape.cast(shape)
    return word - (1 << cast.width) if cast.signed and word >> cast.width - 1 else word


class Source:
    """Drives a stream input port ``dut.<name>__{payload,valid,ready}``.

    ``p_idle`` is the chance that a cycle offers nothing. Valid, once up, stays until transfer.
    """

    def __init__(self, dut, name: str, shape: Any, *, p_idle: float = 0.0, rng=None):
        self.clk = dut.clk
        self.payload, self.valid, self.ready = (
            getattr(dut, f"{name}__{part}") for part in ("payload", "valid", "ready")
        )
        self.shape, self.p_idle = shape, p_idle
        self.rng = rng or np.random.default_rng(0)
        self.sent = 0
        self.valid.value = 0

    async def send(self, values: Iterable[Any]) -> None:
        """Send all of ``values``; returns after the last transfer."""
        for value in values:
            while self.rng.random() < self.p_idle:
                self.valid.value = 0
                await RisingEdge(self.clk)
            self.payload.value = pack(self.shape, value)
            self.valid.value = 1
            while True:
                await ReadOnly()
                taken = int(self.ready.value)
                await RisingEdge(self.clk)
                if taken:
                    break
            self.sent += 1
            self.valid.value = 0


class Sink:
    """Takes from a stream output port; ``p_stall`` is the chance that a cycle is not ready.

    Start `run` with `cocotb.start_soon`; ``received`` grows, ``on_item`` is called for each.
    """

    def __init__(
        self, dut, name: str, shape: Any, *, p_stall: float = 0.0, rng=None,
        on_item: Callable[[Any], None] | None = None,
    ):
        self.clk = dut.clk
        self.payload, self.valid, self.ready = (
            getattr(dut, f"{name}__{part}") for part in ("payload", "valid", "ready")
        )
        self.shape, self.p_stall, self.on_item = shape, p_stall, on_item
        self.rng = rng or np.random.default_rng(0)
        self.received: list[Any] = []
        self.ready.value = 0

    async def run(self) -> None:
        while True:
            ready = self.rng.random() >= self.p_stall
            self.ready.value = int(ready)
            await ReadOnly()
            if ready and int(self.valid.value):
                item = unpack(self.shape, int(self.payload.value))
                self.received.append(item)
                if self.on_item:
                    self.on_item(item)
            await RisingEdge(self.clk)
