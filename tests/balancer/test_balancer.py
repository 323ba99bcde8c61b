"""The balancer's control plane, over the real programs in a network namespace."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer import Balancer, BalancerSpec, frame_of, read
from sockway.balancer import attach as attachments
from sockway.errors import (
    BusyError,
    ConfigError,
    KernelError,
    NotFoundError,
    SockwayError,
    StateError,
)
from sockway.kernel import BpfObject

pytestmark = pytest.mark.root

CONFIG = """
interfaces = ["out0"]
mode = "generic"
secret = "a secret of the fleet"

[pool.web]
source4 = "10.0.0.0/24"
[pool.web.backends]
web1 = "10.0.0.11"
web2 = "10.0.0.12"
web3 = { address = "10.0.0.13", weight = 50 }

[[vip]]
listen = "tcp://192.0.2.1:443"
pool = "web"
[[vip]]
listen = "udp://[2001:db8::1]:443"
pool = "web"
"""

Open = Callable[[str], Balancer]


@pytest.fixture
def open_balancer(network: None, bpffs_root: Path) -> Iterator[Callable[[str], Balancer]]:
    """Balancers with a configuration applied; removed at the end."""
    del network
    opened: list[Balancer] = []

    def make(text: str) -> Balancer:
        spec = read(text)
        balancer = Balancer.open(spec, root=bpffs_root)
        opened.append(balancer)
        balancer.apply(spec)
        return balancer

    yield make
    for balancer in opened:
        try:
            balancer.remove()
        except (SockwayError, FileNotFoundError):
            balancer.close()


def _frame(client: int, flags: str = "ack") -> bytes:
    source = f"198.51.{client >> 8}.{client & 255}:40000"
    return frame_of("tcp", source, "192.0.2.1:443", flags)


def _backends(balancer: Balancer, flows: int = 300) -> list[str | None]:
    return [balancer.explain(_frame(client)).backend for client in range(flows)]


def test_a_packet_for_a_vip_goes_to_a_backend(open_balancer: Open) -> None:
    """And says which, and why; every backend gets its share."""
    balancer = open_balancer(CONFIG)
    found = balancer.explain(_frame(1))
    assert (found.verdict, found.outcome) == ("redirect", "by_ring")
    assert (found.vip, found.pool) == ("tcp://192.0.2.1:443", "web")
    assert set(_backends(balancer)) == {"web1", "web2", "web3"}
    shares = {b.name: b.share for b in balancer.status()["web"]}
    assert shares == pytest.approx({"web1": 0.4, "web2": 0.4, "web3": 0.2}, abs=0.01)


def test_what_is_for_no_vip_is_passed(open_balancer: Open) -> None:
    """Another port, another address, another protocol."""
    balancer = open_balancer(CONFIG)
    for protocol, target in (
        ("tcp", "192.0.2.1:80"),
        ("tcp", "192.0.2.2:443"),
        ("udp", "192.0.2.1:443"),
    ):
        found = balancer.explain(frame_of(protocol, "198.51.100.7:4000", target))
        assert (found.verdict, found.outcome) == ("pass", None)


def test_a_backend_that_leaves_keeps_its_flows(open_balancer: Open) -> None:
    """Flows older than the change stay where they are; new ones go elsewhere, and are known."""
    balancer = open_balancer(CONFIG)
    before = _backends(balancer)
    balancer.apply(read(CONFIG.replace('web1 = "10.0.0.11"\n', "")))
    old = [balancer.explain(_frame(client)) for client in range(300)]
    named = [
        a.backend if b != "web1" else a.backend and "web1" for a, b in zip(old, before, strict=True)
    ]
    assert named == before
    assert {a.outcome for a, b in zip(old, before, strict=True) if b == "web1"} == {"by_previous"}
    new = {balancer.explain(_frame(client, "syn")).backend for client in range(300)}
    assert new == {"web2", "web3"}


def test_drained_and_restored(open_balancer: Open) -> None:
    """Weight 0: no new flows, and all old ones; then its share again."""
    balancer = open_balancer(CONFIG)
    before = _backends(balancer)
    balancer.set_weight("web", "web2", 0)
    assert _backends(balancer) == before
    assert "web2" not in {balancer.explain(_frame(c, "syn")).backend for c in range(300)}
    assert {b.name: b.state for b in balancer.status()["web"]}["web2"] == "drained"
    balancer.set_weight("web", "web2", 100)
    assert [balancer.explain(_frame(c, "syn")).backend for c in range(300)] == before


def test_a_dead_backend_gets_nothing(open_balancer: Open) -> None:
    """Not even what was its own; and alive again it has its slots back."""
    balancer = open_balancer(CONFIG)
    before = _backends(balancer)
    balancer.set_down("web2")
    assert "web2" not in _backends(balancer)
    balancer.set_down("web2", down=False)
    assert [balancer.explain(_frame(c, "syn")).backend for c in range(300)] == before


def test_two_balancers_agree(open_balancer: Open) -> None:
    """The same secret and members, learnt of in another order: the same backend for each flow."""
    first = _backends(open_balancer(CONFIG))
    lines = CONFIG.replace('web1 = "10.0.0.11"\n', "").replace(
        "web2 =", 'name_to_come = "10.0.0.20"\nweb2 ='
    )
    other = open_balancer(
        'name = "other"\n' + lines.replace('interfaces = ["out0"]', "interfaces = []")
    )
    final = CONFIG.replace('interfaces = ["out0"]', "interfaces = []")
    other.apply(read('name = "other"\n' + final))
    fresh = [other.explain(_frame(c, "syn")).backend for c in range(300)]
    assert fresh == first


def test_the_next_process_finds_it(open_balancer: Open, bpffs_root: Path) -> None:
    """What is pinned is all there is to know."""
    balancer = open_balancer(CONFIG)
    before = _backends(balancer)
    balancer.close()
    with Balancer.existing("main", root=bpffs_root) as again:
        assert again.spec == read(CONFIG)
        assert again.interfaces == ["out0"]
        assert _backends(again) == before


def test_it_grows(open_balancer: Open) -> None:
    """A configuration without room in the maps gets larger ones; flows stay where they are."""
    balancer = open_balancer(CONFIG)
    before = _backends(balancer)
    more = "".join(
        f'[[vip]]\nlisten = "tcp://192.0.{n >> 8}.{n & 255}:80"\npool = "p{n % 9}"\n'
        for n in range(600, 900)
    )
    pools = "".join(f'[pool.p{n}]\nbackends = {{ x{n} = "10.0.0.{n + 14}" }}\n' for n in range(9))
    balancer.apply(read(CONFIG + pools + more))
    assert _backends(balancer) == before
    found = balancer.explain(frame_of("tcp", "198.51.100.9:999", "192.0.3.20:80"))
    assert found.backend == f"x{(3 * 256 + 20) % 9}"
    balancer.apply(read(CONFIG))
    assert _backends(balancer) == before


def test_programs_are_loaded_once(open_balancer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel checks them for half a second: at the start, and not for ten backends more."""
    loads: list[str] = []
    load = BpfObject.load

    def counted(self: BpfObject) -> None:
        loads.append(self.name)
        load(self)

    monkeypatch.setattr(BpfObject, "load", counted)
    balancer = open_balancer(CONFIG)
    more = "".join(f'y{n} = "10.0.0.{n}"\n' for n in range(100, 110))
    balancer.apply(read(CONFIG.replace("[[vip]]", f"{more}[[vip]]", 1)))
    assert loads.count("balancer") == 1
    # What is constant in them has to be loaded.
    balancer.apply(read(CONFIG.replace("of the fleet", "of another")))
    assert loads.count("balancer") == 2


def test_a_refused_configuration_changes_nothing(open_balancer: Open) -> None:
    """The error comes before the first change."""
    balancer = open_balancer(CONFIG)
    spec = balancer.spec
    data = spec.model_dump()
    data["vip"][0]["pool"] = "nowhere"
    with pytest.raises(ConfigError, match="nowhere"):
        balancer.apply(BalancerSpec.model_validate(data))
    assert balancer.spec == spec


def test_an_error_half_way_is_undone(open_balancer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step fails, packets go where they went before."""
    balancer = open_balancer(CONFIG)
    before = _backends(balancer)
    wanted = read(CONFIG.replace('web1 = "10.0.0.11"\n', "").replace("::1]:443", "::2]:443"))

    def fail(*_args: object) -> None:
        raise StateError("no more")

    for step in ("_write_vips", "_remove_pools", "_forget_backends"):
        with monkeypatch.context() as patch:
            patch.setattr(f"sockway.balancer.apply.{step}", fail)
            with pytest.raises(StateError, match="no more"):
                balancer.apply(wanted)
        assert _backends(balancer) == before
        assert balancer.spec == read(CONFIG)
        outcomes = {balancer.explain(_frame(client)).outcome for client in range(300)}
        assert outcomes == {"by_ring"}


def test_one_change_at_a_time(open_balancer: Open, bpffs_root: Path) -> None:
    """The second is told."""
    balancer = open_balancer(CONFIG)
    with (
        balancer._state.lock(),
        Balancer.existing("main", root=bpffs_root) as other,
        pytest.raises(BusyError, match="another process"),
    ):
        other.set_weight("web", "web1", 7)


def test_the_plan_says_what_would_change(open_balancer: Open) -> None:
    """In words that people read."""
    balancer = open_balancer(CONFIG)
    text = CONFIG.replace("weight = 50", "weight = 60").replace('web1 = "10.0.0.11"\n', "")
    lines = [str(change) for change in balancer.plan(read(text))]
    assert lines == [
        "- pool web, backend web1",
        "~ pool web, backend web3: weight 50 -> 60",
    ]
    assert balancer.plan(read(CONFIG)) == []


def test_unknown_names_are_told(open_balancer: Open) -> None:
    """With those that there are."""
    balancer = open_balancer(CONFIG)
    with pytest.raises(NotFoundError, match="web1, web2, web3"):
        balancer.set_weight("web", "web9", 1)
    with pytest.raises(NotFoundError, match="pools are: web"):
        balancer.set_weight("wep", "web1", 1)
    with pytest.raises(ConfigError, match="0 to 65535"):
        balancer.set_weight("web", "web1", 65_536)


def test_real_packets_leave_in_a_tunnel(open_balancer: Open) -> None:
    """A frame that comes in by the interface goes out, encapsulated, to a backend."""
    balancer = open_balancer(CONFIG)
    received = 0x0300  # ETH_P_ALL, in network order
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, received) as wire:
        wire.bind(("peer0", 0))
        wire.settimeout(2)
        for client in range(20):
            wire.send(_frame(client))
        found = 0
        while found < 20:
            frame, address = wire.recvfrom(2048)
            if address[2] == socket.PACKET_OUTGOING or frame[23] != 4:
                continue
            assert frame[26:29] == bytes([10, 0, 0])
            assert frame[30:33] == bytes([10, 0, 0])
            assert frame[:6] == bytes([2, 0, 0, 0, 0, frame[33]])
            found += 1
    counters = balancer.counters()
    assert counters.outcomes["tcp://192.0.2.1:443"] == {"by_ring": 20}
    assert sum(count.packets for count in counters.backends.values()) == 20
    assert counters.octets["tcp://192.0.2.1:443"] == 20 * 40


def test_an_interface_that_can_not_be_attached_undoes_all(
    open_balancer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not there is found before anything changes; one that refuses, after."""
    balancer = open_balancer(CONFIG)
    before = _backends(balancer)
    less = CONFIG.replace('web1 = "10.0.0.11"\n', "")
    with pytest.raises(SockwayError, match="no interface 'none0'"):
        balancer.apply(read(_with(less, "none0")))
    assert balancer.spec == read(CONFIG)

    real = attachments.attach

    def refuse(directory: Path, interface: str, *rest: Any) -> str:
        if interface == "peer0":
            raise KernelError("peer0 takes no XDP program")
        return real(directory, interface, *rest)

    monkeypatch.setattr("sockway.balancer.attach.attach", refuse)
    with pytest.raises(KernelError, match="peer0 takes no"):
        balancer.apply(read(_with(less, "peer0", "out0")))
    assert balancer.interfaces == ["out0"]
    assert balancer.spec == read(CONFIG)
    assert _backends(balancer) == before


def _with(text: str, *interfaces: str) -> str:
    return text.replace('interfaces = ["out0"]', f"interfaces = {list(interfaces)}")
