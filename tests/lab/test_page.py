"""The report in a real browser: on a phone, a tablet and a desk, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from tests.lab.browser import browser, faults, is_there
from tests.lab.test_runner import run

pytestmark = [
    pytest.mark.root,  # the browser's sandbox is off, for it is root in CI
    pytest.mark.skipif(not is_there(), reason="there is no Chromium (Debian: chromium-driver)"),
]


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    """One browser for all."""
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an experiment that went well, and some that did not."""
    output = tmp_path_factory.mktemp("page")
    run(output, "sound", "refused", "wrong")
    return output / "report.html"


def test_nobody_has_to_complain(driver: webdriver.Chrome, page: Path) -> None:
    """Nothing is cut, too small, unreadable, loaded from elsewhere, or lost on who can't see."""
    assert faults(driver, page) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text.replace("overflow-x: auto", "overflow-x: visible")
         .replace("<td>2</td>", "<td>" + "wide " * 200 + "</td>"), "wide on a screen"),
        (lambda text: text.replace("(prefers-color-scheme: dark)", "(min-width: 99999px)"),
         "dark: ink"),
        (lambda text: text.replace("currentColor", "#7a7a7a")
         .replace("--panel: #1d2125", "--panel: #777777")
         .replace("--page: #14171a", "--page: #777777"), "on [119, 119, 119]"),
        (lambda text: text.replace("max-width: 40rem", "max-width: 6rem"), "a picture of"),
        (lambda text: text.replace("width: 100%; height: auto", "width: 900px; height: auto"),
         "a picture of"),
        (lambda text: text.replace("<svg ", "<p ", 1).replace("</svg>", "</p>", 1),
         "there is no picture"),
        (lambda text: text.replace('lang="en"', "", 1), "html-has-lang"),
        (lambda text: text.replace("--faint: #667079", "--faint: #c6d0d9"), "color-contrast"),
        (lambda text: text.replace("</main>", '<img alt="x" src="data.png"></main>'), "it loads"),
        (lambda text: text.replace("<figcaption>Seed", "<figcaption></figcaption><p>Seed"),
         "a caption says ''"),
    ],
)  # fmt: skip
def test_the_look_finds_faults(
    driver: webdriver.Chrome, page: Path, tmp_path: Path, spoil: Callable[[str], str], words: str
) -> None:
    """Each way to spoil the page is seen."""
    text = page.read_text(encoding="utf-8")
    shutil.copy(page.with_name("sound.png"), tmp_path / "data.png")
    spoiled = tmp_path / "report.html"
    spoiled.write_text(spoil(text), encoding="utf-8")
    assert spoiled.read_text(encoding="utf-8") != text
    assert any(words in fault for fault in faults(driver, spoiled))
