"""How tests are run: a tier fails if one of its parts does, and tests that share something expensive share a worker."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from groups import group_of, lacks_marker

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "run_tests.py"
spec = importlib.util.spec_from_file_location("run_tests", SCRIPT)
run_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_tests)

PASSED, FAILED, INTERRUPTED, NONE, KILLED = 0, 1, 2, 5, -9


@pytest.mark.parametrize(
    ("beside_others", "alone", "expected"),
    [
        (PASSED, PASSED, PASSED),
        (FAILED, PASSED, FAILED),
        (PASSED, FAILED, FAILED),
        (PASSED, KILLED, KILLED),
        (NONE, PASSED, PASSED),
        (PASSED, NONE, PASSED),
        (NONE, FAILED, FAILED),
        (NONE, NONE, NONE),
    ],
)
def test_a_tier_fails_when_a_part_does(
    beside_others: int, alone: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([beside_others, alone])
    monkeypatch.setattr(run_tests, "run_pytest", lambda *_: next(codes))

    assert run_tests.run_tier("test", []) == expected
    assert list(codes) == []


def test_an_interrupted_tier_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([INTERRUPTED, PASSED])
    monkeypatch.setattr(run_tests, "run_pytest", lambda *_: next(codes))

    assert run_tests.run_tier("test", []) == INTERRUPTED
    assert list(codes) == [PASSED]


def test_rows_of_the_contract_share_a_worker_by_server() -> None:
    of_demo = {group_of(f"tests/conformance/test_{name}.py::test_x[demo-1-a-row]") for name in ("a", "b")}

    assert len(of_demo) == 1
    assert group_of("tests/conformance/test_a.py::test_x[mistral-2-no-prefix-cache-a-row]") not in of_demo
    assert group_of("tests/conformance/test_a.py::test_x[a-row]") not in of_demo


def test_other_tests_share_a_worker_by_file() -> None:
    assert group_of("tests/unit/test_a.py::test_x[1]") == group_of("tests/unit/test_a.py::test_y")
    assert group_of("tests/unit/test_a.py::test_x") != group_of("tests/unit/test_b.py::test_x")


@pytest.mark.parametrize(
    ("expression", "marks", "is_left_out"),
    [
        ("not acceptance and serial", "@pytest.mark.serial", False),
        ("not acceptance and serial", "@pytest.mark.acceptance", True),
        ("acceptance and serial", "@pytest.mark.serial", True),
        ("acceptance and serial", "pytestmark = [pytest.mark.acceptance, pytest.mark.serial]", False),
        ("acceptance and not serial", "@pytest.mark.acceptance", False),
        ("acceptance or serial", "@pytest.mark.serial", False),
        ("not acceptance and not serial", "", False),
        ("", "", False),
    ],
)
def test_a_file_without_a_marker_that_is_asked_for_is_left_out(
    expression: str, marks: str, *, is_left_out: bool, tmp_path: Path
) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(marks)

    assert lacks_marker(file, expression) == is_left_out


def test_folders_are_searched_for_files_with_a_marker(tmp_path: Path) -> None:
    assert not lacks_marker(tmp_path, "serial")
