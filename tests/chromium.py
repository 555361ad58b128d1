"""A real Chromium without a window, for tests of the report's page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver", "chromium.chromedriver")


def programs() -> tuple[str, str]:
    """Paths of the browser and of its driver. Where one is missing: a skip that says so, in CI a failure."""
    found = [next(filter(None, map(shutil.which, names)), None) for names in (BROWSERS, DRIVERS)]
    if found[0] and found[1]:
        return found[0], found[1]
    text = "no Chromium with its driver on this machine (Debian: apt install chromium chromium-driver)"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def features(dark: bool) -> list[dict[str, str]]:
    """What the page is told of its reader: light or dark, and no moving about, so that places stand still."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    return [scheme, {"name": "prefers-reduced-motion", "value": "reduce"}]


@contextmanager
def browser(profile: Path, *, width: int = 1280, dark: bool = False, scripts: bool = True) -> Iterator[Any]:
    """A selenium driver that has no network, whose console is kept, `width` CSS pixels wide; a phone below 500."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}", f"--window-size={width},900",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    try:
        found.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        found.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features(dark)})
        found.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        yield found
    finally:
        found.quit()
