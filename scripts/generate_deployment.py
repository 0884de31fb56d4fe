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

from kustomize_overlays import make_patch
from tgis_cli.manifest import Manifest, Wanted, make_manifest, write_manifest
from tgis_cli.manifest.explained import Explained
from tgis_cli.manifest.output import KUSTOMIZATION, MARK, name_files
from tgis_cli.manifest.yaml_text import to_document
from tgis_cli.model_files.convert.safetensors_file import Content
from tgis_cli.model_files.convert.torch_file import StoredTensor
from tgis_cli.model_files.download.remote_headers import write_content_with_hole
from tgis_server.engines.catalogue import find_engine
from tgis_server.engines.door import ModelSummary
from tgis_server.model_files import TENSOR_DTYPES

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("deployment_models.toml")
OVERLAY_MARK = "# Made by `make deployment`.\n"
COMMIT = "0" * 40
FILE_BYTES = 5_000_000_000
NULL = "null"  # TOML has none

Table = dict[str, Any]


@contextmanager
def a_cache(models: Mapping[str, Table]) -> Iterator[dict[str, str]]:
    """An environment whose cache has every model: its config.json, and weights without data, as sparse files."""
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
    """Files with the headers of the weights and a hole in place of the data, split as transformers does it."""
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

    def make(self, entry: Table, target: str = "kustomize", **wanted: Any) -> tuple[Manifest, str]:
        """The objects of an entry of the table, and a comment with the command that makes them."""
        model = self.find_model(entry)
        wanted = entry.get("wanted", {}) | wanted
        flags = entry.get("flags", {})
        manifest = make_manifest(Wanted(target=target, **wanted), {"model_name": model, **flags}, self.environ)
        return manifest, f"# {write_command(model, target, {**flags, **wanted})} --output DIR\n"

    def find_model(self, entry: Table) -> str | None:
        """The model's name on the hub; ``None`` for the demo model."""
        entry = self.table["models"][entry["like"]] if "like" in entry else entry
        model: str | None = entry.get("model")
        return model

    def write_model(self, name: str) -> None:
        manifest, command = self.make(self.table["models"][name], name=name)
        write_folder(manifest, command, self.target / "models" / name)

    def write_kserve(self, name: str) -> None:
        manifest, _ = self.make(self.table["kserve"][name], "kserve", name=name)
        write_manifest(manifest, self.target / "kserve" / name)

    def write_overlays(self) -> None:
        base, command = self.make(self.table["overlays"])
        write_folder(base, command, self.target / "base")
        for kind in self.table["overlays"]["kinds"]:
            self.write_overlay(kind, name_files(base.objects))

    def make_overlay(self, kind: str) -> tuple[Manifest, str]:
        overlays = self.table["overlays"]
        return self.make(merge(overlays, overlays["kinds"][kind]))

    def write_overlay(self, kind: str, base: Mapping[str, Explained]) -> None:
        manifest, command = self.make_overlay(kind)
        objects = name_files(manifest.objects)
        assert base.keys() == objects.keys(), "an overlay only changes objects of the base"
        patches = {file: patch for file, each in base.items() if (patch := make_patch(each, objects[file]))}
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../../base"],
            "patches": [{"path": file, "target": identify(base[file])} for file in sorted(patches)],
        }
        folder = self.target / "overlays" / kind
        folder.mkdir(parents=True)
        for file, patch in patches.items():
            (folder / file).write_text(OVERLAY_MARK + to_document(Explained(patch, objects[file].why)))
        why = "The command above makes the same objects as the base with this overlay."
        (folder / KUSTOMIZATION).write_text(OVERLAY_MARK + command + to_document(Explained(kustomization, why)))


def identify(item: Explained) -> Table:
    return {"kind": item.value["kind"], "name": item.value["metadata"]["name"]}


def merge(one: Table, other: Table) -> Table:
    """An entry of the table with the changes of an overlay."""
    tables = {key: one.get(key, {}) | other.get(key, {}) for key in ("wanted", "flags")}
    return {"like": one["like"], **tables}


def write_folder(manifest: Manifest, command: str, folder: Path) -> None:
    write_manifest(manifest, folder)
    file = folder / KUSTOMIZATION
    file.write_text(file.read_text().replace(MARK, MARK + command, 1))


def write_command(model: str | None, target: str, options: Mapping[str, Any]) -> str:
    words = ["tgis manifest", *([model] if model else []), f"--for {target}"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words.append(flag if value is True else f"{flag} {value}")
    return " ".join(words)


def find_folders(made: Path) -> list[Path]:
    """The generated folders, relative to deployment/."""
    return sorted({file.parent.relative_to(made) for file in made.rglob("*.yaml")})


def replace_folders(target: Path, made: Path) -> None:
    """Replace the earlier generated folders; folders with other names stay."""
    for folder in find_folders(made):
        shutil.rmtree(target / folder, ignore_errors=True)
        shutil.copytree(made / folder, target / folder)


def main() -> None:
    table = tomllib.loads(TABLE.read_text())
    with tempfile.TemporaryDirectory(prefix="tgis-deployment-") as folder, a_cache(table["models"]) as environ:
        Generator(table, environ, Path(folder)).write()
        replace_folders(ROOT / "deployment", Path(folder))


if __name__ == "__main__":
    main()
