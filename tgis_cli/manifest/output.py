"""A directory of YAML files: one for each object, and for kustomize the file that lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tgis_cli.manifest.explained import Explained, without_none
from tgis_cli.manifest.make import Manifest
from tgis_cli.manifest.yaml_text import to_document
from tgis_server.errors import UsageError

MARK = "# Made by `tgis manifest`, which replaces this file when it runs again.\n"
KUSTOMIZATION = "kustomization.yaml"


def write_manifest(manifest: Manifest, directory: Path) -> list[Path]:
    """Write the files, and remove those of an earlier manifest that are no longer needed.

    Returns:
        The written files, sorted.

    Raises:
        UsageError: the directory has files that `tgis manifest` did not make, or cannot be written.
    """
    texts = make_files(manifest)
    try:
        earlier = find_earlier(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")
        for file in earlier:
            if file.name not in texts:
                file.unlink()
    except OSError as error:
        raise UsageError(
            f"--output {directory} cannot be written ({error.strerror}): name another directory."
        ) from error
    return [directory / name for name in sorted(texts)]


def find_earlier(directory: Path) -> list[Path]:
    """The files of an earlier manifest.

    Raises:
        UsageError: there are others too.
    """
    if not directory.exists():
        return []
    if not directory.is_dir():
        raise UsageError(f"--output {directory} is not a directory: name a directory, new or empty.")
    files = sorted(directory.iterdir())
    foreign = [file.name for file in files if not is_ours(file)]
    if foreign:
        named = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise UsageError(
            f"--output {directory} has files that `tgis manifest` did not make ({named}): name a new directory, and "
            "keep changes in a kustomize overlay beside it."
        )
    return files


def is_ours(file: Path) -> bool:
    if not file.is_file() or file.is_symlink():
        return False
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(len(MARK)) == MARK


def make_files(manifest: Manifest) -> dict[str, str]:
    """The text of each file by name."""
    files = {name: MARK + to_document(each) for name, each in name_files(manifest.objects).items()}
    if manifest.workload.wanted.target == "kustomize":
        files[KUSTOMIZATION] = MARK + to_document(make_kustomization(manifest, sorted(files)))
    return files


def name_files(objects: Sequence[Explained]) -> dict[str, Explained]:
    """``service.yaml``, ``deployment.yaml``; and ``service-pods.yaml`` for the object whose name ends in ``-pods``."""
    shared = objects[0].value["metadata"]["name"]
    names = [
        f"{each.value['kind'].lower()}{each.value['metadata']['name'].removeprefix(shared)}.yaml" for each in objects
    ]
    assert max(Counter(names).values()) == 1, "objects of a kind have different names"
    return dict(zip(names, objects, strict=True))


def make_kustomization(manifest: Manifest, files: Sequence[str]) -> Explained:
    body = without_none(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": manifest.workload.wanted.namespace,
            "resources": list(files),
        }
    )
    return Explained(body, f"`kubectl apply -k DIR` serves {manifest.workload.title}; this directory is DIR.")
