"""The commented config file of `tgis config init`: it changes nothing until someone edits it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tgis_cli.decide.config_file import EXAMPLES, make_config_text, write_config_file
from tgis_server.errors import UsageError
from tgis_server.options import load_config, options, parse_value


def make_text(**flags: Any) -> str:
    return make_config_text(load_config(flags, {}), "tgis.toml")


def load_text(text: str, directory: Path):
    file = directory / "tgis.toml"
    file.write_text(text)
    return load_config({}, {}, file)


def uncomment(text: str) -> str:
    return re.sub(r"^#(?=[a-z0-9-]+ = )", "", text, flags=re.MULTILINE)


def test_the_file_as_written_changes_no_value(tmp_path: Path):
    assert load_text(make_text(), tmp_path) == load_config({}, {})


def test_every_option_is_in_the_file_once_with_its_meaning_and_variable():
    text = make_text()

    names = [name.replace("-", "_") for name in re.findall(r"^#([a-z0-9-]+) = ", text, re.MULTILINE)]
    assert sorted(names) == sorted(option.name for option in options())
    flowing = re.sub(r"\n# ", " ", text)
    assert [option.name for option in options() if option.opt.help not in flowing] == []
    assert [option.name for option in options() if f"Environment: {option.env}." not in flowing] == []


def test_the_most_used_options_come_first():
    first_names = re.findall(r"^#([a-z-]+) = ", make_text(), re.MULTILINE)[:3]

    assert first_names == ["model-name", "num-shard", "dtype"]


def test_defaults_shown_in_the_file_are_the_defaults(tmp_path: Path):
    lines = uncomment(make_text()).splitlines()
    without_examples = "\n".join(line for line in lines if not line.endswith("# example"))

    assert load_text(without_examples, tmp_path).config == load_config({}, {}).config
    assert "max-request-bytes = " in without_examples


@pytest.mark.parametrize("option", [one for one in options() if one.default is None], ids=lambda one: one.name)
def test_the_example_of_an_option_without_a_default_is_accepted(option):
    table = tomllib.loads(uncomment(make_text()))

    assert table[option.name.replace("_", "-")] == EXAMPLES[option.name]
    parse_value(option, EXAMPLES[option.name], "example")


def test_no_line_is_longer_than_a_terminal():
    assert [line for line in make_text().splitlines() if len(line) > 80] == []


def test_options_that_are_given_are_set_in_the_file_and_their_defaults_are_told(tmp_path: Path):
    flags = {"num_shard": "2", "grpc_port": "9000", "kv_cache_memory": "1.5GiB", "dtype": "bf16", "prefix_cache": False}
    flags["model_name"] = 'a "quoted" \\ model \x7f é'

    text = make_text(**flags)

    loaded = load_text(text, tmp_path)
    assert loaded.config == load_config(flags, {}).config
    assert {name for name, origin in loaded.origins.items() if origin != "default"} == set(flags)
    assert 'kv-cache-memory = "1536MiB"' in text
    assert "Default: 8033." in text


def test_credentials_are_not_written():
    with pytest.raises(UsageError, match=r"--otlp-endpoint contains credentials: .* give it in OTLP_ENDPOINT\."):
        make_text(otlp_endpoint="http://user:word@collector:4317")


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path):
    file = tmp_path / "tgis.toml"
    file.write_text("port = 1\n")

    with pytest.raises(UsageError, match=r"tgis\.toml exists: give another name, or replace it with --force\."):
        write_config_file(str(file), load_config({}, {}), replace=False)
    assert file.read_text() == "port = 1\n"

    write_config_file(str(file), load_config({}, {}), replace=True)
    assert file.read_text() == make_config_text(load_config({}, {}), str(file))


def test_a_hyphen_stands_for_stdout(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    write_config_file("-", load_config({}, {}), replace=False)

    assert capsys.readouterr().out == make_text()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"missing/tgis\.toml cannot be written: No such file or directory\."):
        write_config_file(str(tmp_path / "missing" / "tgis.toml"), load_config({}, {}), replace=False)


def test_rows_of_the_example_table_belong_to_options_without_a_default():
    undefaulted = {option.name for option in options() if option.default is None}

    assert set(EXAMPLES) == undefaulted
