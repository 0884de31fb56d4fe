"""A process that fetches files, one at a time.

``python -m tgis_cli.model_files.download.fetch_worker --death-fd N --parent PID``

A process, because a stuck transfer cannot be ended otherwise: the network library may hang in a name lookup, hf_xet in
threads of its own. ``download.py`` starts it, gives it jobs as JSON lines on stdin, reads events as JSON lines from
stdout, and kills it when no event comes.

Events::

    {"kept": N}            the first N bytes are there from an earlier attempt
    {"at": N}              N bytes are there
    {"checking": N}        N bytes of the content have been read back
    {"syncing": true}      the content is on its way to the disk
    {"by": TRANSPORT}      how the file comes
    {"done": true}         the content is whole, checked, and at its final path
    {"failed": SENTENCE}   with the other fields of ``download.Problem``
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

CHUNK_BYTES = 64 << 10  # small: a slow line must show that it moves, and what is cut off is lost
EMIT_EVERY_S = 0.2
XET_POLL_S = 0.5

# Errors that are this machine's, not the network's.
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
    timeout_s: float  # without a byte
    by_xet: bool  # if the hub offers it

    @property
    def scratch(self) -> Path:
        """A directory of the library's own, where it fetches by hf_xet."""
        return Path(f"{self.incomplete.removesuffix(INCOMPLETE)}{SCRATCH}")


class Damaged(Exception):
    """What came is not what the hub describes."""


class BrokenOff(Exception):
    """The answer ended before the file."""


class XetFailed(Exception):
    """Not the hub, but its other way."""


class Receiver:
    """The file on its way, and the digest of what is there of it."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self._job = job
        self._emit = emit
        self._emitted_at = 0.0
        self._open()

    def _open(self) -> None:
        descriptor = os.open(self._job.incomplete, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._digest = start_digest(self._job.digest, self._job.size)
        self.position = 0

    def close(self) -> None:
        self._file.close()

    def take_kept(self) -> None:
        """Go on after what an earlier attempt left."""
        kept_bytes = os.fstat(self._file.fileno()).st_size
        if kept_bytes > self._job.size:
            self.start_anew()
            return
        while chunk := self._file.read(1 << 20):
            self._count(chunk, "kept")

    def start_anew(self) -> None:
        """With a new file: where locks do not work another process may be writing to the old one."""
        self.close()
        with suppress(FileNotFoundError):
            os.unlink(self._job.incomplete)
        self._open()
        self._emit(at=0)

    def take(self, chunk: bytes) -> None:
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
            Damaged: it is not what the hub describes; nothing of it is kept.
            BrokenOff: another process has begun anew.
        """
        if self._digest is not None and self._digest.hexdigest() != self._job.digest:
            self.start_anew()
            raise Damaged
        sync(self._file.fileno(), self._emit)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._job.incomplete)):
                os.replace(self._job.incomplete, self._job.blob)
                return
        raise BrokenOff


def sync(descriptor: int, emit: Emit) -> None:
    """Bring a file to the disk, which may take minutes, and show that something happens."""
    with ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(os.fsync, descriptor)
        while not wait([syncing], EMIT_EVERY_S).done:
            emit(syncing=True)
        syncing.result()


def fetch(job: Job, emit: Emit) -> None:
    """Fetch one file: by HTTP, which can be gone on with, or by hf_xet if that is wanted and the hub offers it."""
    if job.by_xet and is_offered_by_xet(job):
        emit(by="xet")
        fetch_by_library(job, emit)
        return
    emit(by="http")
    shutil.rmtree(job.scratch, ignore_errors=True)
    with closing(Receiver(job, emit)) as receiver:
        receiver.take_kept()
        if receiver.position < job.size:
            receive(job, receiver)
        receiver.finish()


def receive(job: Job, receiver: Receiver) -> None:
    """Take what is missing from the hub's answer.

    Raises:
        BrokenOff: the answer ended early.
        Damaged: it was too long.
        Exception: whatever huggingface_hub and what it stands on raise.
    """
    wanted = f"bytes={receiver.position}-" if receiver.position else ""
    with open_content(job.model, job.name, job.commit, inherited_token(), job.timeout_s, wanted) as response:
        if response.status_code == 416:
            receiver.start_anew()
            raise BrokenOff
        raise_for_status(response)
        begins_at = f"bytes {receiver.position}-"
        if receiver.position and not response.headers.get("content-range", "").startswith(begins_at):
            receiver.start_anew()
            if response.status_code == 206:
                raise BrokenOff
        for chunk in response.iter_bytes(CHUNK_BYTES):
            receiver.take(chunk)
    if receiver.position < job.size:
        raise BrokenOff


def is_offered_by_xet(job: Job) -> bool:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        return False
    url = hf_hub_url(job.model, job.name, revision=job.commit)
    metadata = get_hf_file_metadata(url, timeout=job.timeout_s, token=inherited_token())
    return metadata.xet_file_data is not None


def fetch_by_library(job: Job, emit: Emit) -> None:
    """Let huggingface_hub fetch into a cache of its own beside the blob: it knows hf_xet's ways and tokens."""
    from huggingface_hub import hf_hub_download

    scratch = job.scratch
    shutil.rmtree(scratch, ignore_errors=True)
    is_over = threading.Event()
    watcher = threading.Thread(target=watch_growth, args=(scratch, job.size, emit, is_over), daemon=True)
    watcher.start()
    try:
        options: dict[str, Any] = {"revision": job.commit, "cache_dir": scratch, "token": inherited_token()}
        try:
            content = Path(hf_hub_download(job.model, job.name, **options)).resolve()
        except Exception as error:
            if isinstance(error, RuntimeError) or type(error).__module__.startswith("hf_xet"):
                raise as_own_error(error) from error
            raise
        is_over.set()
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
        is_over.set()
        shutil.rmtree(scratch, ignore_errors=True)


def as_own_error(error: Exception) -> Exception:
    """What hf_xet says: a full disk, or that its way does not go."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else 0
    if number in FULL | LOCAL:
        return OSError(number, os.strerror(number))
    return XetFailed(next(iter(str(error).splitlines()), type(error).__name__))


def watch_growth(scratch: Path, size: int, emit: Emit, is_over: threading.Event) -> None:
    """Tell how much has been written, from the disk: hf_xet writes from threads of its own."""
    last = 0
    while not is_over.wait(XET_POLL_S):
        with suppress(OSError):
            written = sum(os.stat(path).st_blocks * 512 for path in scratch.rglob("*.incomplete"))
            if (now := min(written, size)) != last:
                last = now
                emit(at=now)


def describe_failure(error: Exception, job: Job) -> dict[str, Any]:
    """An event that says what happened, and in what way another attempt may help."""
    from huggingface_hub.errors import RepositoryNotFoundError  # also of gated ones

    explained: TgisError
    if isinstance(error, Damaged):
        return {"failed": "what came does not match its checksum", "is_damaged": True}
    if isinstance(error, BrokenOff):
        return {"failed": "the answer broke off"}
    if isinstance(error, XetFailed):
        return {"failed": f"it does not come by Xet ({error})"}
    if isinstance(error, OSError) and error.errno in FULL:
        explained = NotEnoughDevices(explain_full_disk(error, Path(job.blob).parent))
    elif isinstance(error, OSError) and error.errno in LOCAL:
        place = error.filename or job.blob
        explained = UsageError(f"{place} cannot be used: {error.strerror}. Check its owner and mode.")
    else:
        has_expired = get_status(error) in (401, 403) and not isinstance(error, RepositoryNotFoundError)
        if is_temporary(error) or has_expired:  # the address that the hub signed
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
        except Exception as error:  # noqa: BLE001  the border: the parent decides what follows from it
            emit(**describe_failure(error, job))
        else:
            emit(done=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
