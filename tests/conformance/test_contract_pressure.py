"""Many calls at once change no answer, however inputs are batched, chunked, cached, queued or preempted."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from contract_api import Api, asked_of, exactly, merged, row, together, without_nan
from contract_servers import ONE_SERVER, VARIANTS

if TYPE_CHECKING:
    from contract_oracle import Oracle

ASKED_OF = ("demo-1", "qwen3-2-small-pool", "mistral-1-small-pool")

NAMES = ("Anna", "Ben", "Mia", "Tom", "Nina", "Hugo", "Ivy", "Carl", "Peter", "Robert", "Oliver", "Bella")
TEXTS = [f"{name} went to the forest. One sunny day {name} found a red ball under an old oak, and" for name in NAMES]
DETAILS = {"generated_tokens": True, "input_tokens": True, "token_logprobs": True, "token_ranks": True}
NUM_NEW = 24
SMALL_POOL_BLOCKS = 40


def all_at_once(api: Api, **fields: Any) -> list[Any]:
    """Each text in a call of its own, half of them streams."""
    ways = ["unary", "stream"] * len(TEXTS)
    return together(*[lambda t=text, w=way: api.answer(t, w, **fields) for text, way in zip(TEXTS, ways, strict=False)])


@row("pressure-same-as-alone")
def test_concurrent_calls_get_the_answers_that_they_get_alone(api: Api) -> None:
    fields = {"generated_tokens": True, **exactly(NUM_NEW)}

    answers = all_at_once(api, **fields)

    assert answers[:3] == [api.answer(text, **fields) for text in TEXTS[:3]]


@row("pressure-seeds")
def test_concurrent_calls_draw_the_tokens_that_they_draw_alone(api: Api) -> None:
    fields = {"temperature": 5.0, "seed": 4, "generated_tokens": True, **exactly(NUM_NEW)}

    answers = all_at_once(api, **fields)

    assert answers[:3] == [api.answer(text, **fields) for text in TEXTS[:3]]


@row("pressure-batch-same-as-calls")
def test_a_batch_gets_the_answers_of_single_calls(api: Api) -> None:
    fields = {"generated_tokens": True, **exactly(NUM_NEW)}

    assert api.generate(*TEXTS, **fields) == all_at_once(api, **fields)


@asked_of("qwen3-2-small-pool")
@row("pressure-details-complete")
def test_details_are_complete_for_every_call(api: Api) -> None:
    answers = all_at_once(api, **DETAILS, **exactly(NUM_NEW))

    for answer in answers:
        assert len(answer.tokens) == NUM_NEW
        assert len(answer.input_tokens) == answer.input_token_count
        assert all(info.rank >= 1 for info in [*answer.input_tokens[1:], *answer.tokens])


@asked_of(*VARIANTS)
@row("pressure-oracle")
def test_tokens_and_details_are_those_of_the_oracle_for_every_call(api: Api, oracle: Oracle) -> None:
    from contract_oracle import Processing, assert_details, assert_greedy

    how = Processing(min_new_tokens=NUM_NEW, repetition_penalty=1.2)

    answers = all_at_once(api, **DETAILS, repetition_penalty=1.2, **exactly(NUM_NEW))

    for text, answer in zip(TEXTS, answers, strict=True):
        prompt, ids = oracle.encode(text), oracle.ids(answer.tokens)
        scores = oracle.scores(prompt, ids, how)
        assert_greedy(ids, scores)
        assert_details(answer.tokens, scores, oracle, top_n=0)
        assert_details(answer.input_tokens[1:], oracle.logits(prompt)[:-1], oracle, top_n=0)


@asked_of("qwen3-2-small-pool")
@row("pressure-streams-with-input-frames")
def test_every_stream_has_one_frame_of_input_tokens(api: Api) -> None:
    streams = together(*[lambda t=text: api.stream(t, **DETAILS, **exactly(NUM_NEW)) for text in TEXTS])

    for frames in streams:
        assert [bool(frame.input_tokens) for frame in frames] == [False, True] + [False] * NUM_NEW
        assert [frame.generated_token_count for frame in frames] == [0, 0, *range(1, NUM_NEW + 1)]


@asked_of(*VARIANTS)
@row("pressure-cancelled-neighbours")
def test_neighbours_that_are_cancelled_change_nothing(api: Api) -> None:
    fields = exactly(NUM_NEW)
    alone = api.answer(TEXTS[0], **fields)

    with ExitStack() as stack:
        neighbours = [stack.enter_context(api.running(text, **exactly(60))) for text in TEXTS[1:6]]
        call = api.open_stream(TEXTS[0], **fields)
        for frames in neighbours:
            next(frames)
    answer = merged(list(call))

    assert answer == alone


@asked_of(*ONE_SERVER)
@row("pressure-refused-neighbours")
def test_neighbours_that_are_refused_change_nothing(api: Api) -> None:
    fields = {**DETAILS, **exactly(NUM_NEW)}
    alone = api.answer(TEXTS[0], **fields)

    answer, *_ = together(
        lambda: api.answer(TEXTS[0], **fields),
        *[lambda: api.refusal("Hello", temperature=-1.0)] * 3,
        *[lambda: api.refusal("Hello", adapter_id="nowhere", kind="stream")] * 3,
    )

    assert pieces_and_ranks(without_nan(answer)) == pieces_and_ranks(without_nan(alone))


def pieces_and_ranks(answer: Any) -> list[tuple[str, int]]:
    return [(info.text, info.rank) for info in [*answer.input_tokens, *answer.tokens]]


@asked_of("qwen3-2-small-pool", "mistral-1-small-pool")
@row("pressure-preemption-is-counted")
def test_calls_that_do_not_fit_together_are_preempted_and_still_answered(api: Api) -> None:
    num_blocks = int(api.settled_metrics().get("tgi_kv_blocks_total"))
    if not 0 < num_blocks <= SMALL_POOL_BLOCKS:
        pytest.skip(f"needs a pool of at most {SMALL_POOL_BLOCKS} KV blocks, so that these calls do not fit into it")
    before = api.settled_metrics()

    # Each input needs one block at first and four at the end.
    answers = api.generate(*["Hello"] * num_blocks, **exactly(2 * NUM_NEW))

    assert [answer.generated_token_count for answer in answers] == [2 * NUM_NEW] * num_blocks
    assert api.settled_metrics().since(before).get("tgi_preemption_count") > 0
