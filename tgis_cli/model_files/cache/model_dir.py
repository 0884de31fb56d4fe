"""Finds a model's files: in the local Hugging Face cache, or in a directory.

Follows the layout of huggingface_hub (``models--ORG--NAME/refs``, ``/snapshots``) and the error texts of the original
launcher.
"""

from __future__ import annotations

import os
from pathlib import Path

import tgis_server
from tgis_cli.model_files.cache.location import is_homeless
from tgis_server import failures
from tgis_server.errors import ModelNotFound, UsageError
from tgis_server.host.regular_file import read_regular
from tgis_server.words.close_words import did_you_mean, find_close, or_list

PREFIX = "models--"
DEMO = "demo"  # the name of the model that comes with TGIS
DEMO_MODEL_DIR = Path(tgis_server.__file__).parent / "demo_model"


def is_in_cache(name: str, model_dir: Path, cache_dir: Path) -> bool:
    """Whether the result of :func:`find_model_dir` is a snapshot in the cache, not some other directory."""
    return cache_dir / model_folder_name(name) in model_dir.parents


def model_folder_name(name: str) -> str:
    """The name of a model's folder in the cache."""
    return f"{PREFIX}{name.replace('/', '--')}"


def list_folders(cache_dir: Path) -> dict[str, Path]:
    """Folders by model name, sorted; empty without a cache.

    Raises:
        OSError: the cache cannot be read.
    """
    try:
        names = sorted(name for name in os.listdir(cache_dir) if name.startswith(PREFIX))
    except FileNotFoundError:
        return {}
    return {name.removeprefix(PREFIX).replace("--", "/"): cache_dir / name for name in names}


def find_model_dir(name: str, revision: str | None, cache_dir: Path) -> Path:
    """The directory with ``config.json``, for a name on the hub or a path.

    Raises:
        ModelNotFound: there is none; the text names the places searched.
        UsageError: the name is empty.
    """
    if not name.strip():
        raise UsageError("The model's name is empty (is a variable unset?): name a model in the cache or a directory.")
    in_cache = cache_dir / model_folder_name(name)
    if os.path.isdir(in_cache):  # also False if this user has no permission
        reference = in_cache / "refs" / (revision or "main")
        commit = read_regular(reference).decode(errors="replace").strip() if reference.is_file() else revision or "main"
        snapshot = in_cache / "snapshots" / commit
        if not (snapshot / "config.json").exists():
            raise ModelNotFound(
                failures.REVISION_NOT_CACHED.format(
                    model=name,
                    revision=revision or "main",
                    expected=snapshot / "config.json",
                    revisions=known_revisions(in_cache),
                )
            )
        return snapshot
    directory = Path(os.path.expanduser(name))
    if os.path.lexists(directory / "config.json"):  # whatever reads the file explains what is wrong with it
        return directory.resolve()
    found = explain_invisible(directory / "config.json")
    if os.path.isdir(directory) and not found:
        raise ModelNotFound(failures.NO_CONFIG.format(model_dir=name))
    if not name.startswith(("/", ".", "~")) and not os.path.exists(directory):  # a hub id
        found += f", nor is it in the cache {cache_dir}{explain_invisible(in_cache)}"
        found += f"; models are not downloaded at startup: run `tgis download-weights {name}` first"
        if close := find_close_models(name, cache_dir):
            found += f", or use {or_list(close)}, which the cache has"
    raise ModelNotFound(failures.MODEL_NOT_FOUND.format(model=name, found=found))


def find_model(name: str, revision: str | None, cache_dir: Path) -> Path:
    """Like :func:`find_model_dir`, for reading only: ``demo`` is also the demo model, if no other has that name.

    Raises:
        ModelNotFound, UsageError: see :func:`find_model_dir`.
    """
    try:
        return find_model_dir(name, revision, cache_dir)
    except ModelNotFound as error:
        if os.path.lexists(name) or os.path.lexists(cache_dir / model_folder_name(name)):
            raise
        if name == DEMO:
            return DEMO_MODEL_DIR
        raise ModelNotFound(f"{error}{suggest_demo(name)}") from error


def suggest_demo(name: str) -> str:
    """`` Did you mean demo?`` for a misspelt name of the demo model, otherwise empty."""
    hint = "" if "/" in name or name == DEMO else did_you_mean(name, [DEMO])
    return hint and f" {hint}"


def find_close_models(name: str, cache_dir: Path) -> list[str]:
    """Models in the cache whose name, with or without the organization, is close."""
    try:
        cached = list(list_folders(cache_dir))
    except OSError:
        return []
    if close := find_close(name, cached):
        return close
    by_last_part = {each.rpartition("/")[2]: each for each in cached}
    return [by_last_part[each] for each in find_close(name.rpartition("/")[2], by_last_part)]


def explain_invisible(path: Path) -> str:
    """Why this user cannot see whether a path exists; empty if nothing prevents it."""
    if is_homeless(path):
        return f" (HOME is not set, and user {os.getuid()} has no home directory: name the cache with HF_HUB_CACHE)"
    try:
        os.stat(path)
    except PermissionError:
        return f" (user {os.getuid()} has no permission to look there)"
    except OSError:
        return ""  # it does not exist, as the message already says
    return ""


def known_revisions(in_cache: Path) -> str:
    """Branches and tags that are cached instead."""
    refs = sorted(str(file.relative_to(in_cache / "refs")) for file in (in_cache / "refs").rglob("*") if file.is_file())
    return ", ".join(refs[:5]) or "no revision"
