"""Output for people never controls their terminal, whatever names it contains."""

from __future__ import annotations

import io
import sys

import pytest

from tgis_cli.decide.config_file import make_config_text
from tgis_cli.terminal.sentences import print_sentence
from tgis_cli.terminal.tables import make_table, open_console, print_tables
from tgis_server.options import load_config
from tgis_server.words.layout import lay_out, wrap

NAME, SHOWN = "m/e\x1b[31ms\x9b1m", r"m/e\u001b[31ms\u009b1m"


def test_in_sentences(capsys: pytest.CaptureFixture[str]):
    print_sentence(f"Stopped {NAME}.", sys.stdout)

    assert capsys.readouterr().out == f"Stopped {SHOWN}.\n"
    assert wrap(NAME, None) == [SHOWN]
    assert lay_out([(NAME, "a"), ("b", "c")]) == [[f"  {SHOWN}  a"], [f"  b{' ' * len(SHOWN)} c"]]


def test_in_tables_where_square_brackets_mean_nothing_else():
    stream = io.StringIO()
    table = make_table()
    table.add_column(NAME)
    table.add_row(f"{NAME} [bold] :smile:")

    print_tables([table], stream)
    open_console(stream).print(NAME)

    assert stream.getvalue() == f"{SHOWN}\n{SHOWN} [bold] :smile:\n{SHOWN}\n"


def test_in_config_files_that_can_be_read_again():
    text = make_config_text(load_config({"model_name": NAME}, {}, None), f"{NAME}.toml")

    assert f'model-name = "{SHOWN}"' in text
    assert f"--config {SHOWN}.toml" in text
    assert text.replace("\n", "").isprintable()
