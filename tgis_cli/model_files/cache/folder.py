"""Writing to one model's folder in the cache. The layout is that of huggingface_hub, which can read it:

::

    models--ORG--NAME/
    ├── blobs/DIGEST                 content; DIGEST.incomplete during the download
    ├── snapshots/COMMIT/NAME        relative links to blobs, so the folder can be moved and copied
    ├── refs/REVISION                a commit; written when its snapshot is complete
    └── trees/COMMIT.json            names, sizes and digests, to check the snapshot without the hub

Blobs that the library keeps in its store for all models (``CACHE/blobs``) are moved into the folder when they are used;
otherwise a copy of the folder would have dangling links.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tgis_cli.model_files.cache.disk import INCOMPLETE, write_errors_explained
from tgis_cli.model_files.cache.listing import Listing, RemoteFile
from tgis_cli.model_files.cache.locks import lock
from tgis_cli.model_files.cache.model_dir import model_folder_name
from tgis_cli.model_files.cache.names import is_safe_path
from tgis_server.errors import UsageError

TEMPORARY = ".tmp-"
SCRATCH = ".xet"  # suffix of directories into which the library downloads
FOREIGN = re.compile(r"\.[0-9a-f]{8}\.incomplete$")  # written by the library, or by a process with a different mark
TREE_FORMAT = 1  # as in huggingface_hub 2


class CacheFolder:
    """One model's folder. Every write renames something complete."""

    def __init__(self, cache_dir: Path, model: str) -> None:
        self.root = cache_dir / model_folder_name(model)
        self.blobs = self.root / "blobs"
        self._mark = ""  # in the names of incomplete files

    @contextlib.contextmanager
    def locked(self, tell_waiting: Callable[[], None]) -> Iterator[None]:
        """Be the only writer, and remove what killed writers have left behind.

        Without locks on the file system, each process gives its incomplete files unique names and starts from scratch.

        Args:
            tell_waiting: called once if another process holds the lock.

        Raises:
            UsageError: the folder cannot be created or written.
        """
        with contextlib.ExitStack() as stack:
            try:
                is_exclusive = stack.enter_context(lock(self.root, tell_waiting, make=self._make))
                self._make()  # again: the last holder may have removed an empty folder
                probe = self.make_temporary_name()
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise UsageError(
                    f"The cache {self.root.parent} cannot be written ({error.strerror}): name another cache with "
                    f"HF_HUB_CACHE, or give user {os.getuid()} write permission (in Kubernetes with fsGroup, which "
                    "`tgis manifest --fs-group` sets)."
                ) from error
            if is_exclusive:
                for path in (*self.root.glob(f"{TEMPORARY}*"), *self.blobs.glob(f"*{SCRATCH}")):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            else:
                self._mark = f".{uuid.uuid4().hex[:8]}"  # pids are not unique across containers
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # remove empty directories, as after a refusal by the hub
                    for path in self.blobs.glob(f"*{self._mark}{INCOMPLETE}"):
                        is_own = self._mark or not FOREIGN.search(path.name)
                        if is_own and not path.stat().st_size:
                            path.unlink()
                    self.blobs.rmdir()
                    self.root.rmdir()

    def _make(self) -> None:
        self.blobs.mkdir(parents=True, exist_ok=True)

    def make_temporary_name(self) -> Path:
        """A unique name for something to be renamed later, outside the directories of the layout."""
        return self.root / f"{TEMPORARY}{uuid.uuid4().hex}"

    def snapshot(self, commit: str) -> Path:
        return self.root / "snapshots" / commit

    def blob(self, file: RemoteFile) -> Path:
        return self.blobs / file.digest

    def incomplete(self, file: RemoteFile) -> Path:
        return self.blobs / f"{file.digest}{self._mark}{INCOMPLETE}"

    def find_content(self, file: RemoteFile, commit: str) -> Path | None:
        """The path of a file's complete content: in the snapshot, else among the blobs."""
        for path in (self.snapshot(commit) / file.name, self.blob(file)):
            with contextlib.suppress(OSError):
                if path.stat().st_size == file.size:
                    return path
        return None

    def is_outside(self, path: Path) -> bool:
        """Whether a file's content is outside this folder, in the library's store for all models."""
        return not path.resolve().is_relative_to(self.root.resolve())

    def is_placed(self, file: RemoteFile, commit: str) -> bool:
        """Whether the snapshot has the complete file, with its content in this folder."""
        pointer = self.snapshot(commit) / file.name
        return self.find_content(file, commit) == pointer and not self.is_outside(pointer)

    def place(self, file: RemoteFile, commit: str) -> None:
        """Make a fetched file appear in the snapshot."""
        if self.is_placed(file, commit):
            return
        pointer, blob = self.snapshot(commit) / file.name, self.blob(file)
        content = self.find_content(file, commit)
        assert content is not None, f"{file.name} has been fetched"
        if blob.is_symlink() or not blob.exists():
            self.put(content.resolve(), blob)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.make_temporary_name()
        target = self.root.resolve() / "blobs" / file.digest
        try:
            os.symlink(os.path.relpath(target, pointer.parent.resolve()), temporary)
        except OSError:  # a file system without links
            self.put(blob, pointer)
        else:
            os.replace(temporary, pointer)

    def place_all(self, listing: Listing, files: Iterable[RemoteFile]) -> None:
        """Make files appear in the snapshot. config.json comes last, as it makes the snapshot a model.

        Raises:
            NotEnoughDevices: the disk was full.
            UsageError: the folder cannot be written.
        """
        with write_errors_explained(self.root, "check its owner and mode"):
            self.write_listing(listing)
            for file in sorted(files, key=lambda file: file.name == "config.json"):
                self.place(file, listing.commit)

    def put(self, content: Path, path: Path) -> None:
        """Give content another name; copy it only if it cannot be linked."""
        temporary = self.make_temporary_name()
        try:
            os.link(content, temporary)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(content, temporary)
        os.replace(temporary, path)

    def write_file(self, path: Path, text: str) -> None:
        """Write a small file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.make_temporary_name()
        try:
            temporary.write_text(text)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, file: RemoteFile, commit: str) -> None:
        """Remove damaged content."""
        for path in (self.snapshot(commit) / file.name, self.blob(file)):
            path.unlink(missing_ok=True)

    def write_ref(self, revision: str, commit: str) -> None:
        """Point a branch or tag at a commit."""
        assert is_safe_path(revision), "checked by the caller"
        reference = self.root / "refs" / revision
        if revision != commit and read_file(reference) != commit:
            self.write_file(reference, commit)

    def read_references(self) -> dict[str, str]:
        """The commit of each branch and tag."""
        refs = self.root / "refs"
        return {str(file.relative_to(refs)): read_file(file) for file in sorted(refs.rglob("*")) if file.is_file()}

    def write_listing(self, listing: Listing) -> None:
        """Record the files of the commit, in the library's format."""
        entries = {
            file.name: {"size": file.size, "blob_id": file.digest}
            | ({"lfs_sha256": file.digest, "lfs_size": file.size} if len(file.digest) == 64 else {})
            for file in listing.files
            if file.digest  # some mirrors omit it for files that were not requested
        }
        tree = {"format_version": TREE_FORMAT, "files": entries}
        path = self.root / "trees" / f"{listing.commit}.json"
        if self.read_listing(listing.model, listing.commit) is None:  # the library's own has more fields
            self.write_file(path, json.dumps(tree, indent=1))

    def read_listing(self, model: str, commit: str) -> Listing | None:
        """The recorded listing of a commit; ``None`` without a usable one."""
        try:
            tree = json.loads((self.root / "trees" / f"{commit}.json").read_bytes())
            if tree["format_version"] != TREE_FORMAT:
                return None
            files = [
                RemoteFile(name, int(entry["size"]), str(entry.get("lfs_sha256") or entry["blob_id"]))
                for name, entry in tree["files"].items()
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Listing(model, commit, tuple(files)) if all(file.digest and file.is_safe for file in files) else None


def list_files(directory: Path, *, has_blobs: bool) -> tuple[RemoteFile, ...]:
    """The files of a model's directory.

    Args:
        has_blobs: whether it is a snapshot, whose links point to files that are named after their digests.
    """
    return tuple(
        RemoteFile(
            path.name, path.stat().st_size, Path(os.readlink(path)).name if has_blobs and path.is_symlink() else ""
        )
        for path in sorted(directory.iterdir())
        if path.is_file() and not path.name.startswith(".")
    )


def read_file(path: Path) -> str:
    """A file's stripped text; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
