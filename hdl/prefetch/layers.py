# SPDX-License-Identifier: Apache-2.0
"""The layer descriptors of a parameter store."""

from amaranth.hdl import Const, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from emu import isa
from emu.config import LAYERS
from hdl.packets import layout

Descriptor = layout(isa.LAYER)
Owner = data.StructLayout(
    {"first_block": 12, "blocks": 12, "shared": 1, "leader_x": 4, "leader_y": 4,
     "last_tiles": 4, "tile_words": 5}
)
"""The part of a descriptor that lookups and releases need."""

OwnerRead = wiring.Signature(
    {"layer": Out(6), "owner": In(Owner), "described": In(1), "pinned": In(1)}
)
"""Combinational read; ``owner`` means something only if ``described``."""


class LayerTable(wiring.Component):
    """Sixty-four descriptors. A write is seen from the next cycle on.

    Members
    -------
    write, descriptor: Store ``descriptor`` at its own ``layer``.
    pin, unpin, pin_layer: Mark a layer pinned, or not.
    lookup, release: Readers of `Owner`.
    read, layer: Read descriptor ``layer``; ``o`` is it from the next cycle to the next ``read``.
    layer_pinned: ``layer`` is pinned. ``child_described``: the child of ``o`` is written.
    """

    def __init__(self):
        super().__init__(
            {
                "write": In(1), "descriptor": In(Descriptor),
                "pin": In(1), "unpin": In(1), "pin_layer": In(6),
                "lookup": In(OwnerRead), "release": In(OwnerRead),
                "read": In(1), "layer": In(6), "o": Out(Descriptor),
                "layer_pinned": Out(1), "child_described": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.descriptors = descriptors = Memory(shape=Descriptor, depth=LAYERS, init=[])
        m.submodules.owners = owners = Memory(shape=Owner, depth=LAYERS, init=[])
        described, pinned = Signal(LAYERS), Signal(LAYERS)
        write, owner_write = descriptors.write_port(), owners.write_port()
        read = descriptors.read_port()

        m.d.comb += [
            write.addr.eq(self.descriptor.layer),
            write.data.eq(self.descriptor),
            write.en.eq(self.write),
            owner_write.addr.eq(self.descriptor.layer),
            owner_write.en.eq(self.write),
            owner_write.data.shared.eq(self.descriptor.members > 1),
            read.addr.eq(self.layer),
            read.en.eq(self.read),
            self.o.eq(read.data),
            self.layer_pinned.eq(pinned.bit_select(self.layer, 1)),
            self.child_described.eq(described.bit_select(self.o.child, 1)),
        ]
        for name in ("first_block", "blocks", "leader_x", "leader_y", "last_tiles", "tile_words"):
            m.d.comb += owner_write.data[name].eq(self.descriptor[name])
        for port in (self.lookup, self.release):
            reader = owners.read_port(domain="comb")
            m.d.comb += [
                reader.addr.eq(port.layer),
                port.owner.eq(reader.data),
                port.described.eq(described.bit_select(port.layer, 1)),
                port.pinned.eq(pinned.bit_select(port.layer, 1)),
            ]
        one = Const(1, LAYERS)
        with m.If(self.write):
            m.d.sync += described.eq(described | (one << self.descriptor.layer))
        with m.If(self.pin):
            m.d.sync += pinned.eq(pinned | (one << self.pin_layer))
        with m.If(self.unpin):
            m.d.sync += pinned.eq(pinned & ~(one << self.pin_layer))
        return m
