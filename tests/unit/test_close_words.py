"""Suggestions: a close word is found however it is misspelt, and a wild guess is never made."""

from __future__ import annotations

import pytest

from tgis_server.words.close_words import count_slips, did_you_mean, find_close, or_list

FLAGS = (
    *("--max-new-tokens", "--min-new-tokens", "--max-batch-size", "--max-sequence-length", "--dtype", "--device"),
    *("--port", "--grpc-port", "--rehearse", "--rehearse-step-ms", "--top-k", "--top-p", "--top-n", "--stop"),
    *("--cert", "--ca", "--key", "--url", "--temperature"),
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--max_new_tokens", ["--max-new-tokens"]),
        ("--maxNewTokens", ["--max-new-tokens"]),
        ("-max-new-tokens", ["--max-new-tokens"]),
        ("--MAX-NEW-TOKENS", ["--max-new-tokens"]),
        ("--max-new-token", ["--max-new-tokens"]),
        ("--rehears", ["--rehearse"]),
        ("--rehearse-step", ["--rehearse-step-ms"]),
        ("--prot", ["--port"]),
        ("--ulr", ["--url"]),
        ("--temp", ["--temperature"]),
        ("--temprature", ["--temperature"]),
        ("--batch-size", ["--max-batch-size"]),
        ("--top", ["--top-k", "--top-p", "--top-n"]),
    ],
)
def test_a_close_word_is_found(typed: str, meant: list[str]) -> None:
    assert find_close(typed, FLAGS) == meant


@pytest.mark.parametrize("typed", ["--nope", "--host", "--x", "--", "", "--m", "--tokens", "--model"])
def test_a_word_that_is_not_close_to_any_finds_none(typed: str) -> None:
    assert find_close(typed, FLAGS) == []


def test_a_short_word_is_not_close_to_one_with_two_other_letters() -> None:
    assert find_close("--port", ["--cert", "--ca"]) == []


@pytest.mark.parametrize(
    ("left", "right", "slips"),
    [("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("", "ab", 2), ("ca", "abc", 3)],
)
def test_slips_are_letters_missing_added_wrong_or_swapped(left: str, right: str, slips: int) -> None:
    assert (count_slips(left, right), count_slips(right, left)) == (slips, slips)


def test_suggestions_are_a_question() -> None:
    assert did_you_mean("redy", ("ready", "live")) == "Did you mean ready?"
    assert did_you_mean("nonsense", ("ready", "live")) == ""
    assert or_list(["a", "b", "c"]) == "a, b or c"
