"""A headless Chromium that opens pages, over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
LIMIT_S = 60.0
# It has no sandbox as root and in most containers; the pages are our own.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars")


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """An open page, and what it has complained about and asked for."""

    socket: aiohttp.ClientWebSocketResponse
    session: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    last_id: int = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.last_id += 1
        await self.socket.send_json({"id": self.last_id, "method": method, "params": params, "sessionId": self.session})
        return await self.read(lambda message: message.get("id") == self.last_id)

    async def wait_for(self, event: str) -> None:
        await self.read(lambda message: message.get("method") == event)

    async def read(self, is_wanted: Any) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            while True:
                message = await self.socket.receive_json()
                self.note(message)
                if is_wanted(message):
                    assert "error" not in message, message["error"]
                    return message.get("result", {})

    def note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled":
                self.errors.append(str([each.get("value") for each in params["args"]]))
            case "Log.entryAdded":
                self.errors.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    async def evaluate(self, expression: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def show(self, url: str, *, width: int, theme: str) -> None:
        """Open a file in a window of a width, with the colours that the system is said to prefer."""
        feature = {"name": "prefers-color-scheme", "value": theme}
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        await self.call("Emulation.setEmulatedMedia", features=[feature])
        await self.call("Page.navigate", url=url)
        await self.wait_for("Page.loadEventFired")
        await self.settle()

    async def settle(self) -> None:
        """Wait until what was changed has been drawn."""
        await self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    async def take_picture(self) -> bytes:
        """The whole page as PNG."""
        picture = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(picture["data"])

    async def print_pdf(self) -> bytes:
        printed = await self.call("Page.printToPDF", printBackground=True)
        return base64.b64decode(printed["data"])


@contextlib.asynccontextmanager
async def open_page(program: str) -> AsyncIterator[Page]:
    """A browser with one empty page; it ends with the block."""
    with tempfile.TemporaryDirectory() as profile:
        command = (program, *OPTIONS, *QUIET, "--remote-debugging-port=0", f"--user-data-dir={profile}")
        process = await asyncio.create_subprocess_exec(
            *command, "about:blank", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            url = await read_address(process)
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=5.0)) as socket,
            ):
                yield await open_tab(socket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def read_address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(LIMIT_S):
        while line := await process.stderr.readline():
            said += line
            if found := re.search(rb"DevTools listening on (ws://\S+)", line):
                return found[1].decode()
    raise AssertionError(f"Chromium ended: {said.decode(errors='replace')}")


async def open_tab(socket: aiohttp.ClientWebSocketResponse) -> Page:
    browser = Page(socket, "")
    await socket.send_json({"id": 0, "method": "Target.createTarget", "params": {"url": "about:blank"}})
    target = await browser.read(lambda message: message.get("id") == 0)
    attach = {"targetId": target["targetId"], "flatten": True}
    await socket.send_json({"id": 1, "method": "Target.attachToTarget", "params": attach})
    attached = await browser.read(lambda message: message.get("id") == 1)
    page = Page(socket, attached["sessionId"])
    for domain in ("Page", "Runtime", "Log", "Network"):
        await page.call(f"{domain}.enable")
    page.errors.clear()
    return page
