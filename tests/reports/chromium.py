"""A headless Chromium over its debugging pipe: open a page, look at it, read what it complained of.

Speaks the DevTools protocol on file descriptors 3 and 4, which needs no client library and opens
no port. Knows nothing of kvbench.
"""

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

BINARY = shutil.which("chromium")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
_WAIT_S = 60.0
_READY = """document.readyState === "complete" && document.title !== "" &&
    (!document.getElementById("specs") || document.documentElement.dataset.charts === "done")"""


@dataclass(kw_only=True)
class Seen:
    """What happened while a page was open."""

    complaints: list[str] = field(default_factory=list)  # console errors, exceptions, violations
    requests: list[str] = field(default_factory=list)  # every URL that was asked for
    facts: Any = None  # what the script returned


class Chromium:
    """One browser; a context manager. Each page gets a tab of its own."""

    def __init__(self) -> None:
        assert BINARY is not None
        self._profile = tempfile.mkdtemp(prefix="kvbench-chromium-")
        their_input, self._write = os.pipe()
        self._read, their_output = os.pipe()
        # Far from 3 and 4, so that neither is closed by the other's arrival.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (their_input, their_output)]
        quiet = os.open(os.devnull, os.O_RDWR)
        self._pid = os.posix_spawn(
            BINARY,
            [BINARY, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            os.environ | {"DBUS_SESSION_BUS_ADDRESS": "disabled:"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs[0], 3),
                (os.POSIX_SPAWN_DUP2, theirs[1], 4),
                (os.POSIX_SPAWN_DUP2, quiet, 1),
                (os.POSIX_SPAWN_DUP2, quiet, 2),
            ],
            setpgroup=0,
        )
        for fd in (their_input, their_output, quiet, *theirs):
            os.close(fd)
        os.set_blocking(self._read, False)
        self._buffer = b""
        self._serial = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def visit(
        self,
        page: Path,
        script: str,
        *,
        width_px: int = 1200,
        dark: bool = False,
        picture: Path | None = None,
    ) -> Seen:
        """Open a file, wait until its charts are drawn, evaluate a script, take a screenshot."""
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        session = attached["sessionId"]
        seen = Seen()
        self._events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable", {}, session)
        metrics = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", metrics, session)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", {"features": scheme}, session)
        self._call("Page.navigate", {"url": page.as_uri()}, session)
        deadline = time.monotonic() + _WAIT_S
        while not self._evaluate(_READY, session):
            assert time.monotonic() < deadline, f"{page} was not drawn in {_WAIT_S:g} s"
            time.sleep(0.05)
        seen.facts = self._evaluate(script, session)
        if picture is not None:
            shot = {"format": "png", "captureBeyondViewport": True}
            data = self._call("Page.captureScreenshot", shot, session)["data"]
            picture.write_bytes(base64.b64decode(data))
        for event in self._events:
            _note(event, seen)
        self._call("Target.closeTarget", {"targetId": target})
        return seen

    def _evaluate(self, script: str, session: str) -> Any:
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self._call("Runtime.evaluate", asked, session)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _call(self, method: str, params: dict[str, Any], session: str | None = None) -> Any:
        self._serial += 1
        message: dict[str, Any] = {"id": self._serial, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._serial:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _WAIT_S
        while b"\0" not in self._buffer:
            assert time.monotonic() < deadline, "Chromium does not answer"
            try:
                self._buffer += os.read(self._read, 2**20)
            except BlockingIOError:
                time.sleep(0.002)
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


def _note(event: dict[str, Any], seen: Seen) -> None:
    params = event.get("params", {})
    match event.get("method"):
        case "Runtime.exceptionThrown":
            seen.complaints.append(str(params["exceptionDetails"]))
        case "Runtime.consoleAPICalled" if params["type"] in {"error", "warning", "assert"}:
            seen.complaints.append(str(params["args"]))
        case "Log.entryAdded" if params["entry"]["level"] in {"error", "warning"}:
            seen.complaints.append(params["entry"]["text"])
        case "Network.requestWillBeSent":
            seen.requests.append(params["request"]["url"])
        case _:
            pass
