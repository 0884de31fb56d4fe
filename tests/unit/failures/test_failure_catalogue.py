"""Every row of the failure catalogue can be provoked, with its sentence and its exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from provocations import VALUES, provoke
from tgis_server.failures import CATALOGUE, Failure


def as_pattern(sentence: str) -> str:
    """A pattern for the sentences of a template."""
    return re.sub(r"\\\{.*?\\\}|\{.*?\}", ".+", re.escape(sentence), flags=re.DOTALL)


@pytest.mark.parametrize("failure", CATALOGUE, ids=lambda failure: failure.name)
def test_each_failure_can_be_provoked_and_reports_its_sentence(
    failure: Failure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence, exit_code = provoke(failure, tmp_path, monkeypatch)

    assert re.fullmatch(as_pattern(failure.sentence), sentence)
    assert VALUES.get(failure, "") in sentence
    assert exit_code == failure.kind.exit_code


def test_names_are_unique_slugs() -> None:
    names = [failure.name for failure in CATALOGUE]

    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names)
    assert len(set(names)) == len(names)


def test_byte_counts_are_shown_as_sizes() -> None:
    failure = Failure("x", "", "{what} has {free_bytes}.", CATALOGUE[0].kind)

    assert str(failure.error(what="It", free_bytes=3 << 29)) == "It has 1.5 GiB."
