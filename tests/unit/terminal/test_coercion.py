"""Values of options without the validators of the framework: the same values and errors, sooner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from imports import run_and_list_imports
from tgis_cli.terminal.coercion import spare_coercion

seen: dict[str, Any] = {}
app = typer.Typer()


@app.command()
def command(
    texts: Annotated[list[str] | None, typer.Argument()] = None,
    name: str = "default",
    number: Annotated[int, typer.Option(min=1)] = 8,
    share: float | None = None,
    file: Path | None = None,
    more: Annotated[list[str] | None, typer.Option()] = None,
    switch: Annotated[bool | None, typer.Option("--switch/--no-switch")] = None,
) -> None:
    seen.update(texts=texts, name=name, number=number, share=share, file=file, more=more, switch=switch)


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    seen.clear()
    return CliRunner().invoke(app, arguments).exit_code, {name: value for name, value in seen.items() if value}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("a", "b"),
        ("--name", "x", "--number", "3", "--share", "0.5", "--file", "f", "--more", "1", "--more", "2", "--switch"),
        ("--no-switch",),
        ("--number", "0"),
        ("--number", "x"),
        ("--share", "x"),
        ("--nope",),
    ],
)
def test_values_and_errors_are_those_of_the_framework(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    parameter_type: Any = typer.core._TyperParameter  # type: ignore[attr-defined]
    monkeypatch.setattr(parameter_type, "process_value", parameter_type.process_value)  # put back in the end
    expected = run(*arguments)

    spare_coercion()

    exit_code, values = run(*arguments)
    assert (exit_code, {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}) == expected


def test_a_command_without_numbers_builds_no_validators():
    exit_code, imported = run_and_list_imports("generate", "x", "--stop", "y", "--url", "nonsense", entry="app")

    assert exit_code == 2
    assert "typer" in imported
    assert "pydantic" not in imported
