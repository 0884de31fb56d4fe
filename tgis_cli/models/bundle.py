"""Models as plain files with their checksums, for sites without a network: a directory, or one tar file or stream.

::

    bundle.json        format, model, commit, revisions, and each file's name, size and digest; first in a tar
    config.json ...    the files, without links: a server can be pointed at the directory as it is
    SHA256SUMS         for `sha256sum --check`; last in a tar, as it is known when all has been read

Made under a hidden name and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tgis_cli.models.cache_folder import CacheFolder
from tgis_cli.models.digest import CHUNK_BYTES
from tgis_cli.models.disk import FULL, check_disk, explain_full_disk, write_all
from tgis_cli.models.hub import Listing, RemoteFile
from tgis_cli.models.locks import lock_directory
from tgis_server.errors import ModelError, NotEnoughDevices, UsageError

FORMAT = 1
MANIFEST, SUMS = "bundle.json", "SHA256SUMS"
STREAM = "-"
COMMIT = re.compile("[0-9a-f]{40}")

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class BundledFile:
    """One file of a model."""

    name: str
    size: int
    digest: str  # as the hub states it; of a file that is not from there, its SHA-256 or nothing


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds."""

    model: str  # name on the hub; empty: it was made from a directory
    commit: str
    revisions: tuple[str, ...]
    files: tuple[BundledFile, ...]
    format: int = FORMAT

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @classmethod
    def parse(cls, text: bytes, source: str) -> Manifest:
        """
        Raises:
            ModelError: it is none, or of a later format.
        """
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ModelError(f"{source} is a bundle of format {raw['format']}: a newer tgis made it, use that one.")
            files = tuple(BundledFile(str(f["name"]), int(f["size"]), str(f["digest"])) for f in raw["files"])
            manifest = cls(str(raw["model"]), str(raw["commit"]), tuple(map(str, raw["revisions"])), files)
        except (ValueError, KeyError, TypeError) as error:
            raise not_a_bundle(source) from error
        for file in files:
            if not re.fullmatch(r"[\w.+ -]+", file.name) or not re.fullmatch(r"[\w.-]*", file.digest):
                raise ModelError(f"{source} names a file {file.name!r}, which no bundle does: do not use it.")
        return manifest


def not_a_bundle(source: str) -> ModelError:
    return ModelError(f"{source} is no bundle of tgis ({MANIFEST} is missing or broken): `tgis bundle` makes one.")


def describe_model_dir(model_dir: Path, model: str, revisions: tuple[str, ...]) -> Manifest:
    """The manifest of a directory's or a snapshot's files.

    Args:
        model: its name on the hub, if it is a snapshot in the cache; the directory is then named after the commit.
    """
    files = []
    for path in sorted(model_dir.iterdir()):
        if path.is_file() and path.name not in (MANIFEST, SUMS) and not path.name.startswith("."):
            digest = Path(os.readlink(path)).name if model and path.is_symlink() else ""
            files.append(BundledFile(path.name, path.stat().st_size, digest))
    return Manifest(model, model_dir.name if model else "", revisions, tuple(files))


# -- Making ------------------------------------------------------------------------------------------------------------


class Target(Protocol):
    """Where a bundle goes."""

    def add(self, name: str, size: int, source: BinaryIO, advance: Advance) -> str:
        """Copy a file in; its SHA-256."""


def make_bundle(model_dir: Path, manifest: Manifest, target: str, advance: Advance) -> None:
    """Write a bundle.

    Raises:
        UsageError: the target exists or cannot be written.
        NotEnoughDevices: its disk has no room.
    """
    with open_target(target, manifest.num_bytes) as bundle:
        text = json.dumps(asdict(manifest), indent=1).encode()
        bundle.add(MANIFEST, len(text), io.BytesIO(text), lambda count: None)
        sums = []
        for file in manifest.files:
            with (model_dir / file.name).open("rb", buffering=0) as source:
                sums.append(f"{bundle.add(file.name, file.size, source, advance)}  {file.name}\n")
        text = "".join(sums).encode()
        bundle.add(SUMS, len(text), io.BytesIO(text), lambda count: None)


@contextmanager
def open_target(target: str, num_bytes: int) -> Iterator[Target]:
    """A directory, a tar file, or a tar stream on stdout, by its name."""
    if target == STREAM:
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
            yield TarTarget(tar)
        return
    path = Path(target)
    with new_at(path, is_file=target.endswith(".tar")) as temporary:
        check_disk(path.absolute().parent, num_bytes, "The bundle")
        if temporary.is_dir():
            yield DirectoryTarget(temporary)
        else:
            with tarfile.open(temporary, mode="w") as tar:
                yield TarTarget(tar)
            sync(temporary)


@contextmanager
def new_at(path: Path, *, is_file: bool = False) -> Iterator[Path]:
    """A hidden file or directory that gets the name ``path`` when the block ends well, and goes when it does not.

    Raises:
        UsageError: something has that name, or nothing can be made there.
        NotEnoughDevices: the disk was full.
    """
    path = path.absolute()
    if os.path.lexists(path) and not (not is_file and path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} exists already: remove it, or choose another name.")
    temporary = path.with_name(f".{path.name}.incomplete")

    def refuse() -> None:
        raise UsageError(f"Another process is making {path}: wait for it, or choose another name.")

    try:
        with ExitStack() as stack:
            if not is_file:
                temporary.mkdir(exist_ok=True)
                stack.enter_context(lock_directory(temporary, refuse))
            clear(temporary)
            try:
                if is_file:
                    temporary.touch()
                yield temporary
                os.replace(temporary, path)
            except BaseException:
                clear(temporary)
                if temporary.is_dir():
                    temporary.rmdir()
                raise
    except OSError as error:
        if error.errno in FULL:
            raise NotEnoughDevices(explain_full_disk(error, path.parent)) from error
        raise UsageError(f"{path} cannot be made: {error.strerror}. Check that the directory is writable.") from error


def clear(path: Path) -> None:
    """Empty a directory; remove a file."""
    if path.is_dir():
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    else:
        path.unlink(missing_ok=True)


class DirectoryTarget:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, name: str, size: int, source: BinaryIO, advance: Advance) -> str:
        return write_hashed(self._directory / name, source, advance)


class TarTarget:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, size: int, source: BinaryIO, advance: Advance) -> str:
        entry = tarfile.TarInfo(name)  # no owner and no time: the same model gives the same bytes
        entry.size, entry.mode = size, 0o644
        reader = HashingReader(source, advance)
        self._tar.addfile(entry, reader)
        return reader.sha256.hexdigest()


class HashingReader(io.RawIOBase):
    """A file that is hashed and counted while something else reads it."""

    def __init__(self, source: BinaryIO, advance: Advance) -> None:
        super().__init__()
        self._source = source
        self._advance = advance
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size)
        self.sha256.update(chunk)
        self._advance(len(chunk))
        return chunk


def write_hashed(path: Path, source: BinaryIO, advance: Advance) -> str:
    """Copy to a new file; the SHA-256 of what was written."""
    reader = HashingReader(source, advance)
    with path.open("wb", buffering=0) as file:
        while chunk := reader.read(CHUNK_BYTES):
            write_all(file, chunk)
        os.fsync(file.fileno())
    return reader.sha256.hexdigest()


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


# -- Taking in ---------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """A bundle that is read once, in order."""

    manifest: Manifest

    def read_files(self) -> Iterator[tuple[str, BinaryIO]]:
        """The model's files."""

    def read_sums(self) -> dict[str, str]:
        """SHA-256 by name; called when all files have been read."""


@contextmanager
def open_bundle(source: str) -> Iterator[Source]:
    """
    Raises:
        UsageError: there is none of that name.
        ModelError: it is no bundle.
    """
    if source != STREAM and Path(source).is_dir():
        yield DirectorySource(Path(source))
        return
    try:
        with ExitStack() as stack:
            stream = sys.stdin.buffer if source == STREAM else stack.enter_context(Path(source).open("rb"))
            yield TarSource(stack.enter_context(tarfile.open(fileobj=stream, mode="r|")), source)
    except tarfile.TarError as error:
        raise ModelError(f"{source} is no whole tar file ({error}): copy the bundle again.") from error
    except FileNotFoundError as error:
        raise UsageError(f"{source} does not exist: name a bundle's directory or tar file.") from error


class DirectorySource:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self.manifest = Manifest.parse((directory / MANIFEST).read_bytes(), str(directory))
        except OSError as error:
            raise not_a_bundle(str(directory)) from error

    def read_files(self) -> Iterator[tuple[str, BinaryIO]]:
        for file in self.manifest.files:
            try:
                with (self._directory / file.name).open("rb", buffering=0) as stream:
                    yield file.name, stream
            except FileNotFoundError as error:
                raise ModelError(f"{file.name} is missing in the bundle {self._directory}: copy it again.") from error

    def read_sums(self) -> dict[str, str]:
        return parse_sums((self._directory / SUMS).read_text(), str(self._directory))


class TarSource:
    def __init__(self, tar: tarfile.TarFile, source: str) -> None:
        self._tar = tar
        self._source = source
        first = tar.next()
        if first is None or first.name != MANIFEST:
            raise not_a_bundle(source)
        self.manifest = Manifest.parse(self._read(first), source)
        self._sums = ""

    def _read(self, entry: tarfile.TarInfo) -> bytes:
        stream = self._tar.extractfile(entry)
        return stream.read() if stream else b""

    def read_files(self) -> Iterator[tuple[str, BinaryIO]]:
        expected = {file.name for file in self.manifest.files}
        while (entry := self._tar.next()) is not None:
            if entry.name == SUMS:
                self._sums = self._read(entry).decode()
            elif entry.name in expected and (stream := self._tar.extractfile(entry)) is not None:
                yield entry.name, stream  # type: ignore[misc]  # typeshed: IO[bytes]

    def read_sums(self) -> dict[str, str]:
        return parse_sums(self._sums, self._source)


def parse_sums(text: str, source: str) -> dict[str, str]:
    lines = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in text.splitlines()]
    if not lines or not all(lines):
        raise ModelError(f"{SUMS} of {source} is missing or broken: copy the bundle again.")
    return {line[2]: line[1] for line in lines if line}


def take_in(source: Source, directory: Path, advance: Advance) -> dict[str, str]:
    """Write a bundle's files into a directory and compare their checksums; SHA-256 by name.

    Raises:
        ModelError: a file is missing, damaged or of another size.
    """
    sizes = {file.name: file.size for file in source.manifest.files}
    found = {name: write_hashed(directory / name, stream, advance) for name, stream in source.read_files()}
    sums = source.read_sums()
    for name, size in sizes.items():
        if name not in found or (directory / name).stat().st_size != size or found[name] != sums.get(name):
            problem = "damaged" if name in found else "missing"
            raise ModelError(f"{name} is {problem} in the bundle: copy the bundle again, then run this again.")
    return found


def unbundle_to_directory(source: Source, directory: Path, advance: Advance) -> Path:
    """Make a model directory of a bundle. Errors are those of :func:`new_at` and :func:`take_in`."""
    with new_at(directory) as temporary:
        check_disk(directory.absolute().parent, source.manifest.num_bytes, "The bundle")
        take_in(source, temporary, advance)
    return directory.absolute()


def unbundle_to_cache(
    source: Source, cache_dir: Path, model: str, advance: Advance, tell_waiting: Callable[[], None]
) -> Path:
    """Make a snapshot in the hub's cache of a bundle; its directory.

    Args:
        model: name in the cache.

    Raises:
        UsageError: the cache cannot be written.
        NotEnoughDevices: the disk has no room.
        ModelError: see :func:`take_in`.
    """
    manifest = source.manifest
    folder = CacheFolder(cache_dir, model)
    folder.prepare()
    staging = folder.root / ".unbundle.incomplete"
    with lock_directory(folder.root, tell_waiting):
        folder.remove_leftovers()
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            check_disk(folder.root, manifest.num_bytes, model)
            sums = take_in(source, staging, advance)
            commit = manifest.commit if COMMIT.fullmatch(manifest.commit) else make_commit(sums)
            files = [RemoteFile(file.name, file.size, file.digest or sums[file.name]) for file in manifest.files]
            for file in files:
                os.replace(staging / file.name, folder.blob(file))
            for file in sorted(files, key=lambda file: file.name == "config.json"):
                folder.place(file, commit)
            folder.write_listing(Listing(model, commit, tuple(files)))
            for revision in manifest.revisions or ("main",):
                folder.write_ref(revision, commit)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise NotEnoughDevices(explain_full_disk(error, folder.root)) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder.snapshot(commit)


def make_commit(sums: dict[str, Any]) -> str:
    """A name for what has none: the same content gets the same."""
    return hashlib.sha1(json.dumps(sums, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
