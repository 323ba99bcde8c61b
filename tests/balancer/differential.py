"""The balancer's program held against its model: the same frames into both.

    python -m tests.balancer.differential --packets 10000000 --seed 7

loads the real program in a network namespace, applies a configuration with everything in it by the
control plane, and compares verdicts, frames and, at the end, counters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from sockway.balancer import Balancer, BalancerSpec
from sockway.balancer.apply import tick
from sockway.kernel import Netns, Program, bpffs
from sockway.wire import balancer_model as model
from tests.balancer.frames import QUIC_IDS, SERVER_IDS, spoiled

HERE = 1
"""Interface that test_run's packets come in by."""
ELSEWHERE = 7
RING = 251
STAMPS: dict[str, dict[str, Any]] = {
    "history": {"kind": 0xB7},
    "table": {"kind": 253, "experiment": 0x1234},
    "none": {"kind": 0xB7, "byte_order": "little"},
}
MEMORIES = ("history", "history", "table", "none")
FAR = 10_000
_LIMIT = 20
_INTERVAL = 1 << 56  # ns: nobody lives to see another
_VERDICTS = {1: "drop", 2: "pass", 3: "transmit", 4: "redirect"}
_EXPLAINED = 64
_UP, _LOCAL, _RESOLVED = 1, 2, 4


class DifferenceError(AssertionError):
    """Program and model say different things."""


@dataclass(repr=False)
class Setup:
    """A balancer and the model of it."""

    balancer: Balancer
    model: model.Model
    spec: BalancerSpec


def specification(memory: str) -> BalancerSpec:
    """Everything that a configuration can have."""
    ids = iter(SERVER_IDS)

    def pool(*addresses: str, **more: Any) -> dict[str, Any]:
        backends = {
            f"b{ip_address(a).packed.hex()}": {"address": a, "server_id": next(ids)}
            for a in addresses
        }
        return {"backends": backends, "ring_size": RING} | more

    pools = {
        "steady": pool("10.1.0.1", "10.1.0.2", "10.1.0.3", source4="172.16.0.0/16"),
        "moved": pool("10.2.0.1", "10.2.0.2", encapsulation="gue", source4="172.17.1.1/32"),
        "early": pool(
            "fd00::1", "fd00::2", encapsulation="gue", gue_port=7001, source6="fd99::/96"
        ),
        "narrow": pool("fd00::11", "fd00::12", source6="fd98::5/128"),
        "mixed": pool("10.3.0.1", "10.3.0.2", "10.3.0.3", "fd00::21", source4="172.18.0.0/24"),
    }
    local = pools["mixed"]["backends"]["b0a030001"]
    local["local"] = True
    vips: list[tuple[str, str, dict[str, Any]]] = [
        ("tcp://192.0.2.1:443", "steady", {"stamps": True}),
        ("udp://192.0.2.1:443", "moved", {"stamps": True}),
        ("tcp://192.0.2.1:80", "moved", {"hash": "source"}),
        ("udp://192.0.2.1:53", "narrow", {}),
        ("tcp://192.0.2.2:*", "early", {"hash": "source", "stamps": True}),
        ("udp://192.0.2.2:*", "early", {"hash": "source"}),
        ("tcp://192.0.2.2:443", "narrow", {}),
        ("tcp://192.0.2.3:443", "mixed", {"echo": False, "stamps": True}),
        ("udp://192.0.2.3:443", "early", {"limit": {"rate": 1}}),
        ("tcp://192.0.2.3:80", "moved", {"limit": {"rate": 1}}),
        ("tcp://[2001:db8::1]:443", "narrow", {"stamps": True}),
        ("udp://[2001:db8::1]:443", "moved", {"stamps": True}),
        ("tcp://[2001:db8::2]:*", "early", {"stamps": True}),
        ("udp://[2001:db8::2]:*", "steady", {"hash": "source"}),
        ("tcp://[2001:db8::3]:443", "mixed", {"echo": False}),
        ("udp://[2001:db8::3]:53", "early", {}),
    ]
    return BalancerSpec.model_validate({
        "stamp": STAMPS[memory], "quic_ids": QUIC_IDS[memory],
        "secret": "differential", "memory": memory, "flows": 1 << 20, "pool": pools,
        "flow_timeout": 15_000, "udp_timeout": 15_000,  # the model forgets nothing
        "vip": [{"listen": listen, "pool": name, **more} for listen, name, more in vips],
    })  # fmt: skip


@contextlib.contextmanager
def set_up(memory: str = "history", seed: int = 1) -> Iterator[Setup]:
    """A balancer in a namespace of its own, in this thread, and its model."""
    spec = specification(memory)
    with (
        tempfile.TemporaryDirectory() as name,
        Netns.create() as namespace,
        namespace.entered(),
    ):
        root = Path(name)
        bpffs.mount(root)
        try:
            with Balancer.open(spec, root=root) as balancer:
                # A VIP that is no more leaves an entry that must not be found.
                gone = spec.vip[0].model_copy(update={"listen": "tcp://192.0.2.4:443"})
                balancer.apply(spec.model_copy(update={"vip": [*spec.vip, gone]}))
                balancer.apply(spec)
                _disturb(balancer, random.Random(seed))
                yield Setup(balancer, model.Model(_modelled(balancer)), spec)
                balancer.remove()
        finally:
            bpffs.unmount(root)


def _disturb(balancer: Balancer, chance: random.Random) -> None:
    """Give the maps what it takes hours and a network to come to."""
    state, book = balancer._state, balancer._ledger
    for name, number in book.backends.items():
        _disturb_backend(state.backends[number], name, number, chance)
    for name, place in book.pools.items():
        members = [book.backends[b] for b in book.spec.pool[name].backends]
        _disturb_pool(state, name, place, members, chance)
    for vip in book.spec.vip:
        if vip.limit:
            entry = state.limits[book.indices[vip.listen]]
            entry.interval, entry.burst = _INTERVAL, (_LIMIT - 1) * _INTERVAL


def _disturb_backend(entry: Any, name: str, number: int, chance: random.Random) -> None:
    entry.way.ifindex = chance.choice((HERE, HERE, ELSEWHERE))
    entry.way.next_hop[:] = b"\x02\0\0\0\1" + bytes([number])
    entry.way.own[:] = b"\x02\0\0\0\2" + bytes([number])
    entry.flags |= _RESOLVED
    if name == "b0a030002":
        entry.flags &= ~_RESOLVED
    if name == "b0a030003":
        entry.flags &= ~_UP
    if name == "b0a010003":
        entry.mtu = 530  # so that packets too big for it may be too short to be quoted
    if name in {"b0a010002", "bfd000000000000000000000000000002"}:
        entry.mtu = 1500
    if name in {"bfd000000000000000000000000000011", "bfd000000000000000000000000000012"}:
        entry.mtu = 1280


def _disturb_pool(
    state: Any, name: str, place: Any, members: list[int], chance: random.Random
) -> None:
    pool, slots = state.pools[place.number], _slots(state)
    for slot in range(place.start, place.start + place.size):
        if name in {"moved", "early", "mixed"}:
            slots[slot] = slots[slot] & 0xFFFF | chance.choice((0, 0, *members)) << 16
        elif name == "steady":
            slots[slot] |= members[0] << 16
    if name in {"moved", "early", "mixed"}:
        pool.history_until = tick() + FAR
        pool.udp_until = tick() + FAR if name == "early" else 0
    elif name == "steady":  # its time is over
        pool.history_until = max(0, tick() - 5)


def _slots(state: Any) -> Any:
    return memoryview(state.slots).cast("B").cast("I")


def _modelled(balancer: Balancer) -> model.Configuration:
    """What the maps hold, as the model has it."""
    state, book = balancer._state, balancer._ledger
    spec = book.spec
    backends = {}
    for name, number in book.backends.items():
        entry = state.backends[number]
        address = next(p.backends[name].address for p in spec.pool.values() if name in p.backends)
        backends[number] = model.Backend(
            address=address.packed,
            ifindex=int(entry.way.ifindex),
            next_hop=bytes(entry.way.next_hop),
            own=bytes(entry.way.own),
            mtu=int(entry.mtu),
            up=bool(entry.flags & _UP),
            local=bool(entry.flags & _LOCAL),
            resolved=bool(entry.flags & _RESOLVED),
        )
    pools = {}
    for name, place in book.pools.items():
        ring = _slots(state)[place.start : place.start + place.size]
        entry, given = state.pools[place.number], spec.pool[name]
        pools[place.number] = model.Pool(
            ring=[(slot & 0xFFFF, slot >> 16) for slot in ring],
            in_transition=entry.history_until > tick(),
            udp_early=entry.udp_until > tick(),
            gue_port=given.gue_port if given.encapsulation == "gue" else None,
            source4=_source4(given),
            source6=_source6(given),
        )
    addresses: dict[bytes, model.Address] = {}
    for vip in spec.vip:
        packed = vip.address.packed
        # One VIP of an address that asks for silence is enough.
        silent = packed in addresses and not addresses[packed].echo
        addresses[packed] = model.Address(str(vip.address), vip.echo and not silent)
    assert spec.stamp is not None
    return model.Configuration(
        key=[int(k) for k in state.config.hash_key],
        vips={
            (v.address.packed, v.port, v.protocol): model.Vip(
                v.listen,
                book.pools[v.pool].number,
                v.hash == "source",
                _LIMIT if v.limit else None,
                v.stamps,
            )
            for v in spec.vip
        },
        addresses=addresses,
        pools=pools,
        backends=backends,
        memory=spec.memory,
        ids={
            (book.pools[name].number, backend.server_id): book.backends[member]
            for name, pool in spec.pool.items()
            for member, backend in pool.backends.items()
            if backend.server_id
        },
        tcp_kind=spec.stamp.kind,
        tcp_experiment=spec.stamp.experiment,
        tcp_byte_order=spec.stamp.byte_order,
        quic_ids=[each.codec() for each in spec.quic_ids],
        ingress=HERE,
    )


def _source4(pool: Any) -> tuple[int, int]:
    if pool.source4 is None:
        return 0, 0
    network = pool.source4
    return tuple(
        int.from_bytes(each.packed, "little") for each in (network.network_address, network.netmask)
    )  # type: ignore[return-value]


def _source6(pool: Any) -> tuple[bytes, int]:
    if pool.source6 is None:
        return bytes(16), 0
    mask = int.from_bytes(pool.source6.netmask.packed[12:], "little")
    return pool.source6.network_address.packed, mask


def compare(setup: Setup, program: Program, frame: bytes, *, explained: bool = False) -> None:
    """One frame into both; if asked for, into `explain` before, which must not change anything.

    Raises:
        DifferenceError: they do not agree.

    """
    told = setup.balancer.explain(frame) if explained else None
    expected = setup.model.process(frame)
    run = program.test_run(frame)
    verdict = _VERDICTS.get(run.retval, str(run.retval))
    if verdict != expected.verdict:
        raise DifferenceError(_told(frame, f"verdict {verdict}, the model says {expected}"))
    if verdict != "drop" and run.data != expected.frame:
        raise DifferenceError(
            _told(frame, f"{expected}\nprogram: {run.data.hex()}\nmodel:   {expected.frame.hex()}")
        )
    if told and (told.verdict, told.outcome) != (expected.verdict, expected.outcome):
        raise DifferenceError(_told(frame, f"explained as {told}, the model says {expected}"))


def compare_counters(setup: Setup) -> None:
    """All counters, at the end."""
    found = setup.balancer.counters()
    counted = {
        (vip, outcome): number
        for vip, outcomes in found.outcomes.items()
        for outcome, number in outcomes.items()
    }
    counted["", "malformed"] = found.malformed
    # An entry that takes another's place is stored too, for the model's table has no end.
    for vip in found.outcomes:
        lost = counted.pop((vip, "evicted"), 0)
        if lost:
            counted[vip, "stored"] = counted.get((vip, "stored"), 0) + lost
    _same("counters", counted, setup.model.counters)
    _same("octets of VIPs", found.octets, setup.model.octets)
    numbers = setup.balancer._ledger.backends
    _same(
        "packets of backends",
        {numbers[name]: count.packets for name, count in found.backends.items()},
        setup.model.sent,
    )
    _same(
        "octets of backends",
        {numbers[name]: count.octets for name, count in found.backends.items()},
        setup.model.sent_octets,
    )


def _same(name: str, counted: Mapping[Any, int], modelled: Mapping[Any, int]) -> None:
    """What is not there is 0."""
    differ = {
        key: (counted.get(key, 0), modelled.get(key, 0))
        for key in counted.keys() | modelled.keys()
        if counted.get(key, 0) != modelled.get(key, 0)
    }
    if differ:
        raise DifferenceError(f"{name} (program, model): {differ}")


def _told(frame: bytes, words: str) -> str:
    return f"{words}\nframe: {frame.hex()}"


def work(memory: str, packets: int, seed: int) -> dict[str, int]:
    """Compare so many packets; how many went by each outcome."""
    chance = random.Random(seed)
    with set_up(memory, seed) as setup, setup.balancer._state.program("balancer") as program:
        try:
            for number in range(packets):
                frame = spoiled(chance)
                compare(setup, program, frame, explained=number % _EXPLAINED == 0)
            compare_counters(setup)
        except DifferenceError as difference:
            again = f"seed {seed}, memory {memory}, packet {number}"
            raise DifferenceError(f"{again}: {difference}") from None
        outcomes: dict[str, int] = {}
        for (_, outcome), number in setup.model.counters.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + number
        return outcomes


def run(packets: int, seed: int) -> dict[str, int]:
    """Compare so many packets, in all memories, on all processors.

    Raises:
        DifferenceError: one was found; the error names the packet and how to see it again.

    """
    share = packets // len(MEMORIES)
    # Processes of their own, each in a namespace of its own.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [
            pool.submit(_apart, memory, share, seed + index)
            for index, memory in enumerate(MEMORIES)
        ]
        found = [job.result() for job in jobs]
    outcomes: dict[str, int] = {}
    for each in found:
        for outcome, number in each.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + number
    return outcomes


def _apart(memory: str, packets: int, seed: int) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.balancer.differential", "--memory", memory]
    done = subprocess.run(
        [*command, "--packets", str(packets), "--seed", str(seed)],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode:
        raise DifferenceError(f"{' '.join(command[1:])}: {done.stderr[-4000:]}")
    outcomes: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


def main() -> None:
    """Compare as many packets as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--memory", choices=sorted(set(MEMORIES)), help="only this one")
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    if options.memory:
        found = work(options.memory, options.packets, options.seed)
    else:
        found = run(options.packets, options.seed)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
