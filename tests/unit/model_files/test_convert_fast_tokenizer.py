"""Making tokenizer.json from older tokenizer files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from in_process import run_in_process

TGIS = Path(sys.executable).parent / "tgis"
VOCABULARY = {"<|endoftext|>": 0, "h": 1, "e": 2, "he": 3}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with older tokenizer files."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    (directory / "vocab.json").write_text(json.dumps(VOCABULARY))
    (directory / "merges.txt").write_text("#version: 0.2\nh e\n")
    return directory


def convert(model: Path, *options: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TGIS, "convert-to-fast-tokenizer", model, *options],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def convert_in_process(model: Path, *options: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Without the seconds in which a process of its own would import transformers."""
    return run_in_process("convert-to-fast-tokenizer", model, *options, environ={"HOME": "/"})


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_converted_tokenizer_follows_its_older_files(model: Path, tmp_path: Path):
    output = tmp_path / "output"
    output.mkdir()

    result = convert(model, "--output-path", output)

    assert (result.returncode, result.stdout) == (0, f"{output / 'tokenizer.json'}\n"), result.stderr
    assert Tokenizer.from_file(str(output / "tokenizer.json")).encode("hehe").ids == [3, 3]
    assert names_in(output) == ["tokenizer.json"]
    assert "tokenizer.json" not in names_in(model)


def test_an_existing_tokenizer_is_left_alone(model: Path):
    (model / "tokenizer.json").write_text("mine")

    result = convert_in_process(model, "--output-path", model.parent)

    assert (result.returncode, result.stdout.decode()) == (0, f"{model / 'tokenizer.json'}\n")
    assert (model / "tokenizer.json").read_text() == "mine"
    assert b"already exists" in result.stderr


@pytest.mark.parametrize("lost", [["vocab.json", "merges.txt"], ["merges.txt"]], ids=["all", "merges"])
def test_missing_files_are_an_error(lost: list[str], model: Path):
    for name in lost:
        (model / name).unlink()
    before = names_in(model)

    result = convert_in_process(model)

    assert (result.returncode, result.stdout) == (3, b"")
    assert names_in(model) == before


def test_code_of_a_model_runs_only_if_it_is_trusted(model: Path, tmp_path: Path):
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nraise ValueError('was run')\n")

    refused = convert_in_process(model)
    assert not (tmp_path / "was_run").exists(), refused.stderr
    trusted = convert(model, TRUST_REMOTE_CODE="true", HF_HOME=str(tmp_path))

    assert (tmp_path / "was_run").exists(), trusted.stderr
    assert (refused.returncode, trusted.returncode) == (3, 3)


def test_the_output_directory_must_exist(model: Path, tmp_path: Path):
    result = convert_in_process(model, "--output-path", tmp_path / "no")

    assert (result.returncode, b"is not a directory: create it first" in result.stderr) == (2, True)
