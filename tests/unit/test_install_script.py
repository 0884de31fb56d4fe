"""What `make` shows while pip installs, and what it says if pip fails."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import pytest

from terminals import pseudo_terminal

spec = importlib.util.spec_from_file_location("install", Path(__file__).parents[2] / "scripts" / "install.py")
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)

PIP = "Collecting torch (from tgis)\n  Downloading torch-2.whl (184.5 MB)\nInstalling collected packages: torch\n"


def pip_that(output: str, exit_code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"import sys; print({output!r}, end=''); sys.exit({exit_code})"]


def test_a_file_gets_a_line_at_the_start_and_one_at_the_end():
    stream = io.StringIO()

    assert install.install("PyTorch", pip_that(PIP), stream) == 0

    assert stream.getvalue() == "Installing PyTorch: 0 s, collecting torch\nInstalled PyTorch in 0 s\n"


def test_a_terminal_shows_the_current_step_on_one_line():
    with pseudo_terminal(40) as pty:
        install.install("PyTorch", pip_that(PIP), pty.stream)

    shown = [text.removesuffix("\r") for text in pty.raw.split("\r\x1b[2K") if text.strip()]
    assert shown == [
        "Installing PyTorch: 0 s, collecting torch"[:39],
        "Installing PyTorch: 0 s, downloading torch-2.whl (184.5 MB)"[:39],
        "Installing PyTorch: 0 s, installing collected packages: torch"[:39],
        "Installed PyTorch in 0 s\n",
    ]


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
