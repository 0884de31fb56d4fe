"""Removing models from the cache: the removal is prepared first, then shown or carried out."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.model_files.cache.folder import CacheFolder
from tgis_cli.model_files.cache.locks import lock
from tgis_cli.model_files.cache.model_dir import find_close_models
from tgis_server.errors import ModelError, UsageError
from tgis_server.words.close_words import or_list
from tgis_server.words.sizes import format_bytes

TRASH = ".removed-"


@dataclass(frozen=True, slots=True)
class Removal:
    """What is removed: the whole folder, or a snapshot with the blobs that no other snapshot links to."""

    model: str
    root: Path
    commit: str  # the one that was named; empty: all
    is_whole: bool  # the whole folder; also if the named commit is the only one
    references: tuple[Path, ...]
    blobs: tuple[Path, ...]
    num_bytes: int

    def describe(self) -> str:
        what = f"all of {self.model}" if self.is_whole else f"revision {self.commit} of {self.model}"
        return f"{what}: {format_bytes(self.num_bytes)} in {self.root}"


def prepare_removal(cache_dir: Path, model: str, revision: str | None) -> Removal:
    """
    Raises:
        ModelError: the cache does not have the model or revision.
    """
    folder = CacheFolder(cache_dir, model)
    if not folder.root.is_dir():
        close = find_close_models(model, cache_dir)
        hint = f"did you mean {or_list(close)}?" if close else "`tgis models` lists its contents."
        raise ModelError(f"{model} is not in the cache {cache_dir}; {hint}")
    references = folder.read_references()
    if revision is None:
        return Removal(model, folder.root, "", True, (), (), sum_files(folder.root))
    snapshots = folder.root / "snapshots"
    matching = [path.name for path in snapshots.glob("*") if len(revision) >= 7 and path.name.startswith(revision)]
    commit = references.get(revision, matching[0] if len(matching) == 1 else revision)
    if os.sep in commit or not (snapshots / commit).is_dir() or commit in ("", ".", ".."):
        known = ", ".join(sorted(references)) or "none"
        raise ModelError(f"{model} has no revision {revision} in the cache; its branches and tags there: {known}.")
    others = [path for path in snapshots.iterdir() if path.name != commit and path.is_dir()]
    if not others:
        return Removal(model, folder.root, commit, True, (), (), sum_files(folder.root))
    used_elsewhere = {blob for other in others for blob in find_blobs(folder, other)}
    blobs = sorted(find_blobs(folder, snapshots / commit) - used_elsewhere)
    own_bytes = sum_files(snapshots / commit)
    num_bytes = sum(path.stat().st_size for path in blobs if path.is_file()) + own_bytes
    named = tuple(folder.root / "refs" / name for name, target in references.items() if target == commit)
    return Removal(model, folder.root, commit, False, named, tuple(blobs), num_bytes)


def find_blobs(folder: CacheFolder, snapshot: Path) -> set[Path]:
    """The blobs of the folder that a snapshot links to."""
    links = (path for path in snapshot.rglob("*") if path.is_symlink())
    targets = (Path(os.path.normpath(path.parent / os.readlink(path))) for path in links)
    return {target for target in targets if target.parent == folder.blobs}


def sum_files(root: Path) -> int:
    total = 0
    for path in root.rglob("*"):
        with suppress(OSError):
            total += 0 if path.is_symlink() or not path.is_file() else path.stat().st_size
    return total


def remove(prepared: Removal) -> None:
    """Remove the names first, in one rename, so that no reader finds half a model; then remove the content.

    The removal is prepared again under the lock, as another revision may use some of the blobs by now.

    Raises:
        UsageError: another process is writing to the model, or this user has no permission to remove it.
    """

    def refuse() -> None:
        raise UsageError(f"{prepared.model} is being downloaded or converted by another process: nothing is removed.")

    root = prepared.root
    for leftover in root.parent.glob(f"{TRASH}*"):  # from a removal that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    trash = root.with_name(f"{TRASH}{uuid.uuid4().hex}")
    try:
        with ExitStack() as stack:
            stack.enter_context(lock(root, refuse))
            for snapshot in (root / "snapshots").glob("*"):  # a conversion may be running in it
                stack.enter_context(lock(snapshot, refuse))
            removal = prepare_removal(root.parent, prepared.model, prepared.commit or None)
            if not removal.is_whole:
                for reference in removal.references:
                    reference.unlink(missing_ok=True)
                os.rename(removal.root / "snapshots" / removal.commit, trash)
                (removal.root / "trees" / f"{removal.commit}.json").unlink(missing_ok=True)
                for blob in removal.blobs:
                    blob.unlink(missing_ok=True)
            else:
                os.rename(removal.root, trash)
            shutil.rmtree(trash)
    except OSError as error:
        raise UsageError(f"{root} cannot be removed: {error.strerror}. Check its owner and mode.") from error
