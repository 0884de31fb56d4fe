"""A streaming answer, frame by frame, and its agreement with the answer of a unary call."""

from __future__ import annotations

import math
from typing import Any

import pytest

from contract_api import Api, Frame, exactly, merged, reason, row, without_nan
from contract_script import DUCK
from contract_servers import ONE_SERVER
from tgis_server.wire import generation_pb2 as pb

ASKED_OF = ONE_SERVER

MAX_TOKENS, EOS_TOKEN, STOP_SEQUENCE = pb.MAX_TOKENS, pb.EOS_TOKEN, pb.STOP_SEQUENCE


def token(text: str) -> pb.TokenInfo:
    return pb.TokenInfo(text=text)


def text_frames(frames: list[Frame]) -> list[tuple[str, int]]:
    """Text and token count of each frame after the first."""
    return [(frame.text, frame.generated_token_count) for frame in frames[1:]]


# Whole streams, known by hand


@row("stream-frames-plain")
def test_each_token_with_text_has_a_frame_and_the_end_has_the_reason(recital: Api) -> None:
    frames = recital.stream("A", generated_tokens=True)

    assert frames == [
        Frame(input_token_count=2),
        Frame(text="The", generated_token_count=1, tokens=[token("The")]),
        Frame(text=" old", generated_token_count=2, tokens=[token("Ġold")]),
        Frame(text=" duck", generated_token_count=3, tokens=[token("Ġduck")]),
        Frame(text=" swims", generated_token_count=4, tokens=[token("Ġswims")]),
        Frame(text=" home", generated_token_count=5, tokens=[token("Ġhome")]),
        Frame(text=".", generated_token_count=6, tokens=[token(".")]),
        Frame(generated_token_count=7, tokens=[token("</s>")], stop_reason=EOS_TOKEN),
    ]


@row("stream-frames-MAX_TOKENS")
def test_the_last_token_of_a_limited_answer_shares_the_last_frame(recital: Api) -> None:
    frames = recital.stream("A", max_new_tokens=2, generated_tokens=True)

    assert frames == [
        Frame(input_token_count=2),
        Frame(text="The", generated_token_count=1, tokens=[token("The")]),
        Frame(text=" old", generated_token_count=2, tokens=[token("Ġold")], stop_reason=MAX_TOKENS),
    ]


@row("stream-frames-input-text")
def test_the_echo_of_the_input_is_only_in_the_first_frame(recital: Api) -> None:
    frames = recital.stream("once: A", max_new_tokens=1, input_text=True, generated_tokens=True)

    assert frames == [
        Frame(input_token_count=8, text="once: A"),
        Frame(text="The", generated_token_count=1, tokens=[token("The")], stop_reason=MAX_TOKENS),
    ]


@row("stream-frames-input-tokens")
def test_input_tokens_have_a_frame_of_their_own_before_the_output(recital: Api) -> None:
    frames = recital.stream("xA", max_new_tokens=1, input_tokens=True, generated_tokens=True)

    assert frames == [
        Frame(input_token_count=3),
        Frame(input_token_count=3, input_tokens=[token("<s>"), token("x"), token("A")]),
        Frame(text="The", generated_token_count=1, tokens=[token("The")], stop_reason=MAX_TOKENS),
    ]


@row("stream-frames-seed")
def test_the_seed_is_in_the_first_and_the_last_frame(recital: Api) -> None:
    frames = recital.stream("A", max_new_tokens=3, top_k=1, seed=77, generated_tokens=True)

    assert frames == [
        Frame(input_token_count=2, seed=77),
        Frame(text="The", generated_token_count=1, tokens=[token("The")]),
        Frame(text=" old", generated_token_count=2, tokens=[token("Ġold")]),
        Frame(text=" duck", generated_token_count=3, tokens=[token("Ġduck")], stop_reason=MAX_TOKENS, seed=77),
    ]


@row("stream-frames-stop-sequence-excluded")
def test_tokens_keep_their_frames_while_text_is_held_back(recital: Api) -> None:
    frames = recital.stream("A", stop_sequences=["duck swims"], include_stop_sequence=False, generated_tokens=True)

    assert frames == [
        Frame(input_token_count=2),
        Frame(text="The", generated_token_count=1, tokens=[token("The")]),
        Frame(text=" ol", generated_token_count=2, tokens=[token("Ġold")]),
        Frame(text="d ", generated_token_count=3, tokens=[token("Ġduck")]),
        Frame(
            generated_token_count=4,
            tokens=[token("Ġswims")],
            stop_reason=STOP_SEQUENCE,
            stop_sequence="duck swims",
        ),
    ]


@row("stream-frames-stop-sequence-included")
def test_nothing_is_held_back_if_the_stop_sequence_stays(recital: Api) -> None:
    frames = recital.stream("A", stop_sequences=["duck sw"], include_stop_sequence=True, generated_tokens=True)

    assert frames[2:] == [
        Frame(text=" old", generated_token_count=2, tokens=[token("Ġold")]),
        Frame(text=" duck", generated_token_count=3, tokens=[token("Ġduck")]),
        Frame(
            text=" sw",
            generated_token_count=4,
            tokens=[token("Ġswims")],
            stop_reason=STOP_SEQUENCE,
            stop_sequence="duck sw",
        ),
    ]


@row("stream-frames-stop-sequence-not-completed")
def test_text_is_released_when_it_can_no_longer_become_a_stop_sequence(recital: Api) -> None:
    fields = {"stop_sequences": ["duck sinks"], "include_stop_sequence": False, "max_new_tokens": 5}

    frames = recital.stream("A", generated_tokens=True, **fields)

    assert text_frames(frames) == [("The", 1), (" ol", 2), ("d ", 3), ("duck swims", 4), (" home", 5)]


@row("stream-frames-held-back-until-the-limit")
def test_text_held_back_at_the_limit_is_in_the_last_frame(recital: Api) -> None:
    fields = {"stop_sequences": ["old duck swims"], "include_stop_sequence": False, "max_new_tokens": 3}

    frames = recital.stream("A", generated_tokens=True, **fields)

    assert text_frames(frames) == [("The", 1), (" ", 2), ("old duck", 3)]
    assert frames[-1].stop_reason == MAX_TOKENS


@row("stream-frames-ignored-stop-sequence")
def test_a_stop_sequence_that_is_ignored_is_not_held_back(recital: Api) -> None:
    fields = {"stop_sequences": ["duck"], "include_stop_sequence": False, "min_new_tokens": 4, "max_new_tokens": 4}

    frames = recital.stream("A", generated_tokens=True, **fields)

    assert text_frames(frames) == [("The", 1), (" ol", 2), ("d duck", 3), (" swims", 4)]


@row("stream-frames-hold-only-what-may-match")
def test_text_that_does_not_begin_a_stop_sequence_is_not_held_back(recital: Api) -> None:
    fields = {"stop_sequences": ["zebra", "quagga"], "include_stop_sequence": False, "max_new_tokens": 3}

    frames = recital.stream("A", generated_tokens=True, **fields)

    assert text_frames(frames) == [("The", 1), (" old", 2), (" duck", 3)]


@row("stream-frames-emoji-with-tokens")
def test_a_character_comes_with_the_token_that_completes_it(recital: Api) -> None:
    frames = recital.stream("B", max_new_tokens=7, generated_tokens=True)

    assert text_frames(frames) == [("Hi", 1), (" ", 2), ("", 3), ("", 4), ("", 5), (DUCK, 6), ("!", 7)]


@row("stream-frames-emoji-without-tokens")
def test_an_unfinished_character_has_no_frame(recital: Api) -> None:
    frames = recital.stream("B")

    texts, counts = zip(*text_frames(frames), strict=True)
    assert "".join(texts) == f"Hi {DUCK}! bye"
    assert not {3, 4, 5} & set(counts)


@row("stream-frames-special-token-without-tokens")
def test_a_token_without_text_has_no_frame(recital: Api) -> None:
    frames = recital.stream("E")

    assert 2 not in [frame.generated_token_count for frame in frames]
    assert merged(frames).text == "startafter"


@row("stream-frames-empty-output")
def test_an_answer_that_ends_at_once_has_a_last_frame(recital: Api) -> None:
    assert recital.stream("F") == [Frame(input_token_count=2), Frame(generated_token_count=1, stop_reason=EOS_TOKEN)]


@row("stream-frames-broken-character-at-the-end")
def test_bytes_of_an_unfinished_character_are_left_out_of_the_last_frame(recital: Api) -> None:
    frames = recital.stream("B", max_new_tokens=4)

    assert "".join(frame.text for frame in frames) == "Hi "
    assert frames[-1] == Frame(generated_token_count=4, stop_reason=MAX_TOKENS)


# The shape of every stream

SHAPES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy-with-echo": {"input_text": True},
    "sampled": {"seed": 5, "temperature": 0.7},
    "seed-drawn": {"method": pb.SAMPLE},
    "hot": {"seed": 6, "temperature": 50.0},
    "tokens": {"generated_tokens": True},
    "hot-tokens": {"seed": 7, "temperature": 50.0, "generated_tokens": True},
    "inputs": {"input_tokens": True},
    "everything": {
        "generated_tokens": True,
        "input_tokens": True,
        "input_text": True,
        "token_logprobs": True,
        "token_ranks": True,
        "top_n_tokens": 2,
        "seed": 8,
        "temperature": 1.5,
    },
}
by_shape = pytest.mark.parametrize("fields", [pytest.param(value, id=name) for name, value in SHAPES.items()])


@pytest.fixture(scope="module")
def streamed(api: Api) -> Any:
    """Frames of a stream with these fields, ten tokens long; each stream is requested only once."""
    known: dict[str, list[Frame]] = {}

    def get(fields: dict[str, Any]) -> list[Frame]:
        if str(fields) not in known:
            known[str(fields)] = api.stream("One sunny day", **exactly(10), **fields)
        return known[str(fields)]

    return get


@by_shape
@row("stream-first-frame")
def test_the_first_frame_describes_the_input_and_nothing_else(api: Api, streamed: Any, fields: dict[str, Any]) -> None:
    first, *_, last = streamed(fields)

    text = "One sunny day" if fields.get("input_text") else ""
    assert first == Frame(input_token_count=api.count_tokens("One sunny day"), text=text, seed=last.seed)


@by_shape
@row("stream-input-frame")
def test_only_the_second_frame_has_input_tokens_and_only_if_asked_for(streamed: Any, fields: dict[str, Any]) -> None:
    first, *others = streamed(fields)

    with_inputs = [i for i, frame in enumerate(others) if frame.input_tokens]
    assert with_inputs == ([0] if fields.get("input_tokens") else [])
    expected = [first.input_token_count] if with_inputs else []
    assert [frame.input_token_count for frame in others if frame.input_token_count] == expected
    assert all(others[i].text == "" and others[i].generated_token_count == 0 for i in with_inputs)


@by_shape
@row("stream-counts-are-cumulative")
def test_counts_rise_to_the_final_one(streamed: Any, fields: dict[str, Any]) -> None:
    counts = [frame.generated_token_count for frame in streamed(fields) if frame.generated_token_count]

    assert counts == sorted(set(counts))
    assert counts[-1] == 10


@by_shape
@row("stream-only-the-last-frame-ends")
def test_only_the_last_frame_has_a_reason(streamed: Any, fields: dict[str, Any]) -> None:
    *before, last = streamed(fields)

    assert {reason(frame) for frame in before} == {"NOT_FINISHED"}
    assert reason(last) == "MAX_TOKENS"


@by_shape
@row("stream-no-empty-progress")
def test_no_progress_frame_is_empty(streamed: Any, fields: dict[str, Any]) -> None:
    _, *progress, _ = streamed(fields)

    assert all(frame.text or frame.tokens or frame.input_tokens for frame in progress)


@by_shape
@row("stream-tokens-one-per-frame")
def test_each_frame_has_exactly_one_token_if_tokens_are_asked_for(streamed: Any, fields: dict[str, Any]) -> None:
    numbers = [len(frame.tokens) for frame in streamed(fields) if frame.generated_token_count]

    assert set(numbers) == ({1} if fields.get("generated_tokens") else {0})
    assert sum(numbers) == (10 if fields.get("generated_tokens") else 0)


@by_shape
@row("stream-seed-placement")
def test_frames_between_first_and_last_have_no_seed(streamed: Any, fields: dict[str, Any]) -> None:
    first, *between, last = streamed(fields)

    assert {frame.seed for frame in between} <= {0}
    assert first.seed == last.seed == fields.get("seed", last.seed)
    assert bool(last.seed) == ("seed" in fields or fields.get("method") == pb.SAMPLE)


@by_shape
@row("stream-equals-unary")
def test_a_stream_adds_up_to_the_unary_answer(api: Api, streamed: Any, fields: dict[str, Any]) -> None:
    whole = merged(streamed(fields))
    again = {**fields, "seed": whole.seed} if whole.seed else fields  # a seed that was drawn is requested explicitly

    [answer] = api.generate("One sunny day", **exactly(10), **again)

    assert without_nan(whole) == without_nan(answer)


# Text that is hard to stream correctly


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in range(1, 9)])
@row("stream-text-of-random-tokens")
def test_random_tokens_stream_the_text_of_the_unary_call(api: Api, seed: int) -> None:
    """At this temperature most tokens are pieces of words and of characters."""
    fields = {"temperature": 1000.0, "seed": seed, **exactly(24)}

    whole = merged(api.stream("Hello", **fields))

    assert whole == api.answer("Hello", **fields)


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in range(1, 5)])
@row("stream-text-of-random-tokens-with-stop-sequences")
def test_random_tokens_with_stop_sequences_stream_the_text_of_the_unary_call(api: Api, seed: int) -> None:
    fields = {"temperature": 1000.0, "seed": seed, "max_new_tokens": 24, "include_stop_sequence": False}
    stops = ["e", " t", "\ufffd\ufffd", "ing"]

    whole = merged(api.stream("Hello", stop_sequences=stops, **fields))

    assert whole == api.answer("Hello", stop_sequences=stops, **fields)
    assert not any(stop in whole.text for stop in stops)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(" ", id="space"),
        pytest.param("\n\n", id="newlines"),
        pytest.param("日本語 🦆 Žluťoučký", id="unicode"),
        pytest.param("a\x00b\x7f", id="control-characters"),
        pytest.param("</s><s>", id="special-tokens"),
        pytest.param("e\u0301 👩‍👩‍👧", id="joined-characters"),
    ],
)
@row("stream-echo")
def test_any_input_is_echoed_as_it_was_sent(api: Api, text: str) -> None:
    frames = api.stream(text, input_text=True, **exactly(2))

    assert frames[0].text == text
    assert merged(frames) == api.answer(text, input_text=True, **exactly(2))


@row("stream-input-nan")
def test_the_first_input_token_has_no_logprob_in_a_stream(api: Api) -> None:
    frames = api.stream("Hello", input_tokens=True, token_logprobs=True, max_new_tokens=1)

    logprobs = [info.logprob for info in frames[1].input_tokens]
    assert [math.isnan(logprob) for logprob in logprobs] == [True] + [False] * (len(logprobs) - 1)
