"""Experiments that do not end well, and one that does, for tests of the runner."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path

from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import StateError
from sockway.kernel import cgroup
from sockway.lab import cpubudget, cputime, stamped
from sockway.lab.drawing import panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.marks import prefix
from sockway.lab.network import Lab
from sockway.lab.topology import Topology

LAB = "broken"


def sound(setting: Setting) -> Findings:
    """Finds what the seed says."""
    plot = Plot(name="sound", title="It <works>", sentence=f"Seed {setting.seed} & nothing else.")
    with panel(setting.output, plot) as axes:
        axes.plot([1, 2], [setting.seed, 3])
    metric = Metric.of([1.0, 2.0, 4.0], "s")
    return Findings(
        systems={"sockway": {"seed": Metric.count(setting.seed, "1"), "time": metric}},
        plots=[plot],
        tables=[Table(title="a table", columns=["a", "b"], rows=[["<b>", "2"]])],
        notes=["quick" if setting.quick else "full"],
    )


def refused(setting: Setting) -> Findings:
    """Ends as a thing that can't be done."""
    del setting
    raise StateError("no such luck", hint="try again")


def wrong(setting: Setting) -> Findings:
    """Ends as a bug does."""
    del setting
    raise ZeroDivisionError("by nothing")


def killed(setting: Setting) -> Findings:
    """Leaves all that experiments make and a process behind, and dies at once."""
    lab = Lab.up(Topology(name=LAB, clients=1, balancers=0, backends=0))
    stamped.stamp_server(LAB, lab.node("client1").name, 1, 80)
    with ExitStack() as left:
        group = left.enter_context(cputime.cgroup("of-time"))
        budgets = left.enter_context(cpubudget.budgets(2, 0.1))
        spec = StampingSpec(
            name=f"{prefix()}stamp", cgroup=group, server_id=1, server_ports=[80],
            peers=[ip_network("10.7.0.0/24")], server_kind=0xB6, client_kind=0xB7,
        )  # fmt: skip
        Stamping.up(spec)
        groups = [group, cgroup.mount() / f"sockway-{LAB}", *(each.group for each in budgets)]
        pins = Path(os.environ["SOCKWAY_BPFFS"]).glob("@stamp-*")
        made = [*(each for each in groups if each), *pins, tempfile.mkdtemp(prefix=prefix())]
        (setting.output / "made").write_text("\n".join(map(str, made)), encoding="utf-8")
        subprocess.Popen(["sleep", "601"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGKILL)
    subprocess.Popen(["sleep", "601"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def endless(setting: Setting) -> Findings:
    """Builds a lab and never ends by itself."""
    with Lab.up(Topology(name=LAB, clients=1, balancers=0, backends=0)):
        (setting.output / "up").touch()
        time.sleep(600)
    raise AssertionError
