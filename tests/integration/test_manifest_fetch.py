"""The pods of a manifest bring the model themselves: what the init container does, and what the server then finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hub_stub import MODEL, HubStub, serve_hub
from test_plan_hub import make_files
from tgis_cli.model_files import DEMO_MODEL_DIR

TGIS = Path(sys.executable).parent / "tgis"


def run(environ: dict[str, str], *arguments: str) -> str:
    result = subprocess.run([TGIS, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def read_pod(manifest: str) -> dict[str, Any]:
    [workload] = [each for each in json.loads(manifest)["items"] if each["kind"] in ("Deployment", "StatefulSet")]
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def place(text: str, container: dict[str, Any], volumes: dict[str, Path]) -> str:
    """A path in the container as one of this machine."""
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    return next((str(to) + text.removeprefix(at) for at, to in places.items() if text.startswith(at)), text)


def environment_of(container: dict[str, Any], volumes: dict[str, Path]) -> dict[str, str]:
    return {each["name"]: place(each["value"], container, volumes) for each in container["env"]}


def test_a_model_that_nobody_has_downloaded_is_fetched_and_found(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    volumes = {name: tmp_path / name for name in ("model", "tmp")}
    with serve_hub(HubStub(make_files(repository))) as hub:
        pod = read_pod(run({"HF_ENDPOINT": hub.url, "HOME": str(tmp_path)}, "manifest", MODEL, "--json"))
        [fetch], [server] = pod["initContainers"], pod["containers"]

        for _ in range(2):  # a restart finds what the first one has fetched
            run(environment_of(fetch, volumes), *fetch["args"])
        num_reads = sum(path == "/cdn/model.safetensors" for _, path, _ in hub.requests)

    shown = run(environment_of(server, volumes), "config", "show", *server["args"][1:], "--json")
    assert json.loads(shown)["error"] is None
    assert str(tmp_path / "model") in json.loads(shown)["inferred"]["model_dir"]["value"]
    assert num_reads == 2  # the header for the manifest, and the download


def test_a_bundle_is_unpacked_and_found(tmp_path: Path) -> None:
    model = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "my-llama")
    volumes = {name: tmp_path / name for name in ("model", "tmp", "bundle")}
    volumes["bundle"].mkdir()
    run({"HOME": str(tmp_path)}, "bundle", str(model), str(volumes["bundle"] / "llama.tar"))
    source = ("--model-source", "bundle:archive/llama.tar")

    pod = read_pod(run({"HOME": str(tmp_path)}, "manifest", str(model), *source, "--json"))
    [fetch], [server] = pod["initContainers"], pod["containers"]
    for _ in range(2):
        run(
            environment_of(fetch, volumes),
            *(arg.replace("/bundle", str(volumes["bundle"]), 1) for arg in fetch["args"]),
        )

    shown = run(environment_of(server, volumes), "config", "show", *server["args"][1:], "--json")
    assert json.loads(shown)["error"] is None
    assert str(tmp_path / "model") in json.loads(shown)["inferred"]["model_dir"]["value"]
