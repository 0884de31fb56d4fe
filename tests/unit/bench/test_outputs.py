"""Where results are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgis_cli.bench.report.outputs import Outputs
from tgis_cli.bench.result import Estimate, Figure, Result, read_result
from tgis_server.errors import UsageError


def make_result() -> Result:
    figure = Figure("8 streams", "ttft_p50", "s", "lower", Estimate(0.04, 0.03, 0.05), 100)
    return Result(kind="start", options={}, shape={}, fingerprint={}, figures=[figure])


def test_files_are_written_and_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    outputs = Outputs(json=str(tmp_path / "r.json"), csv=str(tmp_path / "r.csv"))

    outputs.write(make_result(), {})

    assert read_result(tmp_path / "r.json").figures == make_result().figures
    assert (tmp_path / "r.csv").read_text().startswith("group,name,unit")
    assert "8 streams" in capsys.readouterr().out


def test_what_goes_to_stdout_replaces_the_table(capsys: pytest.CaptureFixture[str]):
    Outputs(csv="-").write(make_result(), {})

    assert capsys.readouterr().out.startswith("group,name,unit")


def test_a_file_that_cannot_be_written_is_found_before_the_run(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--html .*/none/r.html cannot be written: No such file or directory"):
        Outputs(html=str(tmp_path / "none" / "r.html")).check()


def test_the_check_leaves_no_file_and_keeps_one_that_is_there(tmp_path: Path):
    (tmp_path / "old.json").write_text("old")

    Outputs(json=str(tmp_path / "old.json"), csv=str(tmp_path / "new.csv")).check()

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "old")]


def test_a_command_without_a_result_refuses_files():
    Outputs().refuse("--profile prints a list")
    with pytest.raises(UsageError, match=r"^--profile prints a list: leave --json and --csv out\.$"):
        Outputs(json="r.json", csv="-").refuse("--profile prints a list")


@pytest.mark.parametrize("place", ["-", "r.out"])
def test_two_results_cannot_go_to_one_place(place: str):
    with pytest.raises(UsageError, match="--json and --csv would both write to"):
        Outputs(json=place, csv=place).check()
