"""Tokens, logprobs, ranks and alternatives of the served model are those that transformers computes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from contract_api import WAYS, Api, asked_of, exactly, row, together
from contract_servers import ONE_SERVER

if TYPE_CHECKING:
    from contract_oracle import Oracle

pytest.importorskip("transformers")

from contract_oracle import Processing, assert_details, assert_greedy

TOP_N = 5
ASKED = {"generated_tokens": True, "token_logprobs": True, "token_ranks": True, "top_n_tokens": TOP_N}
STORY = (
    "Once upon a time, there was a kind girl named Anna. She loved to sing. One sunny day, Anna went to the forest. "
    "She found a red ball under an old oak. The ball belonged to Ben, so Anna took it back to him. "
)
PROMPTS = {
    "story": "Once upon a time, there was",
    "question": "Question: Where does the cat live?",
    "empty": "",
    "word": "Hello",
    "unicode": "日本語 🦆 Žluťoučký kůň",
    "newline": "The end.\n\n",
    "sentences": STORY,
}
by_prompt = pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in PROMPTS.items()])


def judge(answer: Any, prompt_ids: list[int], oracle: Oracle, how: Processing) -> None:
    """Check that all details of an answer are right."""
    ids = oracle.ids(answer.tokens)
    assert_details(answer.tokens, oracle.scores(prompt_ids, ids, how), oracle, TOP_N)


# Greedy


@by_prompt
@row("oracle-greedy-tokens")
def test_greedy_tokens_are_the_best_ones(api: Api, oracle: Oracle, text: str) -> None:
    answer = api.answer(text, generated_tokens=True, max_new_tokens=12)

    prompt, ids = oracle.encode(text), oracle.ids(answer.tokens)
    assert answer.input_token_count == len(prompt)
    assert_greedy(ids, oracle.scores(prompt, ids, Processing()))


@asked_of(*ONE_SERVER)
@pytest.mark.parametrize("way", WAYS)
@by_prompt
@row("oracle-generated-details")
def test_details_of_generated_tokens_are_right(api: Api, oracle: Oracle, text: str, way: str) -> None:
    answer = api.answer(text, way, **ASKED, max_new_tokens=4)

    judge(answer, oracle.encode(text), oracle, Processing())


@asked_of(*ONE_SERVER)
@pytest.mark.parametrize("way", WAYS)
@by_prompt
@row("oracle-input-details")
def test_details_of_input_tokens_are_right(api: Api, oracle: Oracle, text: str, way: str) -> None:
    asked = {**ASKED, "generated_tokens": False, "input_tokens": True}

    answer = api.answer(text, way, **asked, **exactly(1))

    ids = oracle.encode(text)
    assert oracle.ids(answer.input_tokens) == ids
    assert_details(answer.input_tokens[1:], oracle.logits(ids)[:-1], oracle, TOP_N)


@asked_of(*ONE_SERVER)
@row("oracle-end-token")
def test_the_output_ends_where_the_model_ends_it(api: Api, oracle: Oracle) -> None:
    text = "Question: Where does the cat live?"

    answer = api.answer(text, generated_tokens=True, max_new_tokens=60)

    prompt, ids = oracle.encode(text), oracle.ids(answer.tokens)
    assert_greedy(ids, oracle.scores(prompt, ids, Processing()))
    assert not set(ids[:-1]) & set(oracle.eos_ids)


# Long inputs


@pytest.fixture(scope="module")
def long_text(api: Api) -> str:
    """A text longer than what a CPU computes in one step, if the context allows it; no block occurs twice."""
    room = api.info.max_sequence_length - 20
    text = "".join(f"{n}. {STORY}" for n in range(20))
    while api.count_tokens(text) > min(room, 900):
        text = text[: len(text) * 9 // 10]
    return text


@row("oracle-long-input")
def test_a_long_input_is_continued_as_a_whole(api: Api, oracle: Oracle, long_text: str) -> None:
    answer = api.answer(long_text, **ASKED, **exactly(3))

    judge(answer, oracle.encode(long_text), oracle, Processing(min_new_tokens=3))


@row("oracle-long-input-details")
def test_details_of_a_long_input_have_no_seams(api: Api, oracle: Oracle, long_text: str) -> None:
    asked = {**ASKED, "generated_tokens": False, "input_tokens": True}

    answer = api.answer(long_text, **asked, **exactly(1))

    ids = oracle.encode(long_text)
    assert oracle.ids(answer.input_tokens) == ids
    assert_details(answer.input_tokens[1:], oracle.logits(ids)[:-1], oracle, TOP_N)


@row("oracle-cached-prefix")
def test_an_input_that_begins_like_an_earlier_one_is_continued_correctly(api: Api, oracle: Oracle) -> None:
    texts = [f"{STORY}{ending}" for ending in ("Ben smiled", "Anna was", "Ben smiled and", "")]

    answers = [api.answer(text, **ASKED, **exactly(3)) for text in texts]

    for text, answer in zip(texts, answers, strict=True):
        judge(answer, oracle.encode(text), oracle, Processing(min_new_tokens=3))


@asked_of(*ONE_SERVER)
@row("oracle-truncated-input")
def test_a_truncated_input_keeps_the_first_token_and_the_last_ones(api: Api, oracle: Oracle) -> None:
    ids = oracle.encode(STORY)

    answer = api.answer(STORY, truncate_input_tokens=12, input_tokens=True, **ASKED, **exactly(4))

    kept = [oracle.encode("")[0], *ids[-11:]]
    assert oracle.ids(answer.input_tokens) == kept
    judge(answer, kept, oracle, Processing(min_new_tokens=4))


# Sampling and penalties

HOWS = {
    "temperature": Processing(temperature=0.7),
    "temperature-high": Processing(temperature=3.0),
    "top_k": Processing(top_k=7, temperature=2.0),
    "top_p": Processing(top_p=0.8, temperature=2.0),
    "top_p-low": Processing(top_p=0.3, temperature=1.5),
    "typical_p": Processing(typical_p=0.6, temperature=2.0),
    "typical_p-low": Processing(typical_p=0.2, temperature=2.0),
    "repetition_penalty": Processing(repetition_penalty=1.7),
    "repetition_penalty-below-one": Processing(repetition_penalty=0.8),
    "length_penalty": Processing(length_penalty=(1, 1.5)),
    "length_penalty-behind-min_new_tokens": Processing(length_penalty=(1, 1.5), min_new_tokens=4),
    "min_new_tokens": Processing(min_new_tokens=6),
    "top_k-then-top_p": Processing(top_k=20, top_p=0.7, temperature=3.0),
    "top_p-then-typical_p": Processing(top_p=0.9, typical_p=0.5, temperature=3.0),
    "everything": Processing(
        min_new_tokens=2,
        length_penalty=(2, 1.2),
        repetition_penalty=1.3,
        temperature=2.0,
        top_k=30,
        top_p=0.95,
        typical_p=0.8,
    ),
}
GREEDY_HOWS = {name: how for name, how in HOWS.items() if "penalty" in name or "min_new" in name}
NUM_NEW = 8


def fields_of(how: Processing) -> dict[str, Any]:
    """What differs from the defaults, as request fields."""
    names = Processing.__dataclass_fields__
    return {name: getattr(how, name) for name in names if getattr(how, name) != getattr(Processing(), name)}


@asked_of(*ONE_SERVER)
@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in (1, 2)])
@pytest.mark.parametrize("how", [pytest.param(how, id=f"oracle-sampled-{name}") for name, how in HOWS.items()])
def test_tokens_are_drawn_from_the_right_scores(api: Api, oracle: Oracle, how: Processing, seed: int) -> None:
    text = "One sunny day, Anna went to"

    answer = api.answer(text, seed=seed, max_new_tokens=NUM_NEW, **ASKED, **fields_of(how))

    judge(answer, oracle.encode(text), oracle, how)


@asked_of(*ONE_SERVER)
@pytest.mark.parametrize("how", [pytest.param(how, id=f"oracle-greedy-{name}") for name, how in GREEDY_HOWS.items()])
def test_penalties_apply_to_greedy_decoding_too(api: Api, oracle: Oracle, how: Processing) -> None:
    text = "One sunny day, Anna went to"
    plain = replace(how, temperature=1.0, top_k=0, top_p=1.0, typical_p=1.0)

    answer = api.answer(text, max_new_tokens=NUM_NEW, **ASKED, **fields_of(plain))

    ids = oracle.ids(answer.tokens)
    assert_greedy(ids, oracle.scores(oracle.encode(text), ids, plain))
    judge(answer, oracle.encode(text), oracle, plain)


@row("oracle-mixed-batch")
def test_requests_with_different_parameters_do_not_disturb_each_other(api: Api, oracle: Oracle) -> None:
    texts = list(PROMPTS.values())
    cases = [(texts[i % len(texts)], how) for i, how in enumerate(HOWS.values())]

    answers = together(
        *[
            lambda text=text, how=how: api.answer(text, seed=3, max_new_tokens=NUM_NEW, **ASKED, **fields_of(how))
            for text, how in cases
        ]
    )

    for (text, how), answer in zip(cases, answers, strict=True):
        judge(answer, oracle.encode(text), oracle, how)
