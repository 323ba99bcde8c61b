"""The page of kernels is written and held against by what machines said."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.machines import page
from tests.machines.page import Entry

CHECKOUT = Path(__file__).resolve().parents[2]


def entry(series: str, *lacking: str) -> Entry:
    """A kernel that lacks these rows of the doctor."""
    doctor = [
        {"name": name, "ok": name not in lacking, "detail": f"no {name}", "instead": ""}
        for name in ("one", "two", "open files")
    ]
    return Entry.of(f"{series}.9-amd64", doctor, [{"program": "balancer", "verified": 1234}])


def test_rows_of_one_kernel_take_the_place_of_its_own(tmp_path: Path) -> None:
    """Others stay; what is not so any more is told, whichever side it is on."""
    place = tmp_path / page.PLACE
    place.parent.mkdir(parents=True)
    shutil.copy(CHECKOUT / page.PLACE, place)
    before = place.read_text(encoding="utf-8")
    page.write(place, [entry("99.9"), entry("99.10", "one", "two", "open files")])
    text = place.read_text(encoding="utf-8")
    rows = ["| 99.9 | all that Sockway uses | |", "| 99.10 | one | no one |"]
    assert text.index(rows[0]) < text.index(rows[1]) < text.index("| 99.10 | two | no two |")
    assert "| 99.10.9-amd64 | 1,234 | 0 |" in text
    assert "open files" not in text
    assert all(line in text for line in before.splitlines())
    assert list(page.differences(tmp_path, entry("99.10", "one", "two"))) == []
    told = list(page.differences(tmp_path, entry("99.10", "two")))
    assert len(told) == 1
    assert "says, and the kernel does not: | 99.10 | one" in told[0]
    told = list(page.differences(tmp_path, entry("99.9", "two")))
    assert [line.split(": ")[0].removeprefix("docs/reference/kernels.md ") for line in told] == [
        "says, and the kernel does not",
        "does not say",
    ]
    assert "does not say: | 98.1 | one" in next(page.differences(tmp_path, entry("98.1", "one")))
    page.write(place, [entry("99.10")])
    assert "| 99.10 | one" not in place.read_text(encoding="utf-8")
