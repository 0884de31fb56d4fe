"""Where a model's files are: in the local Hugging Face cache, or in a directory.

Follows the layout that huggingface_hub writes (``models--ORG--NAME/refs``, ``/snapshots``) and the error texts of the
original launcher.
"""

from __future__ import annotations

import os
from pathlib import Path

from tgis_cli.model_files.cache.location import is_homeless
from tgis_server import failures
from tgis_server.errors import UsageError
from tgis_server.host.regular_file import read_regular

PREFIX = "models--"


def is_in_cache(name: str, model_dir: Path, cache_dir: Path) -> bool:
    """Whether what :func:`find_model_dir` found is a snapshot in the cache, and no directory elsewhere or below it."""
    return cache_dir / model_folder_name(name) in model_dir.parents


def model_folder_name(name: str) -> str:
    """Of a hub id, in the cache."""
    return f"{PREFIX}{name.replace('/', '--')}"


def list_folders(cache_dir: Path) -> dict[str, Path]:
    """Folders of models by the models' names, in order; none if there is no cache.

    Raises:
        OSError: it cannot be read.
    """
    try:
        names = sorted(name for name in os.listdir(cache_dir) if name.startswith(PREFIX))
    except FileNotFoundError:
        return {}
    return {name.removeprefix(PREFIX).replace("--", "/"): cache_dir / name for name in names}


def find_model_dir(name: str, revision: str | None, cache_dir: Path) -> Path:
    """The directory that holds ``config.json`` of a hub id in the cache, or of a path.

    Raises:
        ModelError: there is none; the text says where it was looked for.
        UsageError: the name is empty.
    """
    if not name.strip():
        raise UsageError(
            "The model's name is empty, as of an unset variable: name a model of the cache or a directory."
        )
    in_cache = cache_dir / model_folder_name(name)
    if os.path.isdir(in_cache):  # False too where this user may not look
        reference = in_cache / "refs" / (revision or "main")
        commit = read_regular(reference).decode(errors="replace").strip() if reference.is_file() else revision or "main"
        snapshot = in_cache / "snapshots" / commit
        if not (snapshot / "config.json").exists():
            raise failures.REVISION_NOT_CACHED.error(
                model=name,
                revision=revision or "main",
                expected=snapshot / "config.json",
                revisions=known_revisions(in_cache),
            )
        return snapshot
    directory = Path(os.path.expanduser(name))
    if os.path.lexists(directory / "config.json"):  # what is no file is told by who reads it
        return directory.resolve()
    found = f"{'a directory without config.json' if os.path.isdir(directory) else 'no directory'} of that name"
    found += why_unseen(directory / "config.json")
    if not name.startswith(("/", ".", "~")) and not os.path.exists(directory):  # a hub id
        found += f", and no {in_cache.name} in the cache {cache_dir}{why_unseen(in_cache)}"
        found += f"; models are not downloaded at start: `tgis download-weights {name}` gets it"
    raise failures.MODEL_NOT_FOUND.error(model=name, found=found)


def why_unseen(path: Path) -> str:
    """What keeps this user from seeing whether it is there; empty if nothing does."""
    if is_homeless(path):
        return f" (HOME is not set, and user {os.getuid()} has no other: name the cache with HF_HUB_CACHE)"
    try:
        os.stat(path)
    except PermissionError:
        return f" (user {os.getuid()} may not look there)"
    except OSError:
        return ""  # it is not there, as has been said already
    return ""


def known_revisions(in_cache: Path) -> str:
    """What could be asked for instead."""
    refs = sorted(str(file.relative_to(in_cache / "refs")) for file in (in_cache / "refs").rglob("*") if file.is_file())
    return ", ".join(refs[:5]) or "no revision"
