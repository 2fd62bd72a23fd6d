"""The chat page in a real browser: Debian's chromium, driven by selenium."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
HOW = "install them with `apt-get install chromium chromium-driver`"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
)
# Seconds; a machine that does much else needs them.
PATIENCE = 20.0


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with a fresh profile; skips where there is none."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(f"there is no chromium with its driver here; {HOW}")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(PATIENCE)
    try:
        yield Page(driver)
    finally:
        driver.quit()


class Page:
    """What a person does with the page, and what they see."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.url = ""

    def open(self, url: str, width: int = 1280, height: int = 800) -> None:
        """A fresh visit, without chats or settings from before."""
        self.size(width, height)
        stored = {"origin": url, "storageTypes": "local_storage,indexeddb"}
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", stored)
        self.log()
        self.visit(url)

    def visit(self, url: str) -> None:
        self.url = url
        self.driver.get(f"{url}/")
        self.wait_ready()

    def reload(self) -> None:
        self.driver.refresh()
        self.wait_ready()

    def wait_ready(self) -> None:
        self.until(lambda: self.run("return !!document.querySelector('#send svg')"), "a page")

    def size(self, width: int, height: int) -> None:
        """The viewport; headless windows have a least width, the emulation has none."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, **features: str) -> None:
        """Media features such as prefers_color_scheme="dark"."""
        pairs = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": pairs})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def log(self) -> list[str]:
        """What the browser complained of since the last call: errors, blocked content."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def find(self, selector: str) -> WebElement:
        found: list[WebElement] = []

        def there() -> bool:
            found[:] = self.driver.find_elements(By.CSS_SELECTOR, selector)
            return bool(found)

        self.until(there, selector)
        return found[0]

    def click(self, selector: str) -> None:
        """Click what is shown under `selector`, by the pointer."""

        def clicked() -> bool:
            try:
                self.find(selector).click()
            except WebDriverException:
                return False
            return True

        self.until(clicked, f"a click on {selector}")

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return list(self.run(script, selector))

    def text(self, selector: str) -> str:
        return " ".join(self.texts(selector))

    def keys(self, *keys: str) -> None:
        """To whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def say(self, text: str) -> None:
        self.find("#message").send_keys(text, Keys.ENTER)

    def ask(self, text: str) -> None:
        """Send a message and wait for the end of its answer."""
        before = len(self.texts(".turn.assistant"))
        self.say(text)
        self.until(lambda: len(self.texts(".turn.assistant")) > before, "an answer")
        self.wait_idle()

    def wait_idle(self) -> None:
        self.until(lambda: not self.texts(".turn.writing"), "the end of the answer")

    def until(self, holds: Callable[[], Any], what: str = "") -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, f"waited in vain: {what}; the browser says {self.log()}"
            time.sleep(0.03)
