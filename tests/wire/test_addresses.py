from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockway.errors import ConfigError
from sockway.wire.addresses import Address, FlowMode, IdSource, Spread, Vip, key_address


def _unicast(address: Address) -> bool:
    if isinstance(address, IPv6Address):
        return not (address.is_multicast or address.is_link_local or address.ipv4_mapped)
    return not (address.is_multicast or str(address) == "255.255.255.255")


addresses = st.ip_addresses().filter(_unicast)


@st.composite
def vips(draw: st.DrawFn) -> Vip:
    """Any VIP that may be."""
    wildcard = draw(st.booleans())
    address = draw(st.sampled_from([ip_address("0.0.0.0"), ip_address("::")]))
    if not wildcard:
        address = draw(addresses.filter(lambda address: not address.is_unspecified))
    v6only = address.version == 6 and draw(st.booleans())
    members: list[Address] = []
    if wildcard:
        below = addresses.filter(
            lambda member: (
                not member.is_unspecified
                and (member.version == 4 or address.version == 6)
                and not (v6only and member.version == 4)
            )
        )
        members = draw(st.lists(below, max_size=4, unique=True))
    options: dict[str, object] = {}
    if draw(st.booleans()):
        options["flow"] = flow = draw(st.sampled_from([f for f in FlowMode if f != FlowMode.TCP]))
        if flow in {FlowMode.QUIC, FlowMode.COOKIE}:
            options["id_length"] = draw(st.integers(8, 20))
            options["ids"] = draw(st.sampled_from(IdSource))
        if flow == FlowMode.COOKIE:
            options["id_offset"] = draw(st.integers(0, 1400))
    return Vip(
        "udp" if options else draw(st.sampled_from(["tcp", "udp"])),
        address,
        draw(st.integers(1, 65535)),
        v6only=v6only,
        spread=draw(st.sampled_from(Spread)),
        members=tuple(members),
        name=draw(st.none() | st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z")),
        **options,  # type: ignore[arg-type]
    )


@given(vip=vips())
def test_what_is_written_is_read(vip: Vip) -> None:
    """The canonical spelling of any VIP reads as the same VIP, and is written the same."""
    again = Vip.parse(str(vip))
    assert again == vip
    assert hash(again) == hash(vip)
    assert str(again) == str(vip)


@given(vip=vips(), port=st.integers(1, 65535))
def test_a_vip_can_be_changed(vip: Vip, port: int) -> None:
    """Defaults that were filled in don't stand in the way of replacing another field."""
    assert dataclasses.replace(vip, port=port).port == port


@given(some=st.lists(vips(), max_size=6))
def test_all_vips_have_one_order(some: list[Vip]) -> None:
    """IPv4 and IPv6 sort together, and the order does not depend on where one starts."""
    backwards = some[::-1]
    assert sorted(some) == sorted(backwards)


@given(text=st.text(max_size=60) | st.text("tcpud:/[]0123456789.?=&vi%", max_size=40))
def test_any_text_is_a_vip_or_an_error(text: str) -> None:
    """Whatever is typed, the answer is a VIP or a ConfigError with a way out."""
    for candidate in (text, f"tcp://{text}", f"udp://[::]:53?{text}"):
        try:
            assert Vip.parse(str(Vip.parse(candidate))) == Vip.parse(candidate)
        except ConfigError as error:
            assert error.hint  # noqa: PT017 - most texts are no VIP, some are


def test_all_options_at_once() -> None:
    """Options come in any order and in any case of an address; the canonical order is by name."""
    vip = Vip.parse(
        "udp://[::]:4433?flow=quic&id_length=12&ids=sockway&spread=cpu"
        "&vip=2001:DB8::1&vip=192.0.2.1&name=h3"
    )
    assert vip == Vip(
        "udp",
        IPv6Address("::"),
        4433,
        flow=FlowMode.QUIC,
        spread=Spread.CPU,
        id_length=12,
        ids=IdSource.SOCKWAY,
        members=(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")),
        name="h3",
    )
    assert str(vip) == (
        "udp://[::]:4433?flow=quic&id_length=12&ids=sockway&name=h3&spread=cpu"
        "&vip=192.0.2.1&vip=2001:db8::1"
    )


@pytest.mark.parametrize(
    ("text", "flow", "id_length", "id_offset"),
    [
        ("tcp://192.0.2.1:80", "tcp", 0, 0),
        ("udp://192.0.2.1:53", "tuple", 0, 0),
        ("udp://192.0.2.1:53?flow=none", "none", 0, 0),
        ("udp://[::]:443?flow=quic", "quic", 16, 0),
        ("udp://[::]:443?flow=cookie&id_offset=4", "cookie", 16, 4),
        ("udp://[::]:443?flow=cookie&id_length=4&id_offset=4", "cookie", 4, 4),
    ],
)
def test_defaults(text: str, flow: str, id_length: int, id_offset: int) -> None:
    """What is not said follows from the protocol and the flow mode."""
    vip = Vip.parse(text)
    assert (vip.flow, vip.id_length, vip.id_offset) == (flow, id_length, id_offset)
    assert (vip.spread, vip.ids, vip.v6only, vip.members, vip.name) == (
        "hash",
        "any",
        False,
        (),
        None,
    )
    assert str(vip) == text


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("192.0.2.1:80", "does not start with a protocol", "tcp://"),
        ("sctp://192.0.2.1:80", "does not start with a protocol", "tcp://"),
        ("tcp://192.0.2.1", "'192.0.2.1' is not an address and a port", "192.0.2.1:80"),
        ("tcp://:80", "':80' is not an address and a port", "0.0.0.0 or [::]"),
        ("tcp://::1:80", "'::1:80' is not an address and a port", "[2001:db8::1]:80"),
        ("tcp://user@192.0.2.1:80", "'user@192.0.2.1' is not an address", "IPv4 or IPv6"),
        ("tcp://192.0.2.1:80/path", "port '80/path' is not a number", "65535"),
        ("tcp://192.0.2.1:http", "port 'http' is not a number", "65535"),
        ("tcp://192.0.2.1:", "port '' is not a number", "65535"),
        ("tcp://192.0.2.1:0", "port 0 can't be used", "1 to 65535"),
        ("tcp://192.0.2.1:65536", "port 65536 can't be used", "1 to 65535"),
        ("tcp://localhost:80", "'localhost' is not an address", "names are not looked up"),
        ("tcp://192.0.2.300:80", "'192.0.2.300' is not an address", "IPv4 or IPv6"),
        ("tcp://[192.0.2.1]:80", "brackets are for IPv6", "write 192.0.2.1:80"),
        ("tcp://[fe80::1%eth0]:80", "zones (fe80::1%eth0) are not supported", "global"),
        ("tcp://[fe80::1]:80", "fe80::1 is on one link only", "global"),
        ("tcp://[::ffff:192.0.2.1]:80", "is IPv4 in disguise", "write 192.0.2.1"),
        ("udp://224.0.0.1:80", "224.0.0.1 is not one host's", "unicast"),
        ("udp://[ff02::1]:80", "ff02::1 is not one host's", "unicast"),
        ("udp://255.255.255.255:80", "255.255.255.255 is not one host's", "unicast"),
        ("tcp://0.0.0.0:80?v6only=1", "v6only is for IPv6", "leave it out"),
        ("tcp://[::]:80?v6only=yes", "v6only=yes can't be used", "0 or 1"),
        ("tcp://[::]:80?colour=red", "unknown option 'colour'", "flow, id_length"),
        ("tcp://[::]:80?spread", "spread has no value", "spread=..."),
        ("tcp://[::]:80?spread=", "spread has no value", "spread=..."),
        ("tcp://[::]:80?spread=cpu&spread=cpu", "spread is there twice", "leave one out"),
        ("tcp://[::]:80?spread=cpu&", "unknown option ''", "known are"),
        ("tcp://[::]:80?spread=random", "spread=random can't be used", "hash or weights or cpu"),
        ("tcp://[::]:80?flow=quic", "flow=quic can't be used with tcp", "use tcp"),
        ("udp://[::]:80?flow=tcp", "flow=tcp can't be used with udp", "quic or cookie"),
        ("udp://[::]:80?flow=quic&ids=mine", "ids=mine can't be used", "sockway or any"),
        ("udp://[::]:80?flow=quic&id_length=7", "id_length=7 can't be used", "8 to 20"),
        ("udp://[::]:80?flow=quic&id_length=21", "id_length=21 can't be used", "8 to 20"),
        ("udp://[::]:80?flow=quic&id_length=0", "id_length=0 can't be used", "8 to 20"),
        ("udp://[::]:80?flow=quic&id_length=-8", "id_length '-8' is not a number", "use 0"),
        ("udp://[::]:80?flow=quic&id_offset=4", "id_offset is for flow=cookie", "leave it out"),
        ("udp://[::]:80?flow=cookie", "flow=cookie needs id_offset", "0 to 65491"),
        ("udp://[::]:80?flow=cookie&id_offset=65492", "id_offset=65492 can't", "0 to 65491"),
        (
            "udp://[::]:80?flow=cookie&id_offset=0&id_length=4&ids=sockway",
            "id_length=4 is too short for ids=sockway",
            "8 to 20",
        ),
        ("udp://[::]:80?id_length=16", "id_length has no meaning with flow=tuple", "flow=quic"),
        ("tcp://[::]:80?id_offset=16", "id_offset has no meaning with flow=tcp", "flow=cookie"),
        ("tcp://[::]:80?ids=sockway", "ids has no meaning with flow=tcp", "flow=quic"),
        ("tcp://192.0.2.1:80?vip=192.0.2.2", "vip= is for wildcards", "0.0.0.0"),
        ("tcp://[::]:80?vip=::", "vip=:: is a wildcard itself", "one address"),
        ("tcp://[::]:80?vip=host", "'host' is not an address", "names are not"),
        ("tcp://[::]:80?vip=::1&vip=0::1", "vip=::1 is there twice", "once"),
        ("tcp://0.0.0.0:80?vip=::1", "vip=::1 is not below 0.0.0.0", "bind [::]"),
        ("tcp://[::]:80?v6only=1&vip=192.0.2.1", "shut out by v6only=1", "bind 0.0.0.0"),
        ("tcp://[::]:80?vip=fe80::1", "vip fe80::1 is on one link only", "global"),
        ("tcp://[::]:80?name=a:b", "name=a:b can't be used", "letters"),
    ],
)
def test_what_cannot_be_is_refused(text: str, what: str, hint: str) -> None:
    """The error names the part that is wrong, and the hint what is allowed instead."""
    with pytest.raises(ConfigError) as caught:
        Vip.parse(text)
    assert what in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_wildcards_of_both_versions_have_keys_of_their_own() -> None:
    """0.0.0.0 is mapped, so it is not taken for ::, which binds beside it."""
    assert key_address(IPv4Address("0.0.0.0")).hex() == "00000000000000000000ffff00000000"
    assert key_address(IPv6Address("::")).hex() == "00" * 16
    vip = Vip.parse("tcp://192.0.2.1:80")
    assert vip.key_address.hex() == "00000000000000000000ffffc0000201"
    assert not vip.is_wildcard
