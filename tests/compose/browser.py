"""A headless Chromium, as far as looking at pages needs it: open, log in, read the text, take a picture."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx2
from websockets.sync.client import connect

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1280,800 --remote-debugging-port=0"
)


class Browser:
    """One page of a browser with an empty profile, spoken to by its debugging protocol."""

    def __init__(self) -> None:
        binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert binary, "No Chromium is installed: apt-get install chromium"
        self._profile = Path(tempfile.mkdtemp(prefix="gristmill-browser-"))
        command = [binary, *FLAGS.split(), f"--user-data-dir={self._profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        self._ids = itertools.count(1)
        self._closing = ExitStack()
        self._page = self._closing.enter_context(connect(self._debugger(), max_size=None))

    def open(self, url: str, until: str, *, login: tuple[str, str] | None = None, within_s: float = 60) -> str:
        """Open a page and wait until its text has `until`; the text. AssertionError with it when it never has."""
        headers = {}
        if login:
            headers["Authorization"] = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
        self._ask("Network.enable")
        self._ask("Network.setExtraHTTPHeaders", headers=headers)
        self._ask("Page.navigate", url=url)
        return self.wait(until, within_s)

    def wait(self, until: str, within_s: float = 60) -> str:
        """Wait until the page's text has `until`."""
        end = time.monotonic() + within_s
        while until not in (text := str(self.run("document.body ? document.body.innerText : ''"))):
            assert time.monotonic() < end, f"no {until!r} in: {text[:2000]}"
            time.sleep(0.3)
        return text

    def run(self, script: str) -> Any:
        """The value of some JavaScript in the page."""
        return self._ask("Runtime.evaluate", expression=script).get("result", {}).get("value")

    def picture(self, file: Path) -> None:
        """What is seen now, as a small JPEG or a PNG by the file's name."""
        kind = {".jpg": {"format": "jpeg", "quality": 70}, ".png": {"format": "png"}}[file.suffix]
        file.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", **kind)["data"]))

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._page.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self._page.recv(timeout=60))
            if said.get("id") == number:
                assert "error" not in said, said
                return dict(said["result"])

    def _debugger(self) -> str:
        file, end = self._profile / "DevToolsActivePort", time.monotonic() + 60
        while not file.exists() or not file.read_text().strip():
            assert time.monotonic() < end, "the browser did not start"
            time.sleep(0.2)
        port = file.read_text().split()[0]
        pages = httpx2.get(f"http://127.0.0.1:{port}/json/list", timeout=30).json()
        return str(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
        self._process.terminate()
        self._process.wait(timeout=30)
        shutil.rmtree(self._profile, ignore_errors=True)
