"""pip's settings on this machine, in a form that works in a build container.

Package sources, certificates and proxies are settings of a site, not of the image: `build.py` mounts them while the
image is built, as secrets, because addresses may contain passwords.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

# The settings that say where packages are and how to reach them. Files become secrets with the names given here.
PLAIN = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "timeout", "retries")
FILES = {"cert": "ca", "client-cert": "client"}
OF_INSTALL = (":env:", "install", "global")  # the sections that `pip install` reads; the first wins


@dataclass(frozen=True)
class PipSettings:
    """
    Attributes:
        text: a configuration file that is valid in the container.
        secrets: name -> file of this machine, which the text expects at /run/secrets/NAME.
        folders: those of this machine, which the text expects at the same paths.
    """

    text: str
    secrets: dict[str, Path]
    folders: list[Path]


def read_pip_settings(python: Path) -> PipSettings:
    """Ask the pip of this interpreter."""
    command = [python, "-m", "pip", "config", "list"]
    return translate(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def translate(listed: str) -> PipSettings:
    """
    Args:
        listed: the output of `pip config list`: lines such as ``global.cert='/etc/ca.pem'``.
    """
    values = dict(choose(listed))
    secrets = {FILES[name]: Path(value) for name, value in values.items() if name in FILES}
    values |= {name: f"/run/secrets/{FILES[name]}" for name in values if name in FILES}
    lines = [f"{name} = {' '.join(value.split())}" for name, value in values.items()]
    words = [word for name in ("index-url", "extra-index-url", "find-links") for word in values.get(name, "").split()]
    return PipSettings("\n".join(["[global]", *lines, ""]), secrets, sorted(set(find_folders(words))))


def choose(listed: str) -> Iterator[tuple[str, str]]:
    """The settings that matter, each once."""
    found: dict[tuple[str, str], str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        found[section, name] = str(ast.literal_eval(value))
    for name in (*PLAIN, *FILES):
        values = [found[section, name] for section in OF_INSTALL if found.get((section, name))]
        if values:
            yield name, values[0]


def find_folders(places: Iterable[str]) -> Iterator[Path]:
    """The local folders among package sources; links in a local index may lead to its parent."""
    for place in places:
        address = urlsplit(place)
        path = Path(unquote(address.path))
        if address.scheme in ("", "file") and path.is_absolute() and path.exists():
            yield path.parent if address.scheme == "file" else path
