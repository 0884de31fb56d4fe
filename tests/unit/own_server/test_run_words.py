"""What the words and flags of `tgis run` mean."""

from __future__ import annotations

from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.prompts import read_prompt
from tgis_cli.own_server.launcher import LaunchOptions
from tgis_cli.own_server.words import empty_input_explained, explain_word, make_options, split_words
from tgis_server.errors import UsageError


@pytest.mark.parametrize(
    ("words", "model", "text"),
    [
        ([], None, []),
        (["gpt2"], "gpt2", []),
        (
            ["ibm-granite/granite-3.3-2b-instruct", "Once", "upon"],
            "ibm-granite/granite-3.3-2b-instruct",
            ["Once", "upon"],
        ),
        (["Once upon a time"], None, ["Once upon a time"]),
        (["Once upon", "a time"], None, ["Once upon", "a time"]),
        (["Hello!"], None, ["Hello!"]),
        (["漢字"], None, ["漢字"]),
        (["-"], None, ["-"]),
        (["gpt2", "-"], "gpt2", ["-"]),
        (["./my model"], "./my model", []),
        (["~/my model"], "~/my model", []),
        ([""], "", []),  # an unset variable: the launcher says so
    ],
)
def test_a_first_word_that_can_only_be_a_text_leaves_the_model_out(
    words: list[str], model: str | None, text: list[str]
):
    assert split_words(words[0] if words else None, words[1:]) == (model, text)


def test_a_directory_with_spaces_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my model").mkdir()
    monkeypatch.chdir(tmp_path)

    assert split_words("my model", ["Once"]) == ("my model", ["Once"])


def test_a_length_above_the_servers_limit_raises_the_limit():
    flags = {"dtype": "float32", "rehearse": True, "num_shard": None}

    short = make_options("-x", flags, Path("my.toml"), Parameters(max_new_tokens=9))
    long = make_options(None, flags, None, Parameters(max_new_tokens=2000))

    assert short == LaunchOptions(flags | {"model_name": "-x"}, Path("my.toml"))
    assert long == LaunchOptions(flags | {"model_name": None, "max_new_tokens": "2000"})


def test_a_word_that_is_no_model_may_have_been_meant_as_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models--gpt").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    assert explain_word("Once", ["upon"], "No.") == "No. If Once begins the text, quote the whole text."
    pipe_it = "There is no model Hello; if that is the text, pipe it in: echo Hello | tgis run."
    assert explain_word("Hello", [], "No.") == pipe_it
    assert explain_word("dmeo", [], "No.").startswith("There is no model dmeo; did you mean demo? If that is the text,")
    others = (None, "org/model", "gpt2", "gpt", str(tmp_path))
    assert [explain_word(model, [], "No.") for model in others] == ["No."] * 5


def test_without_a_text_a_word_that_is_no_model_is_said_to_be_taken_as_one(tmp_path: Path):
    with pytest.raises(
        UsageError, match=r"^Standard input is empty, and Hello was taken .*: echo Hello \| tgis run\.$"
    ):
        read_no_text("Hello")

    for model in (None, "org/model", str(tmp_path)):
        with pytest.raises(UsageError, match=r"^Standard input is empty: "):
            read_no_text(model)


def read_no_text(model: str | None) -> None:
    with empty_input_explained(model):
        read_prompt([], TextIOWrapper(BytesIO(b"")))
