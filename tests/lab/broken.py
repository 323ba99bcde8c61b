"""Experiments that do not end well, and one that does, for tests of the runner."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from sockway.errors import StateError
from sockway.lab.drawing import panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
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
    """Leaves a lab and a process behind, and dies at once."""
    del setting
    Lab.up(Topology(name=LAB, clients=1, balancers=0, backends=0))
    subprocess.Popen(["sleep", "601"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def endless(setting: Setting) -> Findings:
    """Builds a lab and never ends by itself."""
    with Lab.up(Topology(name=LAB, clients=1, balancers=0, backends=0)):
        (setting.output / "up").touch()
        time.sleep(600)
    raise AssertionError
