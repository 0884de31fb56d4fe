"""Where results are written."""

from __future__ import annotations

import os
import select
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
    printed = capsys.readouterr()
    assert "8 streams" in printed.out
    assert printed.err == f"Written: {tmp_path}/r.json, {tmp_path}/r.csv.\n"


def test_an_output_that_cannot_be_written_loses_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    outputs = Outputs(json="/dev/full", csv=str(tmp_path / "none" / "r.csv"), html=str(tmp_path / "r.html"))

    with pytest.raises(UsageError) as failure:
        outputs.write(make_result(), {})

    assert str(failure.value) == (
        "--json /dev/full cannot be written: No space left on device. "
        f"--csv {tmp_path}/none/r.csv cannot be written: No such file or directory."
    )
    assert "8 streams" in capsys.readouterr().out
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_what_goes_to_stdout_replaces_the_table(capsys: pytest.CaptureFixture[str]):
    Outputs(csv="-").write(make_result(), {})

    assert capsys.readouterr().out.startswith("group,name,unit")


def test_a_file_that_cannot_be_written_is_found_before_the_run(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--html .*/none/r.html cannot be written: No such file or directory"):
        Outputs(html=str(tmp_path / "none" / "r.html")).check({})


def test_the_check_leaves_no_file_and_keeps_one_that_is_there(tmp_path: Path):
    (tmp_path / "old.json").write_text("old")

    Outputs(json=str(tmp_path / "old.json"), csv=str(tmp_path / "new.csv")).check({})

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "old")]


def test_a_command_without_a_result_refuses_files():
    Outputs().refuse("--profile prints a list")
    with pytest.raises(UsageError, match=r"^--profile prints a list: leave --json and --csv out\.$"):
        Outputs(json="r.json", csv="-").refuse("--profile prints a list")


def test_the_check_leaves_a_link_that_leads_nowhere(tmp_path: Path):
    (tmp_path / "link.json").symlink_to(tmp_path / "new.json")

    Outputs(json=str(tmp_path / "link.json")).check({})

    assert [path.name for path in tmp_path.iterdir()] == ["link.json"]


def test_the_check_does_not_open_a_pipe_as_its_reader_would_see_the_end(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    watch = select.poll()
    watch.register(reader)

    Outputs(json=str(tmp_path / "pipe")).check({})

    assert watch.poll(0) == []  # a writer that came and went would be a hang-up
    os.close(reader)


@pytest.mark.parametrize("other", ["r.out", "./r.out", "link.out", "-"])
@pytest.mark.parametrize("is_there", [False, True])
def test_two_results_cannot_go_to_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str, *, is_there: bool
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.out").symlink_to("r.out")
    if is_there:
        (tmp_path / "r.out").touch()

    with pytest.raises(UsageError, match="--json and --csv would both write to"):
        Outputs(json="-" if other == "-" else "r.out", csv=other).check({})


def test_a_result_cannot_replace_the_prompts(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text("{}")
    (tmp_path / "same.json").hardlink_to(tmp_path / "prompts.jsonl")

    with pytest.raises(UsageError, match="--json would replace the file of --prompts"):
        Outputs(json=str(tmp_path / "same.json")).check({"--prompts": str(tmp_path / "prompts.jsonl")})


def test_an_empty_name_is_refused_as_such():
    with pytest.raises(UsageError, match="--json is empty: give the name of a file"):
        Outputs(json="").check({})
