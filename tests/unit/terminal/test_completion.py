"""What shells complete, queried in the way of each shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from in_process import run_in_process

BIN = Path(sys.executable).parent

Complete = Callable[[str], list[str]]


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A cache with three models, and a current directory with another one."""
    for name in ("org--small", "org--large", "other--small"):
        (tmp_path / "hub" / f"models--{name}").mkdir(parents=True)
    (tmp_path / "here" / "my-model").mkdir(parents=True)
    (tmp_path / "here" / "my-model" / "config.json").write_text("{}")
    (tmp_path / "here" / "my-texts").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return {"HF_HUB_CACHE": str(tmp_path / "hub"), "PATH": f"{BIN}:/usr/bin:/bin"}


@pytest.fixture
def bash(environ: dict[str, str]) -> Complete:
    def complete(line: str) -> list[str]:
        """The words that bash offers for the last word of a line."""
        words = line.split(" ")
        asked = {"_TGIS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return run_in_process(environ=environ | asked).stdout.decode().split()

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tgis la", ["launch"]),
        ("tgis launch --grpc", ["--grpc-port"]),
        ("tgis launch --fau", []),  # hidden
        ("tgis launch --device c", ["cpu", "cuda"]),
        ("tgis health --ti", ["--timeout"]),
        ("tgis health --probe l", ["live"]),
        ("tgis models r", ["rm"]),
        ("tgis no-such-command --x", []),
        ("tgis launch o", ["org/large", "org/small", "other/small"]),
        ("tgis launch org/s", ["org/small"]),
        ("tgis run org/l", ["org/large"]),
        ("tgis plan my", ["my-model"]),
        ("tgis doctor ot", ["other/small"]),
        ("tgis config show org/s", ["org/small"]),
        ("tgis bundle org/s", ["org/small"]),
        ("tgis convert-to-onnx my", ["my-model"]),
        ("tgis tokenize --model org/s", ["org/small"]),
        ("tgis models rm my", []),  # only what is in the cache
        ("tgis launch ./m", []),  # the shell completes paths
        ("tgis launch --tls-cert-path s", []),
    ],
)
def test_words_are_completed(bash: Complete, line: str, words: list[str]) -> None:
    assert bash(line) == words


def test_a_name_that_would_control_the_terminal_is_not_completed(bash: Complete, environ: dict[str, str]) -> None:
    for name in ("my-\x1b[2J", "my-\x9b2J", "my-\nline"):
        Path(name).mkdir()
        (Path(name) / "config.json").touch()
        (Path(environ["HF_HUB_CACHE"]) / f"models--{name}").mkdir()

    assert bash("tgis run my") == ["my-model"]


def test_a_missing_cache_completes_nothing(bash: Complete, environ: dict[str, str]) -> None:
    environ["HF_HUB_CACHE"] = "/nowhere"

    assert bash("tgis launch org") == []


def test_bash_gets_the_words_from_the_script_that_is_installed(environ: dict[str, str]) -> None:
    script = run_in_process(environ=environ | {"_TGIS_COMPLETE": "source_bash"}).stdout.decode()
    session = "COMP_WORDS=(tgis launch org/s); COMP_CWORD=2; _tgis_completion tgis; printf '%s\\n' \"${COMPREPLY[@]}\""

    result = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{session}"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )

    assert (result.stdout, result.stderr) == ("org/small\n", "")


def test_other_shells_get_a_short_help_with_each_word(environ: dict[str, str]) -> None:
    zsh = environ | {"_TGIS_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "tgis launch --de"}
    fish = environ | {
        "_TGIS_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": "tgis pla",
    }

    assert '"--device":"Where the model runs."' in run_in_process(environ=zsh).stdout.decode()
    assert run_in_process(environ=fish).stdout.decode() == (
        "plan\tShow what a model needs, and whether it runs here or on given devices.\n"
    )


def test_the_variable_of_completion_without_a_line_is_a_usage_error(environ: dict[str, str]) -> None:
    asked = os.environ | environ | {"_TGIS_COMPLETE": "complete_bash"}

    result = subprocess.run([sys.executable, "-m", "tgis_cli"], env=asked, capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr.partition(",")[0]) == (2, "tgis: _TGIS_COMPLETE is set")


def test_completion_imports_nothing_heavy(environ: dict[str, str]) -> None:
    program = (
        "import sys, atexit; sys.argv = ['tgis']\n"
        "heavy = ('torch', 'grpc', 'numpy', 'tokenizers', 'transformers', 'aiohttp', 'rich')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
        "from tgis_cli.app import main; main()"
    )
    asked = {"_TGIS_COMPLETE": "complete_bash", "COMP_WORDS": "tgis launch org/s", "COMP_CWORD": "2"}

    result = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environ | asked, capture_output=True, text=True, check=True
    )

    assert result.stdout == "org/small\n[]\n"
