"""Names of models for the shells: those in the cache, and directories that hold one."""

from __future__ import annotations

import contextlib
import os

from tgis_cli.model_files.cache.location import find_cache_dir
from tgis_cli.model_files.cache.model_dir import list_folders
from tgis_server.errors import TgisError
from tgis_server.words.control_characters import is_plain_line

PATH_STARTS = ("/", ".", "~")  # the shell completes these better


def complete_cached_model(incomplete: str) -> list[str]:
    """The models in the cache that start so; none if it cannot be read."""
    with contextlib.suppress(OSError, TgisError):
        cache_dir, _ = find_cache_dir(os.environ)
        return [name for name in list_folders(cache_dir) if name.startswith(incomplete) and is_plain_line(name)]
    return []


def complete_model(incomplete: str) -> list[str]:
    """Models in the cache and directories of models; nothing for a path, so that the shell completes it."""
    if incomplete.startswith(PATH_STARTS):
        return []
    parent = os.path.dirname(incomplete)
    directories = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(parent or ".")):
            path = os.path.join(parent, name)
            is_offered = path.startswith(incomplete) and is_plain_line(path)
            if is_offered and os.path.exists(os.path.join(path, "config.json")):
                directories.append(path)
    return [*complete_cached_model(incomplete), *directories]
