"""Read files of any supported kind, and find the containers in them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgis_cli.migrate.compose import read_services
from tgis_cli.migrate.containers import Container
from tgis_cli.migrate.kubernetes import read_config_maps, read_manifests, read_objects
from tgis_cli.migrate.shell import is_command_line, is_env_file, read_command_lines, read_env_file
from tgis_cli.migrate.yaml_text import load_documents
from tgis_cli.terminal.capabilities import is_terminal
from tgis_server.errors import UsageError

STDIN = "-"


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """An input: YAML documents, or the text of an env file or of command lines."""

    name: str
    directory: Path
    text: str
    documents: list[Any] | None  # None: not YAML


def read_settings_file(file: str) -> SettingsFile:
    """Read a file, or stdin for ``-``.

    Raises:
        UsageError: the file cannot be read, or is not of a supported kind.
    """
    path = Path(file)
    if file == STDIN and is_terminal(sys.stdin):
        print("tgis: reading from the terminal; Ctrl-D ends the input.", file=sys.stderr)
    try:
        text = sys.stdin.read() if file == STDIN else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"{file} cannot be read: {reason}.") from error
    name = "stdin" if file == STDIN else file
    directory = Path() if file == STDIN else path.parent
    if is_env_file(text):
        return SettingsFile(name, directory, text, None)
    try:
        documents = load_documents(text, name)
    except UsageError:
        if re.search(r"^(apiVersion|kind):", text, re.MULTILINE) or not is_command_line(text):
            raise
        documents = []
    if any(isinstance(document, list) or is_known(document) for document in documents):
        return SettingsFile(name, directory, text, documents)
    if is_command_line(text):
        return SettingsFile(name, directory, text, None)
    if not text.strip():
        raise UsageError(f"{name} is empty.")
    raise UsageError(
        f"{name} is neither a Kubernetes manifest nor a compose file, an env file or a command line that starts "
        "a container or text-generation-launcher."
    )


def is_known(document: Any) -> bool:
    """Kubernetes objects have a kind, patches have at least metadata or spec, and compose files have services."""
    return isinstance(document, dict) and any(key in document for key in ("kind", "spec", "services"))


def read_containers(files: list[SettingsFile]) -> list[Container]:
    """All containers, in the order of files. A ConfigMap and its references may be in different files."""
    config_maps: dict[str, dict[str, str]] = {}
    for file in files:
        config_maps |= read_config_maps(list(read_objects(file.documents or [], file.name)))
    return [container for file in files for container in read_one(file, config_maps)]


def read_one(file: SettingsFile, config_maps: Mapping[str, Mapping[str, str]]) -> list[Container]:
    if file.documents is None:
        if is_env_file(file.text):
            return [Container(file.name, "variables", 1, read_env_file(file.text))]
        return read_command_lines(file.text, file.name, file.directory)
    composes = [document for document in file.documents if isinstance(document, dict) and "services" in document]
    manifests = [document for document in file.documents if document not in composes]
    services = [service for document in composes for service in read_services(document, file.name, file.directory)]
    return [*read_manifests(manifests, file.name, config_maps), *services]
