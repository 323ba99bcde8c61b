"""The experiments: they measure what they say, and their sentences follow the figures."""

from __future__ import annotations

import os
import random
import socket
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL
from pathlib import Path

import pytest
from rich.progress import Progress

from sockway.errors import StateError
from sockway.kernel import Netns
from sockway.lab import bind, bindcache, spread
from sockway.lab.experiments import EXPERIMENTS, Setting, work_of
from sockway.lab.findings import Metric
from sockway.lab.resets import Course, Plan
from sockway.lab.resets_report import sentence as on_resets
from sockway.lab.steering import ELSEWHERE, PORT, BindWildcard, SkLookup, reach, vip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_there(name: str) -> None:
    """Its function can be imported, and its time is bounded."""
    assert callable(work_of(EXPERIMENTS[name].entry))
    assert 0 < EXPERIMENTS[name].limit[0] <= EXPERIMENTS[name].limit[1] <= 3600


@pytest.mark.root
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_sk_lookup_steers_what_it_is_told_and_nothing_else(kind: socket.SocketKind) -> None:
    """VIPs by an entry, prefixes by one, the port and the protocol that are meant."""

    def try_it() -> None:
        way = SkLookup(kind)
        try:
            sock = way.socket_of("")
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                refuse(kind, vip(0), PORT)
            way.add(vip(0))
            assert reach(sock, vip(0)) > 0
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                refuse(kind, vip(1), PORT)
            way.add_prefix("127.9.0.0", 16)
            for address in ("127.9.0.1", "127.9.255.254"):
                assert reach(sock, address) > 0
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                refuse(kind, "127.9.0.1", PORT + 1)
            assert sock.getsockname()[1] == ELSEWHERE
        finally:
            way.close()
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            refuse(kind, vip(0), PORT)

    with Netns.create() as namespace:
        namespace.run(try_it)


def refuse(kind: socket.SocketKind, address: str, port: int) -> None:
    """Meet nobody: the kernel says so."""
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(1)
        client.connect((address, port))
        if kind == socket.SOCK_DGRAM:
            client.send(b"?")
            client.recv(1)


@pytest.mark.root
def test_a_vip_that_is_not_reached_fails_the_experiment() -> None:
    """`bind` does not only time calls: a socket that gets nothing is found."""

    class Deaf(BindWildcard):
        def __init__(self, kind: socket.SocketKind) -> None:
            super().__init__(kind)
            self.other = socket.socket(socket.AF_INET, kind)
            self.other.settimeout(0.2)

        def socket_of(self, address: str) -> socket.socket:
            del address
            return self.other

        def again(self) -> float:
            return 1.0

        def close(self) -> None:
            super().close()
            self.other.close()

    def grow() -> None:
        bind._grow(bind.Growth(), Deaf(socket.SOCK_DGRAM), [20], random.Random(1))

    with Netns.create() as namespace, pytest.raises(TimeoutError):
        namespace.run(grow)


def growth(first: float, last: float) -> bind.Growth:
    """VIPs that took so long, in seconds."""
    return bind.Growth(next={100: [first] * 3, 8000: [last] * 3}, total=[1.0], reach=[1.0])


@pytest.mark.parametrize(("last", "words"), [(80e-6, "the kernel walks"), (2e-6, "without a walk")])
def test_the_sentence_of_bind_follows_the_figures(last: float, words: str) -> None:
    """A walk is told only where there is one."""
    flat = growth(2e-6, 2e-6)
    part = {"reuseport": growth(2e-6, last), "exclusive": flat, "wildcard": flat}
    told = bind.sentence("udp", part)
    assert words in told
    assert f"{last * 1e6:.1f} µs beside 8,000" in told


@pytest.mark.parametrize(("weights", "words"), [(1.2, "take away 60%"), (1.7, "do not even it")])
def test_the_sentence_of_spread_follows_the_figures(weights: float, words: str) -> None:
    """Weights are praised only where they help."""
    values = {"reuseport": 1.5, "hash": 1.5, "weights": weights, "cpu": 1.5}
    balance = {name: Metric.count(value, "1") for name, value in values.items()}
    assert words in spread.balance_sentence(balance, 4)


def test_the_sentence_of_resets_follows_the_figures() -> None:
    """Who broke nothing is named, and nobody else."""
    plan = Plan(connections=100, changes=2)
    ring = Course("ring", plan, resets=[10, 15], opened=125)
    stamps = Course("stamps", plan, resets=[0, 0], opened=100)
    told = on_resets({"ring": ring, "stamps": stamps}, shift=False)
    assert "20.0% of 125 with ring only" in told
    assert "None broke with stamps (Sockway) (of 100)." in told
    assert "None broke" not in on_resets({"ring": ring}, shift=False)


def test_kept_is_counted_by_the_home_of_workers() -> None:
    """Runs of CPUs share runs of workers."""
    cpus = os.cpu_count() or 1
    workers = 2 * cpus
    at_home = [[10 if spread.home(w, workers, cpus) == c else 0 for c in range(cpus)]
               for w in range(workers)]  # fmt: skip
    assert spread.Course(by_cpu=at_home).kept() == 1
    if cpus > 1:
        assert spread.Course(by_cpu=list(reversed(at_home))).kept() < 1


@pytest.mark.parametrize(
    ("at", "error", "found"),
    [
        (3, EADDRINUSE, False),
        (3, EACCES, "0.0.0.0: Permission denied"),
        (2, EADDRINUSE, "127.0.0.2: Address already in use"),
        (1, EADDRNOTAVAIL, "127.0.0.1: Cannot assign requested address"),
        (9, 0, True),
    ],
)
def test_a_probe_that_fails_is_not_taken_for_an_answer(
    at: int, error: int, found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that the wildcard's address is in use means that the kernel is sound."""
    binds = []

    class Fake(socket.socket):
        def bind(self, address: object) -> None:
            binds.append(address)
            if len(binds) == at:
                raise OSError(error, os.strerror(error))

    monkeypatch.setattr(socket, "socket", Fake)
    assert bindcache.is_wrong(socket.AF_INET) == found


def test_what_probes_of_the_bind_cache_say() -> None:
    """Each family by itself."""
    assert bindcache.told({"IPv4": False, "IPv6": False}).endswith(
        ": this kernel does not have it for IPv4 and IPv6."
    )
    assert bindcache.told({"IPv4": True, "IPv6": "::1: no"}).endswith(
        ": this kernel has it for IPv4; it could not be probed for IPv6 (::1: no)."
    )


def test_too_few_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody may raise their limit far enough for two numbers of VIPs."""
    monkeypatch.setattr(bind, "raise_file_limit", lambda: 599)
    with Progress(disable=True) as progress:
        setting = Setting(tmp_path, quick=True, seed=1, progress=progress)
        with pytest.raises(StateError, match="599 files may be open, and it takes 800 at least"):
            bind.experiment(setting)
