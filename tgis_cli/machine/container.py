"""Whether this process runs in a container, whose network its platform controls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")  # the second one is set by podman, LXC and systemd-nspawn
FILES = (".dockerenv", "run/.containerenv")  # of Docker and podman


def is_in_container(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether Kubernetes, Docker, podman, LXC or systemd-nspawn started this process."""
    return any(environ.get(name) for name in VARIABLES) or any((root / name).exists() for name in FILES)
