"""deployment/ is what the code makes, every object in it is valid, and an overlay with its base is a whole manifest."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster_objects import InvalidObject, Object, check_objects, needs_kubectl, render
from tgis_cli.manifest.explained import Explained, strip

ROOT = Path(__file__).parents[3]
DEPLOYMENT = ROOT / "deployment"
ORIGINAL = ROOT / "tests/unit/migrate/manifests/original.yaml"
sys.path.append(str(ROOT / "scripts"))
import generate_deployment  # noqa: E402
import kustomize_overlays  # noqa: E402

TABLE = tomllib.loads(generate_deployment.TABLE.read_text())
KINDS = TABLE["overlays"]["kinds"]
FOLDERS = [*(f"models/{name}" for name in TABLE["models"]), "base", *(f"overlays/{kind}" for kind in KINDS)]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[generate_deployment.Generator]:
    with generate_deployment.a_cache(TABLE["models"]) as environ:
        yield generate_deployment.Generator(TABLE, environ, tmp_path_factory.mktemp("deployment"))


def read_files(deployment: Path, folders: list[Path]) -> dict[str, str]:
    files = [file for folder in folders for file in (deployment / folder).iterdir()]
    return {str(file.relative_to(deployment)): file.read_text() for file in files}


def test_the_folders_are_what_the_code_makes(generator: generate_deployment.Generator):
    generator.write()

    folders = generate_deployment.find_folders(generator.target)
    assert read_files(DEPLOYMENT, folders) == read_files(generator.target, folders), "run `make deployment`"


def test_a_folder_of_ones_own_stays(tmp_path: Path):
    for file in ("old/models/mine/a.yaml", "old/models/demo/stale.yaml", "new/models/demo/a.yaml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()

    generate_deployment.replace_folders(tmp_path / "old", tmp_path / "new")

    files = [str(file.relative_to(tmp_path / "old")) for file in (tmp_path / "old").rglob("*.yaml")]
    assert sorted(files) == ["models/demo/a.yaml", "models/mine/a.yaml"]


@needs_kubectl
@pytest.mark.parametrize("folder", FOLDERS)
def test_what_kustomize_renders_is_valid(folder: str):
    check_objects(render(DEPLOYMENT / folder))


@needs_kubectl
def test_a_broken_field_of_a_rendered_object_is_found():
    objects = render(DEPLOYMENT / "models/demo")
    (deployment,) = [obj for obj in objects if obj["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}

    with pytest.raises(InvalidObject, match="'redinessProbe' was unexpected"):
        check_objects(objects)


@pytest.mark.parametrize("name", TABLE["kserve"])
def test_the_objects_of_kserve_are_valid(name: str):
    check_objects(yaml.safe_load(file.read_text()) for file in (DEPLOYMENT / "kserve" / name).glob("*.yaml"))


@needs_kubectl
@pytest.mark.parametrize("kind", KINDS)
def test_an_overlay_with_the_base_is_the_manifest_that_it_names(kind: str, generator: generate_deployment.Generator):
    manifest, _ = generator.make_overlay(kind)

    rendered = render(DEPLOYMENT / "overlays" / kind)

    assert index(rendered) == index([strip(each) for each in manifest.objects])


def index(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}


@needs_kubectl
def test_the_originals_manifest_needs_only_another_image(tmp_path: Path):
    shutil.copy(ORIGINAL, tmp_path / "original.yaml")
    images = [{"name": "registry.example.com/text-gen-server", "newName": "registry.example.com/tgis", "newTag": "1"}]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["original.yaml"], "images": images}))

    objects = render(tmp_path)

    check_objects(objects)
    before = list(yaml.safe_load_all(ORIGINAL.read_text()))
    assert yaml.safe_dump(sort(before)).replace("text-gen-server:latest", "tgis:1") == yaml.safe_dump(sort(objects))


def sort(objects: list[Object]) -> list[Object]:
    return sorted(objects, key=lambda obj: str(obj["kind"]))


def test_every_model_is_in_the_docs():
    page = (ROOT / "docs/kubernetes.md").read_text()

    assert [name for name in TABLE["models"] if f"`{name}`" not in page] == []
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []


def test_a_wrong_shape_is_found_by_the_number_of_parameters(tmp_path: Path):
    model = TABLE["models"]["qwen3-4b"]
    wrong = model | {"config": model["config"] | {"intermediate_size": 9729}}

    with pytest.raises(SystemExit, match="Qwen/Qwen3-4B has 4,022,468,096 parameters, but the shapes"):
        generate_deployment.add_model(tmp_path, wrong)


# Overlays


def test_a_patch_adds_removes_and_replaces_with_the_reasons_of_what_is_new():
    why = Explained("2", "Two.")
    before = {"replicas": 1, "paused": True, "labels": {"a/b": "1"}, "args": ["x"]}
    after = {"replicas": 1, "labels": {"a/b": why}, "args": ["x", "y"], "new": {}}

    assert kustomize_overlays.make_patch(before, after) == [
        {"op": "remove", "path": "/paused"},
        {"op": "replace", "path": "/labels/a~1b", "value": why},
        {"op": "replace", "path": "/args", "value": ["x", "y"]},
        {"op": "add", "path": "/new", "value": {}},
    ]


def test_things_of_the_same_names_are_patched_one_by_one_and_others_replaced():
    before = {"same": [{"name": "a", "x": 1}, {"name": "b", "x": 1}], "other": [{"name": "a"}]}
    other = [{"name": "b"}]
    after = {"same": [{"name": "a", "x": 1}, Explained({"name": "b", "x": 2}, "Why.")], "other": other}

    assert kustomize_overlays.make_patch(before, after) == [
        Explained({"op": "replace", "path": "/same/1/x", "value": 2}, "Why."),
        {"op": "replace", "path": "/other", "value": other},
    ]


def test_an_object_that_is_the_same_needs_no_patch():
    assert kustomize_overlays.make_patch({"a": Explained(1, "One.")}, {"a": 1}) == []
