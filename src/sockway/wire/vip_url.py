"""How a VIP is written: a URL without a path.

A VIP is written as a URL without a path: the protocol, the address, the port, and what differs
from the defaults:

    tcp://192.0.2.1:80
    udp://[::]:4433?flow=quic&spread=cpu&vip=192.0.2.1&vip=2001:db8::1

| option      | values                              | for                     | default        |
| ----------- | ----------------------------------- | ----------------------- | -------------- |
| `flow`      | quic, tuple, cookie, none (tcp)     | udp                     | tuple          |
| `id_length` | octets of an ID: quic 8 to 20,      | flow=quic, flow=cookie  | 16             |
|             | cookie 1 to 20                      |                         |                |
| `id_offset` | where the cookie starts             | flow=cookie, required   |                |
| `ids`       | sockway, any: who mints the IDs     | flow=quic, flow=cookie  | any            |
| `name`      | letters, digits, `.`, `_`, `-`      | all                     | none           |
| `spread`    | hash, weights, cpu                  | all                     | hash           |
| `v6only`    | 0, 1                                | IPv6                    | 0              |
| `vip`       | an address, counted on its own      | wildcards; repeatable   | none           |

`str` of a VIP is the canonical spelling: defaults left out, options in the order of their names.
Only addresses are taken, no host names: what a name resolves to may change between releases.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from sockway.errors import ConfigError
from sockway.wire.host_id import MAX_LENGTH, MIN_LENGTH

MAX_PORT: Final = 65_535

_PROTOCOLS: Final = ("tcp", "udp")
_NUMBER: Final = re.compile(r"[0-9]{1,5}")
_AUTHORITY: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<v4>[^\[\]:]+)):(?P<port>[^:]*)")
_OPTIONS: Final = ("flow", "id_length", "id_offset", "ids", "name", "spread", "v6only", "vip")


def read_vip_url(text: str) -> tuple[str, IPv4Address | IPv6Address, int, dict[str, Any]]:
    """Read protocol, address, port, and the options as fields of a Vip.

    Whether they fit together is not checked here: `Vip` does.

    Raises:
        ConfigError: a part is missing, unknown, there twice, or can't be read.

    """
    protocol, separator, rest = text.partition("://")
    if not separator or protocol not in _PROTOCOLS:
        raise ConfigError(
            f"VIP {text!r} does not start with a protocol",
            hint="write tcp://ADDRESS:PORT or udp://ADDRESS:PORT",
        )
    authority, _, query = rest.partition("?")
    address, port = _authority(text, authority)
    return protocol, address, port, _options(text, query)


def _address(text: str, word: str) -> IPv4Address | IPv6Address:
    """An address, from how people write it."""
    if "%" in word:
        raise ConfigError(
            f"VIP {text!r}: zones ({word}) are not supported",
            hint="use a global or a unique local address",
        )
    try:
        return ip_address(word)
    except ValueError:
        raise ConfigError(
            f"VIP {text!r}: {word!r} is not an address",
            hint="use an IPv4 or IPv6 address; names are not looked up",
        ) from None


def _authority(text: str, authority: str) -> tuple[IPv4Address | IPv6Address, int]:
    """The address and the port."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ConfigError(
            f"VIP {text!r}: {authority!r} is not an address and a port",
            hint="write 192.0.2.1:80 or [2001:db8::1]:80; 0.0.0.0 or [::] for all addresses",
        )
    address = _address(text, match["v6"] or match["v4"])
    if match["v6"] and isinstance(address, IPv4Address):
        raise ConfigError(
            f"VIP {text!r}: brackets are for IPv6", hint=f"write {address}:{match['port']}"
        )
    port = _number(text, "port", match["port"])
    return address, port


def _number(text: str, option: str, word: str) -> int:
    """A number of the few digits that all numbers of a VIP have."""
    if not _NUMBER.fullmatch(word):
        raise ConfigError(
            f"VIP {text!r}: {option} {word!r} is not a number", hint=f"use 0 to {MAX_PORT}"
        )
    return int(word)


def _options(text: str, query: str) -> dict[str, Any]:
    """What follows the question mark, as the fields of a Vip."""
    fields: dict[str, Any] = {}
    members: list[IPv4Address | IPv6Address] = []
    for word in query.split("&") if query else ():
        option, separator, value = word.partition("=")
        if option not in _OPTIONS:
            raise ConfigError(
                f"VIP {text!r}: unknown option {option!r}", hint=f"known are {', '.join(_OPTIONS)}"
            )
        if not separator or not value:
            raise ConfigError(f"VIP {text!r}: {option} has no value", hint=f"write {option}=...")
        if option in fields:
            raise ConfigError(f"VIP {text!r}: {option} is there twice", hint="leave one out")
        if option == "vip":
            members.append(_address(text, value))
        elif option == "v6only":
            if value not in {"0", "1"}:
                raise ConfigError(f"VIP {text!r}: v6only={value} can't be used", hint="use 0 or 1")
            fields[option] = value == "1"
        elif option in {"id_length", "id_offset"}:
            fields[option] = _number(text, option, value)
            if option == "id_length" and fields[option] == 0:
                raise ConfigError(
                    f"VIP {text!r}: id_length=0 can't be used",
                    hint=f"use {MIN_LENGTH} to {MAX_LENGTH}",
                )
        else:
            fields[option] = value
    return {**fields, "members": tuple(members)}
