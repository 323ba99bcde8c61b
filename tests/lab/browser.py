"""A real browser that looks at a page as a person's device shows it."""

from __future__ import annotations

import importlib.resources
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTHS: Final = (360, 768, 1440)
"""A phone, a tablet, a desk."""
SCHEMES: Final = ("light", "dark")
SCRIPT_SECONDS: Final = 120
"""For the audit of one look: long, for a machine that has other things to do."""
SMALLEST: Final = 6.0
"""Pixels of the smallest letters in a picture on a phone that can still be read."""
_OPTIONS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_MEASURE: Final = """
const seen = element => { const r = element.getBoundingClientRect();
  return [r.left, r.right, r.width, r.height]; };
const number = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const style = element => getComputedStyle(element);
const inks = [...document.querySelectorAll('figure svg text')].map(text => {
  const box = text.getBoundingClientRect();
  const turned = text.getScreenCTM();
  const size = parseFloat(style(text).fontSize) * Math.hypot(turned.a, turned.b);
  return {words: text.textContent, size, fill: number(style(text).fill),
    left: box.left - text.closest('figure').getBoundingClientRect().left,
    right: text.closest('figure').getBoundingClientRect().right - box.right}; });
return {
  wide: document.documentElement.scrollWidth, screen: document.documentElement.clientWidth,
  ground: number(style(document.body).backgroundColor),
  ink: number(style(document.body).color),
  pictures: [...document.querySelectorAll('figure svg')].map(seen),
  captions: [...document.querySelectorAll('figcaption')].map(e => e.textContent.trim()),
  inks,
};
"""


def is_there() -> bool:
    """Whether there is a browser."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a window, and with nothing of anybody's in it."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for option in (*_OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            driver.get("about:blank")
            _log(driver, "performance")  # of the browser's own first page
            driver.set_script_timeout(SCRIPT_SECONDS)
            yield driver
        finally:
            driver.quit()


def faults(driver: webdriver.Chrome, page: Path) -> list[str]:
    """All that a person could complain of, on each device, light and dark."""
    found = []
    for width in WIDTHS:
        for scheme in SCHEMES:
            found += [f"{width}, {scheme}: {fault}" for fault in _on(driver, page, width, scheme)]
    return found


def _on(driver: webdriver.Chrome, page: Path, width: int, scheme: str) -> Iterator[str]:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < WIDTHS[1]},
    )
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.get(page.as_uri())
    look: dict[str, Any] = driver.execute_script(_MEASURE)
    if look["wide"] > look["screen"]:
        yield f"the page is {look['wide']} wide on a screen of {look['screen']}"
    if (_light(look["ground"]) > _light(look["ink"])) != (scheme == "light"):
        yield f"ink {look['ink']} on {look['ground']}"
    yield from (f"it loads {address}" for address in _asked_for(driver) - {page.as_uri()})
    if not look["pictures"]:
        yield "there is no picture"
    for left, right, wide, high in look["pictures"]:
        if wide < min(250, width * 0.7) or high < wide / 4 or left < 0 or right > width:
            yield f"a picture of {wide:.0f} x {high:.0f} from {left:.0f} to {right:.0f}"
    yield from (f"a caption says {words!r}" for words in look["captions"] if len(words) < 20)
    for text in look["inks"]:
        if abs(_light(text["fill"]) - _light(look["ground"])) < 100:
            yield f"{text['words']!r} in {text['fill']} on {look['ground']}"
        if text["size"] < SMALLEST:
            yield f"{text['words']!r} is {text['size']:.1f} pixels high"
        if min(text["left"], text["right"]) < -1:
            yield f"{text['words']!r} reaches out of its picture"
    yield from (f"the console says {entry['message']}" for entry in _log(driver, "browser"))
    yield from _told_by_axe(driver)


def _asked_for(driver: webdriver.Chrome) -> set[str]:
    """Addresses that the browser has asked for since the last look."""
    messages = [json.loads(entry["message"])["message"] for entry in _log(driver, "performance")]
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }


def _log(driver: webdriver.Chrome, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = driver.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


def _told_by_axe(driver: webdriver.Chrome) -> Iterator[str]:
    """What axe finds against the rules of accessibility (WCAG 2, A and AA)."""
    axe = importlib.resources.files("axe_selenium_python") / "node_modules/axe-core/axe.min.js"
    driver.execute_script(axe.read_text(encoding="utf-8"))
    told: dict[str, Any] = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'best-practice']}).then(done);"
    )
    for fault in told["violations"]:
        yield f"{fault['id']}: {fault['nodes'][0]['html'][:120]}"


def _light(colour: list[float]) -> float:
    """Of 0 to 255."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue
