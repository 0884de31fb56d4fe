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
import stat
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tgis_cli.model_files.cache.disk import INCOMPLETE, check_disk, sync, write_all, write_errors_explained
from tgis_cli.model_files.cache.folder import CacheFolder, list_files, read_file
from tgis_cli.model_files.cache.locks import lock
from tgis_cli.model_files.cache.names import COMMIT, DIGEST, is_safe_name, is_safe_path
from tgis_cli.model_files.convert.safetensors_file import Advance
from tgis_cli.model_files.download.digest import CHUNK_BYTES, start_digest
from tgis_cli.model_files.download.download import Selection, place_all
from tgis_cli.model_files.download.hub import Listing, RemoteFile
from tgis_cli.terminal.exits import silence
from tgis_server.errors import ModelError, UsageError

FORMAT = 1
MANIFEST, SUMS = "bundle.json", "SHA256SUMS"
STREAM = "-"
COMPRESSED = (".gz", ".tgz", ".zip", ".zst", ".xz", ".bz2")
MAX_TEXT_BYTES = 64 << 20  # of the manifest and of the sums
MAX_EXTENDED_BYTES = 1 << 20
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

Add = Callable[[str, "HashingReader"], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds."""

    model: str  # name on the hub; empty: it was made from a directory
    commit: str
    revisions: tuple[str, ...]
    files: tuple[RemoteFile, ...]  # of a file that is not from the hub the digest is its SHA-256 or nothing
    format: int = FORMAT

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def find_strange(self) -> str:
        """A name that cannot become a file's, or a size that none has; empty if all can."""
        counts = Counter((MANIFEST, SUMS, *(file.name for file in self.files)))
        names = (
            file.name for file in self.files if not is_safe_name(file.name) or counts[file.name] > 1 or file.size < 0
        )
        digests = (file.digest for file in self.files if file.digest and not DIGEST.fullmatch(file.digest))
        revisions = (revision for revision in self.revisions if not is_safe_path(revision))
        return next((name or "(nothing)" for name in (*names, *digests, *revisions)), "")

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
            files = tuple(RemoteFile(str(f["name"]), int(f["size"]), str(f["digest"])) for f in raw["files"])
            manifest = cls(str(raw["model"]), str(raw["commit"]), tuple(map(str, raw["revisions"])), files)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise not_a_bundle(source) from error
        if strange := manifest.find_strange():
            raise ModelError(f"{source} names {strange!r}, which no bundle does: do not use it.")
        return manifest


def not_a_bundle(source: str) -> ModelError:
    return ModelError(f"{source} is no bundle of tgis ({MANIFEST} is missing or broken): `tgis bundle` makes one.")


def describe_model_dir(model_dir: Path, model: str, revisions: tuple[str, ...]) -> Manifest:
    """The manifest of a directory's or a snapshot's files.

    Args:
        model: its name on the hub, if it is a snapshot in the cache; the directory is then named after the commit.
    """
    files = tuple(file for file in list_files(model_dir, has_blobs=bool(model)) if file.name not in (MANIFEST, SUMS))
    return Manifest(model, model_dir.name if model else "", revisions, files)


# -- Making ------------------------------------------------------------------------------------------------------------


def make_bundle(model_dir: Path, manifest: Manifest, target: str, advance: Advance) -> None:
    """Write a bundle.

    Raises:
        UsageError: the target exists or cannot be written.
        NotEnoughDevices: its disk has no room.
        ModelError: a file is damaged, or has a name that no bundle may have.
    """
    if strange := manifest.find_strange():
        raise ModelError(f"{model_dir} has a file {strange!r}, which no bundle may have: remove or rename it.")
    with open_target(target, manifest.num_bytes) as add:
        text = json.dumps(asdict(manifest), indent=1).encode()
        add(MANIFEST, HashingReader(io.BytesIO(text), len(text)))
        sums = []
        for file in manifest.files:
            with open_file(model_dir / file.name, "check its owner and mode") as source:
                reader = HashingReader(source, file.size, file.digest, advance)
                add(file.name, reader)
            if not reader.is_as_stated:
                raise ModelError(f"{model_dir / file.name} is damaged: `tgis download-weights --verify` mends it.")
            sums.append(f"{reader.sha256.hexdigest()}  {file.name}\n")
        text = "".join(sums).encode()
        add(SUMS, HashingReader(io.BytesIO(text), len(text)))


@contextmanager
def open_target(target: str, num_bytes: int) -> Iterator[Add]:
    """A directory, a tar file, or a tar stream on stdout, by its name; gives what copies a file in."""
    if not target:
        raise UsageError("The bundle's name is empty: name a new directory or a .tar file.")
    if target.endswith(COMPRESSED):
        raise UsageError(f"{target} would be compressed, which no weights gain by: name a directory or a .tar file.")
    if target == STREAM:
        if sys.stdout.isatty():
            raise UsageError("A bundle is not for the eyes: redirect the output, or name a directory or a .tar file.")
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
            try:
                yield partial(add_to_tar, tar)
            except BaseException:
                silence(sys.stdout)  # whose reader may never take what is buffered
                raise
        return
    path = Path(target)
    with new_at(path, is_file=target.endswith(".tar")) as temporary:
        check_disk(path.absolute().parent, num_bytes, "The bundle", "choose another place")
        if temporary.is_dir():
            yield lambda name, reader: write_new(temporary / name, reader)
        else:
            with tarfile.open(temporary, mode="w") as tar:
                yield partial(add_to_tar, tar)
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
    temporary = path.with_name(f".{path.name}{INCOMPLETE}")

    def make() -> None:
        temporary.touch() if is_file else temporary.mkdir(exist_ok=True)

    def refuse() -> None:
        raise UsageError(f"Another process is making {path}: wait for it, or choose another name.")

    with write_errors_explained(path.parent, "choose another place"), lock(temporary, refuse, make=make):
        clear(temporary)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            clear(temporary)
            temporary.unlink() if is_file else temporary.rmdir()
            raise


def clear(path: Path) -> None:
    """Empty a directory or file."""
    if path.is_dir():
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    else:
        os.truncate(path, 0)


def add_to_tar(tar: tarfile.TarFile, name: str, reader: HashingReader) -> None:
    entry = tarfile.TarInfo(name)  # no owner and no time: the same model gives the same bytes
    entry.size, entry.mode = reader.size, 0o644
    tar.addfile(entry, reader)


class HashingReader(io.RawIOBase):
    """A file that is hashed and counted while something else reads it. Ends where its size says, whatever follows.

    Args:
        digest: what the hub states of the content, if it is known.
    """

    def __init__(self, source: BinaryIO, size: int, digest: str = "", advance: Advance = lambda count: None) -> None:
        super().__init__()
        self.size = size
        self.sha256 = hashlib.sha256()
        self._source = source
        self._advance = advance
        self._left_bytes = size
        self._stated = digest
        self._own = start_digest(digest, size)

    def read(self, size: int = -1) -> bytes:
        wanted = self._left_bytes if size < 0 else min(size, self._left_bytes)
        try:
            chunk = self._source.read(wanted)
        except OSError as error:
            raise ModelError(f"{self._source.name} cannot be read ({error.strerror}): check its disk.") from error
        self._left_bytes -= len(chunk)
        self.sha256.update(chunk)
        if self._own is not None:
            self._own.update(chunk)
        self._advance(len(chunk))
        return chunk

    @property
    def is_as_stated(self) -> bool:
        """Whether all has been read, and is what the hub states."""
        return not self._left_bytes and (self._own is None or bool(self._own.hexdigest() == self._stated))


def write_new(path: Path, reader: HashingReader) -> None:
    """Copy to a new file, and bring it to the disk."""
    with path.open("xb", buffering=0) as file:
        while chunk := reader.read(CHUNK_BYTES):
            write_all(file, chunk)
        os.fsync(file.fileno())


# -- Taking in ---------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """A bundle that is read once, in order."""

    manifest: Manifest

    def read_files(self) -> Iterator[tuple[RemoteFile, BinaryIO]]:
        """The model's files, in any order."""

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
    if source.endswith(COMPRESSED):
        raise UsageError(f"{source} is compressed: unpack it first, or give the unpacked stream to `tgis unbundle -`.")
    with ExitStack() as stack:
        try:
            stream = sys.stdin.buffer if source == STREAM else stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            raise UsageError(
                f"{source} cannot be read ({error.strerror}): name a bundle's directory or tar."
            ) from error
        try:
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=BoundedTarInfo))
            yield TarSource(tar, source)
        except (tarfile.TarError, ValueError, RecursionError) as error:  # the latter of headers that no tar has
            raise ModelError(f"{source} is no whole tar file ({error}): copy the bundle again.") from error


def open_file(path: Path, advice: str, flags: int = 0) -> FileIO:
    """A plain file, not one of another kind, on which a read may wait or never end.

    Raises:
        ModelError: there is none, or it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
        stream = FileIO(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return stream
        stream.close()
        raise ModelError(f"{path} is no plain file: do not use it.")
    except OSError as error:
        raise ModelError(f"{path} cannot be opened ({error.strerror}): {advice}.") from error


class BoundedTarInfo(tarfile.TarInfo):
    """Refuses headers of headers that would fill the memory: long names and attributes, whose size the tar states."""

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
        return open_file(self._directory / name, "copy the bundle again", flags=os.O_NOFOLLOW)

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


def take_in(source: Source, directory: Path, advance: Advance) -> dict[str, str]:
    """Write a bundle's files into a directory and compare their checksums; SHA-256 by name.

    Raises:
        ModelError: a file is missing, damaged or of another size.
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
            raise ModelError(f"{file.name} is {problem} in the bundle: copy the bundle again, then run this again.")
    return sums


def unbundle_to_directory(source: Source, directory: Path, advance: Advance) -> Path:
    """Make a model directory of a bundle. Errors are those of :func:`new_at` and :func:`take_in`."""
    with new_at(directory) as temporary:
        check_disk(directory.absolute().parent, source.manifest.num_bytes, "The bundle", "choose another place")
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
    with folder.locked(tell_waiting), write_errors_explained(folder.root, "check its owner and mode"):
        staging = folder.make_temporary_name()
        staging.mkdir()
        try:
            check_disk(folder.root, manifest.num_bytes, model)
            sums = take_in(source, staging, advance)
            commit = manifest.commit if COMMIT.fullmatch(manifest.commit) else make_commit(sums)
            files = [RemoteFile(file.name, file.size, file.digest or sums[file.name]) for file in manifest.files]
            for file in files:
                os.replace(staging / file.name, folder.blob(file))
            selection = Selection(Listing(model, commit, tuple(files)), tuple(files))
            unnamed = () if read_file(folder.root / "refs/main") else ("main",)  # what it means here stays
            place_all(folder, selection)
            for revision in manifest.revisions or unnamed:
                folder.write_ref(revision, commit)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder.snapshot(commit)


def make_commit(sums: dict[str, Any]) -> str:
    """A name for what has none: the same content gets the same."""
    return hashlib.sha1(json.dumps(sums, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
