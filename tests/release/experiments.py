"""How the release tests run a scenario: in a process, and so in namespaces, of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from sockway.lab.scenario import Result, Scenario

WEB = [["::1", 8080], ["127.0.0.1", 8080]]
UDP = [["::1", 4433], ["127.0.0.1", 4433]]


def http1(rate: float, clients: int = 32, **more: Any) -> dict[str, Any]:
    """A task for HTTP/1.1 clients that open a connection for each request."""
    return {"targets": WEB, "rate": rate, "clients": clients, **more}


def keepalive(rate: float, clients: int = 32) -> dict[str, Any]:
    """A task for HTTP/1.1 clients that keep their connection."""
    return http1(rate, clients, mode="keepalive")


def downloads(seconds: float, size: int = 1_000_000, clients: int = 10) -> dict[str, Any]:
    """A task for clients that each download *size* octets in *seconds*, again and again."""
    path = f"/bytes/{size}?seconds={seconds:g}"
    return http1(clients / seconds, clients, mode="download", path=path, timeout=seconds + 10)


def play(scenario: Scenario, limit: float = 300.0) -> Result:
    """Run *scenario*, *limit* seconds at most; fails where it breaks off."""
    process = subprocess.run(
        [sys.executable, "-m", "sockway.lab.scenario"],
        input=json.dumps(asdict(scenario)),
        stdout=subprocess.PIPE,
        text=True,
        timeout=limit,
        check=True,
    )
    result = Result.from_json(json.loads(process.stdout))
    assert result.error is None, result.error
    assert len(result.releases) == scenario.releases
    return result


def explain(result: Result) -> str:
    """What failed, for the message of an assertion."""
    parts = [f"releases at {[(round(a, 1), round(b, 1)) for a, b in result.releases]}"]
    for key, tally in result.tallies.items():
        when = {
            outcome: sorted(bins.items())[:20]
            for outcome, bins in tally.bins.items()
            if outcome != "ok"
        }
        parts.append(f"{key}: {dict(tally.outcomes)} {dict(tally.notes)} at (x 0.1 s) {when}")
    return "\n".join([*parts, f"router: {result.decisions}"])


def assert_nothing_lost(result: Result) -> None:
    """No client saw a failure, and the router left nothing to chance."""
    assert not result.total.failed, explain(result)
    for reason in ("kernel_hash", "unpublished", "unknown_vip"):
        assert not result.decisions.get(reason), explain(result)
