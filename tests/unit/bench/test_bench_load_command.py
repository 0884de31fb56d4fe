"""`tgis bench load` as a command: when its result is written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from load_results import make_result
from tgis_cli.bench.load import run, target
from tgis_cli.commands import bench_load
from tgis_cli.terminal.exits import IS_TOLD
from tgis_cli.terminal.stop_signals import Interrupted


def test_ctrl_c_while_its_own_server_stops_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "r.json"

    @contextlib.contextmanager
    def open_target(*_: object) -> Iterator[None]:
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(target, "open_target", open_target)
    monkeypatch.setattr(run, "run_load", lambda *_, **__: make_result(1))

    ended = CliRunner().invoke(bench_load.app, ["--launch", "demo", "--json", str(path)])

    assert isinstance(ended.exception, Interrupted)
    assert getattr(ended.exception, IS_TOLD)
    assert json.loads(path.read_text())["kind"] == "load"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["--launch", "demo --config {}"], "--launch"), (["--prompts", "{}"], "--prompts"), (["--ca", "{}"], "--ca")],
)
def test_a_file_that_is_read_is_not_replaced_by_a_result(tmp_path: Path, arguments: list[str], option: str):
    path = tmp_path / "input"
    path.write_text("")

    ended = CliRunner().invoke(bench_load.app, [*(each.format(path) for each in arguments), "--json", str(path)])

    assert str(ended.exception) == f"--json would replace the file of {option}, {path}: choose another file."
