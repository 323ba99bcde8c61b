"""Sections 2 to 5: from a packet to what becomes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

from sockway.wire.balancer_model.configuration import (
    ICMP,
    TCP,
    UDP,
    Address,
    Backend,
    Configuration,
    Pool,
    Vip,
)
from sockway.wire.balancer_model.packet import Kind, Packet, parse, read_quoted
from sockway.wire.balancer_model.rewrite import echoed, overhead, too_big, tunneled
from sockway.wire.balancer_model.stamps import BAD, read_stamp

Verdict = Literal["drop", "pass", "transmit", "redirect"]

_MASK: Final = 0xFFFFFFFFFFFFFFFF
_QUOTE: Final = 512
SENT: Final = frozenset(
    {
        "by_ring",
        "by_table",
        "new_flow",
        "by_previous",
        "over_limit",
        "by_stamp",
        "icmp_error",
        "to_local",
    }
)


@dataclass(slots=True)
class Result:
    """What becomes of a frame."""

    verdict: Verdict
    frame: bytes
    outcome: str | None = None
    """None: it is for no VIP."""
    vip: str | None = None
    backend: int = 0


class Model:
    """A balancer. It remembers flows and counts, and knows no time."""

    def __init__(self, configuration: Configuration) -> None:
        """Begin with an empty connection table."""
        self.configuration = configuration
        self.flows: dict[int, int] = {}
        """Backends by the hash of the flow."""
        self.counters: Counter[tuple[str, str]] = Counter()
        """Packets by VIP and outcome; the VIP of `malformed` is empty."""
        self.sent: Counter[int] = Counter()
        """Packets by backend."""
        self.octets: Counter[str] = Counter()
        """Octets of IP sent, by VIP."""
        self.sent_octets: Counter[int] = Counter()
        """The same by backend."""
        self._left = {
            vip.name: vip.limit for vip in configuration.vips.values() if vip.limit is not None
        }
        self._any_port = configuration.any_port

    def process(self, frame: bytes) -> Result:
        """What becomes of a frame."""
        kind, packet = parse(frame)
        if kind is Kind.MALFORMED:
            self.counters["", "malformed"] += 1
        if packet is None or kind in {Kind.OTHER, Kind.MALFORMED}:
            return Result("pass", frame)
        if kind is Kind.FLOW:
            vip = self._vip(packet)
            result = self._flow(frame, packet, vip) if vip else Result("pass", frame)
        else:
            result = self._unusual(frame, packet, kind)
        if result.vip is not None and result.outcome is not None:
            self.counters[result.vip, result.outcome] += 1
            if result.outcome in SENT:
                self.sent[result.backend] += 1
                self.octets[result.vip] += packet.length
                self.sent_octets[result.backend] += packet.length
        return result

    def hash_of(self, packet: Packet, *, by_source: bool) -> int:
        """Section 2's hash of a flow."""
        key, client, address = self.configuration.key, packet.client, packet.address
        total = key[0]
        if len(client) == 4:  # noqa: PLR2004
            total += key[1] * int.from_bytes(client, "little")
        else:
            total += sum(
                key[2 + part] * int.from_bytes(client[4 * part : 4 * part + 4], "little")
                for part in range(4)
            )
        if not by_source:
            ports = _swapped(packet.client_port) | _swapped(packet.port) << 16
            total += key[6] * ports + key[7] * packet.protocol
            total += key[8] * int.from_bytes(address[-4:], "little")
            if len(client) != 4:  # noqa: PLR2004
                total += sum(
                    key[9 + part] * int.from_bytes(address[4 * part : 4 * part + 4], "little")
                    for part in range(3)
                )
        total &= _MASK
        total = (total ^ total >> 32) * (key[12] | 1) & _MASK
        total = (total ^ total >> 29) * (key[13] | 1) & _MASK
        return total ^ total >> 32

    def _vip(self, packet: Packet) -> Vip | None:
        vips = self.configuration.vips
        found = vips.get((packet.address, packet.port, packet.protocol))
        if found is None and self._any_port:
            return vips.get((packet.address, 0, packet.protocol))
        return found

    def _unusual(self, frame: bytes, packet: Packet, kind: Kind) -> Result:
        """Fragments and ICMP."""
        address = self.configuration.addresses.get(packet.address)
        if address is None:
            return Result("pass", frame)
        if kind is Kind.FRAGMENT:
            vip = self.configuration.vips.get((packet.address, 0, packet.protocol))
            if vip is not None and vip.by_source:
                return self._flow(frame, packet, vip, fragment=True)
            return Result("drop", frame, "fragment", address.name)
        return self._icmp(frame, packet, address)

    def _icmp(self, frame: bytes, packet: Packet, address: Address) -> Result:
        if packet.length < packet.l4 - packet.l3 + 8:
            return Result("pass", frame)
        kind, code = frame[packet.l4], frame[packet.l4 + 1]
        is_ipv4 = packet.protocol == ICMP
        if kind == (8 if is_ipv4 else 128) and not code:
            if packet.plain and address.echo and _answerable(packet.client):
                return Result("transmit", echoed(frame, packet), "echoed", address.name)
            return Result("pass", frame)
        if kind in ((3, 11, 12) if is_ipv4 else (1, 2, 3, 4)) and read_quoted(frame, packet):
            vip = self._vip(packet)
            if vip is not None:
                return self._flow(frame, packet, vip)
        return Result("pass", frame)

    def _flow(self, frame: bytes, packet: Packet, vip: Vip, *, fragment: bool = False) -> Result:
        """Section 2, and on to section 3."""
        pool = self.configuration.pools[vip.pool]
        flow = self.hash_of(packet, by_source=vip.by_source)
        number = self._stamped(frame, packet, vip) if vip.stamped and not fragment else 0
        outcome = "by_stamp"
        if not number:
            outcome, number = self._choose(packet, vip, pool, flow, fragment=fragment)
        backend = self.configuration.backends.get(number)
        if backend is None or not backend.up:
            return Result("drop", frame, "no_backend", vip.name)
        if packet.quoting:
            outcome = "icmp_error"
        return self._send(frame, packet, vip, pool, (outcome, number, backend, flow))

    def _stamped(self, frame: bytes, packet: Packet, vip: Vip) -> int:
        """The backend that the packet names; 0: none that counts."""
        stamp = read_stamp(self.configuration, frame, packet)
        if stamp == BAD:
            self.counters[vip.name, "bad_options"] += 1
        if stamp <= 0:
            return 0
        number = self.configuration.ids.get((vip.pool, stamp), 0)
        backend = self.configuration.backends.get(number)
        if backend is None or not backend.up:
            self.counters[vip.name, "foreign_stamp"] += 1
            return 0
        return number

    def _choose(
        self, packet: Packet, vip: Vip, pool: Pool, flow: int, *, fragment: bool
    ) -> tuple[str, int]:
        current, previous = pool.ring[(flow & 0xFFFFFFFF) * len(pool.ring) >> 32]
        memory = self.configuration.memory
        if memory == "table":
            opens, forgetful = packet.opens and not packet.quoting, packet.quoting or fragment
            return self._choose_by_table(vip, flow, current, opens=opens, forgetful=forgetful)
        old = self.configuration.backends.get(previous)
        if memory == "none" or not (previous and pool.in_transition and old and old.up):
            return "by_ring", current
        return self._choose_in_transition(
            packet, vip, pool, flow, (current, previous), fragment=fragment
        )

    def _choose_in_transition(
        self,
        packet: Packet,
        vip: Vip,
        pool: Pool,
        flow: int,
        slot: tuple[int, int],
        *,
        fragment: bool,
    ) -> tuple[str, int]:
        current, previous = slot
        forgetful = packet.quoting or fragment
        if packet.opens and not forgetful:
            if not self._within(vip):
                return "over_limit", previous
            self._remember(vip, flow, current)
            return "new_flow", current
        known = self._known(flow)
        if known:
            return "by_table", known
        if packet.protocol == TCP:
            return "by_previous", previous
        return self._choose_for_udp(vip, pool, flow, slot, forgetful=forgetful)

    def _choose_for_udp(
        self, vip: Vip, pool: Pool, flow: int, slot: tuple[int, int], *, forgetful: bool
    ) -> tuple[str, int]:
        """An unknown flow: older than the change, or as new as its packet?"""
        current, previous = slot
        backend = previous if pool.udp_early else current
        if forgetful:
            return ("by_previous" if pool.udp_early else "by_ring"), backend
        if self._within(vip):
            self._remember(vip, flow, backend)
        elif not pool.udp_early:
            return "over_limit", backend
        return ("by_previous" if pool.udp_early else "new_flow"), backend

    def _choose_by_table(
        self, vip: Vip, flow: int, current: int, *, opens: bool, forgetful: bool
    ) -> tuple[str, int]:
        known = 0 if opens else self._known(flow)
        if known:
            return "by_table", known
        if forgetful:
            return "by_ring", current
        if not self._within(vip):
            return "over_limit", current
        self._remember(vip, flow, current)
        return "new_flow", current

    def _known(self, flow: int) -> int:
        number = self.flows.get(flow, 0)
        backend = self.configuration.backends.get(number)
        return number if backend is not None and backend.up else 0

    def _remember(self, vip: Vip, flow: int, number: int) -> None:
        self.flows[flow] = number
        self.counters[vip.name, "stored"] += 1

    def _within(self, vip: Vip) -> bool:
        if vip.name not in self._left:
            return True
        self._left[vip.name] -= 1
        return self._left[vip.name] >= 0

    def _send(
        self,
        frame: bytes,
        packet: Packet,
        vip: Vip,
        pool: Pool,
        chosen: tuple[str, int, Backend, int],
    ) -> Result:
        """Section 3."""
        outcome, number, backend, flow = chosen
        if backend.local:
            return Result("pass", frame, "to_local", vip.name, number)
        if packet.ttl <= 1:
            return Result("drop", frame, "ttl_expired", vip.name)
        if 0 < backend.mtu < packet.length + overhead(pool, backend):
            if (
                packet.dont_fragment
                and not packet.quoting
                and packet.length >= _QUOTE
                and _answerable(packet.client)
            ):
                answer = too_big(frame, packet, backend.mtu - overhead(pool, backend))
                return Result("transmit", answer, "too_big", vip.name)
            return Result("drop", frame, "too_big_dropped", vip.name)
        if not backend.resolved:
            return Result("drop", frame, "no_route", vip.name)
        same = backend.ifindex == self.configuration.ingress
        sent = tunneled(frame, packet, pool, backend, flow, same=same)
        return Result("transmit" if same else "redirect", sent, outcome, vip.name, number)


def _answerable(address: bytes) -> bool:
    """Section 5."""
    if len(address) == 4:  # noqa: PLR2004
        return any(address) and address[0] != 127 and address[0] < 224  # noqa: PLR2004
    return address[0] != 0xFF and address not in {bytes(16), bytes(15) + b"\x01"}  # noqa: PLR2004


def _swapped(port: int) -> int:
    return port >> 8 | (port & 0xFF) << 8


__all__ = ["SENT", "UDP", "Model", "Result", "Verdict"]
