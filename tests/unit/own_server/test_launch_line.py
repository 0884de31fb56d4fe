"""Command lines of `tgis launch` in one text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgis_cli.own_server.launch_line import read_launch_line
from tgis_server.errors import UsageError


def read(line: str) -> dict[str, object]:
    """The flags that are given."""
    return {name: value for name, value in read_launch_line(line, "--launch").flags.items() if value is not None}


def test_a_model_and_options_are_those_of_a_launch():
    assert read("org/model --num-shard 2 --rehearse") == {"model_name": "org/model", "num_shard": "2", "rehearse": True}


def test_an_empty_line_is_the_demo_model():
    assert read("") == {}


def test_a_whole_command_may_be_pasted():
    assert read("tgis launch demo") == {"model_name": "demo"}


def test_quoted_words_stay_together_and_a_config_file_is_read():
    options = read_launch_line("'./my model' --config tgis.toml", "--launch")

    assert (options.flags["model_name"], options.config_file) == ("./my model", Path("tgis.toml"))


def test_a_quote_that_is_not_closed_is_refused():
    with pytest.raises(UsageError, match="cannot be split into words: no closing quotation"):
        read("'org/model")


def test_addresses_are_not_for_the_line_to_set():
    with pytest.raises(UsageError, match=r"--a has --host, --port, which `tgis bench` sets itself"):
        read_launch_line("demo --port 3000 --host 0.0.0.0", "--a")


def test_a_misspelt_option_is_named():
    with pytest.raises(UsageError, match="--num-shard"):
        read("demo --num-shards 2")
