"""Model files that cannot be served: one sentence with the cause and advice, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

import tgis_server

DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"


def edit_config(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def cut_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def garble_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"not a safetensors file")


def break_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def drop_one_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, directory / "model.safetensors")


CASES = {
    "no config": (remove("config.json"), [], 3, ["config.json"]),
    "broken config": (break_config, [], 3, ["config.json", "JSON"]),
    "no weights": (remove("model.safetensors"), [], 3, ["model.safetensors", "download"]),
    "cut weights": (cut_weights, [], 3, ["model.safetensors", "download"]),
    "garbled weights": (garble_weights, [], 3, ["model.safetensors"]),
    "missing tensor": (drop_one_tensor, [], 3, ["model.layers.0.self_attn.q_proj.weight"]),
    "wrong shape": (lambda d: edit_config(d, intermediate_size=100), [], 3, ["mlp", "100"]),
    "unknown architecture": (
        lambda d: edit_config(d, model_type="mamba", architectures=["MambaForCausalLM"]),
        [],
        3,
        ["MambaForCausalLM", "llama"],
    ),
    "unknown rope": (
        lambda d: edit_config(d, rope_scaling={"rope_type": "spiral", "factor": 2.0}, rope_parameters=None),
        [],
        3,
        ["spiral"],
    ),
    "no tokenizer": (remove("tokenizer.json"), [], 3, ["tokenizer.json"]),
    "shards do not divide heads": (lambda d: None, ["--num-shard", "3"], 2, ["8 attention heads", "--num-shard"]),
    "no room for a sequence": (
        lambda d: None,
        ["--max-sequence-length", "2000", "--kv-cache-memory", "64KiB"],
        4,
        ["2000 tokens", "--max-sequence-length"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_model_is_reported_in_one_sentence(start, tmp_path, case):
    damage, options, exit_code, words = CASES[case]
    directory = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, directory)
    damage(directory)

    server = start("--model-name", str(directory), *options)

    assert server.wait() == exit_code, server.stderr
    assert all(word in server.last_line for word in words), server.last_line
    assert "Traceback" not in server.stderr + server.stdout
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(server.base) in " ".join(p.info["cmdline"] or [])]
