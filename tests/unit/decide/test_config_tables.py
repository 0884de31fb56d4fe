"""`tgis config show` as text."""

from __future__ import annotations

import pytest

from test_resolve import resolve_with
from tgis_cli.decide.tables import describe_options
from tgis_server.options import load_config

LOADED = load_config({"port": "1234", "log_file": "/var/log/" + "x" * 40}, {})


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_option_is_cut(width: int):
    lines = list(describe_options(LOADED, resolve_with(), width))

    assert max(map(len, lines)) <= width
    assert [line for line in lines if line.startswith("--") and line.split()[0] not in FLAGS] == []


FLAGS = {line.split()[0] for line in describe_options(LOADED, None) if line.startswith("--")}


def test_a_long_value_pushes_only_its_own_origin_below():
    lines = list(describe_options(LOADED, None, 120))

    (index,) = (number for number, line in enumerate(lines) if line.startswith("--log-file "))
    assert lines[index].endswith("x" * 40)
    assert lines[index + 1].strip() == "flag --log-file"


def test_titles_are_bold_and_defaults_dimmed():
    lines = list(describe_options(LOADED, None, 120, is_colored=True))

    assert lines[0] == "\x1b[1mModel\x1b[0m"
    assert [line[:10] for line in lines if "1234" in line] == ["--port    "]
    assert [line[:8] for line in lines if "--grpc-port" in line] == ["\x1b[2m--gr"]
