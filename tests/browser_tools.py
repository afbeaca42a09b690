"""A real browser for tests: Debian's chromium, headless, without a network."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

ARGUMENTS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
--disable-background-networking --disable-component-update --disable-sync --window-size=1280,1200"""


@contextmanager
def browser() -> Iterator[Any]:
    """A browser with a profile of its own; the test skips where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no browser here (Debian: chromium, chromium-driver)")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in [*ARGUMENTS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield opened
        finally:
            opened.quit()


class Page:
    """A page as a person meets it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def at(self, name: str) -> Any:
        """The element of an id."""
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[Any]:
        """The elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, name: str) -> str:
        """What an element says, also to those who hear it."""
        return " ".join(self.at(name).get_attribute("textContent").split())

    def choose(self, name: str, option: str) -> None:
        """Chooses an option of a list by its beginning."""
        select = Select(self.at(name))
        found = next(each for each in select.options if each.text.startswith(option))
        select.select_by_visible_text(found.text)

    def write(self, name: str, text: str) -> None:
        """Replaces what a field holds."""
        self.at(name).clear()
        self.at(name).send_keys(text)

    def keys(self, *keys: str) -> None:
        """Types into whatever has the focus."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def focused(self) -> str:
        """The id of what has the focus, else the name of the element."""
        return self.driver.execute_script(
            "const e = document.activeElement; return e.id || e.tagName.toLowerCase()"
        )

    def wait(self, happened: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Waits until something is true."""
        return WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(lambda _: happened())

    def run(self) -> None:
        """Presses the button, and waits for the answer or the error."""
        self.at("run").click()
        self.settled()

    def settled(self) -> None:
        """Waits for the end of a run."""
        self.wait(lambda: self.at("run").get_attribute("aria-disabled") is None)


__all__ = ["By", "Keys", "Page", "Select", "browser"]
