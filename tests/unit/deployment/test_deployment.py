"""deployment/ is what the code makes, every object in it is valid, and an overlay with its base is a whole manifest."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
FOLDERS = [*(f"models/{name}" for name in TABLE["models"]), *(f"overlays/{kind}" for kind in KINDS)]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[generate_deployment.Generator]:
    with generate_deployment.a_cache(TABLE["models"]) as environ:
        yield generate_deployment.Generator(TABLE, environ, tmp_path_factory.mktemp("deployment"))


def read_files(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text()
        for name in generate_deployment.FOLDERS
        for file in (folder / name).rglob("*")
        if file.is_file()
    }


def test_the_folders_are_what_the_code_makes(generator: generate_deployment.Generator):
    generator.write()

    assert read_files(generator.target) == read_files(DEPLOYMENT), "run `make deployment`"


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
    entry = generate_deployment.merge(TABLE["overlays"], KINDS[kind])
    manifest, _ = generator.make(entry, generate_deployment.DEFAULT_TARGET)

    rendered = render(DEPLOYMENT / "overlays" / kind)

    assert index(rendered) == index([strip(each) for each in manifest.objects])


def index(objects: list[Object]) -> dict[str, Any]:
    return {obj["kind"]: sort_merged(obj) for obj in objects}


def sort_merged(value: Any, field: str = "") -> Any:
    """Lists that are merged by a key, sorted by it: a patch may add in another order."""
    if isinstance(value, dict):
        return {key: sort_merged(each, key) for key, each in value.items()}
    if not isinstance(value, list):
        return value
    key = kustomize_overlays.MERGED.get(field)
    items = [sort_merged(each) for each in value]
    return sorted(items, key=lambda item: str(item[key])) if key else items


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


# Bases and overlays


def deployment(**spec: Any) -> Explained:
    return Explained({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec}, "A.")


def test_what_differs_or_is_missing_in_one_variant_is_not_in_the_base():
    one = deployment(replicas=1, paused=True, template={"x": 1, "y": [1]})
    other = deployment(replicas=2, template={"x": 1, "y": [2]})

    base = kustomize_overlays.make_base([one, other])

    assert strip(base)["spec"] == {"template": {"x": 1}}
    assert strip(kustomize_overlays.make_patch(one, base)) == strip(
        deployment(replicas=1, paused=True, template={"y": [1]})
    )


def test_items_are_merged_by_name_and_keep_their_comments():
    mine = Explained("9", "Mine.")
    one = deployment(containers=[{"name": "server", "image": "x", "env": [{"name": "A", "value": mine}]}])
    other = deployment(containers=[{"name": "server", "image": "x"}, {"name": "other"}])

    base = kustomize_overlays.make_base([one, other])
    patch = kustomize_overlays.make_patch(one, base)

    assert strip(base)["spec"] == {"containers": [{"name": "server", "image": "x"}]}
    assert patch is not None
    assert patch.value["spec"] == {"containers": [{"name": "server", "env": [{"name": "A", "value": mine}]}]}


def test_a_variant_that_is_the_base_needs_no_patch():
    assert kustomize_overlays.make_patch(deployment(replicas=1), deployment(replicas=1)) is None
