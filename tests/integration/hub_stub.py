"""A model hub on a free loopback port, with one repository and injected faults.

Implements the part of the hub's HTTP API that huggingface_hub 1 and 2 use: the model's metadata, and files by HEAD and
GET with ranges. Large files (LFS) are redirected to another host name, which must not receive a token.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "org/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_BYTES = 50_000
PIECE_BYTES = 1 << 14


@dataclass(frozen=True)
class Fault:
    """A fault in one response.

    After the given number of bytes, ``stall`` goes silent, ``cut`` closes the connection, and ``trickle`` sends single
    bytes slowly. ``status`` responds with that status, ``corrupt`` changes a byte, and ``whole`` ignores ranges.
    """

    kind: str
    after: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if len(content) >= LFS_BYTES else git_digest(content)


class HubStub:
    """One repository. All attributes may be changed at any time.

    Each of ``faults["NAME"]`` applies to one of the next responses with that file's content, and each of ``faults[""]``
    to one of the next responses with metadata.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.commit = COMMIT
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.needs_token = ""  # if not empty, the model is private: without this token it is hidden
        self.is_gated = False
        self.has_metadata = True  # whether listings contain sizes and digests; some mirrors send none
        self.xet_names: set[str] = set()
        self.leaked_tokens: list[str] = []
        self.bytes_per_s = 0  # per response; 0: unlimited
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.port}/cdn"

    def count(self, name: str) -> int:
        """The number of requests for a file's content."""
        is_large = len(self.files[name]) >= LFS_BYTES
        wanted = f"/cdn/{name}" if is_large else f"/{MODEL}/resolve/{self.commit}/{name}"
        return sum((method, path) == ("GET", wanted) for method, path, _ in self.requests)

    def make_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get(f"/api/models/{MODEL}/revision/{{revision:.+}}", self.get_info)
        app.router.add_get(f"/{MODEL}/resolve/{{revision}}/{{name}}", self.get_file)
        app.router.add_get("/cdn/{name}", self.get_content)
        app.router.add_get("/xet-token", self.get_xet_token)
        app.router.add_route("*", "/cas/{rest:.*}", self.be_silent)
        app.router.add_route("*", "/{rest:.*}", self.get_nothing)
        return app

    def note(self, request: web.Request) -> None:
        self.requests.append((request.method, request.path, request.headers.get("Range", "")))

    def refuse(self, request: web.Request) -> web.Response | None:
        """The hub's response to users without access, or ``None``."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.needs_token and token != self.needs_token:
            status, code = (401, "RepoNotFound")
        elif self.is_gated and "/resolve/" in request.path:
            status, code = (403, "GatedRepo")
        else:
            return None
        return web.json_response({"error": code}, status=status, headers={"X-Error-Code": code})

    def take_fault(self, name: str) -> Fault | None:
        waiting = self.faults.get(name)
        return waiting.pop(0) if waiting else None

    async def get_nothing(self, request: web.Request) -> web.Response:
        self.note(request)
        code = "RepoNotFound"
        return web.json_response({"error": code}, status=404, headers={"X-Error-Code": code})

    async def get_info(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        if refused := self.refuse(request):
            return refused
        if fault := self.take_fault(""):
            if fault.kind == "stall":
                return await self.be_silent(request)
            return web.json_response({"error": "no"}, status=fault.status, headers=fault.headers)
        if request.match_info["revision"] not in ("main", self.commit):
            code = "RevisionNotFound"
            return web.json_response({"error": code}, status=404, headers={"X-Error-Code": code})
        siblings = [self.describe_file(name, content) for name, content in self.files.items()]
        return web.json_response({"id": MODEL, "sha": self.commit, "siblings": siblings, "gated": self.is_gated})

    def describe_file(self, name: str, content: bytes) -> dict[str, Any]:
        if not self.has_metadata:
            return {"rfilename": name}
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
        if len(content) >= LFS_BYTES:
            entry["lfs"] = {"sha256": digest_of(content), "size": len(content), "pointerSize": 130}
        return entry

    async def get_file(self, request: web.Request) -> web.StreamResponse:
        if refused := self.refuse(request):
            return refused
        name = request.match_info["name"]
        if name not in self.files:
            self.note(request)
            return web.json_response({}, status=404, headers={"X-Error-Code": "EntryNotFound"})
        content = self.files[name]
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{digest_of(content)}"'}
        if len(content) < LFS_BYTES:
            return await self.send(request, name, headers)
        self.note(request)
        headers |= {"X-Linked-Etag": f'"{digest_of(content)}"', "X-Linked-Size": str(len(content))}
        if name in self.xet_names:
            headers |= {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": f"{self.url}/xet-token"}
        return web.Response(status=302, headers=headers | {"Location": f"{self.cdn}/{name}"})

    async def get_content(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            self.leaked_tokens.append(request.headers["Authorization"])
        return await self.send(request, request.match_info["name"], {})

    async def get_xet_token(self, request: web.Request) -> web.Response:
        self.note(request)
        cas = {
            "X-Xet-Cas-Url": f"{self.url}/cas",
            "X-Xet-Access-Token": "stub",
            "X-Xet-Token-Expiration": "4000000000",
        }
        return web.Response(headers=cas)

    async def be_silent(self, request: web.Request) -> web.Response:
        self.note(request)
        await asyncio.sleep(3600)
        return web.Response()

    async def send(self, request: web.Request, name: str, headers: dict[str, str]) -> web.StreamResponse:
        """Send a file's content, or the requested range, with the next fault."""
        self.note(request)
        content = self.files[name]
        fault = self.take_fault(name) if request.method == "GET" else None
        if fault and fault.kind == "status":
            return web.Response(status=fault.status, headers=fault.headers)
        start, status = 0, 200
        byte_range = request.headers.get("Range", "")
        if byte_range and not (fault and fault.kind == "whole"):
            start, status = int(byte_range.removeprefix("bytes=").split("-")[0]), 206
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            if start >= len(content):
                return web.Response(status=416)
        if fault and fault.kind == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(content) - start
        await response.prepare(request)
        if request.method == "GET":
            with suppress(ConnectionError):  # the client went away
                await self.send_pieces(request, response, content[start:], fault)
        return response

    async def send_pieces(
        self, request: web.Request, response: web.StreamResponse, content: bytes, fault: Fault | None
    ) -> None:
        sent = 0
        while sent < len(content):
            if fault and fault.kind in ("stall", "cut", "trickle") and sent >= fault.after:
                if fault.kind == "stall":
                    await asyncio.sleep(3600)
                if fault.kind == "cut":
                    assert request.transport is not None
                    request.transport.abort()
                    return
                await asyncio.sleep(0.2)
                piece = content[sent : sent + 1]
            else:
                end = min(sent + PIECE_BYTES, fault.after if fault and fault.after > sent else len(content))
                piece = content[sent:end]
            await response.write(piece)
            sent += len(piece)
            if self.bytes_per_s:
                await asyncio.sleep(len(piece) / self.bytes_per_s)


@contextmanager
def serve_hub(hub: HubStub) -> Iterator[HubStub]:
    """Serve the stub from a separate thread."""
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(hub.make_app(), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        hub.port = runner.addresses[0][1]
        return runner

    async def stop(runner: web.AppRunner) -> None:
        await runner.cleanup()
        silent = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield hub
    finally:
        asyncio.run_coroutine_threadsafe(stop(runner), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
