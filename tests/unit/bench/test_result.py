"""What is read back from a result file, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tgis_cli.bench.result import Estimate, Figure, Result, read_result
from tgis_server.errors import UsageError

SPEED = Figure("8 streams", "output_tokens_per_s", "tokens/s", "higher", Estimate(100.0, None, 110.0), 7)
NOTHING = Figure("8 streams", "failed_share", "", "lower", Estimate(math.nan))
RESULT = Result(
    kind="load",
    options={"a": 1},
    shape={"b": 2},
    fingerprint={"c": {}},
    figures=[SPEED, NOTHING],
    problems=["It is slow."],
    is_cut=True,
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.json"
    path.write_text(text)
    return path


def change(place: str, value: object) -> str:
    """The result as JSON with another value at a dotted place."""
    facts = json.loads(RESULT.to_json())
    *way, last = place.split(".")
    part = facts
    for name in way:
        part = part[int(name) if isinstance(part, list) else name]
    part[int(last) if isinstance(part, list) else last] = value
    return json.dumps(facts)


def test_a_result_is_read_as_it_was_written_but_for_figures_without_a_value(tmp_path: Path):
    read = read_result(write(tmp_path, RESULT.to_json()))

    assert read.figures == [SPEED]
    assert (read.shape, read.problems, read.is_cut) == (RESULT.shape, RESULT.problems, True)
    assert "failed_share" not in RESULT.to_json()


def test_figures_without_a_value_of_an_earlier_version_are_left_out(tmp_path: Path):
    assert read_result(write(tmp_path, change("figures.0.estimate.value", None))).figures == []


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("version", None, "version is null"),
        ("shape", None, "shape is null"),
        ("fingerprint", None, "fingerprint is null"),
        ("is_cut", 1, "is_cut is int"),
        ("problems", None, "problems is null"),
        ("problems", [5], "problems contains something other than sentences"),
        ("figures", {}, "figures is dict"),
        ("figures.0", "x", "group is not part of an object"),
        ("figures.0.group", ["8 streams"], "group is list"),
        ("figures.0.better", "sideways", "better is 'sideways' in a figure"),
        ("figures.0.count", True, "count is bool"),
        ("figures.0.estimate", {}, "value is missing"),
        ("figures.0.estimate.low", "x", "low is str"),
        ("figures.0.estimate.value", 10**400, "value is not finite"),
    ],
)
def test_a_damaged_result_is_refused_with_the_part(tmp_path: Path, place: str, value: object, reason: str):
    with pytest.raises(UsageError, match=rf"r\.json is damaged: {reason}\.$"):
        read_result(write(tmp_path, change(place, value)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "is damaged: it is nested too deeply"),
        ("{", "is not a result of `tgis bench --json`: it is not JSON"),
        ("[]", "is not a result of `tgis bench --json`"),
        ('{"format": "tgis-bench"}', "is damaged: version is missing"),
        ('{"format": "tgis-bench", "version": 2}', "is in version 2 of the result format"),
        (RESULT.to_json().replace("100.0", "NaN"), "it is not JSON"),
        (RESULT.to_json().replace("100.0", "-Infinity"), "it is not JSON"),
        (RESULT.to_json().replace("100.0", "1e999"), "is damaged: value is not finite"),
    ],
    ids=["deep", "half", "list", "no version", "later version", "NaN", "infinity", "too large"],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str, reason: str):
    with pytest.raises(UsageError) as refusal:
        read_result(write(tmp_path, text))
    assert reason in str(refusal.value)
