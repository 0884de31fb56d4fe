"""Without a network, everything that does not need the hub works, and the rest explains why it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgis_cli.model_files import DEMO_MODEL_DIR

BIN = Path(sys.executable).parent


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "COLUMNS": "200",
    }


def run_cut_off(
    environ: dict[str, str], *arguments: str | Path, program: str = "tgis"
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        ["unshare", "--net", BIN / program, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in result.stderr:
        pytest.skip("creating a network namespace is not permitted")
    return result


def test_a_model_can_be_packed_unpacked_listed_checked_planned_and_removed(environ: dict[str, str], tmp_path: Path):
    steps = [
        ("bundle", DEMO_MODEL_DIR, tmp_path / "demo.tar"),
        ("unbundle", tmp_path / "demo.tar", "--name", "org/demo"),
        ("models",),
        ("download-weights", "org/demo", "--verify"),
        ("plan", "org/demo"),
        ("tokenize", "--model", "org/demo", "Once upon a time"),
        ("doctor", "org/demo", "--grpc-port", "48033", "--port", "43000"),
        ("models", "rm", "org/demo", "--yes"),
    ]

    results = [(step[0], run_cut_off(environ, *step)) for step in steps]

    assert [(name, result.returncode, result.stderr) for name, result in results if result.returncode] == []


def test_commands_that_need_the_hub_say_so(environ: dict[str, str]):
    results = [run_cut_off(environ, command, "org/none") for command in ("download-weights", "plan")]

    assert [result.returncode for result in results] == [6, 6]
    assert all("https://huggingface.co does not respond" in result.stderr for result in results)
    assert all("`tgis bundle`" in result.stderr for result in results)


@pytest.mark.parametrize("command", ["convert-to-safetensors", "convert-to-fast-tokenizer"])
def test_a_conversion_needs_no_network(command: str, environ: dict[str, str], tmp_path: Path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((DEMO_MODEL_DIR / name).read_bytes())

    result = run_cut_off(environ, command, tmp_path)

    assert result.returncode == 0, result.stderr
