"""From a model's name to its complete snapshot in the cache: the flow of ``tgis download-weights``.

::

    list files ─► select ─► lock the model's folder ─► check the disk ─► fetch (workers) ─► place ─► refs

Content gets its final name once its checksum is verified, ``config.json`` is placed last, and a branch points to the
commit only after that. So other processes see the old state of the model until the new commit is complete.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tgis_cli.model_files.cache.disk import check_disk, write_errors_explained
from tgis_cli.model_files.cache.folder import CacheFolder, list_files, read_file
from tgis_cli.model_files.cache.listing import Listing, RemoteFile
from tgis_cli.model_files.cache.model_dir import model_folder_name
from tgis_cli.model_files.cache.names import COMMIT, is_safe_path
from tgis_cli.model_files.convert.to_safetensors import drop_damaged
from tgis_cli.model_files.download.digest import has_digest
from tgis_cli.model_files.download.hub import Hub, get_endpoint, is_offline
from tgis_cli.model_files.download.selection import (
    SAFETENSORS_ENDING,
    ReadText,
    Selection,
    drop_superfluous,
    parse_extensions,
    select_names,
)
from tgis_cli.model_files.download.transfers import Missing, TransferOptions, fetch_all, find_missing
from tgis_cli.model_files.inventory import and_more, inspect_snapshot
from tgis_cli.model_files.whole_weights import PYTORCH_ENDINGS
from tgis_cli.terminal.progress import format_seconds, show_progress, tell
from tgis_server.errors import HubError, ModelError, UsageError
from tgis_server.host.regular_file import read_regular
from tgis_server.words.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class Order:
    """What to download, and how."""

    model: str
    revision: str = "main"
    extension: str = SAFETENSORS_ENDING
    with_pytorch: bool = True  # take PyTorch weights if there are no others
    verify: bool = False
    transfers: TransferOptions = field(default_factory=TransferOptions)


@dataclass(frozen=True, slots=True)
class ChosenFiles:
    """The files that an order needs, before anything is written."""

    selection: Selection
    missing: Missing
    is_online: bool  # the hub has responded


def find_local_dir(model: str, cache_dir: Path) -> Path | None:
    """The directory that a name refers to, as at startup; ``None`` if it is a name on the hub.

    Raises:
        UsageError: it is neither.
        ModelError: the directory has no config.json.
    """
    if not model.strip():
        raise UsageError("The model's name is empty (is a variable unset?): name a model on the hub or a directory.")
    path = Path(os.path.expanduser(model))
    if model.startswith(("/", ".", "~")):
        if not path.is_dir():
            raise UsageError(f"{model} is not a directory: name one, or a model on the hub, such as org/model.")
        if not (path / "config.json").is_file():
            raise ModelError(f"{model} has no config.json, so it is not a model directory.")
        return path.resolve()
    is_model = (path / "config.json").is_file() and not (cache_dir / model_folder_name(model)).is_dir()
    return path.resolve() if is_model else None


class SnapshotDownload:
    """The download of one order."""

    def __init__(self, order: Order, cache_dir: Path, *, as_json: bool) -> None:
        if not is_safe_path(order.revision):
            raise UsageError(f"--revision {order.revision!r} is not a valid name of a branch, tag or commit.")
        self.order = order
        self.folder = CacheFolder(cache_dir, order.model)
        self._extensions = parse_extensions(order.extension)
        self._as_json = as_json

    def choose_files(self) -> ChosenFiles:
        """Choose from the hub's listing, or from a complete cache if the hub cannot be reached.

        Raises:
            UsageError, ModelError, HubError: see :class:`Hub`.
        """
        hub = Hub(self.order.model, self.order.revision, self.order.transfers.token, self._tell)
        try:
            listing = hub.list_files()
        except HubError as error:
            return self._choose_from_cache(error)
        selection = self._select(listing, lambda name: hub.read_text(name, listing.commit))
        files = tuple(hub.complete(list(selection.files), listing.commit))
        known = {file.name: file for file in files}
        listing = replace(listing, files=tuple(known.get(file.name, file) for file in listing.files))
        selection = Selection(listing, files)
        return ChosenFiles(selection, find_missing(self.folder, selection), is_online=True)

    def _select(self, listing: Listing, read_text: ReadText) -> Selection:
        files = {file.name: file for file in listing.files}
        names = select_names(files, self._extensions, read_text, with_pytorch=self.order.with_pytorch)
        wanted = self._extensions[0]
        can_convert = wanted == SAFETENSORS_ENDING and any(name.endswith(PYTORCH_ENDINGS) for name in files)
        if not any(name.endswith(wanted) for name in names) and not (self.order.with_pytorch and can_convert):
            if can_convert:
                raise ModelError(
                    f"{listing.model} has no safetensors, and --no-auto-convert forbids converting its PyTorch "
                    "weights: leave that option out, or download them as they are with --extension .bin."
                )
            endings = sorted({Path(name).suffix for name in files if "/" not in name} - {""})
            raise ModelError(
                f"{listing.model} at {self.order.revision} has no file that ends with {wanted}; "
                f"its files end with {', '.join(endings) or 'none'}."
            )
        if wanted == SAFETENSORS_ENDING:
            names = drop_superfluous(names, files, self.folder.snapshot(listing.commit))
        return Selection(listing, tuple(files[name] for name in names))

    def _choose_from_cache(self, error: HubError) -> ChosenFiles:
        """Choose from the cache alone, which must be complete.

        Raises:
            HubError: the cache is not complete; the text says why the hub could not be reached.
        """
        model, revision = self.order.model, self.order.revision
        commit = revision if COMMIT.fullmatch(revision) else read_file(self.folder.root / "refs" / revision)
        snapshot = self.folder.snapshot(commit)
        if not commit or not snapshot.is_dir():
            raise error
        listing = self.folder.read_listing(model, commit)
        if listing is None:
            cached = inspect_snapshot(self.folder, model, commit, ())
            if not cached.is_complete:
                raise HubError(f"{error} In the cache, {cached.problems[0]}.") from error
            listing = Listing(model, commit, list_files(snapshot, has_blobs=True))
        try:
            selection = self._select(listing, lambda name: read_regular(snapshot / name).decode())
        except OSError as unreadable:
            raise HubError(f"{error} In the cache, {Path(unreadable.filename).name} is missing.") from error
        missing = find_missing(self.folder, selection)
        if missing.files:
            raise HubError(f"{error} In the cache, {missing.files[0].name} is missing.") from error
        reason = "HF_HUB_OFFLINE is set" if is_offline() else f"{get_endpoint()} does not respond"
        self._tell(
            f"{reason}: {model} is complete in the cache ({revision}, commit {commit[:8]}), so the hub is not needed"
        )
        return ChosenFiles(selection, missing, is_online=False)

    def run(self, finish: Callable[[Path], None] = lambda snapshot: None) -> Path:
        """Fetch the missing files.

        Args:
            finish: prepares the snapshot for serving, before a branch points to it; its errors end the download.

        Returns:
            The snapshot's directory.

        Raises:
            UsageError: the cache cannot be written.
            NotEnoughDevices: the disk has too little space for the missing files and their conversion.
            ModelError, HubError: see :func:`fetch_all` and :class:`Hub`.
        """
        chosen = self.choose_files()
        selection = chosen.selection
        commit = selection.listing.commit
        snapshot = self.folder.snapshot(commit)
        damaged = self._find_damaged(selection, is_online=chosen.is_online) if self.order.verify else []
        again = tuple(file for file in damaged if file not in selection.files)  # the sources of converted files
        selection = replace(selection, files=(*selection.files, *again))
        if not damaged and self._is_placed(selection):
            self._drop_damaged_conversions(selection)
            finish(snapshot)
            if not self.order.verify:
                self._tell(f"{self.order.model} is already complete ({format_bytes(selection.num_bytes)})")
            return snapshot
        with self.folder.locked(
            lambda: self._tell(f"another process is working on {self.order.model}: waiting for it")
        ):
            for file in damaged:
                path = self.folder.find_content(file, commit)
                if path and not has_digest(path, file.digest):  # still damaged: another process may have repaired it
                    self.folder.remove(file, commit)
            self._fetch(selection)
            self.folder.place_all(selection.listing, selection.files)
            self._drop_damaged_conversions(selection)
            finish(snapshot)
            with write_errors_explained(self.folder.root, "check its owner and mode"):
                self.folder.write_ref(self.order.revision, commit)
        return snapshot

    def _drop_damaged_conversions(self, selection: Selection) -> None:
        if self.order.verify and self.order.with_pytorch:
            published = {file.name for file in selection.listing.files}
            drop_damaged(self.folder.snapshot(selection.listing.commit), published, as_json=self._as_json)

    def check_space(self, chosen: ChosenFiles) -> None:
        """
        Raises:
            NotEnoughDevices: the disk has too little space for the missing files and their conversion.
        """
        made_bytes = chosen.selection.pytorch_bytes if self.order.with_pytorch and chosen.missing.files else 0
        what = f"The download of {self.order.model}" + (", with its conversion," if made_bytes else "")
        check_disk(self.folder.blobs, chosen.missing.num_bytes + made_bytes, what)

    def _is_placed(self, selection: Selection) -> bool:
        """Whether nothing needs to be written, so that a read-only cache suffices."""
        commit = selection.listing.commit
        is_named = self.order.revision == commit or read_file(self.folder.root / "refs" / self.order.revision) == commit
        return is_named and all(self.folder.is_placed(file, commit) for file in selection.files)

    def _fetch(self, selection: Selection) -> None:
        missing = find_missing(self.folder, selection)  # again: another process may have fetched them
        if not missing.files:
            return
        self.check_space(ChosenFiles(selection, missing, is_online=True))
        num_bytes = sum(file.size for file in missing.files)
        self._tell(
            f"downloading {len(missing.files)} of {len(selection.files)} files of {self.order.model}: "
            f"{format_bytes(num_bytes)}"
            + (f", of which {format_bytes(missing.kept_bytes)} are already here" if missing.kept_bytes else ""),
            "plan",
            files=[{"name": file.name, "bytes": file.size} for file in missing.files],
            num_bytes=num_bytes,
            kept_bytes=missing.kept_bytes,
        )
        started_at = time.monotonic()
        with show_progress("downloading", num_bytes, as_json=self._as_json) as progress:
            fetch_all(self.folder, selection, missing, self.order.transfers, progress)
        took_s = time.monotonic() - started_at
        rate = format_bytes(int((num_bytes - missing.kept_bytes) / max(took_s, 1e-3)))
        self._tell(f"downloaded {format_bytes(num_bytes)} in {format_seconds(took_s)} ({rate}/s)")

    def _find_damaged(self, selection: Selection, *, is_online: bool) -> list[RemoteFile]:
        """Verify the checksums of all files present.

        Raises:
            ModelError: a file is damaged, and the hub cannot be reached.
        """
        commit = selection.listing.commit
        taken = {file.name for file in selection.files}
        # Include converted PyTorch weights: they are not fetched again, but conversions are compared with them.
        sources = [
            file for file in selection.listing.files if file.name.endswith(PYTORCH_ENDINGS) and file.name not in taken
        ]
        files = (*selection.files, *(file for file in sources if (self.folder.snapshot(commit) / file.name).exists()))
        present = [(file, path) for file in files if (path := self.folder.find_content(file, commit))]
        damaged = []
        with show_progress("checking", sum(file.size for file, _ in present), as_json=self._as_json) as progress:
            for file, path in present:
                if not has_digest(path, file.digest, progress.advance):
                    damaged.append(file)
                    progress.tell(f"{file.name} is damaged", "damaged", name=file.name)
        if damaged and not is_online:
            raise ModelError(
                f"{damaged[0].name}{and_more(damaged)} of {self.order.model} is damaged: run this again where "
                "the hub is reachable."
            )
        unknown = sum(not file.is_verifiable for file, _ in present)
        without = f"; {unknown} have no checksum to compare with" if unknown else ""
        self._tell(f"checked {len(present)} files: {len(damaged) or 'none'} damaged{without}", num_damaged=len(damaged))
        return damaged

    def _tell(self, sentence: str, event: str = "note", **facts: object) -> None:
        tell(sentence, event, as_json=self._as_json, **facts)
