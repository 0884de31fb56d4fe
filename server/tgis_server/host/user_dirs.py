"""Directories of this user: for what outlives a command, such as the history of prompts, and for what can be remade.

See https://specifications.freedesktop.org/basedir-spec: a relative path in a variable is invalid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

NAME = "tgis"


def find_state_dir(environ: Mapping[str, str]) -> Path | None:
    """``$XDG_STATE_HOME/tgis``; it may not exist yet. ``None`` if this user has no home directory."""
    return find_dir(environ, "XDG_STATE_HOME", ".local/state")


def find_cache_dir(environ: Mapping[str, str]) -> Path | None:
    """``$XDG_CACHE_HOME/tgis``; it may not exist yet. ``None`` if this user has no home directory."""
    return find_dir(environ, "XDG_CACHE_HOME", ".cache")


def find_dir(environ: Mapping[str, str], variable: str, place_in_home: str) -> Path | None:
    base = environ.get(variable, "")
    if not os.path.isabs(base):
        home = environ.get("HOME") or os.path.expanduser("~")
        base = os.path.join(home, place_in_home) if os.path.isabs(home) and os.path.isdir(home) else ""
    return Path(base, NAME) if base else None


def make_private_dir(directory: Path) -> None:
    """Make the directory, and its parents, for this user only.

    Raises:
        OSError: the directory cannot be made.
    """
    for each in reversed([directory, *directory.parents]):
        if not each.exists():
            each.mkdir(mode=0o700, exist_ok=True)
