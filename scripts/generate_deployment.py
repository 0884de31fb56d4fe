"""Write deployment/: a kustomize base with overlays, a folder for each model, and KServe's objects.

Everything comes from `tgis_cli.manifest`, with the options in deployment_models.toml. A test writes it again and
compares.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kustomize_overlays import make_base, make_patch
from tgis_cli.manifest import Manifest, Wanted, make_manifest, write_manifest
from tgis_cli.manifest.explained import Explained, strip
from tgis_cli.manifest.output import KUSTOMIZATION
from tgis_cli.manifest.yaml_text import to_document
from tgis_cli.model_files.convert.safetensors_file import Content
from tgis_cli.model_files.convert.torch_file import StoredTensor
from tgis_cli.model_files.download.remote_headers import write_content_with_hole
from tgis_server.engines.catalogue import find_engine
from tgis_server.engines.door import ModelSummary
from tgis_server.model_files import TENSOR_DTYPES

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("deployment_models.toml")
FOLDERS = ("base", "overlays", "models", "kserve")  # the rest of deployment/ is written by hand
MARK = "# Made by `make deployment`.\n"
DEFAULT_TARGET = "deployment"
COMMIT = "0" * 40
FILE_BYTES = 5_000_000_000
NULL = "null"  # TOML has none

Table = dict[str, Any]


@contextmanager
def a_cache(models: Mapping[str, Table]) -> Iterator[dict[str, str]]:
    """An environment whose cache has every model: its config.json, and weights that are all hole."""
    with tempfile.TemporaryDirectory(prefix="tgis-deployment-") as folder:
        for model in models.values():
            if "config" in model:
                add_model(Path(folder), model)
        yield {"HF_HUB_CACHE": folder, "HOME": "/nonexistent"}


def add_model(cache: Path, model: Table) -> None:
    root = cache / f"models--{model['model'].replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(COMMIT)
    config = {key: None if value == NULL else value for key, value in model["config"].items()}
    (snapshot / "config.json").write_text(json.dumps(config))
    _, summary = find_engine(snapshot)
    num_parameters = sum(map(math.prod, summary.tensors.values()))
    if num_parameters != model["num_parameters"]:
        sys.exit(
            f"{model['model']} has {model['num_parameters']:,} parameters, but the shapes in {TABLE.name} have "
            f"{num_parameters:,}: one of them is wrong."
        )
    lay_out_weights(snapshot, summary)


def lay_out_weights(snapshot: Path, summary: ModelSummary) -> None:
    """Files with the headers of the weights and a hole in place of the data, cut as transformers cuts them."""
    assert summary.dtype is not None, "every config in the table has torch_dtype"
    dtype, item_bytes = TENSOR_DTYPES[summary.dtype]
    files: list[dict[str, StoredTensor]] = [{}]
    size = 0
    for name, shape in summary.tensors.items():
        num_bytes = math.prod(shape) * item_bytes
        if files[-1] and size + num_bytes > FILE_BYTES:
            files.append({})
            size = 0
        files[-1][name] = StoredTensor(dtype, item_bytes, shape, (), 0)
        size += num_bytes
    for number, tensors in enumerate(files, 1):
        file = snapshot / f"model-{number:05}-of-{len(files):05}.safetensors"
        write_content_with_hole(file, Content(snapshot, tensors, {}))


class Generator:
    """Writes the folders of deployment/ from a table."""

    def __init__(self, table: Table, environ: Mapping[str, str], target: Path) -> None:
        self.table = table
        self.environ = environ
        self.target = target

    def write(self) -> None:
        for name in self.table["models"]:
            self.write_model(name)
        for name in self.table["kserve"]:
            self.write_kserve(name)
        self.write_overlays()

    def make(self, entry: Table, target: str, **wanted: Any) -> tuple[Manifest, str]:
        """The objects of an entry of the table, and the command that makes them."""
        model = self.find_model(entry)
        wanted = entry.get("wanted", {}) | wanted
        flags = entry.get("flags", {})
        manifest = make_manifest(Wanted(target=target, **wanted), {"model_name": model, **flags}, self.environ)
        return manifest, write_command(model, target, {**flags, **wanted})

    def find_model(self, entry: Table) -> str | None:
        """The model's name on the hub; ``None``: the demo model."""
        entry = self.table["models"][entry["like"]] if "like" in entry else entry
        model: str | None = entry.get("model")
        return model

    def write_model(self, name: str) -> None:
        entry = self.table["models"][name]
        manifest, command = self.make(entry, "kustomize", name=name)
        folder = self.target / "models" / name
        write_manifest(manifest, folder)
        add_line(folder / KUSTOMIZATION, 1, f"# {command} --output DIR")

    def write_kserve(self, name: str) -> None:
        manifest, _ = self.make(self.table["kserve"][name], "kserve", name=name)
        write_manifest(manifest, self.target / "kserve" / name)

    def write_overlays(self) -> None:
        overlays = self.table["overlays"]
        made = {kind: self.make(merge(overlays, entry), DEFAULT_TARGET) for kind, entry in overlays["kinds"].items()}
        objects = {kind: index(manifest) for kind, (manifest, _) in made.items()}
        first = next(iter(objects.values()))
        shared = [file for file in first if all(file in each for each in objects.values())]
        base = {file: make_base([each[file] for each in objects.values()]) for file in shared}
        why = "What all overlays have in common. It is not whole: apply one of the overlays."
        write_folder(self.target / "base", base, {"resources": sorted(base)}, why)
        for kind, each in objects.items():
            self.write_overlay(kind, each, base, made[kind][1])

    def write_overlay(
        self, kind: str, objects: Mapping[str, Explained], base: Mapping[str, Explained], command: str
    ) -> None:
        own = {file: value for file, value in objects.items() if file not in base}
        patches = {file: make_patch(objects[file], base[file]) for file in base}
        changed = {file: patch for file, patch in patches.items() if patch is not None}
        body = {"resources": ["../../base", *sorted(own)], "patches": [{"path": file} for file in sorted(changed)]}
        folder = self.target / "overlays" / kind
        write_folder(folder, own | changed, body, "With the base, the same objects as this command makes:")
        add_line(folder / KUSTOMIZATION, 2, f"# {command}")


def merge(one: Table, other: Table) -> Table:
    """An entry of the table with what an overlay of it changes."""
    tables = {key: one.get(key, {}) | other.get(key, {}) for key in ("wanted", "flags")}
    return {"like": one["like"], **tables}


def index(manifest: Manifest) -> dict[str, Explained]:
    """The objects by the name of their file; the names of the overlays' patches are those of what they change."""
    return {f"{strip(each)['kind'].lower()}.yaml": each for each in manifest.objects}


def write_folder(folder: Path, objects: Mapping[str, Explained], body: Table, why: str) -> None:
    folder.mkdir(parents=True)
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **body}
    files = {**objects, KUSTOMIZATION: Explained(kustomization, why)}
    for name, value in files.items():
        (folder / name).write_text(MARK + to_document(value))


def add_line(file: Path, index: int, line: str) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:index], line, *lines[index:], ""]))


def write_command(model: str | None, target: str, options: Mapping[str, Any]) -> str:
    words = ["tgis manifest", *([model] if model else [])]
    words += [f"--for {target}"] if target != DEFAULT_TARGET else []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words.append(flag if value is True else f"{flag} {value}")
    return " ".join(words)


def write_deployment(target: Path) -> None:
    """Write all generated folders into a directory that has none of them."""
    table = tomllib.loads(TABLE.read_text())
    with a_cache(table["models"]) as environ:
        Generator(table, environ, target).write()


def main() -> None:
    target = ROOT / "deployment"
    with tempfile.TemporaryDirectory(prefix="tgis-deployment-") as folder:
        write_deployment(Path(folder))
        for name in FOLDERS:
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(Path(folder) / name, target / name)


if __name__ == "__main__":
    main()
