"""Which names from a hub, a mirror or a bundle are safe to use as file names."""

from __future__ import annotations

import re

COMMIT = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")
GIT_SHA1 = re.compile("[0-9a-f]{40}")
DIGEST = re.compile(r"[\w-][\w.-]*")  # an arbitrary tag on some mirrors


def is_safe_path(name: str) -> bool:
    """Whether a relative path (a file of a repository, a branch, a tag) stays below its base directory."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") for part in parts) and name.isprintable()


def is_safe_name(name: str) -> bool:
    """Whether a name is a safe path without directories."""
    return is_safe_path(name) and "/" not in name
