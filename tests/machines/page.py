"""What is known of kernels: the tables of docs/reference/kernels.md, written and held against.

A kernel is compared by its first two numbers: Debian's own changes the rest every few weeks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = Path("docs/reference/kernels.md")
# The kernel's own limit is 1,000,000 instructions. What is left is room for the
# kernels that nobody has tried: 6.1 needs three to four times what 6.12 does.
MOST_VERIFIED = 300_000
_BEGIN, _END = "<!-- kernels: written by `make kernels` -->", "<!-- kernels end -->"
_BIGGEST = ("balancer", "route_quic")
_RELEASE = re.compile(r"\| \d+\.\d+\.\d")  # a release says more than a series
# Rows whose answer is the machine's and not the kernel's.
_OF_THE_MACHINE = ("open files", "locked memory")


@dataclass(frozen=True)
class Entry:
    """What one kernel has and has not.

    Args:
        series: its first two numbers.
        release: what was run.
        ways: rows of the doctor that are a no, or tell of another way that is used instead.
        verified: instructions that the verifier processed, of programs.

    """

    series: str
    release: str
    ways: Mapping[str, str]
    verified: Mapping[str, int]

    @classmethod
    def of(
        cls, release: str, doctor: Sequence[dict[str, Any]], programs: Sequence[dict[str, Any]]
    ) -> Entry:
        """Make it of what the doctor and the loading of programs said on this kernel."""
        found = re.match(r"\d+\.\d+", release)
        ways = {
            row["name"]: row["detail"]
            for row in doctor
            if row["name"] not in _OF_THE_MACHINE and (not row["ok"] or row.get("instead"))
        }
        verified = {row["program"]: row.get("verified", 0) for row in programs}
        return cls(found[0] if found else release, release, ways, verified)


def _rows(entry: Entry) -> Iterator[str]:
    if not entry.ways:
        yield f"| {entry.series} | all that Sockway uses | |"
    for name, detail in entry.ways.items():
        yield f"| {entry.series} | {name} | {detail} |"


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Write these kernels into the page's tables; others that stand there stay, and all else."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    written, after = rest.split(_END)
    new = {entry.series for entry in entries}
    rows = [row for row in re.findall(r"^\| \d.*\|$", written, re.MULTILINE)
            if _series(row) not in new]  # fmt: skip
    counted = [row for row in rows if _RELEASE.match(row)]
    lacking = [row for row in rows if not _RELEASE.match(row)]
    for entry in entries:
        lacking += _rows(entry)
        counts = " | ".join(f"{entry.verified.get(name, 0):,}" for name in _BIGGEST)
        counted.append(f"| {entry.release} | {counts} |")
    lines = [
        "", "| kernel | it lacks | used instead |", "| --- | --- | --- |",
        *sorted(lacking, key=_number), "",
        "Instructions that the verifier processes, of 1,000,000 that it allows",
        f"(`make kernels` allows {MOST_VERIFIED:,}):", "",
        f"| kernel | {' | '.join(f'`{name}`' for name in _BIGGEST)} |",
        "| --- |" + " ---: |" * len(_BIGGEST),
        *sorted(counted, key=_number), "",
    ]  # fmt: skip
    path.write_text(before + _BEGIN + "\n".join(["", *lines]) + "\n" + _END + after, "utf-8")


def _series(row: str) -> str:
    found = re.match(r"\| (\d+\.\d+)", row)
    return found[1] if found else ""


def _number(row: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _series(row).split("."))


def differences(checkout: Path, entry: Entry) -> Iterator[str]:
    """Tell where the page says something else of a kernel, or nothing."""
    text = (checkout / PLACE).read_text(encoding="utf-8")
    written = set(re.findall(rf"^\| {re.escape(entry.series)} \|.*$", text, re.MULTILINE))
    if not written and not entry.ways:
        return  # a kernel that lacks nothing needs no row
    for line in sorted(written ^ set(_rows(entry))):
        whose = "says, and the kernel does not" if line in written else "does not say"
        yield f"{PLACE} {whose}: {line}; `make kernels ARGS=--write` writes it"


def table(record: Mapping[str, Any]) -> str:
    """Return the outcomes as lines for people."""
    lines = []
    for kernel in record["kernels"]:
        jobs = ", ".join(
            f"{job['job']} {'yes' if job['status'] == 0 else 'NO'} ({job['seconds']:.0f} s)"
            for job in kernel["jobs"]
        )
        mark = "yes" if kernel["ok"] else "NO "
        lines.append(f"{mark} {kernel['release']} in {kernel['seconds']:.0f} s: {jobs}")
    lines.append(f"all in {record['seconds']:.0f} s")
    return "\n".join(lines) + "\n"
