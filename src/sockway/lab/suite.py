"""The release experiment: which scenarios it has, and how much of each.

Each kind of load meets each system in the same way: the same program, the same
clients, the same number of releases at the same pace. The others get the same linger,
too: their old UDP workers stay beside the new ones for as long as Sockway's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sockway.lab.scenario import Result, Scenario
from sockway.lab.tally import Tally

SYSTEMS = ("sockway", "reuseport")
TAKEOVER = "takeover"
ALL_SYSTEMS = (*SYSTEMS, TAKEOVER)
ORDER = ("reuseport", "takeover", "sockway")  # of runs and pictures: what is replaced comes first
WEB_TARGETS = [["::1", 8080], ["127.0.0.1", 8080]]
UDP_TARGETS = [["::1", 4433], ["127.0.0.1", 4433]]
BULK = "/bytes/2000000?seconds=2"


@dataclass(frozen=True)
class Kind:
    """One kind of load, and the server that it meets."""

    key: str
    title: str
    labels: dict[str, str]  # of its loads, in a word
    program: str
    load: dict[str, dict[str, Any]]
    every: float  # seconds between releases
    linger: float = 0.0

    def scenario(self, system: str, releases: int) -> Scenario:
        """This kind of load against *system*, with *releases*."""
        return Scenario(
            system=system,
            program=self.program,
            load=self.load,
            releases=releases,
            every=self.every,
            linger=self.linger,
        )


KINDS = (
    Kind(
        key="http1",
        title="HTTP/1.1 (uvicorn): a connection for each request, and downloads",
        labels={"http1": "HTTP/1.1", "http1:downloads": "downloads"},
        program="uvicorn",
        load={
            "http1": {"targets": WEB_TARGETS, "rate": 700, "clients": 64},
            "http1:downloads": {
                "targets": WEB_TARGETS,
                "mode": "download",
                "path": BULK,
                "clients": 20,
                "rate": 6,
            },
        },
        every=5.0,
    ),
    Kind(
        key="http3",
        title="HTTP/3 (hypercorn): new connections, and live ones",
        labels={"http3": "HTTP/3"},
        program="http3",
        load={
            "http3": {
                "target": ["::1", 8443],
                "rate": 8,
                "live": 12,
                "life": 2,
                "pause": 0.2,
                "timeout": 4,
            }
        },
        every=6.0,
        linger=3.0,
    ),
    Kind(
        key="udp",
        title="UDP flows (echo)",
        labels={"udp": "UDP flows"},
        program="echo",
        load={"udp": {"targets": UDP_TARGETS, "flows": 2000, "rate": 4000, "life": 4}},
        every=4.5,
        linger=3.0,
    ),
)


def offered_rate(load: str, task: dict[str, Any]) -> float:
    """Requests or datagrams a second that clients are told to send; 0: as fast as they can."""
    rate = float(task["rate"])
    if load.partition(":")[0] == "http3":
        rate += task["live"] / task["pause"]
    return rate


@dataclass
class Outcome:
    """All results of a run of the experiment."""

    results: dict[tuple[str, str], Result]  # (kind's key, system)
    seconds: float

    def tally(self, system: str, *kinds: str) -> Tally:
        """All of *system*'s tallies of *kinds* (all, if none is named) in one."""
        total = Tally()
        for (kind, of), result in self.results.items():
            if of == system and (not kinds or kind in kinds):
                total.merge(result.total)
        return total

    @property
    def systems(self) -> tuple[str, ...]:
        """Those that were tried, Sockway first."""
        return tuple(name for name in ALL_SYSTEMS if any(of == name for _, of in self.results))

    def cpu(self, system: str) -> list[float]:
        """CPU seconds of each of *system*'s releases: servers, and what starts and stops them."""
        return [
            seconds
            for (_, of), result in self.results.items()
            if of == system
            for seconds in result.cpu_of_releases
        ]

    def releases(self, system: str) -> int:
        """Releases done by *system*."""
        return sum(len(result.releases) for (_, of), result in self.results.items() if of == system)

    @property
    def errors(self) -> list[str]:
        """What broke a scenario off."""
        return [
            f"{system}, {kind}: {result.error}"
            for (kind, system), result in self.results.items()
            if result.error
        ]

    @property
    def lost_nothing(self) -> bool:
        """Sockway did all of its releases, and no client of it saw a failure."""
        own = [result for (_, system), result in self.results.items() if system == "sockway"]
        return all(not result.error and not result.total.failed for result in own)
