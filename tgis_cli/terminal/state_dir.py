"""Where commands keep what outlives them but is not a cache: the history of prompts, the logs of `tgis run`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

NAME = "tgis"


def find_state_dir(environ: Mapping[str, str]) -> Path | None:
    """``$XDG_STATE_HOME/tgis``; it may not exist yet. ``None`` if this user has no home directory.

    See https://specifications.freedesktop.org/basedir-spec: a relative path there is invalid.
    """
    base = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        home = environ.get("HOME") or os.path.expanduser("~")
        base = os.path.join(home, ".local", "state") if os.path.isabs(home) and os.path.isdir(home) else ""
    return Path(base, NAME) if base else None


def make_private_dir(directory: Path) -> None:
    """Make the directory, and its parents, for this user only.

    Raises:
        OSError: the directory cannot be made.
    """
    for each in reversed([directory, *directory.parents]):
        if not each.exists():
            each.mkdir(mode=0o700, exist_ok=True)
