"""``truncate_input_tokens``: the rightmost tokens are kept, after the token that begins every input."""

from __future__ import annotations

import pytest

from contract_api import KINDS, WAYS, Api, exactly, pieces, row
from contract_servers import ONE_SERVER

ASKED_OF = ONE_SERVER


def input_pieces(api: Api, text: str, **fields: int) -> list[str]:
    return [info.text for info in api.answer(text, input_tokens=True, **exactly(1), **fields).input_tokens]


@pytest.mark.parametrize("way", WAYS)
@row("truncation-count")
def test_the_count_of_a_truncated_input_is_what_was_asked_for(api: Api, way: str) -> None:
    answer = api.answer("a b c d e f g h i j", way, truncate_input_tokens=4, **exactly(1))

    assert answer.input_token_count == 4


@row("truncation-rightmost")
def test_the_rightmost_tokens_are_kept_after_the_first(recital: Api) -> None:
    assert input_pieces(recital, "abcdef", truncate_input_tokens=4) == ["<s>", "d", "e", "f"]


@row("truncation-rightmost-any-model")
def test_the_rightmost_tokens_of_any_tokenizer_are_kept(api: Api) -> None:
    text = "Once upon a time there was a girl"
    whole = input_pieces(api, text)

    kept = input_pieces(api, text, truncate_input_tokens=len(whole) - 2)

    assert kept[1:] == whole[3:]
    begins_with_special = whole[0] == input_pieces(api, "")[0] if api.count_tokens("") else False
    assert kept[0] == (whole[0] if begins_with_special else whole[2])


@row("truncation-to-one")
def test_truncation_to_one_token_keeps_only_the_beginning_of_sequence_token(recital: Api) -> None:
    assert input_pieces(recital, "abcdef", truncate_input_tokens=1) == ["<s>"]


@row("truncation-to-one-output")
def test_an_input_truncated_to_one_token_is_continued_as_if_it_were_empty(recital: Api) -> None:
    assert recital.answer("abcdef", truncate_input_tokens=1).text == "after"


@pytest.mark.parametrize("limit", [pytest.param(n, id=f"truncation-not-needed-{n}") for n in (0, 7, 8, 2**32 - 1)])
def test_an_input_that_is_short_enough_is_not_truncated(recital: Api, limit: int) -> None:
    assert input_pieces(recital, "abcdef", truncate_input_tokens=limit) == ["<s>", "a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize("way", WAYS)
@row("truncation-echo-is-whole")
def test_the_echo_of_a_truncated_input_is_whole(recital: Api, way: str) -> None:
    answer = recital.answer("abcdefA", way, truncate_input_tokens=2, input_text=True, max_new_tokens=2)

    assert (answer.text, answer.input_token_count) == ("abcdefAThe old", 2)


@row("truncation-each-input")
def test_each_input_of_a_batch_is_truncated_separately(recital: Api) -> None:
    answers = recital.generate("abcdefghA", "A", "xxxC", truncate_input_tokens=3, max_new_tokens=1)

    assert [(answer.input_token_count, answer.text) for answer in answers] == [(3, "The"), (2, "The"), (3, " one")]


@row("truncation-output")
def test_the_output_is_that_of_the_kept_tokens(recital: Api) -> None:
    long, short = recital.answer("CCCCCCCCCCCxA", truncate_input_tokens=3), recital.answer("xA")

    assert long == short


@row("truncation-repetition_penalty")
def test_the_repetition_penalty_sees_only_kept_tokens(recital: Api) -> None:
    """What was cut off is not penalized: the token "d" is only in the prompt of the second call."""
    fields = {"generated_tokens": True, "repetition_penalty": 1.5, "token_logprobs": True, "top_n_tokens": 10}

    cut = recital.answer("dddxA", truncate_input_tokens=3, **fields)

    assert cut == recital.answer("xA", **fields)


@pytest.mark.parametrize("kind", KINDS)
@row("truncation-details")
def test_details_of_a_truncated_input_begin_with_its_first_token(recital: Api, kind: str) -> None:
    fields = {"input_tokens": True, "token_ranks": True, "truncate_input_tokens": 3, **exactly(1)}

    answer = recital.answer("abcdef", kind, **fields)

    assert [info.text for info in answer.input_tokens] == ["<s>", "e", "f"]
    assert [info.rank > 0 for info in answer.input_tokens] == [False, True, True]


@row("truncation-pieces")
def test_generated_tokens_follow_the_kept_input(recital: Api) -> None:
    answer = recital.answer("FFFFA", truncate_input_tokens=2, generated_tokens=True, max_new_tokens=2)

    assert pieces(answer) == ["The", "Ġold"]
