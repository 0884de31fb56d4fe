"""A process that fetches files, one at a time.

``python -m tgis_cli.model_files.download.fetch_worker --death-fd N --parent PID``

A separate process, as only killing it reliably ends a stuck transfer: the network library may hang in a name lookup,
and hf_xet may hang in its own threads. ``transfers.py`` starts it, sends jobs as JSON lines to stdin, reads events as
JSON lines from stdout, and kills it when events stop.

Events::

    {"kept": N}            the first N bytes are present from an earlier attempt
    {"at": N}              N bytes are present
    {"checking": N}        N bytes of the content have been read back
    {"syncing": true}      the content is being flushed to disk
    {"by": TRANSPORT}      how the file is fetched
    {"done": true}         the content is complete, verified, and at its final path
    {"failed": SENTENCE}   with the other fields of ``transfers.Problem``
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tgis_cli.model_files.cache.disk import FULL, INCOMPLETE, explain_full_disk, write_all
from tgis_cli.model_files.cache.folder import SCRATCH
from tgis_cli.model_files.download.digest import has_digest, start_digest
from tgis_cli.model_files.download.hub import (
    describe_error,
    explain_hub_error,
    get_status,
    is_temporary,
    open_content,
    raise_for_status,
    retry_after_s,
)
from tgis_cli.model_files.download.hub_token import inherited_token
from tgis_server.child import die_with_parent, leave_hangups_to_parent
from tgis_server.errors import NotEnoughDevices, TgisError, UsageError

CHUNK_BYTES = 64 << 10  # small: progress must show on a slow line, and a chunk that is cut off is lost
EMIT_EVERY_S = 0.2
XET_POLL_S = 0.5

# Errors of this machine, not of the network.
LOCAL = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EIO,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)

Emit = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Job:
    """One file to fetch."""

    model: str
    commit: str
    name: str
    size: int
    digest: str
    blob: str  # final path
    incomplete: str  # path until then
    timeout_s: float  # without any data
    by_xet: bool  # use hf_xet if the hub offers it

    @property
    def scratch(self) -> Path:
        """The directory into which the library downloads with hf_xet."""
        return Path(f"{self.incomplete.removesuffix(INCOMPLETE)}{SCRATCH}")


class Damaged(Exception):
    """The content does not match the hub's description."""


class CutOff(Exception):
    """The response ended before the file was complete."""


class XetFailed(Exception):
    """The error comes from hf_xet, not from the hub."""


class Receiver:
    """A file during its download, with the digest of the content so far."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self._job = job
        self._emit = emit
        self._emitted_at = 0.0
        self._open()

    def _open(self) -> None:
        descriptor = os.open(self._job.incomplete, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._digest = start_digest(self._job.digest, self._job.size)
        self.position = 0

    def close(self) -> None:
        self._file.close()

    def resume(self) -> None:
        """Continue after the content that an earlier attempt left."""
        kept_bytes = os.fstat(self._file.fileno()).st_size
        if kept_bytes > self._job.size:
            self.restart()
            return
        while chunk := self._file.read(1 << 20):
            self._count(chunk, "kept")

    def restart(self) -> None:
        """Start over with a new file: without locks, another process may be writing to the old one."""
        self.close()
        with suppress(FileNotFoundError):
            os.unlink(self._job.incomplete)
        self._open()
        self._emit(at=0)

    def write(self, chunk: bytes) -> None:
        if self.position + len(chunk) > self._job.size:
            raise Damaged
        write_all(self._file, chunk)
        self._count(chunk, "at")

    def _count(self, chunk: bytes, event: str) -> None:
        if self._digest is not None:
            self._digest.update(chunk)
        self.position += len(chunk)
        if time.monotonic() - self._emitted_at >= EMIT_EVERY_S or self.position == self._job.size:
            self._emitted_at = time.monotonic()
            self._emit(**{event: self.position})

    def finish(self) -> None:
        """Check the content and give it its final name.

        Raises:
            Damaged: the content does not match the hub's digest, and has been discarded.
            CutOff: another process has restarted the download.
        """
        if self._digest is not None and self._digest.hexdigest() != self._job.digest:
            self.restart()
            raise Damaged
        sync(self._file.fileno(), self._emit)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._job.incomplete)):
                os.replace(self._job.incomplete, self._job.blob)
                return
        raise CutOff


def sync(descriptor: int, emit: Emit) -> None:
    """Flush a file to disk, and emit events in the meantime, as that may take minutes."""
    with ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(os.fsync, descriptor)
        while not wait([syncing], EMIT_EVERY_S).done:
            emit(syncing=True)
        syncing.result()


def fetch(job: Job, emit: Emit) -> None:
    """Fetch one file: by HTTP, which can be resumed, or by hf_xet if the job wants it and the hub offers it."""
    if job.by_xet and is_offered_by_xet(job):
        emit(by="xet")
        fetch_by_library(job, emit)
        return
    emit(by="http")
    shutil.rmtree(job.scratch, ignore_errors=True)
    with closing(Receiver(job, emit)) as receiver:
        receiver.resume()
        if receiver.position < job.size:
            receive(job, receiver)
        receiver.finish()


def receive(job: Job, receiver: Receiver) -> None:
    """Fetch the missing part of a file.

    Raises:
        CutOff: the response ended early.
        Damaged: the response was too long.
        Exception: any error of huggingface_hub and its dependencies.
    """
    byte_range = f"bytes={receiver.position}-" if receiver.position else ""
    with open_content(job.model, job.name, job.commit, inherited_token(), job.timeout_s, byte_range) as response:
        if response.status_code == 416:
            receiver.restart()
            raise CutOff
        raise_for_status(response)
        begins_at = f"bytes {receiver.position}-"
        if receiver.position and not response.headers.get("content-range", "").startswith(begins_at):
            receiver.restart()
            if response.status_code == 206:
                raise CutOff
        for chunk in response.iter_bytes(CHUNK_BYTES):
            receiver.write(chunk)
    if receiver.position < job.size:
        raise CutOff


def is_offered_by_xet(job: Job) -> bool:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        return False
    url = hf_hub_url(job.model, job.name, revision=job.commit)
    metadata = get_hf_file_metadata(url, timeout=job.timeout_s, token=inherited_token())
    return metadata.xet_file_data is not None


def fetch_by_library(job: Job, emit: Emit) -> None:
    """Fetch with huggingface_hub, which handles hf_xet and its tokens, into a separate cache next to the blob."""
    from huggingface_hub import hf_hub_download

    scratch = job.scratch
    shutil.rmtree(scratch, ignore_errors=True)
    is_done = threading.Event()
    watcher = threading.Thread(target=watch_growth, args=(scratch, job.size, emit, is_done), daemon=True)
    watcher.start()
    try:
        options: dict[str, Any] = {"revision": job.commit, "cache_dir": scratch, "token": inherited_token()}
        try:
            content = Path(hf_hub_download(job.model, job.name, **options)).resolve()
        except Exception as error:
            if isinstance(error, RuntimeError) or type(error).__module__.startswith("hf_xet"):
                raise translate_xet_error(error) from error
            raise
        is_done.set()
        watcher.join()
        checked = 0

        def tell(num_bytes: int) -> None:
            nonlocal checked
            checked += num_bytes
            emit(checking=checked)

        if content.stat().st_size != job.size or not has_digest(content, job.digest, tell):
            raise Damaged
        with content.open("rb") as file:
            sync(file.fileno(), emit)
        os.replace(content, job.blob)
    finally:
        is_done.set()
        shutil.rmtree(scratch, ignore_errors=True)


def translate_xet_error(error: Exception) -> Exception:
    """An error of hf_xet as an ``OSError`` of the local disk, or else as :class:`XetFailed`."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else 0
    if number in FULL | LOCAL:
        return OSError(number, os.strerror(number))
    return XetFailed(next(iter(str(error).splitlines()), type(error).__name__))


def watch_growth(scratch: Path, size: int, emit: Emit, is_done: threading.Event) -> None:
    """Report progress by the size on disk, as hf_xet writes from its own threads."""
    last = 0
    while not is_done.wait(XET_POLL_S):
        with suppress(OSError):
            written = sum(os.stat(path).st_blocks * 512 for path in scratch.rglob("*.incomplete"))
            if (now := min(written, size)) != last:
                last = now
                emit(at=now)


def describe_failure(error: Exception, job: Job) -> dict[str, Any]:
    """The event for a failed job; it also says whether another attempt may help."""
    from huggingface_hub.errors import RepositoryNotFoundError  # includes gated repositories

    explained: TgisError
    if isinstance(error, Damaged):
        return {"failed": "the content does not match its checksum", "is_damaged": True}
    if isinstance(error, CutOff):
        return {"failed": "the response was cut off"}
    if isinstance(error, XetFailed):
        return {"failed": f"Xet failed ({error})"}
    if isinstance(error, OSError) and error.errno in FULL:
        explained = NotEnoughDevices(explain_full_disk(error, Path(job.blob).parent))
    elif isinstance(error, OSError) and error.errno in LOCAL:
        place = error.filename or job.blob
        explained = UsageError(f"{place} cannot be used: {error.strerror}. Check its owner and mode.")
    else:
        has_expired = get_status(error) in (401, 403) and not isinstance(error, RepositoryNotFoundError)
        if is_temporary(error) or has_expired:  # a signed address
            text = describe_error(error)
            return {"failed": text[0].lower() + text[1:], "wait_s": retry_after_s(error)}
        explained = explain_hub_error(error, job.model, job.commit, inherited_token())
    return {"failed": str(explained), "exit_code": explained.exit_code}


def main(argv: list[str]) -> None:
    options = dict(zip(argv[::2], argv[1::2], strict=True))
    leave_hangups_to_parent()
    die_with_parent(int(options["--death-fd"]), int(options["--parent"]))

    def emit(**event: Any) -> None:
        print(json.dumps(event), flush=True)

    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            fetch(job, emit)
        except Exception as error:  # noqa: BLE001  the parent decides how to proceed
            emit(**describe_failure(error, job))
        else:
            emit(done=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
