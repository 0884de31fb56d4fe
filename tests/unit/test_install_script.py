"""What `make` shows while pip installs, and what it says if pip fails."""

from __future__ import annotations

import importlib.util
import io
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from terminals import pseudo_terminal

spec = importlib.util.spec_from_file_location("install", Path(__file__).parents[2] / "scripts" / "install.py")
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)

PIP = "Collecting torch (from tgis)\n  Downloading torch-2.whl (184.5 MB)\nInstalling collected packages: torch\n"


def pip_that(output: str, exit_code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"import sys; print({output!r}, end=''); sys.exit({exit_code})"]


@pytest.fixture
def a_second_per_line(monkeypatch: pytest.MonkeyPatch):
    """A clock that goes on by a second whenever it is read, and no ticks between the lines of the child."""
    monkeypatch.setattr(install, "time", SimpleNamespace(monotonic=itertools.count(100).__next__))
    monkeypatch.setattr(install, "TICK_S", 60)


@pytest.mark.usefixtures("a_second_per_line")
def test_a_file_gets_a_line_at_the_start_and_one_at_the_end():
    stream = io.StringIO()

    assert install.install("PyTorch", pip_that(PIP), stream) == 0

    assert stream.getvalue() == "Installing PyTorch: 1 s, finding torch\nInstalled PyTorch in 4 s\n"


@pytest.mark.usefixtures("a_second_per_line")
def test_a_terminal_shows_the_current_step_on_one_line():
    with pseudo_terminal(40) as pty:
        install.install("PyTorch", pip_that(PIP), pty.stream)

    shown = [text.removesuffix("\r") for text in pty.raw.split("\r\x1b[2K") if text.strip()]
    assert shown == [
        "Installing PyTorch: 1 s, finding torch",
        "Installing PyTorch: 2 s, downloading",
        "Installing PyTorch: 3 s, installing",
        "Installed PyTorch in 4 s\n",
    ]


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("Downloading https://host/torch-2.9-cp311.whl (184.5 MB)", "downloading torch (184.5 MB)"),
        ("Downloading numpy-2.0.whl.metadata", "downloading numpy"),
        ("Preparing editable metadata (pyproject.toml): finished with status 'done'", "preparing the build"),
        ("Building editable for tgis (pyproject.toml): started", "building tgis"),
        ("Installing collected packages: mpmath, typing-extensions, torch", "installing 3 packages"),
        ("Requirement already satisfied: x", ""),
    ],
)
def test_a_step_of_pip_is_a_few_words(line: str, step: str):
    assert install.describe_step(line) == step


def test_an_environment_is_made_and_its_python_named(tmp_path: Path):
    stream = io.StringIO()
    folder = tmp_path / "env"

    assert install.create(str(folder), stream) == 0

    assert (folder / "bin" / "python").exists()
    assert stream.getvalue().splitlines()[-1].startswith(f"Created {folder} with Python 3.")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "WARNING: Retrying after NewConnectionError: Temporary failure in name resolution\nERROR: No matching",
            "PyTorch cannot be installed: the package index cannot be reached. Check the network and its proxy "
            "(HTTPS_PROXY), or name a mirror with PIP_INDEX_URL.\n",
        ),
        ("ERROR: No space left on device\n", "PyTorch cannot be installed: the disk is full. Free some gigabytes;"),
        ("Collecting x\nERROR: odd\n", "PyTorch cannot be installed: pip says:\n  ERROR: odd\n"),
    ],
)
def test_a_failure_is_explained_in_a_sentence_or_with_pips_own_words(output: str, sentence: str):
    stream = io.StringIO()

    assert install.install("PyTorch", pip_that(output, 1), stream) == 1

    assert sentence in stream.getvalue()
