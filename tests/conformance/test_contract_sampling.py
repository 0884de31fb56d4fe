"""What each parameter does to the choice of tokens. Numbers are compared with transformers in test_contract_oracle."""

from __future__ import annotations

from typing import Any

import pytest

from contract_api import WAYS, Api, exactly, pieces, reason, row, together
from contract_script import TIES
from contract_servers import ONE_SERVER
from tgis_server.wire import generation_pb2 as pb

ASKED_OF = ONE_SERVER

PROMPT = "One sunny day"
SIX = exactly(6)
HOT = {"temperature": 100.0}  # nearly every token has a chance, so equal outputs are no accident


@pytest.fixture(scope="module")
def greedy(api: Api) -> Any:
    return api.answer(PROMPT, generated_tokens=True, **SIX)


@pytest.fixture(scope="module")
def seeded(api: Api) -> Any:
    """A hot answer with seed 42."""
    return api.answer(PROMPT, seed=42, generated_tokens=True, **HOT, **SIX)


# Greedy decoding by other names


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"temperature": 0.0}, id="sampling-temperature-zero"),
        pytest.param({"temperature": 0.0, "seed": 9, "top_k": 5, "top_p": 0.3}, id="sampling-temperature-zero-wins"),
        pytest.param({"method": pb.GREEDY, "seed": 9, "temperature": 2.0}, id="sampling-method-greedy"),
        pytest.param({"repetition_penalty": 1.0}, id="sampling-repetition_penalty-one"),
        pytest.param({"length_penalty": (0, 1.0)}, id="sampling-length_penalty-one"),
    ],
)
def test_this_is_plain_greedy_decoding(api: Api, greedy: Any, fields: dict[str, Any]) -> None:
    assert api.answer(PROMPT, generated_tokens=True, **fields, **SIX) == greedy


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"top_k": 1}, id="sampling-top_k-one"),
        pytest.param({"top_k": 1, "temperature": 50.0}, id="sampling-top_k-one-hot"),
        pytest.param({"top_p": 1e-6}, id="sampling-top_p-tiny"),
    ],
)
def test_where_only_the_best_token_is_left_it_is_certain(api: Api, greedy: Any, fields: dict[str, Any]) -> None:
    asked = {"generated_tokens": True, "token_logprobs": True, "token_ranks": True, "seed": 5, **SIX}

    answer = api.answer(PROMPT, **asked, **fields)

    assert answer.text == greedy.text
    assert list(answer.tokens) == [pb.TokenInfo(text=text, rank=1) for text in pieces(greedy)]


@row("sampling-temperature-lowest-is-nearly-greedy")
def test_the_lowest_temperature_prefers_the_best_token(recital: Api) -> None:
    assert recital.answer("A", temperature=0.05, seed=1).text == recital.answer("A").text


# Parameters that are off


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"top_k": 0}, id="sampling-off-top_k-zero"),
        pytest.param({"top_k": 2**31 - 1}, id="sampling-off-top_k-above-the-vocabulary"),
        pytest.param({"top_p": 0.0}, id="sampling-off-top_p-zero"),
        pytest.param({"top_p": 1.0}, id="sampling-off-top_p-one"),
        pytest.param({"typical_p": 0.0}, id="sampling-off-typical_p-zero"),
        pytest.param({"typical_p": 1.0}, id="sampling-off-typical_p-one"),
        pytest.param({"typical_p": -1.0}, id="sampling-off-typical_p-negative"),
        pytest.param({"repetition_penalty": 0.0}, id="sampling-off-repetition_penalty-zero"),
        pytest.param({"repetition_penalty": 1.0}, id="sampling-off-repetition_penalty-one"),
    ],
)
def test_this_value_switches_the_parameter_off(api: Api, seeded: Any, fields: dict[str, Any]) -> None:
    assert api.answer(PROMPT, seed=42, generated_tokens=True, **HOT, **fields, **SIX) == seeded


@row("sampling-temperature-absent-is-one")
def test_an_absent_temperature_is_one(api: Api) -> None:
    answers = [api.answer(PROMPT, seed=7, **fields, **SIX) for fields in ({}, {"temperature": 1.0})]

    assert answers[0] == answers[1]


@row("sampling-without-parameters")
def test_the_method_sample_alone_samples_with_a_drawn_seed(api: Api) -> None:
    assert api.answer(PROMPT, method=pb.SAMPLE, **SIX).seed > 0


@row("sampling-top_k-above-the-vocabulary-in-a-batch")
def test_a_huge_top_k_harms_no_neighbour(api: Api, greedy: Any) -> None:
    sampled, plain = together(
        lambda: api.answer(PROMPT, top_k=2**31 - 1, seed=1, **SIX),
        lambda: api.answer(PROMPT, generated_tokens=True, **SIX),
    )

    assert sampled.generated_token_count == 6
    assert plain == greedy


# Seeds


@pytest.mark.parametrize("way", WAYS)
@row("seed-same-tokens")
def test_a_seed_gives_the_same_tokens_however_it_is_asked_for(api: Api, seeded: Any, way: str) -> None:
    assert api.answer(PROMPT, way, seed=42, generated_tokens=True, **HOT, **SIX) == seeded


@row("seed-neighbours")
def test_neighbours_do_not_change_what_a_seed_gives(api: Api, seeded: Any) -> None:
    others = [lambda n=n: api.answer("Hello", seed=n, **HOT, **SIX) for n in range(5)]

    *_, answer = together(*others, lambda: api.answer(PROMPT, seed=42, generated_tokens=True, **HOT, **SIX))

    assert answer == seeded


@row("seed-differs")
def test_different_seeds_give_different_tokens(api: Api) -> None:
    answers = together(*[lambda n=n: api.answer(PROMPT, seed=n, **HOT, **SIX) for n in range(6)])

    assert len({answer.text for answer in answers}) == 6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, id=f"seed-echo-{seed}") for seed in (0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1)]
)
def test_a_seed_of_up_to_64_bits_is_returned(api: Api, way: str, seed: int) -> None:
    assert api.answer(PROMPT, way, seed=seed, **exactly(1)).seed == seed


@row("seed-high-bits-count")
def test_seeds_that_differ_only_in_high_bits_give_different_tokens(api: Api) -> None:
    answers = [api.answer(PROMPT, seed=seed, **HOT, **SIX) for seed in (5, 5 + 2**32, 5 + 2**63)]

    assert len({answer.text for answer in answers}) == 3


@row("seed-shared-by-a-batch")
def test_every_input_of_a_batch_uses_and_reports_the_given_seed(api: Api, seeded: Any) -> None:
    answers = api.generate(PROMPT, "Hello", PROMPT, seed=42, generated_tokens=True, **HOT, **SIX)

    assert [answer.seed for answer in answers] == [42] * 3
    assert answers[0] == answers[2] == seeded


@pytest.mark.parametrize("way", WAYS)
@row("seed-drawn-can-be-used-again")
def test_a_drawn_seed_is_reported_and_gives_the_same_answer_again(api: Api, way: str) -> None:
    drawn = api.answer(PROMPT, way, **HOT, **SIX)

    assert api.answer(PROMPT, seed=drawn.seed, **HOT, **SIX) == drawn


@row("seed-drawn-for-each-input")
def test_drawn_seeds_differ_within_a_batch_and_have_32_bits(api: Api) -> None:
    answers = api.generate(*[PROMPT] * 16, method=pb.SAMPLE, **exactly(1))

    seeds = {answer.seed for answer in answers}
    assert len(seeds) == 16
    assert max(seeds) < 2**32
    assert max(seeds) >= 2**24


@row("seed-drawn-for-each-call")
def test_drawn_seeds_differ_between_calls(api: Api) -> None:
    answers = [api.answer(PROMPT, method=pb.SAMPLE, **exactly(1)) for _ in range(3)]

    assert len({answer.seed for answer in answers}) == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="seed-greedy-none"),
        pytest.param({"method": pb.GREEDY, "seed": 5}, id="seed-greedy-given"),
        pytest.param({"temperature": 0.0, "seed": 5}, id="seed-temperature-zero"),
    ],
)
def test_greedy_decoding_has_no_seed(api: Api, way: str, fields: dict[str, Any]) -> None:
    assert api.answer(PROMPT, way, **fields, **exactly(1)).seed == 0


# What is drawn


@row("sampling-top_k-draws-among-k")
def test_top_k_draws_only_from_the_k_best(recital: Api) -> None:
    tied = [piece.decode() for piece in TIES["H"]]
    answers = recital.generate(*["H"] * 60, top_k=6, temperature=1.0, max_new_tokens=1)

    assert {answer.text for answer in answers} == set(tied)


@row("sampling-equal-tokens-are-drawn-equally-often")
def test_equally_likely_tokens_are_drawn_about_equally_often(recital: Api) -> None:
    answers = together(*[lambda: recital.generate(*["G"] * 100, method=pb.SAMPLE, max_new_tokens=1)] * 2)

    heads = [answer.text for batch in answers for answer in batch].count(" heads")
    assert 60 < heads < 140  # five standard deviations


@row("sampling-top_p-keeps-at-least-one")
def test_top_p_below_the_best_probability_leaves_one_token(recital: Api) -> None:
    answers = recital.generate(*["A"] * 5, top_p=0.001, temperature=1.0, max_new_tokens=3)

    assert {answer.text for answer in answers} == {"The old duck"}


@row("sampling-repetition_penalty-avoids-repetition")
def test_a_large_repetition_penalty_prevents_repetition(recital: Api) -> None:
    """Story C repeats three words forever; with the penalty, its fourth token is a different one."""
    plain = recital.answer("C", max_new_tokens=4)
    penalized = recital.answer("C", max_new_tokens=4, repetition_penalty=1000.0)

    assert plain.text == " one two three one"
    assert penalized.text.startswith(" one two three")
    assert not penalized.text.startswith(" one two three one")


@row("sampling-repetition_penalty-sees-the-prompt")
def test_the_repetition_penalty_counts_the_prompt(api: Api) -> None:
    said = pieces(api.answer(PROMPT, generated_tokens=True, **exactly(2)))
    text = api.answer(PROMPT, **exactly(2)).text

    answer = api.answer(f"{PROMPT}{text} {PROMPT}", generated_tokens=True, repetition_penalty=1e9, **exactly(1))

    assert answer.tokens[0].text not in said


@row("sampling-repetition_penalty-below-one-encourages")
def test_a_repetition_penalty_below_one_repeats(api: Api) -> None:
    answer = api.answer("Hello", generated_tokens=True, repetition_penalty=1e-6, **exactly(5))

    assert len(set(pieces(answer))) < 5


@row("sampling-length_penalty-ends-earlier")
def test_a_length_penalty_ends_the_output_earlier(api: Api, prompt: str) -> None:
    answer = api.answer(prompt, length_penalty=(3, 10.0), max_new_tokens=14)

    assert reason(answer) == "EOS_TOKEN"
    assert 5 <= answer.generated_token_count < 14  # the penalty begins with the fifth token


@row("sampling-length_penalty-not-before-its-start")
def test_a_length_penalty_does_nothing_before_its_start(api: Api, prompt: str) -> None:
    fields = {"generated_tokens": True, "max_new_tokens": 10}

    assert api.answer(prompt, length_penalty=(10, 10.0), **fields) == api.answer(prompt, **fields)


@row("sampling-length_penalty-waits-for-min_new_tokens")
def test_min_new_tokens_suspends_the_length_penalty(api: Api, prompt: str) -> None:
    answer = api.answer(prompt, length_penalty=(0, 10.0), min_new_tokens=8, max_new_tokens=14)

    assert (reason(answer), answer.generated_token_count) == ("EOS_TOKEN", 9)


@row("sampling-min_new_tokens-at-least")
def test_min_new_tokens_are_generated_whatever_the_model_wants(recital: Api) -> None:
    answer = recital.answer("F", min_new_tokens=5, max_new_tokens=9)

    assert answer.generated_token_count >= 5
