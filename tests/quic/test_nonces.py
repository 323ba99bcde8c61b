"""Nonces of encrypted IDs: none comes twice from threads, forks, or when all have been used."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from sockway.errors import ConfigError
from sockway.quic import ConnectionIds, ServerIds
from sockway.quic.nonces import LEAST_ENCRYPTED, Nonces
from sockway.wire.host_id import HostIds, Owner
from sockway.wire.quic_lb import QuicLb, QuicLbConfig

KEY = bytes(16)


def minting(config: QuicLbConfig) -> tuple[ConnectionIds, HostIds]:
    """A worker whose IDs are just full: nothing is by chance but the nonce."""
    codec = HostIds(KEY, config.length + 5)
    return ConnectionIds(codec, 1, 0, ServerIds(config, 9)), codec


def nonce(config: QuicLbConfig, connection_id: bytes) -> int:
    """That an ID was made with."""
    opened = QuicLb(config)._opened(connection_id[1 : config.length])
    return int.from_bytes(opened[config.server_id_length :], "big")


def test_encrypted_nonces_count_and_open_ones_do_not() -> None:
    """One must not come twice, the other must not tell which IDs belong together."""

    def differences(key: bytes | None) -> set[int]:
        config = QuicLbConfig(0, 1, 8, key=key)
        ids, _ = minting(config)
        found = [nonce(config, ids.mint()) for _ in range(20)]
        return {(b - a) % 2**64 for a, b in pairwise(found)}

    assert differences(KEY) == {1}
    assert len(differences(None)) == 19


def test_processes_begin_anywhere() -> None:
    """Of so many, most have a first octet that no other has."""
    begun = [Nonces(8).take() for _ in range(64)]
    firsts = {each[0] for each in begun if each}
    assert len(firsts) > 32


def test_short_nonces_are_for_ids_in_clear() -> None:
    """Workers under one key would mint the same; the error says the field and the way out."""
    ServerIds(QuicLbConfig(0, 3, 4), 1)
    ServerIds(QuicLbConfig(0, 3, LEAST_ENCRYPTED, KEY), 1)
    with pytest.raises(ConfigError, match=r"nonce_length is 6, .*7 or more.*new rotation"):
        ServerIds(QuicLbConfig(0, 3, LEAST_ENCRYPTED - 1, KEY), 1)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_threads_get_different_ones() -> None:
    """Eight of them, by one source."""
    nonces = Nonces(7)
    found: list[list[bytes | None]] = [[] for _ in range(8)]

    def take(into: list[bytes | None]) -> None:
        into.extend(nonces.take() for _ in range(20_000))

    threads = [threading.Thread(target=take, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for into in found for each in into}) == 160_000


FORKING = """
import os
from sockway.quic import ConnectionIds, ServerIds
from sockway.wire.host_id import HostIds
from sockway.wire.quic_lb import QuicLbConfig

config = QuicLbConfig(1, 3, 7, bytes(16))
ids = ConnectionIds(HostIds(bytes(16), 16), 1, 0, ServerIds(config, 9))

def show(who):
    os.write(1, "".join(f"{who} {ids.mint().hex()}\\n" for _ in range(50)).encode())

show("first")
child = os.fork()
if not child:
    show("child")
    if not os.fork():
        show("grandchild")
        os._exit(0)
    os.wait()
    show("child")
    os._exit(0)
os.waitpid(child, 0)
show("first")
"""


def test_children_of_fork_begin_anew() -> None:
    """Else they would mint their parent's next IDs, octet by octet; each goes on with its own."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING], check=True, capture_output=True, text=True, env=os.environ
    )
    config = QuicLbConfig(1, 3, 7, KEY)
    counted: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        who, connection_id = line.split()
        counted.setdefault(who, []).append(nonce(config, bytes.fromhex(connection_id)))
    assert {who: len(each) for who, each in counted.items()} == {
        "first": 100, "child": 100, "grandchild": 50,
    }  # fmt: skip
    assert len({number for each in counted.values() for number in each}) == 250
    for each in counted.values():
        assert {(b - a) % 2**56 for a, b in pairwise(each)} == {1}


def test_each_comes_once_and_then_none_does() -> None:
    """All of them, wherever it began."""
    nonces = Nonces(1)
    given = [nonces.take() for _ in range(256)]
    assert {each[0] for each in given if each} == set(range(256))
    assert nonces.take() is nonces.take() is None


def test_when_all_are_used_no_balancer_reads_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router still finds the worker; another configuration ends it."""
    config = QuicLbConfig(1, 3, 7, KEY)
    ids, codec = minting(config)
    assert ids.mint()[0] >> 5 == 1
    with monkeypatch.context() as all_used:
        all_used.setattr(Nonces, "take", lambda _: None)
        minted = {ids.mint() for _ in range(100)}
    assert len(minted) == 100
    assert {each[0] for each in minted} == {7 << 5 | 15}
    assert {codec.read(each) for each in minted} == {Owner(1, 0)}
    ids.use(ServerIds(QuicLbConfig(2, 3, 7, KEY[::-1]), 9))
    assert ids.mint()[0] >> 5 == 2
