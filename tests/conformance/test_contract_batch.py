"""Several inputs in one call: order, shared parameters, all or nothing."""

from __future__ import annotations

from contract_api import WAYS, Api, exactly, reason, row, together
from contract_script import STORIES, recited
from contract_servers import ONE_SERVER

ASKED_OF = ONE_SERVER  # test_contract_pressure has batches for the others

TEXTS = ("One sunny day", "Hello", "", "Question: Where does the cat live?", "日本語 🦆", "One sunny day")


@row("batch-order")
def test_answers_come_in_the_order_of_the_inputs(recital: Api) -> None:
    stories = [*STORIES, *reversed(STORIES)]

    answers = recital.generate(*stories, max_new_tokens=9)

    assert [answer.text for answer in answers] == [recited(story, 9) for story in stories]


@row("batch-order-whatever-ends-first")
def test_an_output_that_ends_early_keeps_its_place(recital: Api) -> None:
    answers = recital.generate("C", "F", "A", "F", "C")

    assert [answer.generated_token_count for answer in answers] == [17, 1, 7, 1, 17]
    assert [reason(answer) for answer in answers] == [
        *("TOKEN_LIMIT", "EOS_TOKEN", "EOS_TOKEN", "EOS_TOKEN", "TOKEN_LIMIT")
    ]


@row("batch-same-as-alone")
def test_each_answer_is_the_one_that_the_input_gets_alone(api: Api) -> None:
    fields = {"generated_tokens": True, **exactly(8)}

    answers = api.generate(*TEXTS, **fields)

    assert answers == [api.answer(text, **fields) for text in TEXTS]


@row("batch-of-one")
def test_a_batch_of_one_is_a_batch(api: Api) -> None:
    assert len(api.generate("Hello", **exactly(1))) == 1


@row("batch-equal-inputs")
def test_equal_inputs_get_equal_greedy_answers(api: Api) -> None:
    first, *others = api.generate(*["One sunny day"] * 8, **exactly(6))

    assert others == [first] * 7


@row("batch-large")
def test_more_inputs_than_can_run_together_are_all_answered(api: Api) -> None:
    texts = [f"Question: What is {n} plus {n % 7}?" for n in range(100)]

    answers = api.generate(*texts, **exactly(1))

    assert [answer.generated_token_count for answer in answers] == [1] * 100
    counts = [response.token_count for response in api.tokenize(*texts)]
    assert [answer.input_token_count for answer in answers] == counts


@row("batch-input-text")
def test_each_answer_echoes_its_own_input(api: Api) -> None:
    plain = api.generate(*TEXTS, **exactly(3))
    echoing = api.generate(*TEXTS, input_text=True, **exactly(3))

    assert [answer.text for answer in echoing] == [
        text + answer.text for text, answer in zip(TEXTS, plain, strict=True)
    ]


@row("batch-own-limits")
def test_a_long_input_does_not_shorten_the_others(recital: Api) -> None:
    """The context has 19 tokens: the second input leaves room for four."""
    answers = recital.generate("C", "x" * 13 + "C", "C", max_new_tokens=8)

    assert [(reason(answer), answer.generated_token_count) for answer in answers] == [
        ("MAX_TOKENS", 8),
        ("TOKEN_LIMIT", 4),
        ("MAX_TOKENS", 8),
    ]


@row("batch-stop-sequences-shared")
def test_stop_sequences_apply_to_every_input(recital: Api) -> None:
    answers = recital.generate("A", "C", "D", stop_sequences=["two", "duck", "zzz"], include_stop_sequence=True)

    assert [answer.text for answer in answers] == ["The old duck", " one two", "xabcabcdef"]
    assert [answer.stop_sequence for answer in answers] == ["duck", "two", ""]


@row("batch-all-or-nothing")
def test_one_bad_input_rejects_the_batch(recital: Api) -> None:
    refusal = recital.refusal("A", "C" * 40, "A")

    assert (refusal.code, refusal.text) == (
        "INVALID_ARGUMENT",
        "input tokens (41) plus prefix length (0) must be < 19",
    )


@row("batch-calls-at-once")
def test_calls_of_all_kinds_run_side_by_side(recital: Api) -> None:
    calls = [
        lambda way=way, story=story: recital.answer(story, way, max_new_tokens=9).text
        for story in STORIES
        for way in WAYS
    ]

    assert together(*calls) == [recited(story, 9) for story in STORIES for _ in WAYS]
