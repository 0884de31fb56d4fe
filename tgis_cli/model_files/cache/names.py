"""Which names from outside may become names of files: those of a hub, a mirror or a bundle are not to be trusted."""

from __future__ import annotations

import re

COMMIT = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")
GIT_SHA1 = re.compile("[0-9a-f]{40}")
DIGEST = re.compile(r"[\w-][\w.-]*")  # of some mirrors it is an arbitrary tag


def is_safe_path(name: str) -> bool:
    """Whether a relative path stays below where it is used: a file of a repository, a branch or a tag."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") for part in parts) and name.isprintable()


def is_safe_name(name: str) -> bool:
    """Whether it is the name of a file, in no directory."""
    return is_safe_path(name) and "/" not in name
