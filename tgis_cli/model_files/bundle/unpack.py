"""Checking a bundle and putting its files into a directory or the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Protocol

from tgis_cli.model_files.bundle.files import HashingReader, new_at, open_plain_file, write_new
from tgis_cli.model_files.bundle.manifest import MANIFEST, SUMS, Manifest, not_a_bundle
from tgis_cli.model_files.bundle.pack import COMPRESSED, STREAM
from tgis_cli.model_files.cache.disk import Advance, check_disk, write_errors_explained
from tgis_cli.model_files.cache.folder import CacheFolder, read_file
from tgis_cli.model_files.cache.listing import Listing, RemoteFile
from tgis_cli.model_files.cache.names import COMMIT
from tgis_server.errors import ModelError, UsageError

MAX_TEXT_BYTES = 64 << 20  # of the manifest, and of the checksums
MAX_EXTENDED_BYTES = 1 << 20
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class BundleSource(Protocol):
    """A bundle that is read once, in order."""

    manifest: Manifest

    def read_files(self) -> Iterator[tuple[RemoteFile, BinaryIO]]:
        """The model's files, in any order."""

    def read_sums(self) -> dict[str, str]:
        """SHA-256 by name; called when all files have been read."""


@contextmanager
def open_bundle(source: str) -> Iterator[BundleSource]:
    """
    Raises:
        UsageError: the source does not exist or is compressed.
        ModelError: it is not a bundle.
    """
    if source != STREAM and Path(source).is_dir():
        yield DirectorySource(Path(source))
        return
    if source.endswith(COMPRESSED):
        raise UsageError(f"{source} is compressed: unpack it first, or pipe the unpacked stream to `tgis unbundle -`.")
    with ExitStack() as stack:
        try:
            stream = sys.stdin.buffer if source == STREAM else stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            raise UsageError(
                f"{source} cannot be read ({error.strerror}): name the directory or tar file of a bundle."
            ) from error
        try:
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=BoundedTarInfo))
            yield TarSource(tar, source)
        except (tarfile.TarError, ValueError, RecursionError) as error:  # the last two come from malformed headers
            raise ModelError(f"{source} is not a complete tar file ({error}): copy the bundle again.") from error


class BoundedTarInfo(tarfile.TarInfo):
    """Refuses extended headers (long names, attributes) that would fill memory: the tar file states their size."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        if self.type in EXTENDED and self.size > MAX_EXTENDED_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]


class DirectorySource:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        if not os.path.lexists(directory / MANIFEST):
            raise not_a_bundle(str(directory))
        with self._open(MANIFEST) as stream:
            self.manifest = Manifest.parse(stream.read(MAX_TEXT_BYTES), str(directory))

    def read_files(self) -> Iterator[tuple[RemoteFile, BinaryIO]]:
        for file in self.manifest.files:
            with self._open(file.name) as stream:
                yield file, stream

    def _open(self, name: str) -> FileIO:
        return open_plain_file(self._directory / name, "copy the bundle again", flags=os.O_NOFOLLOW)

    def read_sums(self) -> dict[str, str]:
        with self._open(SUMS) as stream:
            return parse_sums(stream.read(MAX_TEXT_BYTES), str(self._directory))


class TarSource:
    def __init__(self, tar: tarfile.TarFile, source: str) -> None:
        self._tar = tar
        self._source = source
        first = tar.next()
        if first is None or first.name != MANIFEST:
            raise not_a_bundle(source)
        self.manifest = Manifest.parse(self._read(first), source)
        self._sums = b""

    def _read(self, entry: tarfile.TarInfo) -> bytes:
        stream = self._tar.extractfile(entry)
        return stream.read(MAX_TEXT_BYTES) if stream else b""

    def read_files(self) -> Iterator[tuple[RemoteFile, BinaryIO]]:
        expected = {file.name: file for file in self.manifest.files}
        while (entry := self._tar.next()) is not None:
            if entry.name == SUMS:
                self._sums = self._read(entry)
            elif file := expected.pop(entry.name, None):
                stream = self._tar.extractfile(entry)
                if stream is not None:
                    yield file, stream  # type: ignore[misc]  # typeshed: IO[bytes]

    def read_sums(self) -> dict[str, str]:
        return parse_sums(self._sums, self._source)


def parse_sums(text: bytes, source: str) -> dict[str, str]:
    lines = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in text.decode(errors="replace").splitlines()]
    if not lines or not all(lines):
        raise ModelError(f"{SUMS} of {source} is missing or broken: copy the bundle again.")
    return {line[2]: line[1] for line in lines if line}


def unpack_files(source: BundleSource, directory: Path, advance: Advance) -> dict[str, str]:
    """Write a bundle's files into a directory and verify their checksums.

    Returns:
        SHA-256 by name.

    Raises:
        ModelError: a file is missing, damaged or of the wrong size.
    """
    readers: dict[str, HashingReader] = {}
    for file, stream in source.read_files():
        readers[file.name] = HashingReader(stream, file.size, file.digest, advance)
        write_new(directory / file.name, readers[file.name])
    sums = source.read_sums()
    for file in source.manifest.files:
        reader = readers.get(file.name)
        if reader is None or not reader.is_as_stated or reader.sha256.hexdigest() != sums.get(file.name):
            problem = "damaged" if reader else "missing"
            raise ModelError(f"{file.name} is {problem} in the bundle: copy the bundle again, then retry.")
    return sums


def unbundle_to_directory(source: BundleSource, directory: Path, advance: Advance) -> Path:
    """Make a model directory from a bundle. Errors: see :func:`new_at` and :func:`unpack_files`."""
    with new_at(directory) as temporary:
        check_disk(directory.absolute().parent, source.manifest.num_bytes, "The bundle", "choose another place")
        unpack_files(source, temporary, advance)
    return directory.absolute()


def unbundle_to_cache(
    source: BundleSource, cache_dir: Path, model: str, advance: Advance, tell_waiting: Callable[[], None]
) -> Path:
    """Make a snapshot in the cache from a bundle.

    Args:
        model: name in the cache.
        tell_waiting: called once if another process holds the model's lock.

    Returns:
        The snapshot's directory.

    Raises:
        UsageError: the cache cannot be written.
        NotEnoughDevices: the disk has too little space.
        ModelError: see :func:`unpack_files`.
    """
    manifest = source.manifest
    folder = CacheFolder(cache_dir, model)
    with folder.locked(tell_waiting), write_errors_explained(folder.root, "check its owner and mode"):
        staging = folder.make_temporary_name()
        staging.mkdir()
        try:
            check_disk(folder.root, manifest.num_bytes, model)
            sums = unpack_files(source, staging, advance)
            commit = manifest.commit if COMMIT.fullmatch(manifest.commit) else make_commit(sums)
            files = [RemoteFile(file.name, file.size, file.digest or sums[file.name]) for file in manifest.files]
            for file in files:
                os.replace(staging / file.name, folder.blob(file))
            default = () if read_file(folder.root / "refs/main") else ("main",)  # an existing main keeps its commit
            folder.place_all(Listing(model, commit, tuple(files)), files)
            for revision in manifest.revisions or default:
                folder.write_ref(revision, commit)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder.snapshot(commit)


def make_commit(sums: dict[str, str]) -> str:
    """A stand-in for a missing commit, derived from the content."""
    return hashlib.sha1(json.dumps(sums, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
