"""QUIC by the registry alone: IDs assigned, told to servers, minted, and read by balancers."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockway.lab.fleet import HTTP3, POOL, SECRET, Fleet
from sockway.lab.lasting_quic import LastingQuics
from sockway.lab.network import LINK, Lab, Node
from sockway.lab.topology import Topology
from sockway.wire.quic_lb import QuicLb, QuicLbConfig
from tests.lab.fleets import balancer
from tests.lab.test_ids import done, sockway

pytestmark = pytest.mark.root

IDS = {"rotation": 1, "server_id_length": 3, "nonce_length": 7, "key": "8f" * 16}
CODEC = QuicLb(QuicLbConfig(1, 3, 7, key=bytes.fromhex("8f" * 16)))


class Registered(Fleet):
    """Backends have the numbers that `sockway ids env` gives them, when it does."""

    def server_id(self, name: str) -> int:
        """Of the registry."""
        return int(done(sockway("ids", "env", name, "--json"))["environment"]["SOCKWAY_SERVER_ID"])


@pytest.fixture
def place(bpffs_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where pins, notes, files and the registry of the test are."""
    del bpffs_root
    with tempfile.TemporaryDirectory(prefix="sw-") as directory:
        monkeypatch.setenv("SOCKWAY_RUNTIME", directory)
        monkeypatch.setenv("SOCKWAY_IDS", f"{directory}/ids.db")
        yield Path(directory)


def apply(fleet: Fleet, place: Path, members: list[str]) -> list[str]:
    """Bring these backends into force on all balancers; what was said of refusals."""
    refused = []
    for node in fleet.lab.of("balancer"):
        file = place / f"{node.name}.toml"
        file.write_text(_configuration(fleet, node, members), encoding="utf-8")
        result = sockway("balancer", "apply", file, "--yes", node=node)
        if result.exit_code:
            refused.append(result.stderr)
    return refused


def _configuration(fleet: Fleet, node: Node, members: list[str]) -> str:
    lines = [
        f'interfaces = ["{LINK}"]', f'secret = "{SECRET}"', 'memory = "none"',
        'registry = "ids.db"', f'registry_as = "{node.name}"', "[[quic_ids]]",
        *(f"{name} = {value!r}" for name, value in IDS.items()),
    ]  # fmt: skip
    for host in (fleet.vips[0], f"[{fleet.vips[1]}]"):
        listen = f"udp://{host}:{HTTP3}"
        lines += ["[[vip]]", f'listen = "{listen}"', f'pool = "{POOL}"', "stamps = true"]
    lines.append(f"[pool.{POOL}.backends]")
    for name in members:
        plan = fleet.lab.node(name).plan
        assert plan is not None
        lines.append(f'{name} = "{plan.address4}"')
    return "\n".join(lines)


def test_from_the_registry_to_the_packet_and_back(place: Path) -> None:
    """Each step waits for the one before, and connections live through all of them."""
    names = ["backend1", "backend2"]
    with Lab.up(Topology(name=f"t{uuid.uuid4().hex[:6]}", backends=2, clients=1)) as lab:
        fleet = Registered(lab, quic_ids=[IDS])
        given = done(sockway("ids", "assign", *names, "--json"))["ids"]
        numbers = {entry["name"]: entry["server_id"] for entry in given}
        early = sockway("ids", "env", "backend1")
        assert early.exit_code == 1
        assert "no balancer has reported" in early.stderr
        assert apply(fleet, place, names) == []
        for name in names:
            fleet.start_backend(lab.node(name))

        with LastingQuics() as lasting:
            lasting.open(lab.of("client"), [(vip, HTTP3) for vip in fleet.vips], 24)
            for each in lasting.members:
                number = CODEC.decode(each.connection_id)
                assert number is not None
                assert int.from_bytes(number, "big") == numbers[each.owner.split()[0].decode()]
            assert len({each.owner.split()[0] for each in lasting.members}) == 2

            # No new connections to one: its own are led by their IDs, from any port.
            for node in lab.of("balancer"):
                balancer(node, "set_drained", "backend2")
            lasting.rebind()
            assert lasting.ask() == {"alive": 24}
            for node in lab.of("balancer"):
                assert "by_stamp" in str(balancer(node, "counters").outcomes)

            # What is told is neither dropped nor retired.
            refused = apply(fleet, place, names[:1])
            assert len(refused) == len(lab.of("balancer"))
            assert all("server ID" in words and "still told by quic" in words.replace("\n", " ")
                       for words in refused)  # fmt: skip
            assert "still stamps with server ID" in sockway("ids", "retire", "backend2").stderr
            assert lasting.ask() == {"alive": 24}
        done(sockway("ids", "env", "backend2", "--stop", "--json"))
        done(sockway("ids", "retire", "backend2", "--json"))
        assert apply(fleet, place, names[:1]) == []
