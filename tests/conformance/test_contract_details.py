"""What an answer says about tokens (pieces, logprobs, ranks, alternatives) in unary calls, streams and batches."""

from __future__ import annotations

import math
from typing import Any

import pytest

from contract_api import WAYS, Api, Frame, asked_of, exactly, pieces, row, without_nan
from contract_script import TIES
from contract_servers import ONE_SERVER, VARIANTS
from tgis_server.wire import generation_pb2 as pb

ASKED_OF = ONE_SERVER

ALL = {"token_logprobs": True, "token_ranks": True, "top_n_tokens": 3}
PROMPT = "One sunny day"
by_way = pytest.mark.parametrize("way", WAYS)


def has_logprob(info: pb.TokenInfo) -> bool:
    return info.logprob != 0.0


def tops(info: pb.TokenInfo) -> list[str]:
    return [top.text for top in info.top_tokens]


# Which details are returned


@by_way
@row("details-none")
def test_tokens_are_not_returned_unless_asked_for(api: Api, way: str) -> None:
    answer = api.answer(PROMPT, way, **exactly(2))

    assert (list(answer.tokens), list(answer.input_tokens)) == ([], [])


@by_way
@row("details-generated-pieces-only")
def test_generated_tokens_alone_are_pieces_without_numbers(api: Api, way: str) -> None:
    answer = api.answer(PROMPT, way, generated_tokens=True, **exactly(4))

    assert [pb.TokenInfo(text=text) for text in pieces(answer)] == list(answer.tokens)
    assert (len(answer.tokens), len(answer.input_tokens)) == (4, 0)


@by_way
@row("details-input-pieces-only")
def test_input_tokens_alone_are_pieces_without_numbers(api: Api, way: str) -> None:
    answer = api.answer(PROMPT, way, input_tokens=True, **exactly(1))

    [tokenized] = api.tokenize(PROMPT, return_tokens=True)
    assert list(answer.input_tokens) == [pb.TokenInfo(text=piece) for piece in tokenized.tokens]
    assert list(answer.tokens) == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({"token_logprobs": True}, (True, False, False), id="details-logprobs-only"),
        pytest.param({"token_ranks": True}, (False, True, False), id="details-ranks-only"),
        pytest.param({"top_n_tokens": 2}, (False, False, True), id="details-top_n-only"),
        pytest.param({"token_logprobs": True, "token_ranks": True}, (True, True, False), id="details-without-top_n"),
        pytest.param(ALL, (True, True, True), id="details-all"),
    ],
)
@pytest.mark.parametrize("where", ["generated_tokens", "input_tokens"])
def test_each_number_comes_only_if_asked_for(
    api: Api, asked: dict[str, Any], expected: tuple[bool, bool, bool], where: str
) -> None:
    answer = api.answer(PROMPT, **{where: True}, **asked, **exactly(3))

    infos = answer.tokens if where == "generated_tokens" else answer.input_tokens[1:]
    found = {(has_logprob(info), info.rank > 0, len(info.top_tokens) > 0) for info in infos}
    assert found == {expected}


@by_way
@row("details-same-every-way")
def test_details_do_not_depend_on_the_kind_of_call(api: Api, way: str) -> None:
    fields = {"generated_tokens": True, "input_tokens": True, **ALL, **exactly(4)}

    answer, alone = api.answer(PROMPT, way, **fields), api.answer(PROMPT, **fields)

    assert pieces(answer) == pieces(alone)
    for one, other in zip([*answer.input_tokens, *answer.tokens], [*alone.input_tokens, *alone.tokens], strict=True):
        assert one.text == other.text
        assert one.rank == other.rank
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4, nan_ok=True)
        assert tops(one) == tops(other)


# Input tokens


@by_way
@row("details-input-first-token-nan")
def test_nothing_predicts_the_first_input_token(api: Api, way: str) -> None:
    answer = api.answer(PROMPT, way, input_tokens=True, **ALL, **exactly(1))

    first, *others = answer.input_tokens
    assert math.isnan(first.logprob)
    assert (first.rank, tops(first)) == (0, [])
    assert all(info.logprob < 0 and info.rank >= 1 and len(tops(info)) >= 3 for info in others)


@row("details-input-first-token-without-logprobs")
def test_the_first_input_token_has_no_nan_if_logprobs_are_not_asked_for(api: Api) -> None:
    answer = api.answer(PROMPT, input_tokens=True, token_ranks=True, **exactly(1))

    assert (answer.input_tokens[0].logprob, answer.input_tokens[0].rank) == (0.0, 0)


@row("details-input-single-token")
def test_an_input_of_one_token_has_one_detail(api: Api) -> None:
    answer = api.answer("", input_tokens=True, **ALL, **exactly(1))

    assert len(answer.input_tokens) == answer.input_token_count == 1
    assert math.isnan(answer.input_tokens[0].logprob)


@row("details-input-count")
def test_there_is_a_detail_for_each_input_token_that_was_counted(api: Api) -> None:
    answer = api.answer("日本語 🦆 and a girl named Anna", input_tokens=True, **ALL, **exactly(1))

    assert len(answer.input_tokens) == answer.input_token_count


@row("details-input-independent-of-sampling")
def test_input_details_do_not_depend_on_sampling_or_penalties(api: Api) -> None:
    strange = {"temperature": 0.1, "top_k": 2, "seed": 1, "repetition_penalty": 3.0, "length_penalty": (0, 5.0)}
    fields = {"input_tokens": True, **ALL, **exactly(1)}

    plain, other = api.answer(PROMPT, **fields), api.answer(PROMPT, **fields, **strange)

    assert list(without_nan(other).input_tokens) == list(without_nan(plain).input_tokens)


@asked_of(*VARIANTS)
@row("details-input-cached-prefix")
def test_input_details_are_complete_for_an_input_that_was_seen_before(api: Api) -> None:
    text = "There was once a girl who lived in a house near the forest with her mother and her father and a cat"
    fields = {"input_tokens": True, **ALL, **exactly(1)}

    api.generate(text, max_new_tokens=1)
    first, second = (without_nan(api.answer(text, **fields)) for _ in range(2))

    assert list(first.input_tokens) == list(second.input_tokens)
    assert all(info.rank >= 1 for info in first.input_tokens[1:])


# Greedy tokens


@by_way
@row("details-greedy-rank-one")
def test_greedy_tokens_are_the_best_and_lead_their_alternatives(api: Api, way: str) -> None:
    answer = api.answer(PROMPT, way, generated_tokens=True, **ALL, **exactly(5))

    assert [info.rank for info in answer.tokens] == [1] * 5
    assert [info.top_tokens[0].logprob for info in answer.tokens] == [info.logprob for info in answer.tokens]
    assert all(info.text in tops(info) for info in answer.tokens)


@pytest.mark.parametrize("n", [pytest.param(n, id=f"details-top_n-{n}") for n in (1, 2, 5, 10)])
def test_there_are_n_alternatives_and_more_only_where_they_tie(api: Api, n: int) -> None:
    answer = api.answer(
        PROMPT, generated_tokens=True, input_tokens=True, token_logprobs=True, top_n_tokens=n, **exactly(3)
    )

    for info in [*answer.input_tokens[1:], *answer.tokens]:
        logprobs = [top.logprob for top in info.top_tokens]
        assert n <= len(logprobs) <= 4 * n
        assert logprobs == sorted(logprobs, reverse=True)
        assert set(logprobs[n:]) <= {logprobs[n - 1]}
        assert len(set(tops(info))) == len(logprobs)


@row("details-top_n-without-logprobs")
def test_alternatives_without_logprobs_are_the_same_ones_in_the_order_of_the_vocabulary(api: Api) -> None:
    fields = {"generated_tokens": True, "top_n_tokens": 4, **exactly(3)}

    with_logprobs, without = api.answer(PROMPT, token_logprobs=True, **fields), api.answer(PROMPT, **fields)

    assert [set(tops(info)) for info in without.tokens] == [set(tops(info)) for info in with_logprobs.tokens]
    assert all(top.logprob == 0.0 for info in without.tokens for top in info.top_tokens)


@row("details-top_n-without-logprobs-order")
def test_alternatives_without_logprobs_ascend_by_id(api: Api, model_dir: Any) -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(model_dir / "tokenizer.json"))

    answer = api.answer(PROMPT, generated_tokens=True, top_n_tokens=10, **exactly(3))

    for info in answer.tokens:
        ids = [tokenizer.token_to_id(text) for text in tops(info)]
        assert ids == sorted(ids)


@row("details-logprobs-are-normalised")
def test_probabilities_of_all_tokens_that_top_k_leaves_add_up_to_one(api: Api) -> None:
    fields = {"temperature": 2.0, "top_k": 4, "seed": 3, "token_logprobs": True, "top_n_tokens": 10}

    answer = api.answer(PROMPT, generated_tokens=True, **fields, **exactly(4))

    for info in answer.tokens:
        assert len(info.top_tokens) == 4
        assert sum(math.exp(top.logprob) for top in info.top_tokens) == pytest.approx(1.0, abs=1e-4)
        assert info.text in tops(info)


@row("details-top_n-without-the-chosen-token")
def test_a_chosen_token_need_not_be_among_the_alternatives(api: Api) -> None:
    answer = api.answer(
        PROMPT, generated_tokens=True, temperature=1000.0, seed=3, token_ranks=True, top_n_tokens=1, **exactly(6)
    )

    assert any(info.rank > 1 and info.text not in tops(info) for info in answer.tokens)


@row("details-below-min_new_tokens")
def test_the_end_token_is_not_an_alternative_below_min_new_tokens(recital: Api) -> None:
    answer = recital.answer("F", generated_tokens=True, token_ranks=True, top_n_tokens=10, **exactly(2))

    assert all("</s>" not in [info.text, *tops(info)] for info in answer.tokens)
    assert [info.rank for info in answer.tokens] == [1, 1]


# Ties, known by hand: G has two equally likely tokens, and H has six


def first_token(recital: Api, story: str, **fields: Any) -> pb.TokenInfo:
    fields = {"token_logprobs": True, "token_ranks": True, **fields}
    return recital.answer(story, generated_tokens=True, max_new_tokens=1, **fields).tokens[0]


def spelled(story: str) -> list[str]:
    return [piece.decode().replace(" ", "Ġ") for piece in TIES[story]]


@row("details-tie-lowest-id-is-chosen")
def test_greedy_decoding_takes_the_lowest_id_of_equally_likely_tokens(recital: Api) -> None:
    assert [first_token(recital, story).text for story in TIES] == [spelled(story)[0] for story in TIES]


@row("details-tie-rank")
def test_equally_likely_tokens_share_the_best_rank(recital: Api) -> None:
    infos = [first_token(recital, "G", top_k=2, seed=seed) for seed in range(12)]

    assert {info.text for info in infos} == set(spelled("G"))
    assert {info.rank for info in infos} == {1}


@row("details-tie-top_n-1")
def test_a_tie_at_the_border_gives_more_than_n_alternatives(recital: Api) -> None:
    info = first_token(recital, "G", top_n_tokens=1)

    assert tops(info) == spelled("G")
    assert [top.logprob for top in info.top_tokens] == [pytest.approx(-math.log(2), abs=1e-3)] * 2


@row("details-tie-cap")
def test_ties_are_capped_at_four_times_n_with_the_lowest_ids(recital: Api) -> None:
    assert tops(first_token(recital, "H", top_n_tokens=1)) == spelled("H")[:4]


@row("details-tie-below-the-cap")
def test_six_equally_likely_tokens_are_all_given_if_two_are_asked_for(recital: Api) -> None:
    assert tops(first_token(recital, "H", top_n_tokens=2)) == spelled("H")


@row("details-tie-top_k")
def test_top_k_keeps_ties_at_its_border(recital: Api) -> None:
    info = first_token(recital, "G", top_k=1, seed=1, top_n_tokens=5)

    assert tops(info) == spelled("G")
    assert info.logprob == pytest.approx(-math.log(2), abs=1e-6)


@row("details-fewer-than-n")
def test_masked_tokens_are_not_alternatives(recital: Api) -> None:
    info = first_token(recital, "A", top_k=3, temperature=1.0, seed=1, top_n_tokens=8)

    assert len(info.top_tokens) == 3


# Pieces


@by_way
@row("details-raw-pieces")
def test_pieces_are_written_as_in_the_vocabulary_and_not_decoded(recital: Api, way: str) -> None:
    answer = recital.answer("B", way, generated_tokens=True)

    assert pieces(answer) == ["Hi", "Ġ", "ð", "Ł", "¦", "Ĩ", "!", "Ġbye", "</s>"]


@row("details-pieces-of-tokenize")
def test_input_pieces_are_those_of_tokenize(api: Api) -> None:
    text = "日本語 🦆 Žluť\n\tand  spaces"

    answer = api.answer(text, input_tokens=True, **exactly(1))

    assert [info.text for info in answer.input_tokens] == list(api.tokenize(text, return_tokens=True)[0].tokens)


@row("details-pieces-spell-the-text")
def test_generated_pieces_decode_to_the_text(api: Api, model_dir: Any, prompt: str) -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(model_dir / "tokenizer.json"))

    answer = api.answer(prompt, generated_tokens=True, max_new_tokens=14)

    ids = [tokenizer.token_to_id(piece) for piece in pieces(answer)]
    assert tokenizer.decode(ids) == answer.text


@row("details-early-timeout-has-no-details")
def test_the_answer_to_a_request_that_never_ran_has_no_tokens(slow: Api) -> None:
    fields = {"generated_tokens": True, "input_tokens": True, "time_limit_millis": 40, **exactly(5)}

    with slow.running("occupies the only place", **exactly(100)) as frames:
        next(frames), next(frames)
        answer = slow.answer("Hello", **fields)

    assert answer == Frame(input_token_count=6, stop_reason=pb.TIME_LIMIT)
