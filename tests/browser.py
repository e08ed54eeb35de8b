"""Chromium without a window, told what to do through its debugging pipe: it needs no package, port or driver."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = (
    "--headless=new --remote-debugging-pipe --no-sandbox --disable-gpu --no-first-run --hide-scrollbars "
    "--disable-dev-shm-usage --disable-extensions --disable-background-networking"
).split()


class Browser:
    """One page of a browser. `complaints` collects errors of its scripts and console, `requests` what it fetches."""

    def __init__(self, profile: Path):
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # Chromium reads 3 and writes 4
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", str(PROGRAM), *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._pending, self._last, self._session, self._events = b"", 0, "", list[str]()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        self._last += 1
        session = (
            {"sessionId": self._session} if self._session and not method.startswith(("Target.", "Browser.")) else {}
        )
        os.write(
            self._write,
            json.dumps({"id": self._last, "method": method, "params": parameters, **session}).encode() + b"\0",
        )
        while (message := self._receive()).get("id") != self._last:
            self._note(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has gone"
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, given = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(given["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.complaints.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.complaints.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])

    def open(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load a page as a device of this width shows it, and wait until it has drawn."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._note(self._receive())
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str) -> Any:
        """Evaluate a script, wait for a promise, and return its value."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point(self, selector: str, across: float = 0.5) -> None:
        """Move the mouse over an element, so far across it."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{where}.scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.run(
            f"(({{x, y, width, height}}) => [x, y, width, height])({where}.getBoundingClientRect())"
        )
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x + across * width, y=y + height / 2)

    def picture(self, path: Path, height: int | None = None) -> None:
        """Write the whole page as a PNG, or as much of its top."""
        width, full = self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(full, height or full), "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        self._process.terminate()
        self._process.wait(timeout=10)
        os.close(self._read)
