"""A host set up as a backend, and exactly as before when that is undone."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from sockway.balancer.host import Host, HostSpec
from sockway.errors import ConfigError, FeatureError, NotFoundError, SockwayError
from sockway.kernel import Link, Netns, Program, clsact

pytestmark = pytest.mark.root

VIP, VIP6 = "192.0.2.1", "2001:db8::1"
SYSCTLS = ("all/arp_ignore", "all/arp_announce", "in0/rp_filter")


@pytest.fixture
def host(
    netns: Netns, bpffs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A namespace with an interface."""
    del bpffs_root
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))
    with netns.entered():
        with IPRoute() as route:
            for name, peer in (("in0", "far0"), ("in0.7", "far1")):
                route.link("add", ifname=name, kind="veth", peer=peer)
                for each in (name, peer):
                    route.link("set", index=route.link_lookup(ifname=each)[0], state="up")
            index = route.link_lookup(ifname="in0")[0]
            route.addr("add", index=index, address="10.0.0.1", prefixlen=24)
            index = route.link_lookup(ifname="in0.7")[0]
            route.addr("add", index=index, address="10.0.7.1", prefixlen=24)
        Path("/proc/sys/net/ipv4/conf/in0/rp_filter").write_text("1")
        yield
        for name in ("main", "other"):
            try:
                Host.existing(name).down()
            except NotFoundError:
                continue


def spec(**changed: Any) -> HostSpec:
    """What most tests set up."""
    fields: dict[str, Any] = {
        "interfaces": ["in0"],
        "balancers": [ip_network("10.9.0.0/16")],
        "vips": [ip_address(VIP), ip_address(VIP6)],
    }
    return HostSpec(**(fields | changed))


def seen() -> dict[str, Any]:
    """What of the host may be changed."""
    with IPRoute() as route:
        loopback = route.link_lookup(ifname="lo")[0]
        addresses = {a.get_attr("IFA_ADDRESS") for a in route.get_addr(index=loopback)}
        xdp = {}
        for link in route.get_links():
            held = link.get_attr("IFLA_XDP")
            xdp[link.get_attr("IFLA_IFNAME")] = bool(held and held.get_attr("IFLA_XDP_PROG_ID"))
    settings = {name: Path("/proc/sys/net/ipv4/conf", name).read_text().strip() for name in SYSCTLS}
    return {"addresses": addresses, "xdp": xdp, "settings": settings}


@pytest.mark.usefixtures("host")
def test_vips_can_be_bound_at_once() -> None:
    """An address that the kernel still probes for is not there yet for bind()."""
    Host.up(spec())
    with IPRoute() as route:
        loopback = route.link_lookup(ifname="lo")[0]
        flags = {
            a.get_attr("IFA_ADDRESS"): a.get_attr("IFA_FLAGS")
            for a in route.get_addr(index=loopback)
        }
    assert flags[VIP6] & 0x02  # IFA_F_NODAD


@pytest.mark.usefixtures("host")
def test_up_and_down() -> None:
    """VIPs on lo, the program on the interface, ARP silent, the filter loose; and back."""
    before = seen()
    up = Host.up(spec())
    during = seen()
    assert during["addresses"] == before["addresses"] | {VIP, VIP6}
    assert during["xdp"] == before["xdp"] | {"in0": True}
    assert during["settings"] == {
        "all/arp_ignore": "1", "all/arp_announce": "2", "in0/rp_filter": "2",
    }  # fmt: skip
    assert up.interfaces == ["in0"]
    assert {str(vip) for vip in up.vips()} == {VIP, VIP6}
    assert [str(end) for end in up.ends()] == ["10.0.0.1"]
    Host.existing().down()  # as another process would
    assert seen() == before
    with pytest.raises(NotFoundError):
        Host.existing()


@pytest.mark.usefixtures("host")
def test_another_configuration_takes_the_place_of_the_first() -> None:
    """What is not wanted any more is undone, and what was there at the very first comes back."""
    before = seen()
    Host.up(spec())
    changed = spec(vips=[ip_address(VIP6), ip_address("192.0.2.2")], interfaces=["in0", "in0.7"])
    Host.up(changed)
    assert seen()["addresses"] == before["addresses"] | {VIP6, "192.0.2.2"}
    assert Host.existing().interfaces == ["in0", "in0.7"]
    Host.up(spec(interfaces=["in0.7"]))
    assert Host.existing().interfaces == ["in0.7"]
    Host.existing().down()
    assert seen() == before


def has_filter(interface: str) -> bool:
    """Whether the backend has a filter of clsact on what an interface receives."""
    with IPRoute() as route:
        index = route.link_lookup(ifname=interface)[0]
    return clsact.is_attached(index, "sockway-backend-main")


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("links", [True, False], ids=["newest way", "before 6.6"])
def test_tc_where_xdp_is_taken(monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    """And from one to the other; kernels before 6.6 have no links for tc, so it is a filter."""
    if not links:

        def refuse(_self: Program, _ifindex: int, *, incoming: bool = True) -> Link:
            raise FeatureError(f"no links, incoming or not: {incoming}")

        monkeypatch.setattr(Program, "attach_tcx", refuse)
    before = seen()
    for mode, xdp in (("tc", False), ("tc", False), ("generic", True), ("tc", False)):
        Host.up(spec(mode=mode))
        assert Host.existing().interfaces == ["in0"]
        assert seen()["xdp"]["in0"] is xdp
        if not links:
            assert has_filter("in0") is not xdp
    Host.existing().down()
    assert seen() == before
    assert not has_filter("in0")


@pytest.mark.usefixtures("host")
def test_a_filter_is_found_by_its_interface_and_not_by_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interface that has another name meanwhile is let go as well; `clsact` of others stays."""

    def refuse(_self: Program, _ifindex: int, *, incoming: bool = True) -> Link:
        raise FeatureError(f"no links, incoming or not: {incoming}")

    monkeypatch.setattr(Program, "attach_tcx", refuse)
    with IPRoute() as route:
        index = route.link_lookup(ifname="in0.7")[0]
        route.tc("add", "clsact", index)
        Host.up(spec(mode="tc", interfaces=["in0", "in0.7"]))
        assert Host.existing().interfaces == ["in0", "in0.7"]
        assert has_filter("in0.7")
        route.link("set", index=index, ifname="out7")
        Host.existing().down()
        assert not has_filter("out7")
        assert not has_filter("in0")
        kinds = [q.get_attr("TCA_KIND") for q in route.get_qdiscs(index=index)]
        assert "clsact" in kinds
        here = route.link_lookup(ifname="in0")[0]
        assert "clsact" not in [q.get_attr("TCA_KIND") for q in route.get_qdiscs(index=here)]


@pytest.mark.usefixtures("host")
def test_what_others_put_there_stays() -> None:
    """A VIP that was on lo before is not taken off, nor one that somebody took off missed."""
    with IPRoute() as route:
        loopback = route.link_lookup(ifname="lo")[0]
        route.addr("add", index=loopback, address=VIP, prefixlen=32)
        before = seen()
        up = Host.up(spec())
        route.addr("del", index=loopback, address=VIP6, prefixlen=128)
        up.down()
    assert seen() == before


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"interfaces": ["in0", "none0"]}, ConfigError, "none0"),
        ({"interfaces": ["far0"]}, ConfigError, "far0 has no address"),
    ],
)
def test_what_can_not_be_leaves_nothing(
    changed: dict[str, Any], error: type[SockwayError], words: str
) -> None:
    """One error, and the host as it was."""
    before = seen()
    with pytest.raises(error, match=words):
        Host.up(spec(**changed))
    assert seen() == before
    with pytest.raises(NotFoundError):
        Host.existing()


@pytest.mark.usefixtures("host")
def test_a_failure_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses the last step."""
    before = seen()

    def refuse(*_: object) -> None:
        raise SockwayError("no")

    monkeypatch.setattr("sockway.balancer.attach.attach", refuse)
    with pytest.raises(SockwayError, match="no"):
        Host.up(spec())
    assert seen() == before


@pytest.mark.usefixtures("host")
def test_a_process_that_dies_is_undone_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was changed is written down before it is."""
    before = seen()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sockway.balancer.host.Host._load", die)
        patch.setattr("sockway.balancer.host.Host.down", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            Host.up(spec())
    assert seen() != before
    Host.existing().down()
    assert seen() == before


@pytest.mark.usefixtures("host")
def test_counters_go_on_over_a_change() -> None:
    """And begin at 0."""
    up = Host.up(spec())
    assert set(up.counters().values()) == {0}
    Host.up(spec(gue_port=7000))
    assert set(up.counters().values()) == {0}
