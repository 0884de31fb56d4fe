"""The programs that build images: podman, buildah and docker, which differ little."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = ("podman", "buildah", "docker")


@dataclass(frozen=True)
class Build:
    """What is built from a context.

    Attributes:
        secrets: name -> file.
        folders: mounted read-only at the same paths while the image is built.
        seconds: the time of everything in the image, since 1970.
    """

    context: Path
    arguments: Mapping[str, str]
    secrets: Mapping[str, Path]
    folders: Sequence[Path]
    seconds: int
    tags: Sequence[str] = field(default=())
    use_cache: bool = True


def find_tool() -> str | None:
    """The first of the programs that this machine has."""
    return next((tool for tool in TOOLS if shutil.which(tool)), None)


def build_image(tool: str, build: Build) -> None:
    tags = [word for tag in build.tags for word in ("--tag", tag)]
    cache = [] if build.use_cache else ["--no-cache"]
    run([*make_command(tool, build), *tags, *cache, build.context])


def export_stage(tool: str, build: Build, stage: str, folder: Path) -> None:
    """Write the files of a stage to a folder. All that it needs has just been built, and is cached."""
    run([*make_command(tool, build), "--target", stage, "--output", f"type=local,dest={folder}", build.context])


def make_command(tool: str, build: Build) -> list[str | Path]:
    """
    Raises:
        ValueError: docker cannot mount folders of this machine.
    """
    command: list[str | Path] = [tool, "build", "--file", build.context / "Containerfile"]
    arguments = build.arguments | {"SOURCE_DATE_EPOCH": str(build.seconds)}
    command += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    command += [word for name, file in build.secrets.items() for word in ("--secret", f"id={name},src={file}")]
    if tool == "docker":
        if build.folders:
            folders = " and ".join(map(str, build.folders))
            raise ValueError(
                f"pip's settings on this machine name {folders}, which docker cannot mount: copy all wheels into one "
                "folder (pip download) and name it with --wheels, or use podman or buildah."
            )
        return command
    command += [word for folder in build.folders for word in ("--volume", f"{folder}:{folder}:ro")]
    return [*command, "--layers", "--timestamp", str(build.seconds)]


def run(command: Sequence[str | Path]) -> None:
    subprocess.run([str(word) for word in command], env=os.environ | {"DOCKER_BUILDKIT": "1"}, check=True)
