"""A balancer to be measured: its maps are written directly, without a control plane."""

from __future__ import annotations

import ctypes
import ipaddress
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from sockway.balancer import layout, quicids
from sockway.balancer.idtable import IdKey, IdTable, buckets_for
from sockway.balancer.spec import QuicIdSpec
from sockway.errors import StateError
from sockway.kernel import BpfObject

LOOPBACK = 1
GOLDEN = 0x9E3779B1
HASH_KEY = [random.Random(7).getrandbits(64) for _ in range(14)]


def address_words(address: str) -> tuple[int, int, int, int]:
    """An address as the C side has it."""
    parsed = ipaddress.ip_address(address)
    mapped = b"" if isinstance(parsed, ipaddress.IPv6Address) else bytes(10) + b"\xff\xff"
    return struct.unpack("<4I", mapped + parsed.packed)


@dataclass
class Setup:
    """What is loaded."""

    object: BpfObject
    vip_shift: int
    ring_size: int
    maps: dict[str, Any]

    def memory(self, name: str, struct_name: str | None, count: int) -> Any:
        """A map's memory as an array of a C struct."""
        kind = self.object.types.struct(struct_name) if struct_name else ctypes.c_uint32
        held = self.maps.setdefault(name, self.object.map(name))
        return held.mmap(kind * count)

    def add_vip(self, address: str, port: int, protocol: int, **fields: Any) -> None:
        """An entry of the VIP table."""
        buckets = 1 << (32 - self.vip_shift)
        table = self.memory("vips", "vip_bucket", buckets)
        words = address_words(address)
        swapped = int.from_bytes(port.to_bytes(2, "big"), "little")
        mixed = words[0] ^ words[1] ^ words[2] ^ words[3] ^ (swapped | protocol << 16)
        index = (mixed * GOLDEN & 0xFFFFFFFF) >> self.vip_shift
        for probe in range(4):
            for entry in table[(index + probe) % buckets].way:
                if not entry.in_use:
                    entry.address[:] = words
                    entry.port, entry.protocol = swapped, protocol
                    for name, value in fields.items():
                        setattr(entry, name, value)
                    entry.in_use = 1
                    return
        raise StateError("the VIP table is too full")


def load(
    *, memory: str = "MEMORY_HISTORY", backends: int = 100, vips: int = 1, buckets: int = 1 << 17,
    quic_ids: Sequence[QuicIdSpec] | None = None,
) -> Setup:  # fmt: skip
    """A balancer with one pool behind all VIPs: 192.0.2.1 and up, TCP and UDP 443.

    With `quic_ids` packets may carry server IDs, 1 and up, also in TCP options of kind 0xB7.
    """
    source = resources.files("sockway.kernel").joinpath("objects", "balancer.bpf.o").read_bytes()
    spec = BpfObject.open(source, name="balancer")
    constants = spec.types.enum("memory")
    vip_shift = 32 - max(6, (4 * vips).bit_length())
    config = spec.types.struct("balancer_config")()
    config.hash_key[:] = HASH_KEY
    config.flow_mask = buckets - 1
    config.flow_timeout, config.id_timeout = 3600, 60
    config.vip_shift = vip_shift
    config.memory = constants[memory].value
    id_buckets = buckets_for(backends)
    config.id_shift = 32 - (id_buckets.bit_length() - 1)
    spec.rodata["config"] = config
    size = spec.types.enum("balancer_limit")["RING_SIZE"].value
    spec.maps["vips"].set_max_entries(1 << (32 - vip_shift))
    spec.maps["rings"].set_max_entries(size // 16 + 1)
    spec.maps["ids"].set_max_entries(id_buckets)
    spec.maps["flows"].set_max_entries(buckets)
    spec.maps["backends"].set_max_entries(backends + 1)
    spec.maps["backend_counters"].set_max_entries(backends + 1)
    spec.maps["vip_counters"].set_max_entries(3 * vips + 1)
    spec.maps["limits"].set_max_entries(3 * vips + 1)
    spec.programs["balancer_frags"].set_autoload(False)
    spec.load()
    setup = Setup(spec, vip_shift, size, {})
    pool = setup.memory("pools", "pool", 1)[0]
    pool.source4, pool.mask4 = address_words("10.1.0.0")[3], 0x0000FFFF
    pool.source6[:] = address_words("2001:db8:ffff::")
    pool.gue_port = int.from_bytes((6080).to_bytes(2, "big"), "little")
    pool.history_until = pool.udp_until = 0xFFFFFFFF
    pool.size = size
    table = setup.memory("backends", "backend", backends + 1)
    for number in range(1, backends + 1):
        entry = table[number]
        entry.address[:] = address_words(f"10.2.{number >> 8}.{number & 255}")
        entry.is_ipv4, entry.way.ifindex = 1, LOOPBACK
        entry.way.next_hop[:], entry.way.own[:] = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x01"
        entry.flags = 1 | 4
    ring = setup.memory("rings", None, size)
    flags = 2 if quic_ids is None else 2 | _carry(setup, quic_ids, backends, id_buckets)
    order = random.Random(1)
    ring[:] = [order.randint(1, backends) for _ in range(size)]
    for number in range(vips):
        last = f"192.{number >> 8}.{number & 255}.1" if number else "192.0.2.1"
        for offset, (port, protocol) in enumerate(((443, 6), (443, 17), (0, 0))):
            setup.add_vip(
                last, port, protocol, index=1 + 3 * number + offset, flags=flags,
                flow_mask=buckets - 1,
            )  # fmt: skip
    if vips:
        for offset, (port, protocol) in enumerate(((443, 6), (443, 17), (0, 0))):
            setup.add_vip(
                "2001:db8::1", port, protocol, index=1 + offset, flags=2, flow_mask=buckets - 1
            )
    return setup


def _carry(setup: Setup, specs: Sequence[QuicIdSpec], backends: int, buckets: int) -> int:
    """Have server IDs read; the flag of VIPs whose packets may carry them."""
    ids = IdTable(setup.memory("ids", "id_bucket", buckets), buckets)
    ids.bring({IdKey(0, number): number for number in range(1, backends + 1)})
    setup.memory(".data.settings", "settings", 1)[0].tcp_kind = 0xB7
    held = setup.maps.setdefault(".data.quic_ids", setup.object.map(".data.quic_ids"))
    quicids.write(held.mmap(layout.record("quic_ids") * quicids.STARTS), specs)
    return layout.flag("balancer_vip_flag", "VIP_STAMPED")
