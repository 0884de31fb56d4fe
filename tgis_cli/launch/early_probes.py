"""Answers to HTTP probes before the front-end starts, while the launcher is still reading the model.

They are the answers that the front-end gives while a model loads: live, neither started nor ready, and the reason.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress

from tgis_server.errors import TgisError
from tgis_server.host.ports import listen
from tgis_server.options import ServeConfig
from tgis_server.words.loading import explain_loading

ANSWER_S = 5.0  # for a client to send its request and read the answer
LIVE = "/health/live"
OTHERS = ("/health", "/health/ready", "/health/startup", "/metrics")
REASONS = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


class EarlyProbes:
    """Listens on the HTTP port until closed."""

    def __init__(self, model: str, describe: Callable[[], str]) -> None:
        """
        Args:
            describe: returns what the launcher is doing, as the end of a sentence.
        """
        self._model = model
        self._describe = describe
        self._began_at = time.monotonic()
        self._server: asyncio.Server | None = None

    async def open(self, config: ServeConfig) -> None:
        """Start listening if possible. A port in use is reported later, by the checks at startup."""
        if config.http_tls == "off":  # with TLS, its files would have to be read first
            with suppress(TgisError):
                self._server = await asyncio.start_server(self._serve, sock=listen(config.host, config.port, "--port"))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(ANSWER_S):
                words = (await reader.readuntil(b"\r\n\r\n")).split(maxsplit=2)
                status, body = self._answer(words[1].decode(errors="replace") if len(words) > 1 else "")
                writer.write(make_response(status, body))
                await writer.drain()
        writer.close()

    def _answer(self, path: str) -> tuple[int, dict[str, object]]:
        path = path.partition("?")[0]
        if path == LIVE:
            up_s = round(time.monotonic() - self._began_at, 1)
            return 200, {"status": "starting", "model": self._model, "mode": "", "calls_in_flight": 0, "up_s": up_s}
        if path not in OTHERS:
            return 404, {"error": "There is no such page."}
        return 503, {"error": explain_loading(self._describe())}


def make_response(status: int, body: dict[str, object]) -> bytes:
    text = json.dumps(body)
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(text)}",
        "Connection: close",
    )
    return "\r\n".join((*head, "", text)).encode()
