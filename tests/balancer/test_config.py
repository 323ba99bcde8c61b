"""Configurations: what is wrong is said once, with file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockway.balancer import read, read_file
from sockway.balancer.health.target import checked_pools
from sockway.balancer.host import HostSpec
from sockway.errors import ConfigError

GOOD = """\
interfaces = ["eth0"]
secret = "of all balancers"
memory = "history"

[[vip]]
listen = "tcp://192.0.2.1:443"
pool = "web"

[[vip]]
listen = "udp://[2001:DB8::1]:*"
pool = "web"
hash = "source"
limit = { rate = 1000, burst = 5 }

[pool.web]
encapsulation = "gue"
source4 = "172.16.0.0/12"

[pool.web.health]
type = "http"
path = "/live"

[pool.web.backends]
web1 = "10.0.0.11"
web2 = { address = "fd00::12", weight = 50, server_id = 7 }
"""


def test_a_good_one() -> None:
    """All of it arrives; addresses are written one way."""
    spec = read(GOOD)
    assert [vip.listen for vip in spec.vip] == ["tcp://192.0.2.1:443", "udp://[2001:db8::1]:*"]
    web = spec.pool["web"]
    assert web.backends["web1"].weight == 100
    assert web.backends["web2"].server_id == 7
    assert web.health
    assert web.health.path == "/live"
    assert spec.vip[1].port == 0


BAD = [
    ("memory = ", 'memory = "brain"\n#', 3, "memory", "'history', 'table' or 'none'"),
    ('listen = "tcp://192.0.2.1:443"', 'listen = "http://x"', 6, "vip[0].listen", "tcp://"),
    (":443", ":0", 6, "vip[0].listen", "a port is 1 to 65535"),
    ("192.0.2.1", "224.0.0.1", 6, "vip[0].listen", "no address that clients"),
    ("192.0.2.1", "127.0.0.1", 6, "vip[0].listen", "no address that clients"),
    ('pool = "web"', 'pool = "wbe"', 7, "vip[0].pool", "pools are: web"),
    ("rate = 1000", "rate = 0", 13, "vip[1].limit.rate", "greater than 0"),
    ('"gue"', '"vxlan"', 16, "pool.web.encapsulation", "'ip' or 'gue'"),
    ("172.16.0.0/12", "172.16.0.0/33", 17, "pool.web.source4", ""),
    ('"http"', '"ftp"', 20, "pool.web.health.type", "'tcp'"),
    ('"/live"', '"live"', 21, "pool.web.health.path", "begins with /"),
    ('"10.0.0.11"', '"10.0.0.256"', 24, "pool.web.backends.web1.address", ""),
    ("weight = 50", "weight = -1", 25, "pool.web.backends.web2.weight", ""),
    ("server_id = 7", "server_id = 16777216", 25, "pool.web.backends.web2.server_id", ""),
    ("web1 =", '"a b" =', 23, "pool.web.backends", "letters, digits"),
    ("interfaces", "interface", 1, "interface", "configuration.md"),
    ('secret = "of all balancers"', 'secret = "short"', 2, "secret", "8"),
    ("udp://[2001:DB8::1]:*", "tcp://192.0.2.1:443", 10, "vip[1].listen", "once"),
]


@pytest.mark.parametrize(("old", "new", "line", "field", "hint"), BAD)
def test_each_mistake_is_named(  # noqa: PLR0917
    tmp_path: Path, old: str, new: str, line: int, field: str, hint: str
) -> None:
    """Where it is and what would be right, in one line each."""
    assert old in GOOD
    file = tmp_path / "balancer.toml"
    file.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_file(file)
    error = raised.value
    assert error.message.startswith(f"{file}, line {line}: {field}")
    assert error.hint
    assert hint in error.hint
    assert "\n" not in error.message
    assert "pydantic" not in f"{error.message}{error.hint}"


@pytest.mark.parametrize(
    ("old", "new", "words", "hint"),
    [
        ('"http"', '"http"\nport = 80', "can be asked by http checks", "tcp:// VIP"),
        ('"http"', '"udp"', "can be asked by udp checks", "give the check a port"),
        ("weight = 50", "local = true", "web2 is this host", "leave out"),
    ],
)
def test_checks_that_have_nothing_to_ask(old: str, new: str, words: str, hint: str) -> None:
    """Are found when the configuration is read."""
    with pytest.raises(ConfigError, match=words) as raised:
        read(GOOD.replace(old, new, 1))
    assert "pool.web.health" in raised.value.message
    assert hint in (raised.value.hint or "")


def test_a_pool_that_nobody_uses_yet_is_not_checked() -> None:
    """It may be prepared before its VIP is there."""
    text = GOOD + '[pool.next.backends]\nx = "10.0.0.13"\n[pool.next.health]\ntype = "udp"\n'
    assert list(checked_pools(read(text))) == ["web"]


def test_a_secret_is_not_shown() -> None:
    """Not even a wrong one."""
    with pytest.raises(ConfigError) as raised:
        read('secret = "tooless"')
    assert "tooless" not in raised.value.message


def test_what_is_no_toml_and_what_is_not_there(tmp_path: Path) -> None:
    """The file is named."""
    file = tmp_path / "x.toml"
    with pytest.raises(ConfigError, match="can't read"):
        read_file(file)
    file.write_text("a = = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x.toml is not TOML: .*line 1"):
        read_file(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"x.toml is not TOML"):
        read_file(file)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ('"10.0.0.1"', '"10.0.0.2"', "another address"),
        ('{ address = "10.0.0.1", server_id = 1 }', '"10.0.0.1"', "server ID"),
    ],
)
def test_a_backend_is_one_machine(one: str, other: str, words: str) -> None:
    """In two pools it has one address and one server ID."""
    text = f"[pool.a.backends]\nx = {one}\n[pool.b.backends]\nx = {other}\n"
    with pytest.raises(ConfigError, match=words):
        read(text)


def test_an_mtu_that_ipv6_can_not_live_with() -> None:
    """1,280 octets must fit into the tunnel; IPv4 is told to send less."""
    text = """[[vip]]
listen = "tcp://{}:443"
pool = "a"
[pool.a]
mtu = {}
encapsulation = "gue"
[pool.a.backends]
x = "fd00::1"
"""
    with pytest.raises(ConfigError, match=r"line 5: pool.a.mtu: 1300 is too small") as raised:
        read(text.format("[2001:db8::1]", 1300))
    assert raised.value.hint
    assert "1328" in raised.value.hint
    read(text.format("[2001:db8::1]", 1328))
    read(text.format("192.0.2.1", 1300))


@pytest.mark.parametrize(
    ("stamp", "words", "hint"),
    [
        ("", "vip[0].stamps: there is no [stamp]", 'profile = "katran"'),
        ("[stamp]\n", "line 6: stamp.kind is missing", 'profile = "katran"'),
        ("[stamp]\nkind = 8\n", "line 7: stamp.kind = 8", "the kernel's own (timestamps)"),
        ("[stamp]\nkind = 254\n", "line 6: stamp", "wants experiment"),
        ("[stamp]\nkind = 0xB7\nexperiment = 5\n", "line 6: stamp", "is for kinds 253 and 254"),
        ('[stamp]\nprofile = "katran"\nexperiment = 5\n', "line 6: stamp", "has no experiment"),
    ],
)
def test_what_stamps_look_like_is_said(stamp: str, words: str, hint: str) -> None:
    """A VIP whose packets carry them wants a kind, and one that can be; others want none."""
    vip = '[[vip]]\nlisten = "{}://192.0.2.1:443"\npool = "a"\nstamps = true\n\n'
    pool = '[pool.a.backends]\nx = "10.0.0.1"\n'
    with pytest.raises(ConfigError) as raised:
        read(vip.format("tcp") + stamp + pool)
    assert words in raised.value.message
    assert hint in (raised.value.hint or "")
    read(vip.format("tcp") + "[stamp]\nkind = 254\nexperiment = 5\n" + pool)
    read(vip.format("tcp") + '[stamp]\nprofile = "katran"\n' + pool)
    assert read(vip.format("udp") + pool).stamp is None


def test_a_server_id_is_one_backends() -> None:
    """Two can't have the same."""
    text = """[pool.a.backends]
x = { address = "10.0.0.1", server_id = 5 }
y = { address = "10.0.0.2", server_id = 5 }
"""
    with pytest.raises(ConfigError, match=r"line 3.* server ID 5 is that of x already"):
        read(text)


def test_a_backends_own_file(tmp_path: Path) -> None:
    """The same errors for `sockway backend`."""
    file = tmp_path / "backend.toml"
    file.write_text('interfaces = ["eth0"]\nbalancers = ["10.0.0.0/8"]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="vips is missing"):
        HostSpec.read(file)
    file.write_text('interfaces = []\nbalancers = ["10.0.0.0/8"]\nvips = ["192.0.2.1"]\n')
    with pytest.raises(ConfigError, match="line 1: interfaces"):
        HostSpec.read(file)
