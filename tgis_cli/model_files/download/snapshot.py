"""From a model's name to its complete snapshot in the cache: the flow of ``tgis download-weights``."""

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
    """What to get, and how."""

    model: str
    revision: str = "main"
    extension: str = SAFETENSORS_ENDING
    with_bin: bool = True  # take PyTorch weights where there are no others
    verify: bool = False
    transfers: TransferOptions = field(default_factory=TransferOptions)


@dataclass(frozen=True, slots=True)
class ChosenFiles:
    """What an order comes to, before anything is written."""

    selection: Selection
    missing: Missing
    is_online: bool  # the hub has been asked


def find_local_dir(model: str, cache_dir: Path) -> Path | None:
    """The directory that a name means, if it means one and no name of the hub: as a start would take it.

    Raises:
        UsageError: it can be neither.
    """
    if not model.strip():
        raise UsageError("The model's name is empty, as of an unset variable: name a model of the hub or a directory.")
    path = Path(os.path.expanduser(model))
    if model.startswith(("/", ".", "~")):
        if not path.is_dir():
            raise UsageError(f"{model} is no directory: give one, or a name of the hub, such as org/model.")
        if not (path / "config.json").is_file():
            raise ModelError(f"{model} has no config.json: it is no model's directory.")
        return path.resolve()
    is_model = (path / "config.json").is_file() and not (cache_dir / model_folder_name(model)).is_dir()
    return path.resolve() if is_model else None


class SnapshotDownload:
    """One order."""

    def __init__(self, order: Order, cache_dir: Path, *, as_json: bool) -> None:
        if not is_safe_path(order.revision):
            raise UsageError(f"--revision {order.revision!r} cannot be a branch, tag or commit.")
        self.order = order
        self.folder = CacheFolder(cache_dir, order.model)
        self._extensions = parse_extensions(order.extension)
        self._as_json = as_json

    def choose_files(self) -> ChosenFiles:
        """Ask the hub, or the cache where the hub cannot be asked and the cache is complete.

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
        names = select_names(files, self._extensions, read_text, with_bin=self.order.with_bin)
        wanted = self._extensions[0]
        can_convert = wanted == SAFETENSORS_ENDING and any(name.endswith(PYTORCH_ENDINGS) for name in files)
        if not any(name.endswith(wanted) for name in names) and not (self.order.with_bin and can_convert):
            if can_convert:
                raise ModelError(
                    f"{listing.model} has no safetensors, and --no-auto-convert forbids to make them of its PyTorch "
                    "weights: leave it out, or take these as they are with --extension .bin."
                )
            endings = sorted({Path(name).suffix for name in files if "/" not in name} - {""})
            raise ModelError(
                f"{listing.model} at {self.order.revision} has no file that ends with {wanted}; "
                f"it has {', '.join(endings) or 'none'}."
            )
        if wanted == SAFETENSORS_ENDING:
            names = drop_superfluous(names, files, self.folder.snapshot(listing.commit))
        return Selection(listing, tuple(files[name] for name in names))

    def _choose_from_cache(self, error: HubError) -> ChosenFiles:
        """What the cache says by itself: only what is complete will do.

        Raises:
            HubError: why the hub could not be asked, if the cache is not complete.
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
        except OSError as lacking:
            raise HubError(f"{error} In the cache, {Path(lacking.filename).name} is missing.") from error
        missing = find_missing(self.folder, selection)
        if missing.files:
            raise HubError(f"{error} In the cache, {missing.files[0].name} is missing.") from error
        reason = "HF_HUB_OFFLINE is set" if is_offline() else f"{get_endpoint()} does not answer"
        self._tell(f"{reason}: {model} is complete in the cache ({revision}, commit {commit[:8]}), nothing is asked")
        return ChosenFiles(selection, missing, is_online=False)

    def run(self, finish: Callable[[Path], None] = lambda snapshot: None) -> Path:
        """Get what is missing; the snapshot's directory.

        Args:
            finish: makes of the snapshot what can be served, before a branch means it; its errors end the download.

        Raises:
            UsageError: the cache cannot be written.
            NotEnoughDevices: the disk has no room for what is missing and what is made of it.
            ModelError, HubError: see :func:`fetch_all` and :class:`Hub`.
        """
        chosen = self.choose_files()
        selection = chosen.selection
        commit = selection.listing.commit
        snapshot = self.folder.snapshot(commit)
        damaged = self._find_damaged(selection, is_online=chosen.is_online) if self.order.verify else []
        again = tuple(file for file in damaged if file not in selection.files)  # sources of what has been converted
        selection = replace(selection, files=(*selection.files, *again))
        if not damaged and self._is_placed(selection):
            self._drop_damaged_conversions(selection)
            finish(snapshot)
            if not self.order.verify:
                self._tell(f"{self.order.model} is complete already ({format_bytes(selection.num_bytes)})")
            return snapshot
        with self.folder.locked(lambda: self._tell(f"another process works on {self.order.model}: waiting for it")):
            for file in damaged:
                path = self.folder.find_content(file, commit)
                if path and not has_digest(path, file.digest):  # still: another process may have mended it
                    self.folder.remove(file, commit)
            self._fetch(selection)
            self.folder.place_all(selection.listing, selection.files)
            self._drop_damaged_conversions(selection)
            finish(snapshot)
            with write_errors_explained(self.folder.root, "check its owner and mode"):
                self.folder.write_ref(self.order.revision, commit)
        return snapshot

    def _drop_damaged_conversions(self, selection: Selection) -> None:
        if self.order.verify and self.order.with_bin:
            published = {file.name for file in selection.listing.files}
            drop_damaged(self.folder.snapshot(selection.listing.commit), published, as_json=self._as_json)

    def check_room(self, chosen: ChosenFiles) -> None:
        """
        Raises:
            NotEnoughDevices: the disk has no room for what is missing and what is made of it.
        """
        made_bytes = chosen.selection.pytorch_bytes if self.order.with_bin and chosen.missing.files else 0
        what = f"What is missing of {self.order.model}" + (", with its conversion," if made_bytes else "")
        check_disk(self.folder.blobs, chosen.missing.num_bytes + made_bytes, what)

    def _is_placed(self, selection: Selection) -> bool:
        """Whether nothing has to be written: the cache may be a read-only volume."""
        commit = selection.listing.commit
        is_named = self.order.revision == commit or read_file(self.folder.root / "refs" / self.order.revision) == commit
        return is_named and all(self.folder.is_placed(file, commit) for file in selection.files)

    def _fetch(self, selection: Selection) -> None:
        missing = find_missing(self.folder, selection)  # anew: another process may have fetched it
        if not missing.files:
            return
        self.check_room(ChosenFiles(selection, missing, is_online=True))
        num_bytes = sum(file.size for file in missing.files)
        self._tell(
            f"downloading {len(missing.files)} of {len(selection.files)} files of {self.order.model}: "
            f"{format_bytes(num_bytes)}"
            + (f", of which {format_bytes(missing.kept_bytes)} are there from before" if missing.kept_bytes else ""),
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
        """Read what is there, and compare it with the checksums.

        Raises:
            ModelError: something is damaged, and the hub cannot be asked for it.
        """
        commit = selection.listing.commit
        taken = {file.name for file in selection.files}
        # With what has been converted since: it is not taken again, but what is made of it is compared with it.
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
                "the hub can be reached."
            )
        unknown = sum(not file.is_verifiable for file, _ in present)
        but = f"; {unknown} have no checksum to compare with" if unknown else ""
        self._tell(f"checked {len(present)} files: {len(damaged) or 'none'} damaged{but}", num_damaged=len(damaged))
        return damaged

    def _tell(self, sentence: str, event: str = "note", **facts: object) -> None:
        tell(sentence, event, as_json=self._as_json, **facts)
