"""All experiments as `sockway lab run --quick` runs them: what each is there to show, shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sockway.lab import cost
from sockway.lab.balancer_cost import KINDS, carrying
from sockway.lab.experiments import EXPERIMENTS
from sockway.lab.findings import Results
from tests.lab.browser import browser, faults, is_there

LIMIT = 420
"""Seconds; it takes two minutes on two cores that have nothing else to do."""
# The first test has the run as its fixture.
pytestmark = [pytest.mark.root, pytest.mark.timeout(LIMIT + 30)]
Systems = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Run:
    """A run of all experiments."""

    output: Path
    printed: str
    experiments: dict[str, dict[str, Any]]

    def systems(self, name: str) -> Systems:
        """The figures of an experiment."""
        assert "error" not in self.experiments[name], self.experiments[name]["error"]
        systems: Systems = self.experiments[name]["systems"]
        return systems


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All of them, once."""
    output = tmp_path_factory.mktemp("lab")
    done = subprocess.run(
        [sys.executable, "-m", "sockway", "lab", "run", "--quick", "--output", str(output)],
        capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (output / "results.json").read_text(encoding="utf-8")
    Results.model_validate_json(text)
    return Run(output, done.stdout, json.loads(text)["experiments"])


def test_all_are_told(run: Run) -> None:
    """On the page, in the figures, and in words on the terminal."""
    assert list(run.experiments) == list(EXPERIMENTS)
    page = (run.output / "report.html").read_text(encoding="utf-8")
    plots = sorted(path.stem for path in run.output.glob("*.svg"))
    for name in EXPERIMENTS:
        assert f"\n{name}\n" in f"\n{run.printed}"
        assert any(plot.startswith(name) for plot in plots)
    for plot in plots:
        assert f'"{plot}-figure_1"' in page
        assert (run.output / f"{plot}.png").exists()


@pytest.mark.timeout(600)
@pytest.mark.skipif(not is_there(), reason="there is no Chromium (Debian: chromium-driver)")
def test_the_page_can_be_read_on_each_device(run: Run) -> None:
    """All plots and tables there are."""
    with browser() as driver:
        assert faults(driver, run.output / "report.html") == []


def test_release(run: Run) -> None:
    """The kernel alone misroutes; Sockway loses nothing, whatever share of servers is released."""
    systems = run.systems("release")
    own, kernel, takeover = (systems[name] for name in ("sockway", "reuseport", "takeover"))
    for name in ("failed", "lost", "misrouted", "resets"):
        assert own[name]["value"] == 0, name
        assert own[name]["n"] > 1000
    assert own["sent"]["value"] > 10_000
    assert kernel["misrouted"]["value"] > 100
    assert kernel["set_udp_failed_100"]["value"] > kernel["set_udp_failed_50"]["value"] > 0
    assert kernel["set_udp_failed_0"]["value"] == 0
    assert takeover["failed"]["value"] < kernel["failed"]["value"] / 10
    assert takeover["forwarded"]["value"] > 0
    assert takeover["set_forwarded"]["value"] > 0
    restarted = systems["single-acceptor"]
    assert restarted["set_udp_failed_100"]["value"] > restarted["set_udp_failed_0"]["value"] == 0
    for system in systems.values():
        assert 0 < system["cpu_per_packet"]["value"] < 0.01
        assert system["set_cpu_of_a_release"]["value"] > 0
        assert system["sent"]["n"] == 1
        assert system["misrouted"]["n"] < system["failed"]["n"] or "set_tcp_sent" not in system
        assert system["set_udp_achieved_rate"]["value"] > 0
        assert system["set_udp_achieved_rate"]["value"] <= system["set_udp_offered_rate"]["value"]


def test_scale(run: Run) -> None:
    """A socket for each worker takes more than one accepting thread does."""
    systems = run.systems("scale")
    one = systems["single-acceptor"]["capacity"]["value"]
    for name in ("reuseport", "sockway"):
        assert systems[name]["capacity"]["value"] > 2 * one > 0
        assert 0 < systems[name]["cpu_per_packet"]["value"] < 0.01
    for system in systems.values():
        assert system["answered"]["value"] <= system["sent"]["value"]
        assert system["lost"]["value"] == system["sent"]["value"] - system["answered"]["value"]


def test_resets(run: Run) -> None:
    """Rings break connections, stamps break none; TCP's and QUIC's."""
    systems = run.systems("resets")
    assert systems["stamps"]["resets"]["value"] == 0
    assert systems["stamps"]["resets"]["n"] == systems["stamps"]["sent"]["value"] > 300
    assert systems["ring"]["tcp_resets_balancers"]["value"] > 50
    assert systems["ring"]["quic_resets"]["value"] > 0
    for system in ("table", "history"):
        assert systems[system]["resets"]["value"] < systems["ring"]["resets"]["value"]


def test_bind(run: Run) -> None:
    """The walk of UDP's port bucket shows."""
    systems = run.systems("bind")
    assert systems["reuseport"]["udp_growth"]["value"] > 3
    assert systems["wildcard"]["udp_growth"]["value"] < 3
    for system in ("reuseport", "exclusive", "wildcard", "sk_lookup"):
        for protocol in ("udp", "tcp"):
            assert systems[system][f"{protocol}_bind_8000"]["n"] >= 51
            assert systems[system][f"{protocol}_reach"]["n"] == 300


def test_spread(run: Run) -> None:
    """CPU spread keeps all; nothing is lost."""
    systems = run.systems("spread")
    for system, metrics in systems.items():
        assert metrics["lost"]["value"] == 0, system
        assert metrics["imbalance"]["value"] >= 1, system
    assert systems["cpu"]["kept_on_cpu"]["value"] > 99
    if (os.cpu_count() or 1) > 1:
        assert systems["hash"]["kept_on_cpu"]["value"] < 95
    assert systems["weights"]["share_error"]["value"] < 5


def test_cost(run: Run) -> None:
    """Each kind of packet has its figure; what a table costs for each packet shows."""
    systems = run.systems("cost")
    for system in ("history", "transition", "table"):
        for kind in KINDS:
            assert systems[system][f"balancer_{cost.key(kind.name)}"]["unit"] == "ns"
    for kind in carrying():
        assert systems["stamps"][f"balancer_carrying_{cost.key(kind.name)}"]["unit"] == "ns"
    more = systems["stamps"]["hosts_octets"]["value"] - systems["plain"]["hosts_octets"]["value"]
    assert 5 < more < 9
    steady = systems["history"]["balancer_no_vips"]["value"]
    assert steady < systems["table"]["balancer_syn"]["value"]
    assert systems["sockway"]["router_none"]["value"] > 0
    assert systems["reuseport"]["router_none_rate"]["value"] > 1000
