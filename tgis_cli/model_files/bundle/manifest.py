"""The table of contents of a bundle: ``bundle.json``."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.model_files.cache.folder import list_files
from tgis_cli.model_files.cache.listing import RemoteFile
from tgis_cli.model_files.cache.names import DIGEST, is_safe_name, is_safe_path
from tgis_server.errors import ModelError

FORMAT = 1
MANIFEST, SUMS = "bundle.json", "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of a bundle."""

    model: str  # name on the hub; empty: made from a directory
    commit: str
    revisions: tuple[str, ...]
    files: tuple[RemoteFile, ...]  # the digest of a file that is not from the hub is its SHA-256 or empty
    format: int = FORMAT

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def find_invalid(self) -> str:
        """A name that is not safe as a file name, or the name of a file of impossible size; empty if there is none."""
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
            ModelError: the text is not a manifest, or is in a later format.
        """
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ModelError(
                    f"{source} is a bundle in format {raw['format']}: use the newer version of tgis that made it."
                )
            files = tuple(RemoteFile(str(f["name"]), int(f["size"]), str(f["digest"])) for f in raw["files"])
            manifest = cls(str(raw["model"]), str(raw["commit"]), tuple(map(str, raw["revisions"])), files)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise not_a_bundle(source) from error
        if invalid := manifest.find_invalid():
            raise ModelError(f"{source} contains the invalid entry {invalid!r}: do not use this bundle.")
        return manifest


def not_a_bundle(source: str) -> ModelError:
    return ModelError(f"{source} is not a tgis bundle ({MANIFEST} is missing or broken): make one with `tgis bundle`.")


def make_manifest(model_dir: Path, model: str, revisions: tuple[str, ...]) -> Manifest:
    """The manifest of a directory or a snapshot.

    Args:
        model: name on the hub for a snapshot in the cache, whose directory is named after the commit; else empty.
    """
    files = tuple(file for file in list_files(model_dir, has_blobs=bool(model)) if file.name not in (MANIFEST, SUMS))
    return Manifest(model, model_dir.name if model else "", revisions, files)
