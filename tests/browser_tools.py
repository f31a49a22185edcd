"""A headless Chromium, and the page of a server as a user sees it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cli_tools import PATIENCE
from http_tools import Served, make_library, serving
from softprompt import PromptLibrary

webdriver = pytest.importorskip("selenium.webdriver", reason="the page is tested with selenium, which is not installed")
from selenium.common.exceptions import TimeoutException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402, F401
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
if not CHROMIUM or not CHROMEDRIVER:
    pytest.skip("the page is tested in Chromium, and chromium or chromedriver is absent", allow_module_level=True)

WIDE, NARROW = (1280, 860), (390, 844)
EARLIER = Path(__file__).parent / "earlier/default"
METRICS = {
    "num_examples": 20,
    "accuracy": 0.75,
    "macro_f1": 0.7,
    "confusion_matrix": [[9, 3], [2, 6]],
    "labels": ["yes", "no"],
    "per_class": [
        {"label": "yes", "precision": 0.8, "recall": 0.75, "f1": 0.78, "support": 12},
        {"label": "no", "precision": 0.6, "recall": 0.75, "f1": 0.67, "support": 8},
    ],
    "baselines": {"majority class": {"accuracy": 0.6, "macro_f1": 0.375, "eval_loss": None}},
}
"""As softprompt evaluate writes them."""


@contextmanager
def chromium(downloads: Path) -> Iterator[Any]:
    """A browser that saves files to ``downloads``."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    driver.command_executor.client_config.timeout = PATIENCE
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page of the server at ``url``; ``open`` loads it afresh."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, view: str = "classify", size: tuple[int, int] = WIDE) -> Page:
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == NARROW}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.get("about:blank")  # or a change of the view alone would not load the page
        self.driver.get(f"{self.url}/#{view}")
        return self

    def ready(self) -> Page:
        """Wait for the list of tasks."""
        self.wait("document.querySelector('#tasks .task')")
        return self

    def js(self, expression: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {expression}", *arguments)

    def wait(self, expression: str) -> Any:
        """Wait until an expression of JavaScript is true, and return its value."""
        try:
            return WebDriverWait(self.driver, PATIENCE, 0.02).until(lambda _: self.js(expression))
        except TimeoutException:
            shown = self.js("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{shown}") from None

    def wait_text(self, selector: str, part: str) -> str:
        """Wait until the text of an element contains ``part``, and return the text."""
        return self.wait(f"((t) => t.includes({part!r}) && t)(document.querySelector({selector!r})?.textContent ?? '')")

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def texts(self, selector: str) -> list[str]:
        """Text content of all elements, hidden ones too."""
        return self.js("[...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def write(self, selector: str, text: str) -> None:
        """Fill a text field, as pasting does."""
        script = "const [e, t] = arguments; e.value = t; e.dispatchEvent(new Event('input', {bubbles: true}))"
        self.driver.execute_script(script, self.find(selector), text)

    def set(self, selector: str, value: Any) -> None:
        """Set the value of a slider or a select."""
        script = (
            "const [e, v] = arguments; e.value = v; for (const n of ['input', 'change']) e.dispatchEvent(new Event(n))"
        )
        self.driver.execute_script(script, self.find(selector), value)

    def choose(self, *names: str) -> None:
        """Choose exactly these tasks, by clicks in the list."""
        for box in self.driver.find_elements(By.CSS_SELECTOR, "#tasks input"):
            if box.is_selected() != (box.get_attribute("value") in names) and box.get_attribute("type") == "checkbox":
                box.click()
        if self.js("document.querySelector('#tasks input')?.type") == "radio":
            self.click(f"#tasks input[value='{names[0]}']")

    def classify(self, text: str) -> None:
        self.write("#classify-fields textarea", text)
        self.click("#classify-run")
        self.wait("document.querySelector('#classify-results .result')")

    def complete(self, text: str) -> str:
        """The completion, once it is whole."""
        self.write("#complete-fields textarea", text)
        self.click("#complete-run")
        self.wait("document.querySelector('#complete-result [aria-busy=false]')")
        return self.js("document.getElementById('complete-text').textContent")

    def drop(self, name: str, content: str | bytes) -> None:
        """Drop a file on the page, and wait until it has been read."""
        script = (
            "const transfer = new DataTransfer();"
            "transfer.items.add(new File([new Uint8Array(arguments[1])], arguments[0]));"
            "document.getElementById('file-drop').dispatchEvent("
            "new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}))"
        )
        self.driver.execute_script(script, name, list(content.encode() if isinstance(content, str) else content))
        self.wait("document.querySelector('#file-run, #file-notice .error')")

    def modules(self, script: str, *arguments: Any) -> Any:
        """Run the body of an async function with ``arg`` and ``load(name)``, which imports a module of the page."""
        outer = (
            "const done = arguments[arguments.length - 1], arg = arguments[0];"
            "const load = (name) => import(new URL(`static/${name}.js`, document.baseURI));"
            f"const run = async () => {{ {script} }};"
            "run().then((value) => done([true, value]), (error) => done([false, String(error)]))"
        )
        ok, value = self.driver.execute_async_script(outer, *arguments)
        assert ok, value
        return value

    def console(self) -> list[str]:
        """Errors and warnings since the last call, violations of the content security policy among them."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def answered(server: Served, model: str) -> float:
    """Number of requests that this adapter has classified."""
    return server.measurement("requests_total", route="/v1/classify", model=model, status="200")


class Site(NamedTuple):
    """A server with adapters of all kinds, and a browser."""

    driver: Any
    server: Served
    library: PromptLibrary
    downloads: Path

    @contextmanager
    def page(self) -> Iterator[Page]:
        """The page of the server; the browser must have nothing to complain about, such as the security policy."""
        page = Page(self.driver, self.server.url)
        page.console()
        yield page
        assert page.console() == []


@contextmanager
def open_site(folder: Path) -> Iterator[Site]:
    """Start a server and a browser. The adapter ``joint`` has a training log and scores."""
    library = make_library(folder, context=4096)
    shutil.copy(EARLIER / "log.jsonl", folder / "adapters/joint")
    (folder / "adapters/joint/metrics.json").write_text(json.dumps(METRICS))
    downloads = folder / "downloads"
    downloads.mkdir()
    with serving(library) as server, chromium(downloads) as driver:
        yield Site(driver, server, library, downloads)
