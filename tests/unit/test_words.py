"""Phrases that are never idiomatic English in this project, wherever they appear."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("*.md", "Makefile", "pyproject.toml", "docs/*.md", "proto/*.proto", "scripts/**/*.py", "tests/**/*.py")
PACKAGES = ("tgis_cli/**/*.py", "server/**/*.py")
FILES = [file for pattern in (*PATTERNS, *PACKAGES) for file in sorted(ROOT.glob(pattern))]
PHRASES = (
    "a file that is none",
    "anew",
    "are no text",
    "as it pleases",
    "as of an unset",
    "behind each other",
    "brought to the disk",
    "by turns",
    "comes about",
    "for the machine's sake",
    "from its begin",
    "further ones",
    "gets to see",
    "gone on with",
    "in drops",
    "in vain",
    "is no message",
    "is no text",
    "launcher's begin",
    "nobody's business",
    "that of which",
    "tell nobody",
    "tells nobody",
    "till",
    "told as",
    "whoever reaches",
)
PATTERN = re.compile(rf"(?<![\w-])(?:{'|'.join(re.escape(phrase) for phrase in PHRASES)})(?![\w-])", re.IGNORECASE)


def list_phrases(text: str) -> list[str]:
    """The phrases in a file, also across lines of a comment or a string."""
    return PATTERN.findall(re.sub(r"[\"']?\s*\n\s*(?:#|//|f?[\"'])?\s*", " ", text))


def is_written_by_people(file: Path) -> bool:
    return not file.stem.endswith(("_pb2", "_pb2_grpc")) and file != Path(__file__).resolve()


@pytest.mark.parametrize("phrase", PHRASES)
def test_every_phrase_is_found_across_lines(phrase):
    assert list_phrases(f'"The file {phrase}, always"') == [phrase]
    assert list_phrases(f"# The file {phrase}, always".replace(" ", "\n    # ")) == [phrase]


def test_no_file_uses_such_a_phrase():
    found = {
        str(file.relative_to(ROOT)): phrases
        for file in filter(is_written_by_people, FILES)
        if (phrases := list_phrases(file.read_text()))
    }
    assert not found, "\n".join(f"{file}: {', '.join(phrases)}" for file, phrases in found.items())
