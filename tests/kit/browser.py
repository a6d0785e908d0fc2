"""Chromium without a window, driven through the DevTools protocol over a pipe."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Browser:
    """One page; what it logs is kept in ``log``."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._rest = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    @property
    def log(self) -> list[dict[str, Any]]:
        """What the page has logged, errors of its scripts included."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def open(self, page: Path, fragment: str = "", width: int = 1400, height: int = 900) -> None:
        """Load a page in a window of a size, and wait until it is there."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        for address in (
            "about:blank",
            page.as_uri() + fragment,
        ):  # from one fragment to another nothing loads
            self.events.clear()
            self.call("Page.navigate", url=address)
            while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
                self.events.append(self._answer())

    def js(self, code: str) -> Any:
        """Return the value of an expression, a promise's when it is there."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str) -> bool:
        """Wait for an expression to hold, five seconds at most; return whether it does."""
        poll = f"const poll = () => ({code}) || Date.now() > end ? done(!!({code})) : setTimeout(poll, 20);"
        return bool(self.js(f"new Promise((done) => {{ const end = Date.now() + 5000; {poll} poll(); }})"))

    def press(self, key: str, text: str = "") -> None:
        """Press a key and let it go."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that fits."""
        code = f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView(); "
        code += "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        x, y = self.js(code)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; events that come before it are kept."""
        command: dict[str, Any] = {"id": next(self._numbers), "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        while (answer := self._answer()).get("id") != command["id"]:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def close(self) -> None:
        """End the browser."""
        self._commands.close()
        self._answers.close()

    def _answer(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._answers.fileno(), 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        whole, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(whole))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a folder of its own; it is ended with the block."""
    assert CHROMIUM
    (theirs_in, commands), (answers, theirs_out) = os.pipe(), os.pipe()

    def at_3_and_4() -> None:  # where --remote-debugging-pipe reads and writes
        first, second = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(first, 3)
        os.dup2(second, 4)

    words = [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(words, preexec_fn=at_3_and_4, close_fds=False, stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Browser(commands, answers)
        try:
            yield page
        finally:
            page.close()
    finally:
        process.terminate()
        process.wait(30)
