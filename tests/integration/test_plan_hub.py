"""`tgis plan` for a model that is only on the hub: a local stub of the hub, and the requests that it gets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_stub import MODEL, Fault, HubStub, serve_hub
from tgis_cli.model_files.download.hub import FIRST_BYTES
from tgis_cli.model_files.download.remote_headers import write_converted_header

TGIS = Path(sys.executable).parent / "tgis"
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
DEADLINE_S = 20
Plan = Callable[..., subprocess.CompletedProcess[str]]


def make_files(directory: Path, **changes: Any) -> dict[str, bytes]:
    """A repository whose weights are zeros."""
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    write_converted_header(directory)
    files = {file.name: file.read_bytes() for file in directory.iterdir()}
    return files | {"tokenizer.json": b"{}", "README.md": b"#", "training_args.bin": b"x"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    directory = tmp_path / "repository"
    directory.mkdir()
    return make_files(directory)


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubStub]:
    with serve_hub(HubStub(files)) as stub:
        yield stub


@pytest.fixture
def plan(hub: HubStub, tmp_path: Path) -> Plan:
    """Run `tgis plan` with this hub and an empty cache."""

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        defaults = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
        return subprocess.run(
            [TGIS, "plan", *arguments],
            env=defaults | environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    return run


def test_without_a_hub_the_places_that_were_searched_are_named(plan: Plan, tmp_path: Path) -> None:
    result = plan("nosuch", HF_ENDPOINT="http://127.0.0.1:9", HTTPS_PROXY="")

    searched = (
        f"There is no directory nosuch, and the cache {tmp_path}/cache does not have all files of a model of that"
    )
    assert f"tgis: {searched} name. http://127.0.0.1:9 does not respond" in result.stderr


def test_a_misspelt_demo_is_recognized_whether_or_not_the_hub_answers(plan: Plan):
    results = [plan("dmeo"), plan("dmeo", HF_ENDPOINT="http://127.0.0.1:9", HTTPS_PROXY="")]

    assert [result.returncode for result in results] == [3, 6]
    assert [result.stderr.rstrip()[-18:] for result in results] == ["Did you mean demo?"] * 2


def ranges_of(hub: HubStub) -> list[str]:
    """The ranges of the weights that were requested."""
    return [asked for _, path, asked in hub.requests if path == "/cdn/model.safetensors"]


def test_a_model_is_planned_without_downloading_its_weights(plan: Plan, hub: HubStub, tmp_path: Path):
    result = plan(MODEL, "--json", "--gpu", "L4")

    report = json.loads(result.stdout)
    size = len(hub.files["model.safetensors"])
    assert (result.returncode, report["verdict"], report["family"]) == (0, "fits", "llama")
    assert report["weights"]["num_bytes"] == 2 * report["num_parameters"]
    assert report["disk"]["download_bytes"] > size
    assert ranges_of(hub) == [f"bytes=0-{FIRST_BYTES - 1}"]
    assert not (tmp_path / "cache").exists()
    assert hub.leaked_tokens == []


def test_a_long_header_takes_a_second_request(plan: Plan, hub: HubStub, tmp_path: Path):
    (tmp_path / "deep").mkdir()
    hub.files |= make_files(tmp_path / "deep", num_hidden_layers=100)

    result = plan(MODEL, "--json")

    assert json.loads(result.stdout)["verdict"] == "fits"
    assert len(ranges_of(hub)) == 2


def test_a_hub_that_ignores_ranges_is_not_read_to_the_end(plan: Plan, hub: HubStub):
    hub.faults["model.safetensors"] = [Fault("whole")]
    hub.bytes_per_s = FIRST_BYTES  # the whole file would exceed the command's deadline

    result = plan(MODEL, "--json")

    assert json.loads(result.stdout)["verdict"] == "fits"
    assert len(hub.files["model.safetensors"]) > DEADLINE_S * hub.bytes_per_s


def test_pytorch_weights_are_planned_from_config_json_alone(plan: Plan, hub: HubStub):
    hub.files["pytorch_model.bin"] = hub.files.pop("model.safetensors")
    hub.files["config.json"] = json.dumps(CONFIG | {"torch_dtype": None, "dtype": None}).encode()

    report = json.loads(plan(MODEL, "--json").stdout)

    assert (report["verdict"], report["must_convert"]) == ("fits", True)
    assert report["weights"]["bytes_by_dtype"].keys() == {
        "float16"
    }  # inferred from the size, as config.json does not say
    assert report["disk"]["download_bytes"] > len(hub.files["pytorch_model.bin"])
    assert hub.count("pytorch_model.bin") == 0


def test_a_model_without_an_engine_is_still_reported_with_sizes(plan: Plan, hub: HubStub):
    hub.files["config.json"] = json.dumps(CONFIG | {"model_type": "mamba", "architectures": ["Mamba"]}).encode()

    result = plan(MODEL)

    assert result.returncode == 3
    assert "parameters  " in result.stdout
    assert f"{MODEL}/config.json: architecture Mamba has no native engine" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_private_model_is_planned_with_a_token(plan: Plan, hub: HubStub):
    hub.needs_token = "secret"

    assert plan(MODEL).returncode == 3
    assert plan(MODEL, "--token", "secret").returncode == 0
    assert plan(MODEL, HF_TOKEN="secret").returncode == 0


def test_a_partial_download_is_completed_from_the_hub(plan: Plan, hub: HubStub, tmp_path: Path):
    root = tmp_path / "cache/models--org--tiny"
    snapshot = root / "snapshots" / hub.commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(hub.files["config.json"])
    (root / "refs").mkdir()
    (root / "refs/main").write_text(hub.commit)

    report = json.loads(plan(MODEL, "--json").stdout)

    assert (report["verdict"], report["where"].endswith("not downloaded")) == ("fits", True)
