"""A real headless Chromium for tests, driven through chromedriver's HTTP interface (W3C WebDriver): no other package.

    with browser.running(tmp_path) as chromium:
        chromium.open(page.as_uri())

Pages that must not need the network are opened with every other address than loopback cut off.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the environment is not for loopback
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the WebDriver standard gives references to elements


class Chromium:
    """One browser window.

    Args:
        session: address of the WebDriver session.
    """

    def __init__(self, session: str):
        self._session = session

    def open(self, address: str) -> None:
        """Go to a page and wait until it has loaded."""
        self.take_logs()
        self._call("POST", "/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns; it finds its arguments in ``arguments``."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, condition: str, *arguments: Any, timeout_s: float = 15) -> Any:
        """The value of a JavaScript expression as soon as it is true."""
        end = time.monotonic() + timeout_s
        while not (value := self.run(f"return {condition}", *arguments)):
            assert time.monotonic() < end, (
                f"never true: {condition}; {self.run('return document.body.innerText')[:500]}"
            )
            time.sleep(0.03)
        return value

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element; into a file input: the path of the file to choose."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, key: str) -> None:
        """A key for whatever has the focus."""
        steps = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def drag(self, selector: str, points: Sequence[tuple[float, float]], *, touch: bool = False) -> None:
        """Press on an element, move and let go; points are shares of its width and height, from its upper left."""
        box = self.run(
            "arguments[0].scrollIntoView({block: 'center'}); return arguments[0].getBoundingClientRect().toJSON()",
            {_ELEMENT: self._find(selector)},
        )
        places = [(round(box["x"] + x * box["width"]), round(box["y"] + y * box["height"])) for x, y in points]
        moves: list[dict[str, Any]] = [{"type": "pointerMove", "x": x, "y": y, "duration": 20} for x, y in places]
        moves.insert(1, {"type": "pointerDown", "button": 0})
        moves.append({"type": "pointerUp", "button": 0})
        pointer = {"pointerType": "touch" if touch else "mouse"}
        self._call(
            "POST",
            "/actions",
            {"actions": [{"type": "pointer", "id": pointer["pointerType"], "parameters": pointer, "actions": moves}]},
        )

    def look(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Show pages in a viewport of this size, in CSS pixels, in the light or the dark scheme."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self, file: Path) -> None:
        """The whole page, not only what the viewport shows, as a PNG."""
        data = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(data))

    def overflow(self) -> list[str]:
        """What is wider than the viewport and would make the page scroll sideways."""
        return self.run(
            """
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            const right = (element) => element.getBoundingClientRect().right;
            const wide = [...document.querySelectorAll("body *")].filter((element) => right(element) > width + 0.5);
            return ["page", ...wide.map((e) => `${e.tagName} ${e.id || e.className} ${e.textContent.slice(0, 30)}`)];
            """
        )

    def take_logs(self) -> tuple[list[str], list[str]]:
        """Since the last call: what the console complained of, and the addresses that were asked for."""
        console = [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]
        events = [
            json.loads(entry["message"])["message"] for entry in self._call("POST", "/se/log", {"type": "performance"})
        ]
        requests = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        return console, requests

    def _find(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        return _call(method, f"{self._session}{path}", content)


def _port(output: Iterable[str]) -> str:
    """The port that chromedriver says it listens on."""
    said = []
    for line in output:
        if match := re.search(r"successfully on port (\d+)", line):
            return match[1]
        said.append(line)
    raise RuntimeError(f"chromedriver did not start: {''.join(said)}")


@contextmanager
def running(folder: Path) -> Iterator[Chromium]:
    """Start a Chromium with a fresh profile below ``folder``; the test is skipped where none is installed."""
    chromium = next(filter(None, map(shutil.which, _CHROMIUM_NAMES)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver here; on Debian: apt-get install chromium chromium-driver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        port = _port(process.stdout)
        options = {"binary": chromium, "args": [*_SWITCHES, f"--user-data-dir={folder / 'chromium'}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        address = f"http://127.0.0.1:{port}/session"
        session = _call("POST", address, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Chromium(f"{address}/{session}")
        finally:
            _call("DELETE", f"{address}/{session}")
    finally:
        process.terminate()
        process.wait(timeout=10)


def _call(method: str, address: str, content: Any = None) -> Any:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method=method)
    try:
        with _DIRECT.open(request, timeout=60) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{address.rsplit('/', 1)[-1]}: {json.load(error)['value']['message']}") from None
