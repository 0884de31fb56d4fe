"""Manifests of a model whose files are headers without data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster_objects import Object
from model_configs import LLAMA_8B
from tgis_cli.manifest import Manifest, Wanted, make_manifest
from tgis_cli.manifest.explained import strip
from tgis_cli.model_files.download.remote_headers import write_converted_header

MODEL = "meta/Llama-3.1-8B"
COMMIT = "a" * 40


def write_model(directory: Path, **changes: Any) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(LLAMA_8B | changes))
    write_converted_header(directory)
    return directory


def write_cache(cache_dir: Path, model: str = MODEL, **changes: Any) -> Path:
    """A cache with one model; returns its directory."""
    folder = cache_dir / f"models--{model.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for revision in ("main", "v1"):
        (folder / "refs" / revision).write_text(COMMIT)
    return write_model(folder / "snapshots" / COMMIT, **changes)


def make(
    environ: dict[str, str], model: str | None = MODEL, flags: dict[str, Any] | None = None, **wanted: Any
) -> Manifest:
    """
    Args:
        model: ``None``: the demo model.
    """
    return make_manifest(Wanted(**wanted), {"model_name": model, **(flags or {})}, environ)


def objects_of(manifest: Manifest) -> dict[str, Object]:
    """By kind, and by kind and the rest of the name if that is longer: ``Service-pods``."""
    name = manifest.workload.name
    objects = [strip(each) for each in manifest.objects]
    return {each["kind"] + each["metadata"]["name"].removeprefix(name): each for each in objects}


def pod_of(manifest: Manifest) -> Object:
    objects = objects_of(manifest)
    return (objects.get("Deployment") or objects["StatefulSet"])["spec"]["template"]["spec"]


def server_of(manifest: Manifest) -> Object:
    [server] = pod_of(manifest)["containers"]
    return server
