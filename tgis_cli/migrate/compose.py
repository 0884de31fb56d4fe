"""Compose files: the services of ``docker compose``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from tgis_cli.migrate.containers import Container, Given, LocatedText, Surroundings, line_of, to_int
from tgis_cli.migrate.kubernetes import as_dict, as_list
from tgis_cli.migrate.shell import add_env_file, expand, give, split_assignment

SECONDS = {"h": 3600, "m": 60, "s": 1}


def read_services(document: dict[str, Any], file: str, directory: Path) -> list[Container]:
    """Every service of a compose file."""
    return [
        read_service(name, as_dict(raw), file, directory) for name, raw in as_dict(document.get("services")).items()
    ]


def read_service(name: str, raw: dict[str, Any], file: str, directory: Path) -> Container:
    around = Surroundings(
        "stop_grace_period",
        read_seconds(raw["stop_grace_period"]) if "stop_grace_period" in raw else None,
        is_root_read_only=raw.get("read_only") == "true",
        writable=read_writable(raw),
        has_shared_memory="shm_size" in raw or raw.get("ipc") == "host",
        ports=read_ports(raw),
    )
    env = list(read_environment(raw))
    files = raw.get("env_file")
    for entry in files if isinstance(files, list) else filter(None, [files]):
        add_env_file(env, around, directory / str(as_dict(entry).get("path", entry)))
    argv = [*read_words(raw.get("entrypoint")), *read_words(raw.get("command"))]
    return Container(file, f"service {name}", line_of(name), env, str(raw.get("image", "")), argv, around)


def read_environment(raw: dict[str, Any]) -> list[Given]:
    """A mapping, or a list of ``NAME=value``; if a name has no value, its value comes from the shell."""
    environment = raw.get("environment")
    if isinstance(environment, dict):
        pairs = [(name, str(value), line_of(name)) for name, value in environment.items()]
    else:
        pairs = [(*split_assignment(str(entry)), line_of(entry)) for entry in as_list(environment)]
    bare = {str(entry) for entry in as_list(environment) if "=" not in entry}
    return [
        Given(name, None, line, "the shell") if name in bare else give(str(name), fill_in(value), line)
        for name, value, line in pairs
    ]


def fill_in(value: str) -> str:
    """Replace ``${NAME:-default}`` by its default, and ``$$`` by a dollar sign."""
    return expand(value, {}).replace("$$", "$")


def read_words(command: Any) -> list[str]:
    if isinstance(command, str):
        try:
            command = [LocatedText(word, line_of(command)) for word in shlex.split(command)]
        except ValueError:  # an unclosed quote, which Docker refuses
            command = command.split()
    return [LocatedText(fill_in(str(word)), line_of(word)) for word in as_list(command)]


def read_ports(raw: dict[str, Any]) -> list[int]:
    targets = [as_dict(port).get("target", str(port).rsplit(":", 1)[-1]) for port in as_list(raw.get("ports"))]
    return [number for target in targets if (number := to_int(str(target).split("/")[0])) is not None]


def read_writable(raw: dict[str, Any]) -> list[str]:
    volumes = as_list(raw.get("volumes"))
    short = [str(volume).split(":") for volume in volumes if isinstance(volume, str)]
    mounts = [parts[1] if len(parts) > 1 else parts[0] for parts in short if parts[-1] != "ro"]
    mounts += [str(volume.get("target")) for volume in volumes if as_dict(volume) and volume.get("read_only") != "true"]
    tmpfs = raw.get("tmpfs")
    return mounts + [str(path).split(":")[0] for path in (tmpfs if isinstance(tmpfs, list) else filter(None, [tmpfs]))]


def read_seconds(value: Any) -> float:
    """``1m30s``, ``90s`` or ``90``."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", str(value))
    return sum(float(number) * SECONDS[unit] for number, unit in parts) if parts else float(to_int(value) or 0)
