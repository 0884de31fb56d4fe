"""`tgis generate` without the framework: the same values for the same line, or none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import typer

from imports import run_and_list_imports
from tgis_cli.clients import quick_line
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.parameter_table import PARAMETERS
from tgis_cli.clients.parameters import Parameters
from tgis_cli.commands import generate as command_module
from tgis_cli.terminal.exits import errors_as_exit_codes

Seen = tuple[Connection, Parameters, dict[str, Any]]
DEFAULTS = {
    "text": [],
    "json_": False,
    "wait": False,
    "wait_timeout": None,
    "verbose": False,
    "file": None,
    "parallel": 8,
    "num_answers": 1,
}
PARAMETERS_LINE = (
    "--max-new-tokens 5 --min-new-tokens=2 --stop a --stop=b=c --no-include-stop-sequence --time-limit 2.5 "
    "--truncate-input-tokens 3 --temperature 0.5 --top-k 4 --top-p .5 --typical-p 0.25 --seed 7 --repetition-penalty 2 "
    "--length-penalty 1.5 --length-penalty-start 6 --logprobs --top-n 2 --input-tokens"
)


class Recorder:
    """Stands in for the function that both parsers call."""

    def __init__(self) -> None:
        self.seen: Seen | None = None

    def __call__(self, connection: Connection, parameters: Parameters, **values: Any) -> int:
        self.seen = (connection, parameters, DEFAULTS | values | {"text": list(values.get("text", ()))})
        return 0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    for module, name in ((quick_line, "generate"), (command_module, "complete")):
        monkeypatch.setattr(module, name, recorder)
        monkeypatch.setattr(module, "leave", lambda exit_code: None)
    return recorder


def read_with_framework(recorder: Recorder, line: list[str]) -> Seen | None:
    recorder.seen = None
    command = typer.main.get_command(command_module.app)
    with suppress(SystemExit), errors_as_exit_codes(debug=False):
        command.main(list(line), prog_name="generate", standalone_mode=False)
    return recorder.seen


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Once upon a time",
        "a -v --json -- --stop -n",
        "- --wait --verbose",
        "5 pigs --wait",
        "-n 3 --parallel 4 --file x.jsonl",
        "--url h:1 --ca a --cert b --key c --tls-server-name d x",
        f"x {PARAMETERS_LINE}",
        "--url a --url b --top-k 1 --top-k 2 x",
    ],
)
def test_a_line_means_the_same_with_and_without_the_framework(recorder: Recorder, line: str):
    words = line.split()
    expected = read_with_framework(recorder, words)
    assert expected is not None

    recorder.seen = None
    quick_line.run_quickly(words)

    assert recorder.seen == expected


@pytest.mark.parametrize(
    "line",
    [
        "-n=3 x",
        "--wait-timeout 5 x",
        "--wait 5 x",
        "-n 0",
        "-n x",
        "--parallel 5000",
        "--file",
        "--json=x",
        "--nope",
        "--help",
        "-vn 2",
    ],
)
def test_a_line_that_is_not_plainly_correct_is_left_to_the_framework(recorder: Recorder, line: str):
    quick_line.run_quickly(line.split())

    assert recorder.seen is None


def test_a_value_out_of_range_is_the_same_error_with_and_without_the_framework(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
):
    words = ["x", "--include-stop-sequence", "--top-k", "-1"]
    assert read_with_framework(recorder, words) is None
    expected = capsys.readouterr().err

    with pytest.raises(SystemExit) as ended:
        quick_line.run_quickly(words)

    assert (ended.value.code, capsys.readouterr().err) == (2, expected)
    assert expected.startswith("tgis: --top-k is -1, ")


def test_all_options_are_known_except_those_that_are_left_to_the_framework():
    command = typer.main.get_command(command_module.app)

    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    known = {*quick_line.WITH_VALUE, *quick_line.SWITCHES}
    assert {flag for flag in flags if flag[0] == "-"} - known == {"--wait-timeout"}
    assert known - flags == set()


def test_the_example_line_has_every_parameter():
    values = quick_line.read_line(PARAMETERS_LINE.split())

    assert values is not None
    assert values.keys() == PARAMETERS.keys()


def test_a_plain_line_imports_no_framework():
    exit_code, imported = run_and_list_imports("generate", "x", "--url", "nonsense")

    assert exit_code == 2
    assert imported.isdisjoint({"typer", "rich", "ssl", "http.client"})
